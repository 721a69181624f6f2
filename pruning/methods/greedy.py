"""EKG's greedy search: the loop of Algorithm 1 (docs/method.md 1)."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...nets.graph import ChannelGraph
from ...options.methods import CACHE_MB, EKG
from ...options.search import SearchOptions
from ...training.task import Task
from ..engine.by_name import EVALUATORS
from ..engine.validation import Validation
from ..history import History
from ..space.candidates import Candidates, Proposal
from ..worth.rewards import Knowledge, Reward
from ..worth.scores import weight_scores
from .base import Search

# Of the machinery that other methods share.
DEFAULTS = {"step": EKG().step, "evaluator": "exact", "cache_mb": CACHE_MB, "teacher": "none"}


class GreedySearch(Search):
    """Algorithm 1: every step removes the filters whose removal leaves the largest reward."""

    def __init__(
        self,
        graph: ChannelGraph,
        val: Validation,
        history: History,
        options: SearchOptions,
        task: Task,
        *,
        order: np.ndarray | None = None,
        compile: bool = False,
        devices: Sequence[str] = (),
    ):
        super().__init__(
            graph, val, history, options, task, order=order, compile=compile, devices=devices
        )
        self.candidates = self._make_candidates()
        self.evaluator = EVALUATORS[self._setting("evaluator")](
            graph,
            val,
            compile=compile,
            devices=devices,
            cache_bytes=self._setting("cache_mb") << 20,
        )
        self.knowledge = Knowledge(self._setting("teacher"))
        self._kernels = {} if options.method.score in ("taylor", "random") else graph.kernels()

    def _make_candidates(self) -> Candidates:
        step, round_to = self._setting("step"), self.options.budget.round_to
        return Candidates(self.gates, self.budget.size, self.target, step, round_to=round_to)

    def _setting(self, name: str):
        """A setting of the method, or EKG's default where the method doesn't have it."""
        return getattr(self.options.method, name, DEFAULTS[name])

    def _begin(self, mask: np.ndarray) -> Any:
        print(self.evaluator.current.cuts)
        return self.evaluator.set_current(mask)

    def _restored(self) -> None:
        for step, row in enumerate(self.history.rows):
            self.knowledge.add(self.history.outputs(step), len(row.get("gates", [0])))
        learnt = [row["learnt"] for row in self.history.rows if "learnt" in row]
        if learnt:
            self.evaluator.restore(learnt[-1])

    def _step(self) -> dict:
        begin = time.perf_counter()
        reward = Reward(self.task, self.val, self.knowledge.outputs)
        proposals = self.candidates.screened(self._proposals(self._ranked(reward)))
        return self._take_proposal(proposals, reward, {"importance": time.perf_counter() - begin})

    def _proposals(self, scores: np.ndarray) -> list[Proposal]:
        """What the gates offer; at least one."""
        proposals = self.candidates.propose(scores)
        if not proposals:
            raise self._unreachable()
        return proposals

    def _take_proposal(self, proposals: list[Proposal], reward: Reward, seconds: dict) -> dict:
        """Evaluates proposals and records the best; `seconds` were spent on this step before."""
        begin = time.perf_counter()
        outcome = self.evaluator.best(proposals, reward, self._together)
        taken = [proposals[number] for number in outcome.chosen]
        for one in taken:
            self.gates[one.gate].remove(one.channels)
        self.knowledge.add(outcome.outputs, len(taken))
        gates = [one.gate for one in taken]
        names = [self.gates[gate].name for gate in gates]
        more: dict[str, Any] = {"gate": gates[0], "name": names[0]}
        if learnt := self.evaluator.state():
            more = {"gates": gates, "names": names, "learnt": learnt}
        return self._record(
            outcome.outputs,
            seconds | {"proposals": time.perf_counter() - begin},
            evaluations=outcome.evaluations,
            images=len(self.val) + outcome.images,
            reward=outcome.reward,
            **more,
        )

    def _together(self, proposals: list[Proposal]) -> list[int]:
        """As `Candidates.together`, down to the next rate at which a network is kept."""
        rate, budget = self.history.rows[-1]["rate"], self.options.budget
        wanted = max(one for one in (*budget.keep, budget.rate) if one < rate)
        return self.candidates.together(proposals, wanted * self.budget.full)

    def _ranked(self, reward: Reward) -> np.ndarray:
        """The scores of the current network's units, float64 [U + 1]; the gates are ranked by
        them."""
        scores = self._scores(reward)
        for gate in self.gates:
            gate.rank(scores[gate.units])
        return scores

    def _scores(self, reward: Reward) -> np.ndarray:
        mask = self.gates.mask()
        if self.options.method.score == "taylor":
            return self.evaluator.set_current_with_importance(mask, reward)[1]
        self.evaluator.set_current(mask)
        seed = [self.options.sampling.seed, len(self.history.rows)]
        return weight_scores(self.options.method.score, self._kernels, mask, seed)
