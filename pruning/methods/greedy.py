"""EKG's greedy search: the loop of Algorithm 1 (docs/method.md 1)."""

import time
from dataclasses import replace
from typing import Any

import numpy as np

from ...nets.gates import Gates
from ...nets.graph import ChannelGraph
from ...options.methods import CACHE_MB, EKG, PRICE, Method
from ...options.search import SearchOptions
from ...training.task import Task
from ...utils import cluster, progress
from ..engine.by_name import EVALUATORS
from ..engine.current import PLENTY, MemoryPlan
from ..engine.validation import Validation
from ..history import History
from ..space.candidates import Candidates, Proposal
from ..worth.rewards import Knowledge, Reward
from ..worth.scores import weight_scores
from .base import Search

# Of the machinery that other methods share.
DEFAULTS = {"step": EKG().step, "evaluator": "exact", "teacher": "none", "choice": PRICE}


def cache_bytes(method: Method) -> int:
    """Memory for the activations that a method's proposals start from."""
    return getattr(method, "cache_mb", CACHE_MB) << 20


class GreedySearch(Search):
    """Algorithm 1: every step removes the filters whose removal leaves the largest reward, or costs
    the least reward per size."""

    def __init__(
        self,
        graph: ChannelGraph,
        val: Validation,
        history: History,
        options: SearchOptions,
        task: Task,
        *,
        compile: bool = False,
        plan: MemoryPlan = PLENTY,
        **more: Any,
    ):
        super().__init__(graph, val, history, options, task, compile=compile, **more)
        self.candidates = self._make_candidates(self.gates)
        self.evaluator = EVALUATORS[self._setting("evaluator")](
            graph,
            val,
            compile=compile,
            cache_bytes=cache_bytes(options.method),
            plan=plan,
        )
        self.knowledge = Knowledge(self._setting("teacher"))
        self._kernels = {} if options.method.score in ("taylor", "random") else graph.kernels()

    def remaining(self) -> tuple[int, int]:
        """About how many steps are to come until the target, and how many evaluations in them.

        By a walk without data: filters are ranked by their L1 norms, in units of their gate's root
        mean square, and every step takes one of the screened proposals at random. A latency counts
        as the FLOPs do.
        """
        gates = Gates(self.graph.groups)
        gates.set_mask(self.gates.mask())
        candidates, random = self._make_candidates(gates), np.random.default_rng(0)
        scores = weight_scores("l1", self.graph.kernels(), gates.mask(), [])
        for gate in gates:
            gate.rank(scores[gate.units])
            scores[gate.units] /= max(np.sqrt(np.mean(scores[gate.units] ** 2)), 1e-30)
        steps = evaluations = 0
        goal = self.wanted.goal * self.budget.full
        while self.budget.size(gates.mask()) > goal and (found := candidates.propose(scores)):
            screened = candidates.screened(found)
            chosen = screened[random.integers(len(screened))]
            gates[chosen.gate].remove(chosen.channels)
            steps, evaluations = steps + 1, evaluations + len(screened)
        return steps, evaluations

    def _make_candidates(self, gates: Gates) -> Candidates:
        step, round_to = self._setting("step"), self.options.budget.round_to
        per_size = self._setting("choice") == PRICE
        return Candidates(
            gates, self.budget.size, self.target, step, round_to=round_to, per_size=per_size
        )

    def _setting(self, name: str):
        """A setting of the method, or EKG's default where the method doesn't have it."""
        return getattr(self.options.method, name, DEFAULTS[name])

    def _begin(self, mask: np.ndarray) -> Any:
        progress.say(str(self.evaluator.current.cuts))
        return self.evaluator.set_current(mask)

    def _restored(self) -> None:
        for step, row in enumerate(self.history.rows):
            self.knowledge.add(self.history.outputs(step), len(row.get("gates", [0])))
        learnt = [row["learnt"] for row in self.history.rows if "learnt" in row]
        if learnt:
            self.evaluator.restore(learnt[-1])

    def _step(self) -> dict | None:
        begin = time.perf_counter()
        reward = Reward(self.task, self.val, self.knowledge.outputs)
        proposals = self.candidates.screened(self._proposals(self._ranked(reward)))
        return self._take_proposal(proposals, reward, {"importance": time.perf_counter() - begin})

    def _proposals(self, scores: np.ndarray) -> list[Proposal]:
        """What the gates offer; at least one where there is a rate to reach."""
        proposals = self.candidates.propose(scores)
        if not proposals and self.wanted.rate is not None:
            raise self._unreachable()
        return proposals

    def _take_proposal(
        self, proposals: list[Proposal], reward: Reward, seconds: dict
    ) -> dict | None:
        """Evaluates proposals and records the best; `seconds` were spent on this step before.

        None where there is none, or where the best one loses more than is allowed.
        """
        if not proposals:
            return None
        begin = time.perf_counter()
        outcome = self.evaluator.best(proposals, reward, self._together)
        bad = self._too_bad(outcome.outputs)
        if bad and len(outcome.chosen) > 1:
            outcome = self.evaluator.best(proposals, reward)  # one alone may lose less
            bad = self._too_bad(outcome.outputs)
        if bad and any(one.weight != 1 for one in proposals):
            # what costs least per size may cost more than a small removal
            proposals = [replace(one, weight=1.0) for one in proposals]
            outcome = self.evaluator.best(proposals, reward)
            bad = self._too_bad(outcome.outputs)
        if bad:
            return None
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
        wanted = max(one for one in (*budget.keep, budget.goal) if one < rate)
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
            # What the first machine has computed ranks the filters on all of them.
            return cluster.agreed(self.evaluator.set_current_with_importance(mask, reward)[1])
        self.evaluator.set_current(mask)
        seed = [self.options.sampling.seed, len(self.history.rows)]
        return weight_scores(self.options.method.score, self._kernels, mask, seed)
