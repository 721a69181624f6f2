"""Which channels of a functional model must be removed together: ids, ties, frozen ids.

Every tensor of the network carries one id per channel (its last axis). A layer with a kernel gives
its output fresh ids; layers that work channel by channel hand ids on; element-wise merges tie the
ids of their inputs. Tied ids form one unit. An operation without a rule *freezes* the ids it
touches: they are never pruned, and the reason is kept. The rules are in `nets.layer_rules` and
`nets.op_rules`.

Worked example, a residual sum of 2 channels: stem gives ids [0, 1], the block's convolution [2, 3];
Add ties 0-2 and 1-3, so the units are {0, 2} and {1, 3}, and the gate of both layers has 2
channels.
"""

from dataclasses import dataclass

import keras
import numpy as np


class NoRule(Exception):
    """The channels can't be followed through a call; the text goes on after the layer's name."""


@dataclass(frozen=True)
class Site:
    """A call as the rules see it.

    Attributes:
        layer: the layer or `keras.ops` operation that is called.
        inputs: channel ids of every input tensor, int64 [channels] each.
        in_shapes, out_shape: shapes with the batch axis, None where a size is open.
        constants: the arguments that are numbers or arrays.
        arguments: all arguments of the call, positional ones first.
        tensors: the KerasTensors among them, one for each of `inputs`.
    """

    layer: keras.Operation
    inputs: list[np.ndarray]
    in_shapes: list[tuple]
    out_shape: tuple
    constants: list
    arguments: list
    tensors: tuple


class Ids:
    """Channel ids with ties and the blocks in which they were made.

    Ids are the numbers from 0; a block is one `fresh` call. Everything is kept as arrays: a large
    network has a million ids.
    """

    def __init__(self):
        self.block_names: list[str] = []
        self._counts: list[int] = []
        self._ties: list[tuple[np.ndarray, np.ndarray]] = []
        self._frozen: list[tuple[np.ndarray, str]] = []
        self._size = 0

    def fresh(self, count: int, name: str) -> np.ndarray:
        """`count` new ids, int64, made by the layer `name`; "" where they are others' channels."""
        self.block_names.append(name)
        self._counts.append(count)
        self._size += count
        return np.arange(self._size - count, self._size)

    def tie(self, a: np.ndarray, b: np.ndarray) -> None:
        """Ties a[i] to b[i]; raises ValueError for different lengths."""
        if a.shape != b.shape:
            raise ValueError(f"cannot tie {a.shape} to {b.shape} channels")
        self._ties.append((a, b))

    def tie_rows(self, rows: np.ndarray) -> None:
        """Ties the k-th ids of all rows, [rows, k]."""
        self.tie(np.broadcast_to(rows[0], rows[1:].shape).ravel(), rows[1:].ravel())

    def freeze(self, ids: np.ndarray, why: str) -> None:
        """Never prune these ids, nor what is tied to them."""
        self._frozen.append((ids, why))

    def blocks(self) -> np.ndarray:
        """Number of the block of every id, int64 [ids]."""
        return np.repeat(np.arange(len(self._counts)), self._counts)

    def roots(self) -> np.ndarray:
        """The smallest id that every id is tied to, directly or not, int64 [ids]."""
        roots = np.arange(self._size)
        if not self._ties:
            return roots
        a, b = (np.concatenate(side) for side in zip(*self._ties, strict=True))
        while True:
            low, high = np.minimum(roots[a], roots[b]), np.maximum(roots[a], roots[b])
            if (low == high).all():
                return roots
            # Every root with a tie to a smaller one hangs below the smallest of them; then all ids
            # jump up until they reach a root.
            np.minimum.at(roots, high, low)
            while (roots[roots] != roots).any():
                roots = roots[roots]

    def reasons(self, roots: np.ndarray) -> dict[int, str]:
        """{root: why it is frozen, the first reason given}."""
        reason = {}
        for ids, why in self._frozen:
            for root in np.unique(roots[ids]):
                reason.setdefault(int(root), why)
        return reason
