"""Proposals: what each gate offers and which are worth an evaluation (docs/method.md 1, b to d)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...nets.gates import Gate, Gates
from ...nets.graph import ChannelGraph
from .limits import lowest_width

# A proposal may end the search at most this share of the network's size below the target.
OVERSHOOT = 0.005
TRIM = 0.2  # share of the sorted costs left out at each end before Otsu's threshold is computed
# Fewer proposals than this are all evaluated: the trimming would leave out none of them, and a
# network of a few layers loses nothing by a look at each (the paper's have dozens of gates).
LEAST_SCREENED = 5


@dataclass(frozen=True)
class Proposal:
    """Removal of `channels` of gate number `gate`; `cost` is the sum of their scores.

    Where gates are compared by what a removal costs per size, `weight` is the size that it removes,
    in units of the step's median; else it is 1.
    """

    gate: int
    channels: np.ndarray  # int64, weakest first
    cost: float
    mask: np.ndarray  # float32 [U + 1], the unit mask after the removal
    size: float  # of the network after the removal, in the budget's unit
    weight: float = 1.0


def weights_of(proposals: Sequence[Proposal]) -> np.ndarray:
    """The weights of some proposals, float64 [n]."""
    return np.array([one.weight for one in proposals], np.float64)


def valued(rises: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """What rises of the loss are worth against each other: the least one is the best.

    Args:
        rises: float64 [n], NaN and infinite ones stay as they are.
        weights: of the same proposals, float64 [n], above 0.

    Returns:
        A rise for what a weight of 1 removes; a loss that falls is worth the more, the more is
        removed with it. float64 [n]
    """
    return np.where(rises > 0, rises / weights, rises * weights)


def rises_of(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The inverse of `valued`."""
    return np.where(values > 0, values * weights, values / weights)


def quota(channels: int, sharing_layers: int, step: float) -> int:
    """Filters a gate offers at a time: `step` of its width, split over its layers, at least 1."""
    return max(1, int(step * channels / sharing_layers + 1e-9))


def removable(gate: Gate, count: int, round_to: int) -> list[int]:
    """How many filters may leave a gate at once: up to `count`, one after the other; with
    `round_to`, up to the multiple of it that lies nearest to width - count.

    Args:
        count: filters to remove if widths were free, at least 1.
        round_to: every width but the original one is a multiple of this; 1 = any width.

    Returns:
        Rising numbers; empty if the gate has nothing to give: `round_to` filters and the gate's
        `least` always stay.
    """
    multiples = np.arange(round_to, gate.width, round_to)[::-1]
    multiples = multiples[multiples >= gate.least]
    if not len(multiples):
        return []
    # width 16, count 3, round_to 8: 8 is the only smaller multiple -> [8]
    # width 64, count 12, round_to 4: 52 is nearest -> down to 60, 56, 52 -> [4, 8, 12]
    lowest = multiples[np.argmin(np.abs(multiples - (gate.width - count)))]
    return [int(gate.width - width) for width in multiples if width >= lowest]


def lowest_mask(
    graph: ChannelGraph, round_to: int = 1, least: Sequence[int] | None = None
) -> np.ndarray:
    """The mask, float32 [U + 1], of the smallest network.

    Args:
        round_to: filters that stay in every gate, and that widths are multiples of.
        least: filters that stay in each gate at least; default: 1.
    """
    mask = np.zeros(graph.num_units + 1, np.float32)
    least = [1] * len(graph.groups) if least is None else least
    for group, count in zip(graph.groups, least, strict=True):
        mask[group.start : group.start + lowest_width(group.channels, count, round_to)] = 1
    mask[-1] = 1
    return mask


def otsu_threshold(costs: np.ndarray, trim: float = TRIM) -> float:
    """Otsu's threshold of a list of costs: the largest cost of the lower class.

    Args:
        costs: float [n], n >= 1.
        trim: share of the sorted costs left out at each end before the threshold is computed.
    """
    costs = np.sort(np.asarray(costs, np.float64))
    cut = int(trim * len(costs))
    kept = costs[cut : len(costs) - cut] if len(costs) > 2 * cut else costs
    if len(kept) < 2 or kept[0] == kept[-1]:
        return float(kept[-1])
    sizes = np.arange(1, len(kept))
    sums = np.cumsum(kept)
    low = sums[:-1] / sizes
    high = (sums[-1] - sums[:-1]) / (len(kept) - sizes)
    between = sizes * (len(kept) - sizes) * (high - low) ** 2
    return float(kept[np.argmax(between)])


Size = Callable[[np.ndarray | None], float]  # of the network under a unit mask; None: the whole


class Candidates:
    """Makes the proposals of a step.

    Args:
        gates: of the current network.
        target: the search ends at or below this size; 0 = proposals are never reduced to it.
        step: share of a gate's original width that it offers (r in the paper).
        round_to: widths become multiples of this; a gate that has no smaller multiple of it stays.
        size: unit mask or None (the whole network) -> size.
        per_size: whether gates are compared by what a removal costs per size (`Proposal.weight`).
    """

    def __init__(
        self,
        gates: Gates,
        size: Size,
        target: float,
        step: float,
        *,
        round_to: int = 1,
        per_size: bool = False,
    ):
        self._size = size
        self._gates = gates
        self._target = target
        self._floor = target - OVERSHOOT * self._size(None)
        self._step = step
        self._round_to = round_to
        self._per_size = per_size

    def propose(self, scores: np.ndarray) -> list[Proposal]:
        """One proposal for every gate that still has a filter to give, in the order of the gates.

        Args:
            scores: float [U + 1], larger = more important; the gates must be ranked by it.
        """
        gates = self._gates
        proposals = []
        for number in range(len(gates)):
            if counts := self.removals(number):
                proposals.append(self._clipped(gates, number, counts, scores))
        # Near the target a wide gate's single filter can fall far below it: such a proposal waits
        # as long as the others together lead there, but not until they have been used up.
        close = [proposal for proposal in proposals if proposal.size >= self._floor]
        now = self._size(gates.mask())
        gained = sum(now - proposal.size for proposal in close)
        found = close if close and now - gained <= self._target else proposals
        return self._weighed(found, now) if self._per_size else found

    def removals(self, number: int) -> list[int]:
        """How many filters gate `number` may offer at once, rising; none if it has nothing to give.

        A proposal takes the largest number, or a smaller one that meets the target.
        """
        gate = self._gates[number]
        return removable(gate, quota(gate.channels, len(gate.layers), self._step), self._round_to)

    def screened(self, proposals: list[Proposal]) -> list[Proposal]:
        """The proposals whose cost, by weight, is at or below Otsu's threshold, or all if they are
        few."""
        if len(proposals) < LEAST_SCREENED:
            return proposals
        costs = np.array([proposal.cost / proposal.weight for proposal in proposals])
        return [proposals[i] for i in np.flatnonzero(costs <= otsu_threshold(costs))]

    def together(self, proposals: Sequence[Proposal], wanted: float | None = None) -> list[int]:
        """Numbers of those of some proposals that can be taken at once.

        In their order, each if the network without it and those before doesn't end further below
        what is wanted than a proposal alone may, until that is reached; the first always.

        Args:
            wanted: size that the way down stops at; default: the target.
        """
        wanted = self._target if wanted is None else wanted
        floor = wanted - OVERSHOOT * self._size(None)
        taken, mask = [0], proposals[0].mask
        for number, proposal in enumerate(proposals[1:], start=1):
            if self._size(mask) <= wanted:
                break
            joint = np.minimum(mask, proposal.mask)
            if self._size(joint) >= floor:
                taken.append(number)
                mask = joint
        return taken

    @staticmethod
    def _weighed(proposals: list[Proposal], now: float) -> list[Proposal]:
        # A latency may rise where filters leave.
        removed = np.array([max(now - one.size, 1e-9 * now) for one in proposals])
        weights = removed / np.median(removed) if len(removed) else removed
        return [
            replace(one, weight=float(weight))
            for one, weight in zip(proposals, weights, strict=True)
        ]

    def _clipped(
        self, gates: Gates, number: int, counts: list[int], scores: np.ndarray
    ) -> Proposal:
        """The removal of the last of `counts` filters, or of the fewest that reach the target."""
        whole = self._proposal(gates, number, counts[-1], scores)
        if whole.size >= self._target:
            return whole
        fewer = (self._proposal(gates, number, count, scores) for count in counts[:-1])
        return next((one for one in fewer if one.size <= self._target), whole)

    def _proposal(self, gates: Gates, number: int, count: int, scores: np.ndarray) -> Proposal:
        gate = gates[number]
        channels = gate.weakest(count)
        mask = gates.mask()
        mask[gate.start + channels] = 0
        cost = float(scores[gate.start + channels].sum())
        return Proposal(number, channels, cost, mask, self._size(mask))
