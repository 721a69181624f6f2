"""The search methods by name."""

import numpy as np

from ...nets.gates import Gates
from ...nets.graph import ChannelGraph
from ...options.methods import SWP
from ...options.search import SearchOptions
from ..space.candidates import lowest_mask
from ..space.limits import least_widths
from ..space.stages import frozen_gates
from ..space.width_grid import WidthGrid
from ..supernet.network import stages_of
from .base import Search
from .coarse import CoarseToFineSearch
from .greedy import GreedySearch
from .oneshot import GlobalSearch, UniformSearch
from .slimming import SlimmingSearch
from .stagewise import StageWiseSearch

SEARCHES: dict[str, type[Search]] = {
    "ekg": GreedySearch,
    "ffp": CoarseToFineSearch,
    "swp": StageWiseSearch,
    "autoslim": SlimmingSearch,
    "uniform": UniformSearch,
    "global": GlobalSearch,
}


def smallest_mask(graph: ChannelGraph, options: SearchOptions) -> np.ndarray:
    """The unit mask, float32 [U + 1], of the smallest network that a method can end with.

    Raises:
        UserError: the network can't be cut into the stages that SWP is to use, or a layer to
            exclude that isn't there.
    """
    least = least_widths(graph, options.control)
    if not options.method.supernet:
        return lowest_mask(graph, options.budget.round_to, least)
    wanted, frozen = options.method, set()
    if isinstance(options.method, SWP):
        frozen = frozen_gates(graph, stages_of(graph, wanted.stages))
    gates = Gates(graph.groups, least)
    grid = WidthGrid(gates, wanted.width_steps, options.budget.round_to, frozen)
    return grid.mask(np.zeros_like(grid.sizes))
