"""A network cut into stages (SWP, docs/method.md 6): runs of segments between single-tensor cuts.

A network without such a cut (a skip from its first layer to its last) is one stage.

A stage is normally what works at one resolution: its border lies at the last cut before the spatial
size changes. Gates that reach over a border, the channels of the border's own tensor among them,
keep all their channels: stage s + 1 takes the whole network's feature from stage s.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...nets import costs
from ...nets.graph import ChannelGraph
from ...options.methods import AUTO
from ...utils.errors import UserError


@dataclass(frozen=True)
class Stage:
    """Segments first .. last - 1, and the numbers of the gates that belong to this stage alone.

    What passes from one stage to the next is a single tensor.
    """

    first: int
    last: int
    gates: tuple[int, ...]
    flops: int  # multiply-accumulates of the unpruned stage for one example


class _Cutter:
    """What is known of the runs of calls between single-tensor cuts, here called segments, and
    which stages can be made of them.

    Attributes:
        places: numbers of the real segments that these begin with, and the number of all.
    """

    def __init__(self, graph: ChannelGraph, bounds: Sequence[int], cuts: Sequence[tuple]):
        first, *others = range(len(cuts))
        self.places = [first, *(n for n in others if len(cuts[n]) == 1), len(cuts)]
        bounds = [bounds[place] for place in self.places]
        self.count = len(bounds) - 1
        ends = [*(cuts[place][0] for place in self.places[1:-1]), graph.model.outputs[0]]
        self.sizes = [tuple(tensor.shape[1:-1]) for tensor in ends]
        self.elements = [math.prod(tensor.shape[1:]) for tensor in ends]
        self.flops = [0] * self.count
        segment = np.repeat(np.arange(self.count), np.diff(bounds))
        everything = graph.open_mask()
        gate_of = np.full(graph.num_units + 1, -1)
        for number, gate in enumerate(graph.groups):
            gate_of[gate.units] = number
        self._spans: dict[int, list[int]] = {}  # gate: first and last segment that it changes
        for call, place in zip(graph.calls, segment, strict=True):
            units = graph.units.get(call.operation.name)
            parts = graph.costs_of(call)
            self.flops[place] += costs.total(parts, everything)
            touched = np.unique(gate_of[np.concatenate(units)]) if units else []
            for gate in touched:
                if gate >= 0:
                    span = self._spans.setdefault(int(gate), [int(place), int(place)])
                    span[1] = int(place)
        # Gates of a border's tensor: they reach over it even where nothing behind reads them.
        self._of_end = [set(gate_of[graph.tensor_units(end)].tolist()) for end in ends]

    def gates(self, first: int, last: int) -> tuple[int, ...]:
        """Gates that change segments first .. last - 1 alone and not the tensor at their end."""
        border = self._of_end[last - 1] if last < self.count else set()
        return tuple(
            gate
            for gate, (low, high) in sorted(self._spans.items())
            if first <= low and high < last and gate not in border
        )

    def stage(self, first: int, last: int) -> Stage:
        places = self.places[first], self.places[last]
        return Stage(*places, self.gates(first, last), sum(self.flops[first:last]))

    def by_resolution(self) -> list[int]:
        """Numbers of the segments that begin a stage of their own, without the first one."""
        starts = [
            self._stepped_back(number)
            for number in range(1, self.count)
            # what follows the last feature map (pooling, dense layers) belongs to its stage
            if self.sizes[number] != self.sizes[number - 1] and self.sizes[number]
        ]
        # A stage without a gate of its own (a stem) joins the next one; the last, the one before.
        kept, begin = [], 0
        for start in starts:
            if self.gates(begin, start):
                kept.append(start)
                begin = start
        while kept and not self.gates(kept[-1], self.count):
            kept.pop()
        return kept

    def _stepped_back(self, start: int) -> int:
        """The border in front of a block that widens its input before it lowers the resolution."""
        # MobileNet-v2, channels at 112 x 112: 32, 16, 96, then 56 x 56: the border is that of 16
        while (
            start > 1
            and self.sizes[start - 2] == self.sizes[start - 1]
            and self.elements[start - 2] < self.elements[start - 1]
        ):
            start -= 1
        return start

    def divided(self, parts: int, allowed: set[int], needed: set[int]) -> list[int] | None:
        """The `parts` - 1 borders that make the FLOPs of the stages most alike, or None.

        Least sum of squares, by dynamic programming over (number of stages, segments).

        Args:
            allowed: borders to choose from. needed: borders that must be among them.
        """
        ends = [0, *sorted(allowed | needed), self.count]
        best: dict[tuple[int, int], tuple[float, list[int]]] = {(0, 0): (0.0, [])}
        for made, end in itertools.product(range(1, parts + 1), ends[1:]):
            options = [
                (total + self.stage(begin, end).flops ** 2, [*borders, begin])
                for begin in ends[: ends.index(end)]
                for total, borders in [best.get((made - 1, begin), (math.inf, []))]
                if total < math.inf
                and not any(begin < one < end for one in needed)
                and self.gates(begin, end)
            ]
            if options:
                best[made, end] = min(options)
        found = best.get((parts, self.count))
        return None if found is None else found[1][1:]


def find_stages(
    graph: ChannelGraph, bounds: Sequence[int], cuts: Sequence[tuple], count: int | str = AUTO
) -> list[Stage]:
    """The stages of a network.

    Args:
        graph: the channel graph.
        bounds, cuts: the segments, as `pruning.engine.cuts.find_cuts` gives them.
        count: number of stages, at least 1; "auto": one for every resolution. Fewer than these are
            made by joining, more by cutting, both so that the stages' FLOPs become most alike.

    Returns:
        At least one stage, in the order of the network. Every stage has a gate of its own.

    Raises:
        UserError: no gate at all, or the network can't be cut into so many stages.
    """
    cutter = _Cutter(graph, bounds, cuts)
    if not cutter.gates(0, cutter.count):
        raise UserError("the network has no group of filters that can be pruned")
    borders = cutter.by_resolution()
    if count != AUTO and count != len(borders) + 1:
        natural = set(borders)
        if count <= len(natural):
            divided = cutter.divided(count, natural, set())
        else:
            divided = cutter.divided(count, set(range(1, cutter.count)), natural)
        if divided is None:
            most = next(
                number
                for number in range(count - 1, 0, -1)
                if number <= len(natural) + 1
                or cutter.divided(number, set(range(1, cutter.count)), natural) is not None
            )
            raise UserError(
                f"{count} stages: this network can be cut into {most} stages at most, "
                "for every stage needs a group of filters that ends inside it"
            )
        borders = divided
    edges = [0, *borders, cutter.count]
    return [cutter.stage(first, last) for first, last in itertools.pairwise(edges)]


def frozen_gates(graph: ChannelGraph, stages: Sequence[Stage]) -> set[int]:
    """Numbers of the gates that belong to no stage: they reach over a border."""
    return set(range(len(graph.groups))) - {gate for stage in stages for gate in stage.gates}
