"""Gates: which channels of a network are kept.

Every prunable channel of a network is one *unit*: a set of channels of one or more tensors that can
only be removed together (one channel of a residual stream is one unit, however many layers write to
it). Units are numbered 0 .. U-1 for the whole network; a `Gate` owns a contiguous range of them.

The central array of the project is the *unit mask*, float32 [U + 1]: 1 keeps, 0 removes. Its last
entry is always 1 and stands for every channel that can't be removed. A layer finds the mask of its
channels by `mask[units]`, where `units` int32 [channels] holds a unit number, or U, for each
channel.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Group:
    """Channels that can only be removed together with their likes in other tensors.

    Attributes:
        start: number of the group's first unit.
        channels: how many units it has.
        layers: names of the layers that write the group's channels.
    """

    start: int
    channels: int
    layers: tuple[str, ...]

    @property
    def name(self) -> str:
        """The first layer that writes the group, and how many others share it."""
        others = len(self.layers) - 1
        return f"{self.layers[0]} (+{others})" if others else self.layers[0]

    @property
    def units(self) -> slice:
        """The group's range in the unit mask."""
        return slice(self.start, self.start + self.channels)


class Gate:
    """Which channels of one group are kept.

    Attributes:
        group: what stays; name, layers, start, channels and units are its own.
        order: int32 [channels], rank by importance, 0 = most important; a permutation.
        width: number of channels kept, `least` .. channels.
        least: fewest channels that a search may leave, 1 .. channels.
    """

    def __init__(self, group: Group, least: int = 1):
        self.group, self.least = group, least
        self.name, self.layers = group.name, group.layers
        self.start, self.channels, self.units = group.start, group.channels, group.units
        self.order = np.arange(group.channels, dtype=np.int32)
        self.width = group.channels

    def __repr__(self) -> str:
        return f"Gate({self.name}, {self.width} of {self.channels})"

    @property
    def mask(self) -> np.ndarray:
        """float32 [channels]: order < width."""
        return (self.order < self.width).astype(np.float32)

    @property
    def kept(self) -> np.ndarray:
        """Sorted channel numbers that are kept, int64 [width]."""
        return np.flatnonzero(self.order < self.width)

    def rank(self, scores: np.ndarray) -> None:
        """Orders the channels by score, best first; removed channels stay behind every kept one.

        Args:
            scores: float [channels], larger = more important. Equal scores keep their channel
                order.

        Raises:
            ValueError: not one finite score per channel.
        """
        if scores.shape != (self.channels,) or not np.isfinite(scores).all():
            raise ValueError(f"{self.name}: need {self.channels} finite scores, got {scores}")
        ranking = np.lexsort((-scores, self.order >= self.width))
        self.order[ranking] = np.arange(self.channels, dtype=np.int32)

    def weakest(self, count: int) -> np.ndarray:
        """The `count` kept channels of lowest rank, weakest first, int64 [count]."""
        ranking = np.argsort(self.order)
        return ranking[self.width - count : self.width][::-1]

    def remove(self, channels: Sequence[int]) -> None:
        """Removes kept channels.

        Raises:
            ValueError: a channel is already removed, or none would stay.
        """
        channels = np.asarray(channels, np.int64)
        if (self.order[channels] >= self.width).any() or len(set(channels)) != len(channels):
            raise ValueError(f"{self.name}: channels {channels} are not all kept and distinct")
        if len(channels) >= self.width:
            raise ValueError(f"{self.name}: at least one of {self.width} channels must stay")
        removed = np.isin(np.arange(self.channels), channels) | (self.order >= self.width)
        ranking = np.lexsort((self.order, removed))
        self.order[ranking] = np.arange(self.channels, dtype=np.int32)
        self.width -= len(channels)


class Gates(Sequence):
    """All gates of a network, open at first, in the order in which the network reaches them.

    Args:
        least: fewest channels that a search may leave of every group; default: 1.
    """

    def __init__(self, groups: Iterable[Group], least: Sequence[int] | None = None):
        groups = tuple(groups)
        least = [1] * len(groups) if least is None else least
        self._gates = [Gate(*pair) for pair in zip(groups, least, strict=True)]
        self.num_units = sum(gate.channels for gate in self._gates)

    def __getitem__(self, index):
        return self._gates[index]

    def __len__(self) -> int:
        return len(self._gates)

    def __iter__(self) -> Iterator[Gate]:
        return iter(self._gates)

    @property
    def widths(self) -> list[int]:
        return [gate.width for gate in self._gates]

    def mask(self) -> np.ndarray:
        """The unit mask, float32 [U + 1]."""
        mask = np.ones(self.num_units + 1, np.float32)
        for gate in self._gates:
            mask[gate.units] = gate.mask
        return mask

    def set_order(self, order: np.ndarray) -> None:
        """Orders open gates by ranks, int32 [U], 0 = most important."""
        for gate in self._gates:
            gate.rank(-order[gate.units].astype(np.float64))

    def order(self) -> np.ndarray:
        """The rank of every unit in its gate, int32 [U]."""
        parts = [gate.order for gate in self._gates]
        return np.concatenate([*parts, np.zeros(0, np.int32)]).astype(np.int32)

    def set_mask(self, mask: np.ndarray) -> None:
        """Sets every gate from a unit mask, float32 [U + 1]; otherwise the order stays.

        Raises:
            ValueError: wrong shape, or a gate without a kept channel.
        """
        if mask.shape != (self.num_units + 1,):
            raise ValueError(f"need a mask of {self.num_units + 1} units, got shape {mask.shape}")
        for gate in self._gates:
            removed = mask[gate.units] == 0
            if removed.all():
                raise ValueError(f"{gate.name}: at least one channel must stay")
            ranking = np.lexsort((gate.order, removed))
            gate.order[ranking] = np.arange(gate.channels, dtype=np.int32)
            gate.width = int(gate.channels - removed.sum())
