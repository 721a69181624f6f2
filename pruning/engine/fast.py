"""`FastEvaluator`: a good choice for a fraction of the work (docs/method.md 1, step e)."""

import math
from typing import Any

import numpy as np
import tensorflow as tf

from ...nets.graph import ChannelGraph
from ..space.candidates import Proposal
from ..worth.rewards import Reward
from .current import joined
from .evaluator import ExactEvaluator, Outcome, Together, Trials
from .local import Effect, Forecast, LocalEffects
from .validation import Validation


class FastEvaluator(ExactEvaluator):
    """The machinery of `ExactEvaluator` on a few proposals, of which several may be taken at once.

    1. Every proposal is run through its own segments only; `Forecast` ranks them by that.
    2. The best LOOKED of them see the first half of D_val. Where a gate's effect isn't local, three
       quarters of its kind do, those that cost least when they were last seen.
    3. Of those that tie with the best one there, at most TOGETHER are taken at once if all of them
       promise to cost less than a tie.
    4. Else the best FINISHED see all of D_val, and those that tie there are taken at once.

    A tie is a loss within TIED of the current network's. Several are taken only if the network
    without all of them keeps on all of D_val, but for a tie, what they promised one by one.

    Everything a choice depends on is in `state`, and none of it on the number of cores.
    """

    LOOKED, SEEN_AGAIN, FINISHED = 6, 3 / 4, 4
    TOGETHER, TIED, WORSE = 4, 0.02, 1.25

    def __init__(self, graph: ChannelGraph, data: Validation, **options):
        super().__init__(graph, data, slopes=True, **options)
        self._effects = LocalEffects(self.current)
        self._forecast = Forecast()

    def state(self) -> dict[str, Any]:
        """What it has learnt from the evaluations so far, as plain values."""
        ratios = {str(gate): ratio for gate, ratio in self.ratios().items()}
        return {"ratios": ratios, "forecast": self._forecast.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes in the `state` of an earlier process."""
        self.remember({int(gate): ratio for gate, ratio in state["ratios"].items()})
        self._forecast.restore(state["forecast"])

    def best(
        self, proposals: list[Proposal], reward: Reward, together: Together | None = None
    ) -> Outcome:
        """A proposal of a large reward, or several of nearly equal ones."""
        trials = Trials(proposals, reward, self.current.outputs)
        effects, looked = self._to_look_at(trials)
        self._run(trials, looked, math.ceil(len(self.current.rows) / 2))
        self._learn(trials, effects, looked)
        order = looked[np.argsort(trials.rises()[looked], kind="stable")]
        tied = self._tied(trials, order, together)
        unnoticed = trials.rises()[tied].sum() <= self._tie(trials)
        if unnoticed and (outcome := self._at_once(trials, tied)):
            return outcome
        for index in order[self.FINISHED :]:
            trials.forget(index)
        order = order[: self.FINISHED]
        self._run(trials, order)
        order = order[np.argsort(trials.losses[order], kind="stable")]
        return self._at_once(trials, self._tied(trials, order, together)) or trials.outcome()

    def _at_once(self, trials: Trials, chosen: np.ndarray) -> Outcome | None:
        """Several proposals taken at once; None if that breaks what they promised."""
        if len(chosen) < 2:
            return None
        outputs = self._without_all([trials.proposals[index] for index in chosen])
        promised = max(float(trials.rises()[chosen].sum()), 0.0)
        return trials.joint(chosen, outputs, self.WORSE * promised + self._tie(trials))

    def _to_look_at(self, trials: Trials) -> tuple[list[Effect | None], np.ndarray]:
        """The local effects of the proposals, and the numbers of those that are evaluated."""
        proposals = trials.proposals
        if len(proposals) <= self.LOOKED:
            return self._effects.of(proposals), np.arange(len(proposals))
        effects = self._effects.of(proposals)
        local = np.array([index for index, one in enumerate(effects) if one], int)
        expected = [self._forecast.of(one, trials.excess) for one in effects if one]
        others = np.array([index for index, one in enumerate(effects) if not one], int)
        ratios = np.array([self._ratios.get(proposals[index].gate, -np.inf) for index in others])
        if trials.current_loss < 0:
            ratios = np.where(np.isfinite(ratios), -ratios, ratios)
        seen_again = math.ceil(self.SEEN_AGAIN * len(others))
        looked = np.concatenate(
            [
                local[np.argsort(expected, kind="stable")][: self.LOOKED],
                others[np.argsort(ratios, kind="stable")][:seen_again],
            ]
        )
        return effects, looked.astype(int)

    def _learn(self, trials: Trials, effects: list[Effect | None], looked: np.ndarray) -> None:
        rises = trials.rises()
        for index in looked:
            if effect := effects[index]:
                self._forecast.learn(effect, float(rises[index]), trials.excess)
        self._take_in(trials)

    def _tie(self, trials: Trials) -> float:
        return self.TIED * max(abs(trials.current_loss), 1e-12)

    def _tied(self, trials: Trials, order: np.ndarray, together: Together | None) -> np.ndarray:
        """The first of `order` and those that are as good as it and can be taken with it."""
        rises = trials.rises()
        close = order[rises[order] <= rises[order[0]] + self._tie(trials)]
        if together is None or len(close) < 2:
            return close[:1]
        kept = together([trials.proposals[index] for index in close], self.TOGETHER)
        return close[kept]

    def _without_all(self, proposals: list[Proposal]) -> Any:
        """Outputs of the network without what several proposals remove, tree of float32 [n, ...];
        batches side by side."""
        parts, mask = self.current.segments, np.min([one.mask for one in proposals], 0)
        first = min(parts.first_segment(one.gate) for one in proposals)
        first = self.current.cuts.before(first)

        def run(number: int) -> Any:
            place = self.current.place
            with tf.device(place.device):
                weights = place.weights
                for one in proposals:
                    weights = parts.changed_weights(weights, mask, one.gate)
                return parts.outputs_from(place.cache[number][first], weights, first)

        return joined(list(self.current.pool.map(run, range(len(self.current.rows)))))
