"""One-shot searches used as baselines (docs/method.md 7): uniform widths and a global threshold.

Both score the filters of theta_0 once and remove everything in one step; nothing is evaluated but
the result. Scores: those of `pruning.worth.scores`, or Taylor on D_val by the task's own loss.
"""

import time

import numpy as np

from ..space.candidates import OVERSHOOT, removable
from ..space.widths import relative_scores, smallest, without
from ..worth.rewards import Reward
from .greedy import GreedySearch

PRECISION = 1e-4  # of the family's parameter


class OneShotSearch(GreedySearch):
    """Takes the first network at or below the target out of a family with one parameter."""

    def remaining(self) -> tuple[int, int]:
        """One step, which evaluates nothing but its own result."""
        return int(len(self.history.rows) == 1), 0

    def _step(self) -> dict:
        begin = time.perf_counter()
        scores = self._ranked(Reward(self.task, self.val))
        gates = self.gates
        relative = relative_scores(gates, scores)

        def counts(x: float) -> dict[int, int]:
            return {
                number: removals[-1]
                for number, wanted in enumerate(self._wanted(relative, x))
                if wanted
                and (removals := removable(gates[number], wanted, self.options.budget.round_to))
            }

        x = smallest(lambda x: self._size(counts(x)) <= self.target, PRECISION)
        if x is None:
            raise self._unreachable()
        gates.set_mask(without(gates, counts(max(0.0, x - PRECISION))))
        self._finish()
        parts = {"importance": time.perf_counter() - begin}
        begin = time.perf_counter()
        outputs = self.evaluator.set_current(gates.mask())
        parts["proposals"] = time.perf_counter() - begin
        images = 2 * len(self.val)
        return self._record(outputs, parts, images=images, name=self.options.method.name)

    def _wanted(self, relative: list[np.ndarray], x: float) -> list[int]:
        """Filters that each gate is to lose.

        Args:
            relative: as `relative_scores`. x: 0 = none; 1 = all but one in every gate.
        """
        raise NotImplementedError

    def _size(self, counts: dict[int, int]) -> float:
        return self.budget.size(without(self.gates, counts))

    def _finish(self) -> None:
        """The gates give their weakest filter in turn until the target is met, without falling far
        below it where that can be helped."""
        gates, giving = self.gates, list(range(len(self.gates)))
        floor = self.target - OVERSHOOT * self.budget.full
        while self._size({}) > self.target:
            options = {n: removable(gates[n], 1, self.options.budget.round_to) for n in giving}
            sizes = {n: self._size({n: counts[0]}) for n, counts in options.items() if counts}
            if not sizes:
                raise self._unreachable()
            near = [n for n in sizes if sizes[n] >= floor]
            number = near[0] if near else max(sizes, key=sizes.get)
            gates[number].remove(gates[number].weakest(options[number][0]))
            giving.remove(number)
            giving.append(number)


class UniformSearch(OneShotSearch):
    """Every gate keeps the same share of its filters."""

    def _wanted(self, relative: list[np.ndarray], x: float) -> list[int]:
        return [int(x * (len(scores) - 1)) for scores in relative]


class GlobalSearch(OneShotSearch):
    """Filters below one threshold on all gates' normalised scores leave."""

    def _wanted(self, relative: list[np.ndarray], x: float) -> list[int]:
        everything = np.sort(np.concatenate(relative))
        level = everything[min(len(everything) - 1, int(x * len(everything)))]
        below = [np.count_nonzero(one < level) if x < 1 else len(one) for one in relative]
        return [min(count, len(one) - 1) for count, one in zip(below, relative, strict=True)]
