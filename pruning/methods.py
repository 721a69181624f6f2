"""The search methods by name."""

import numpy as np

from nets.graph import ChannelGraph
from pruning.candidates import lowest_mask
from pruning.coarse import CoarseToFineSearch
from pruning.greedy import GreedySearch
from pruning.oneshot import GlobalSearch, UniformSearch
from pruning.search import SearchOptions
from pruning.slimming import SlimmingSearch
from pruning.stages import frozen_gates
from pruning.stagewise import StageWiseSearch
from pruning.supernet import stages_of
from pruning.width_grid import WidthGrid

SEARCHES = {
    "ekg": GreedySearch,
    "ffp": CoarseToFineSearch,
    "swp": StageWiseSearch,
    "autoslim": SlimmingSearch,
    "uniform": UniformSearch,
    "global": GlobalSearch,
}
ONE_SHOT = ("uniform", "global")  # no interim networks
SUPERNETS = ("swp", "autoslim")  # they begin with the training of a supernet


def smallest_mask(graph: ChannelGraph, options: SearchOptions) -> np.ndarray:
    """The unit mask, float32 [U + 1], of the smallest network that a method can end with.

    Raises:
        UserError: the network can't be cut into the stages that SWP is to use.
    """
    if options.method not in SUPERNETS:
        return lowest_mask(graph, options.round_to)
    wanted, frozen = options.supernet, set()
    if options.method == "swp":
        frozen = frozen_gates(graph, stages_of(graph, wanted.stages))
    grid = WidthGrid(graph, wanted.width_steps, options.round_to, frozen)
    return grid.mask(np.zeros_like(grid.sizes))
