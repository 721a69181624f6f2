"""The search methods by name."""

from pruning.coarse import CoarseToFineSearch
from pruning.greedy import GreedySearch
from pruning.oneshot import GlobalSearch, UniformSearch

SEARCHES = {
    "ekg": GreedySearch,
    "ffp": CoarseToFineSearch,
    "uniform": UniformSearch,
    "global": GlobalSearch,
}
ONE_SHOT = ("uniform", "global")  # no interim networks
