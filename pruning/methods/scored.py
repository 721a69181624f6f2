"""A search by a score of the user's own, for networks whose loss or data can't be read: detectors,
loops of one's own.

The loop is EKG's (docs/method.md 1), with the user's function in place of the reward. Filters are
ranked by their L1 norms, in units of their gate's root mean square, since there is no gradient; the
gates of least cost are pruned for real, and the network that the function likes best is taken. No
data is looked at: batch norms keep the moving statistics of the whole network, unless `finished`
does something about it.
"""

import gc
import numbers
import time
from collections.abc import Callable
from functools import partial

import keras
import numpy as np

from ...nets.graph import ChannelGraph
from ...options.budgets import Latency
from ...options.scored import Scored
from ...utils import progress
from ...utils.errors import UserError
from ...utils.runfolder import RunFolder
from ..history import History
from ..space.budgets import check_reachable, make_budget
from ..space.candidates import Candidates, Proposal, lowest_mask, valued, weights_of
from ..space.limits import (
    announcement,
    check_something_is_left,
    heaviest_in_words,
    least_widths,
    smallest_in_words,
)
from ..worth.drop import Figure, drop_from
from ..worth.scores import weight_scores
from .loop import Loop

Finished = Callable[[keras.Model], keras.Model]
Score = Callable[[keras.Model], float]


class ScoredSearch(Loop):
    """Every step takes the proposal that costs the least score per size removed.

    Args:
        graph: of the network's core; `gates` hold the current network.
        finished: what the user gets of a core: `graph.pruned(mask)` -> network.
        score: (network) -> a finite number, larger = better. The network is its own: it may be
            trained or changed.
        history: without outputs; rows of earlier processes, or none.
        compile: XLA, for a budget of latency.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        finished: Finished,
        score: Score,
        history: History,
        options: Scored,
        *,
        compile: bool = False,
    ):
        super().__init__(graph, history, options.budget, options.control, compile=compile)
        self.options, self.finished, self.score = options, finished, score
        self._kernels = graph.kernels()
        self._candidates = Candidates(
            self.gates,
            self.budget.size,
            self.target,
            options.step,
            round_to=options.budget.round_to,
            per_size=True,
        )

    def _first(self, begin: float) -> None:
        value = self._scored(self.gates.mask(), "the whole network")
        self._append({"score": value}, {"start": time.perf_counter() - begin})

    def _restored(self) -> None:
        if (most := self.options.control.max_drop) is not None:
            self.drop = drop_from(Figure("score", self.history.rows[0]["score"], True), most)
            progress.say(str(self.drop))

    def _shown(self, row: dict) -> str:
        return f"score {row['score']:.4f}"

    def _step(self) -> dict | None:
        begin = time.perf_counter()
        proposals = self._proposals()
        if not proposals:
            return None
        parts = {"importance": time.perf_counter() - begin}
        begin = time.perf_counter()
        values = [self._scored(one.mask, f"a network without {_of(one)}") for one in proposals]
        gc.collect()  # networks hold circles of references, and there are many of them
        rises = self.history.rows[-1]["score"] - np.array(values)
        best = int(np.argmin(valued(rises, weights_of(proposals))))
        if self.drop is not None and self.drop.exceeded(values[best]):
            best = int(np.argmax(values))  # a small removal may cost less
            if self.drop.exceeded(values[best]):
                return None
        chosen = proposals[best]
        gate = self.gates[chosen.gate]
        gate.remove(chosen.channels)
        return self._append(
            {"score": values[best]},
            parts | {"proposals": time.perf_counter() - begin},
            evaluations=len(proposals),
            reward=values[best],
            gate=chosen.gate,
            name=gate.name,
        )

    def _proposals(self) -> list[Proposal]:
        """Those that are scored, of rising cost; at least one where there is a rate to reach."""
        scores = weight_scores("l1", self._kernels, self.gates.mask(), [])
        for gate in self.gates:
            gate.rank(scores[gate.units])
            kept = scores[gate.units][gate.kept]
            # Norms of large and small kernels can't be compared.
            scores[gate.units] /= max(np.sqrt(np.mean(kept**2)), 1e-30)
        proposals = self._candidates.propose(scores)
        if not proposals and self.wanted.rate is not None:
            raise self._unreachable()
        screened = self._candidates.screened(proposals)
        return sorted(screened, key=lambda one: one.cost / one.weight)[: self.options.proposals]

    def _scored(self, mask: np.ndarray, what: str) -> float:
        return checked(self.score(self.finished(self.graph.pruned(mask))), what)


def _of(proposal: Proposal) -> str:
    return f"{len(proposal.channels)} filter(s) of group {proposal.gate}"


def checked(value: object, what: str) -> float:
    """A score as a float.

    Args:
        value: what the user's function gave. what: it was given, in words.

    Raises:
        UserError: not a finite number.
    """
    if hasattr(value, "numpy"):  # a tensor
        value = value.numpy()
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    if not isinstance(value, numbers.Real) or isinstance(value, bool | np.bool_):
        raise UserError(
            f"the score of {what} is {value!r}: the function must return a number, larger = better"
        )
    if not np.isfinite(value):
        raise UserError(f"the score of {what} is {value}: it must be finite, check the function")
    return float(value)


def check(graph: ChannelGraph, options: Scored) -> None:
    """Refuses at once what the search could not do.

    Raises:
        UserError: nothing to prune, a layer to exclude that isn't there, or a target that can't be
            reached.
    """
    wanted, least = options.budget, least_widths(graph, options.control)
    check_something_is_left(graph, least)
    if wanted.rate is not None and not isinstance(wanted, Latency):
        budget = make_budget(wanted, graph)
        lowest = budget.size(lowest_mask(graph, wanted.round_to, least)) / budget.full
        left = smallest_in_words(graph, options.control, wanted.round_to)
        most = partial(heaviest_in_words, graph)
        check_reachable(wanted.rate, lowest, left, wanted.label, most=most)


def search(
    graph: ChannelGraph,
    finished: Finished,
    score: Score,
    options: Scored,
    folder: RunFolder,
    *,
    compile: bool = False,
    log: Callable[[int, dict], None] = lambda step, values: None,
) -> ScoredSearch:
    """Searches in a run folder from wherever an earlier process stopped.

    Args:
        graph: of the network's core.
        finished, score: as `ScoredSearch` takes them.
        folder: holds the history, and nothing else is written there.
        compile: XLA, for a budget of latency.
        log: called with (step, scalars) for every step taken.

    Returns:
        The search at its end: `gates.mask()` is the chosen network's, `history.rows` tell the way.

    Raises:
        UserError: as `check`, or a score that isn't a finite number.
    """
    check(graph, options)
    for line in announcement(graph, options.control):
        progress.say(line)
    running = ScoredSearch(graph, finished, score, History(folder, ()), options, compile=compile)
    running.run(log)
    return running
