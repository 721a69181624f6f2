"""What is left of a search, by the steps that it has taken."""

from __future__ import annotations

from dataclasses import dataclass

from ..pruning.methods.base import Search
from ..reports.networks import peak_memory_mb
from ..utils import progress

MEASURED_STEPS = 2  # of the search; the last one is timed
LEAST_SECONDS = 5.0  # that are worth a line
FORWARD = 1 / 3  # of what a training step costs


@dataclass(frozen=True)
class SearchOutlook:
    """What is left of a search.

    Attributes:
        steps, evaluations: to come. evaluation_seconds: one of them, now.
        seconds: of all. forward_seconds: of the whole network on an example.
    """

    steps: int
    evaluations: int
    evaluation_seconds: float
    seconds: float
    forward_seconds: float


def search_outlook(running: Search) -> SearchOutlook:
    """What is left of a search that has taken steps, by its last one.

    A step ranks the filters and evaluates proposals. Both get quicker as the network gets smaller:
    in proportion to its FLOPs, taken half-way between now and the end.
    """
    last = running.history.rows[-1]
    steps, evaluations = running.remaining()
    ranking = last["seconds"].get("importance", 0.0)
    each = last["seconds"].get("proposals", 0.0) / max(1, last["evaluations"])
    before = running.history.rows[-2]["flops_rate"] if len(running.history.rows) > 1 else 1.0
    shrinking = (last["flops_rate"] + running.wanted.goal) / 2 / before
    seconds = shrinking * (steps * ranking + evaluations * each)
    forward = FORWARD * ranking / len(running.val) / before
    return SearchOutlook(steps, evaluations, each, seconds, forward)


def said_after_steps(running: Search) -> None:
    """Says what is left once so many steps of a search have been taken as are needed to know."""
    if len(running.history.rows) != 1 + MEASURED_STEPS or running.options.method.supernet:
        return
    left = search_outlook(running)
    if left.seconds < LEAST_SECONDS:
        return
    tried = progress.count(left.evaluations, "smaller network")
    progress.say(
        f"estimate after {MEASURED_STEPS} steps: about {left.steps} more, which try {tried}, in "
        f"{progress.duration(left.seconds)}; memory so far {gib(2**20 * peak_memory_mb()['host'])}"
    )


def gib(count: float) -> str:
    """Bytes as they are read: 1.5 GiB."""
    return f"{count / 2**30:.1f} GiB"
