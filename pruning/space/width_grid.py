"""The sub-networks of a supernet: a width from a grid for every gate, leading channels kept.

Channels are ordered once, by importance; a width w keeps the w first of a gate's order.
"""

from collections.abc import Collection

import numpy as np
import tensorflow as tf

from ...nets.gates import Gate, Gates
from .limits import lowest_width

LEAST_SHARE = 0.2


def grid(channels: int, steps: int, round_to: int = 1, least: int = 1) -> list[int]:
    """Rising widths of a gate: `steps` shares from 0.2 to 1.0 of its channels, without repetition.

    Args:
        channels: the gate's original width.
        steps: number of shares, at least 2.
        round_to: every width but the original one is a multiple of this, the nearest to its share;
            a gate of fewer channels keeps its width.
        least: filters that must stay; smaller widths are raised to what is possible.

    Returns:
        At least one width; the last one is `channels`, the least is at least `least` and
        `round_to`.
    """
    # 16 channels, 5 steps: 3.2, 6.4, 9.6, 12.8, 16 -> 3, 6, 10, 13, 16; by 8 -> 8, 16
    shares = np.linspace(LEAST_SHARE, 1, steps) * channels
    lowest = lowest_width(channels, least, round_to)
    widths = {max(lowest, int(share / round_to + 0.5) * round_to) for share in shares}
    return sorted({width for width in widths if width < channels} | {channels})


class WidthGrid:
    """The grid of a whole network and the masks of its sub-networks.

    A *choice* is a list of grid numbers, one for every gate: 0 is the narrowest width of its grid.

    Args:
        gates: their order is taken as it is now, and what each must keep.
        steps, round_to: as `grid` takes them.
        frozen: numbers of gates that keep all their channels.

    Attributes:
        grids: rising widths of every gate; the frozen ones have their full width alone.
        sizes: number of grid widths of every gate, int32 [gates].
        free: numbers of the gates that have a choice.
    """

    def __init__(self, gates: Gates, steps: int, round_to: int = 1, frozen: Collection[int] = ()):
        self.grids = [
            [gate.channels]
            if number in frozen
            else grid(gate.channels, steps, round_to, gate.least)
            for number, gate in enumerate(gates)
        ]
        self.sizes = np.array([len(one) for one in self.grids], np.int32)
        self.free = [number for number, size in enumerate(self.sizes) if size > 1]
        # The table's unused places repeat the full width. The unit that always stays is a gate of
        # one channel behind the others.
        longest = max(self.sizes, default=1)
        table = [one + one[-1:] * (longest - len(one)) for one in self.grids]
        self._table = np.array([*table, [1] * longest], np.int32)
        self._rank = np.zeros(gates.num_units + 1, np.int32)
        self._gate = np.full(gates.num_units + 1, len(gates), np.int32)
        for number, gate in enumerate(gates):
            self._rank[gate.units] = gate.order
            self._gate[gate.units] = number

    def full(self) -> np.ndarray:
        """The choice of the whole network, int32 [gates]."""
        return self.sizes - 1

    def widths(self, choice: np.ndarray) -> np.ndarray:
        """Widths of a choice, int32 [gates]."""
        return self._table[np.arange(len(self.sizes)), choice]

    def mask_of_widths(self, widths: np.ndarray) -> np.ndarray:
        """Unit mask, float32 [U + 1], of any widths, int [gates]; they need not lie on the grid."""
        limits = np.append(widths, 1)
        return (self._rank < limits[self._gate]).astype(np.float32)

    def mask(self, choice: np.ndarray) -> np.ndarray:
        """Unit mask of a choice, float32 [U + 1]."""
        return self.mask_of_widths(self.widths(choice))

    # ---------------------------------------------------------------- inside compiled steps

    def random_choice(self, seed: int, step: tf.Tensor, number: int) -> tf.Tensor:
        """Uniform numbers, int32 [gates], a pure function of its arguments on every device.

        Integer arithmetic, because TensorFlow's random numbers differ when they are compiled by
        XLA: a Weyl sequence over the steps, mixed by the last lines of MurmurHash3 (Appleby).

        Args:
            seed: at least 0.
            step: int32 scalar, the training step.
            number: tells several choices of a step apart.
        """
        start = np.random.SeedSequence([seed, number]).generate_state(len(self.sizes))
        x = start.astype(np.int64) + tf.cast(step, tf.int64) * 0x9E3779B9
        for factor, shift in ((0x85EBCA6B, 16), (0xC2B2AE35, 13), (1, 16)):
            x = tf.bitwise.bitwise_and(x, 0xFFFFFFFF)
            x = tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, np.int64(shift))) * factor
        x = tf.bitwise.bitwise_and(x, 0xFFFFFFFF)  # uniform in 0 .. 2^32 - 1
        return tf.cast(tf.bitwise.right_shift(x * self.sizes.astype(np.int64), 32), tf.int32)

    def mask_tensor(self, choice: tf.Tensor) -> tf.Tensor:
        """As `mask`, for a tensor int32 [gates] -> float32 [U + 1]."""
        last = tf.concat([choice, [0]], 0)
        limits = tf.gather(tf.constant(self._table), last, batch_dims=1)
        return tf.cast(self._rank < tf.gather(limits, self._gate), tf.float32)


def narrower(widths: list[int], gate: Gate) -> int | None:
    """The next width of a gate's grid below its current one; None if it has the least already."""
    below = [width for width in widths if width < gate.width]
    return max(below, default=None)
