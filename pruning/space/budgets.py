"""What a search has to save: FLOPs, parameters, or latency measured on this machine."""

import math
from collections.abc import Callable

import numpy as np

from ...nets.graph import ChannelGraph
from ...options import budgets as options
from ...training.latency import latencies
from ...utils.errors import UserError

FLOPS = options.Flops.label


def check_reachable(
    rate: float, lowest: float, smallest: str, label: str = FLOPS, *, most: Callable[[], str]
) -> None:
    """Raises UserError when no sub-network is as small as `rate`.

    Args:
        rate: the share of the whole network's size that is asked for, 0 .. 1.
        lowest: that of the smallest sub-network.
        smallest: what is left there, in words.
        label: what the rate is of.
        most: says what hinders most, of FLOPs, in words; "" for nothing.
    """
    if lowest > rate:
        shown = math.ceil(lowest * 1e4) / 1e4  # rounded up, so that it can be reached
        cause = most() if label == FLOPS else ""
        raise UserError(
            f"a rate of {rate} can't be reached: with {smallest} {shown} of the {label} remain"
            + (f"; {cause}" if cause else "")
        )


class Budget:
    """The size of sub-networks in FLOPs or parameters: both are exact and cheap to compute.

    Attributes:
        size: unit mask, float32 [U + 1], or None for the whole network -> size.
        full: size of the whole network.
    """

    def __init__(self, size: Callable[[np.ndarray | None], float]):
        self.size = size
        self.full = size(None)

    def rate(self, mask: np.ndarray, flops_rate: float) -> float:
        """What the network under `mask` keeps of the whole one's size, 0 .. 1."""
        return self.size(mask) / self.full

    def restore(self, rows: list[dict]) -> None:
        """Takes in the history of an earlier process; nothing to know here."""


class LatencyBudget(Budget):
    """Latency of the pruned stock network, measured in turn with the whole one.

    A measurement costs seconds, so a network is measured only once its FLOPs have fallen by
    `EVERY` of the whole network's since the last one; until then it counts as slow as that. Nothing
    is said about proposals: their size is that in FLOPs, without a target of its own.

    Args:
        graph: the channel graph of the whole network.
        batch_images: images per pass.
        compile: XLA.
    """

    EVERY = 0.01
    SECONDS = 1.5

    def __init__(self, graph: ChannelGraph, batch_images: int, *, compile: bool = False):
        super().__init__(graph.flops)
        self._graph, self._batch, self._compile = graph, batch_images, compile
        self._measured_at, self._rate = 1.0, 1.0

    def restore(self, rows: list[dict]) -> None:
        """Takes the measurements of an earlier process from its history, so none is repeated."""
        for row in rows:
            if row["rate"] != self._rate:
                self._measured_at, self._rate = row["flops_rate"], row["rate"]

    def rate(self, mask: np.ndarray, flops_rate: float) -> float:
        """Latency under `mask` as a share of the whole network's, from the last measurement."""
        if self._measured_at - flops_rate >= self.EVERY:
            models = [self._graph.model, self._graph.pruned(mask)]
            full, pruned = latencies(
                models, self._batch, compile=self._compile, seconds=self.SECONDS
            )
            self._measured_at, self._rate = flops_rate, pruned / full
        return self._rate


def make_budget(wanted: options.Budget, graph: ChannelGraph, *, compile: bool = False) -> Budget:
    """The sizes that a budget speaks of."""
    if isinstance(wanted, options.Latency):
        return LatencyBudget(graph, wanted.batch, compile=compile)
    return Budget(graph.parameters if isinstance(wanted, options.Parameters) else graph.flops)
