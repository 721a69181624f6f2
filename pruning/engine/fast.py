"""`FastEvaluator`: a good choice for a fraction of the work (docs/method.md 1, step e)."""

import math
from typing import Any

import numpy as np

from ...nets.graph import ChannelGraph
from ...utils import cluster
from ..space.candidates import Proposal, valued
from ..worth.rewards import Reward
from .current import joined
from .evaluator import ExactEvaluator, Outcome, Together, Trials
from .local import Effect, Forecast, LocalEffects
from .validation import Validation


class FastEvaluator(ExactEvaluator):
    """The machinery of `ExactEvaluator` on a few proposals, of which several may be taken at once.

    1. Every proposal is run through its own segments only, on the first half of D_val; `Forecast`
       ranks them by that, and the best FINISHED stay. Where a gate's effect isn't local, three
       quarters of its kind stay, those that cost least when they were last seen. If more than
       FINISHED stay in all, they see the first half of D_val, and the best FINISHED there go on.
    2. These see all of D_val. Those that tie with the best one are taken at once if the network
       without all of them keeps, but for a tie, what they promised one by one. Else the best one
       is taken.

    A tie is a difference of at most TIED of the current network's loss. Rises of the loss count as
    `valued`, throughout.

    Everything a choice depends on is in `state`, and none of it on the number of cores.
    """

    FINISHED, SEEN_AGAIN = 8, 3 / 4
    TIED, WORSE = 0.005, 1.25

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
        """A proposal of a large reward, or several of nearly equal ones.

        Of several machines the first one decides, and the others take it over.
        """
        found: Outcome | None = None

        def decide() -> dict[str, Any]:
            nonlocal found
            found = self._decided(proposals, reward, together)
            keys = ("chosen", "reward", "evaluations", "images")
            return {key: getattr(found, key) for key in keys} | {"state": self.state()}

        said = cluster.on_chief(decide)
        outputs = cluster.agreed(None if found is None else found.outputs)
        rewards = cluster.agreed(None if found is None else found.rewards)
        if found is None:
            self.restore(said.pop("state"))
            chosen = tuple(said.pop("chosen"))
            found = Outcome(chosen, outputs=outputs, rewards=rewards, **said)
        return found

    def _decided(
        self, proposals: list[Proposal], reward: Reward, together: Together | None
    ) -> Outcome:
        trials = Trials(proposals, reward, self.current.outputs)
        effects: list[Effect | None] = [None] * len(proposals)
        if len(proposals) > self.FINISHED:
            effects = self._effects.of(proposals)
        looked = self._to_look_at(trials, effects)
        if len(looked) > self.FINISHED:
            self._see(trials, looked, math.ceil(len(self.current.rows) / 2))
            looked = looked[
                np.argsort(valued(trials.rises(), trials.weights)[looked], kind="stable")
            ]
            for number in looked[self.FINISHED :]:
                trials.forget(number)
        self._see(trials, looked[: self.FINISHED], len(self.current.rows))
        self._learn(trials, effects)
        order = np.argsort(trials.values(), kind="stable")
        tied = self._tied(trials, order, together)
        promised = max(float(trials.rises()[tied].sum()), 0.0)
        most = self.WORSE * promised + self._tie(trials)
        return self._at_once(trials, tied, most) or trials.outcome()

    def _at_once(self, trials: Trials, chosen: np.ndarray, most: float) -> Outcome | None:
        """Several proposals taken at once; None if that raises the loss by more than `most`."""
        if len(chosen) < 2:
            return None
        outputs = self._without_all([trials.proposals[index] for index in chosen])
        return trials.joint(chosen, outputs, most)

    def _to_look_at(self, trials: Trials, effects: list[Effect | None]) -> np.ndarray:
        """The numbers of the proposals that are evaluated at all, int [looked]."""
        numbers = np.arange(len(effects))
        if len(effects) <= self.FINISHED:
            return numbers
        is_local = np.array([one is not None for one in effects])
        local, others = numbers[is_local], numbers[~is_local]
        foretold = np.array([self._forecast.of(one, trials.excess) for one in effects if one])
        foretold -= np.log(trials.weights[local])  # of the rise for what a weight of 1 removes
        gates = [trials.proposals[number].gate for number in others]
        known = np.array([gate in self._ratios for gate in gates], bool)
        rises = (np.array([self._ratios.get(gate, 1) for gate in gates]) - 1) * trials.current_loss
        seen = np.where(known, valued(rises, trials.weights[others]), -np.inf)
        seen_again = math.ceil(self.SEEN_AGAIN * len(others))
        return np.concatenate(
            [
                local[np.argsort(foretold, kind="stable")][: self.FINISHED],
                others[np.argsort(seen, kind="stable")][:seen_again],
            ]
        )

    def _learn(self, trials: Trials, effects: list[Effect | None]) -> None:
        for effect, rise in zip(effects, trials.rises().tolist(), strict=True):
            if effect and np.isfinite(rise):
                self._forecast.learn(effect, rise, trials.excess)
        self._take_in(trials)

    def _tie(self, trials: Trials) -> float:
        return self.TIED * max(abs(trials.current_loss), 1e-12)

    def _tied(self, trials: Trials, order: np.ndarray, together: Together | None) -> np.ndarray:
        """The first of `order` and those that are as good as it and can be taken with it."""
        values = trials.values()[order]
        close = order[values <= values[0] + self._tie(trials)]
        if together is None or len(close) < 2:
            return close[:1]
        return close[together([trials.proposals[index] for index in close])]

    def _see(self, trials: Trials, chosen: np.ndarray, batches: int) -> None:
        """Runs proposals until each has seen so many batches, all of these side by side."""
        tasks = [(i, number) for i in chosen for number in range(trials.batches(i), batches)]

        def run(task: tuple[int, int]) -> Any:
            index, number = task
            return self.current.without(trials.proposals[index])(number)

        found = self.current.pool.map(run, tasks)
        for (index, number), outputs in zip(tasks, found, strict=True):
            trials.add(index, self.current.rows[number], outputs)

    def _without_all(self, proposals: list[Proposal]) -> Any:
        """Outputs of the network without what several proposals remove, tree of float32 [n, ...];
        batches side by side."""

        def run(number: int) -> Any:
            return self.current.without(*proposals)(number)

        return joined(list(self.current.pool.map(run, range(len(self.current.rows)))))
