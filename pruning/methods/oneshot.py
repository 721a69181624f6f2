"""One-shot searches used as baselines (docs/method.md 7): uniform widths and a global threshold.

Both score the filters of theta_0 once and remove everything in one step; nothing is evaluated but
the result. Scores: those of `pruning.worth.scores`, or Taylor on D_val by the task's own loss.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ...nets.gates import Gates
from ..space.candidates import OVERSHOOT, removable
from ..space.widths import relative_scores, smallest, without
from ..worth.rewards import Reward
from .greedy import GreedySearch

PRECISION = 1e-4  # of the family's parameter
MOST_MORE = 0.1  # of a gate's filters, which it gives more than the others to meet the target
GRAINS = 10_000  # of the way to the target, in each of which the gates give one after the other


class OneShotSearch(GreedySearch):
    """Takes the first network at or below the target out of a family with one parameter.

    With a `drop` it takes the last network of the way there that isn't worse than allowed, found by
    bisection: the next one on the way, in which one more group has given filters, is worse.
    """

    def remaining(self) -> tuple[int, int]:
        """One step, which evaluates nothing but its own result."""
        return int(len(self.history.rows) == 1), 0

    def _step(self) -> dict | None:
        begin = time.perf_counter()
        scores = self._ranked(Reward(self.task, self.val))
        parts = {"importance": time.perf_counter() - begin}
        begin = time.perf_counter()
        way = self._way(relative_scores(self.gates, scores))
        place, tried = way.last, 0
        if self.drop is not None:
            place, tried = self._allowed(way)
            if way.mask(place).all():  # nothing has left up to there
                return None
        self.gates.set_mask(way.mask(place))
        outputs = self.evaluator.set_current(self.gates.mask())
        parts["proposals"] = time.perf_counter() - begin
        images = (2 + tried) * len(self.val)
        more = {"evaluations": tried, "last": True} if tried else {}
        return self._record(outputs, parts, images=images, name=self.options.method.name, **more)

    def _way(self, relative: list[np.ndarray]) -> "_Way":
        """From the whole network to the target.

        Args:
            relative: as `relative_scores`.

        Raises:
            UserError: the target can't be reached.
        """
        gates, round_to = self.gates, self.options.budget.round_to

        def counts(x: float) -> dict[int, int]:
            return {
                number: removals[-1]
                for number, wanted in enumerate(self._wanted(relative, x))
                if wanted and (removals := removable(gates[number], wanted, round_to))
            }

        if self.wanted.rate is None:
            return _Way(gates, counts, 1.0, [])
        x = smallest(lambda x: self._size(counts(x)) <= self.target, PRECISION)
        if x is None:
            raise self._unreachable()
        end, whole = max(0.0, x - PRECISION), gates.mask()
        gates.set_mask(without(gates, counts(end)))
        rest = self._finish()
        gates.set_mask(whole)
        return _Way(gates, counts, end, rest)

    def _allowed(self, way: "_Way") -> tuple[int, int]:
        """(the place of the last network on the way that is good enough, networks tried).

        Bisection: the place is allowed and the next one isn't, or it is the end of the way.
        """
        known = {way.mask(0).tobytes(): True}

        def allowed(place: int) -> bool:
            mask = way.mask(place)
            if mask.tobytes() not in known:
                (outputs,) = self.evaluator.current.evaluate([mask])
                known[mask.tobytes()] = not self._too_bad(outputs)
            return known[mask.tobytes()]

        low, high = 0, way.last
        if allowed(high):
            return high, len(known) - 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if allowed(middle) else (low, middle)
        return low, len(known) - 1

    def _wanted(self, relative: list[np.ndarray], x: float) -> list[int]:
        """Filters that each gate is to lose.

        Args:
            relative: as `relative_scores`. x: 0 = none; 1 = all but one in every gate.
        """
        raise NotImplementedError

    def _size(self, counts: dict[int, int]) -> float:
        return self.budget.size(without(self.gates, counts))

    def _finish(self) -> list[np.ndarray]:
        """The gates give their weakest filter in turn until the target is met, without falling far
        below it where that can be helped at MOST_MORE of a gate's filters.

        Returns:
            The unit mask, float32 [U + 1], after each of them.
        """
        gates, giving, masks = self.gates, list(range(len(self.gates))), []
        more = [max(1, int(MOST_MORE * gate.channels)) for gate in gates]
        floor = self.target - OVERSHOOT * self.budget.full
        while self._size({}) > self.target:
            options = {n: removable(gates[n], 1, self.options.budget.round_to) for n in giving}
            sizes = {n: self._size({n: counts[0]}) for n, counts in options.items() if counts}
            if not sizes:
                raise self._unreachable()
            far = {n: size for n, size in sizes.items() if size < floor}
            near = [n for n in sizes if n not in far and (more[n] > 0 or not far)]
            number = near[0] if near else max(far, key=far.get)
            gates[number].remove(gates[number].weakest(options[number][0]))
            more[number] -= 1
            giving.remove(number)
            giving.append(number)
            masks.append(gates.mask())
        return masks


@dataclass(frozen=True)
class _Way:
    """Ever smaller networks: the family, one gate after the other, then single filters.

    Attributes:
        gates: open, ranked.
        counts: parameter of the family -> {number of a gate: filters to remove}, none of which
            falls as it grows.
        end: the parameter at which `rest` goes on.
        rest: unit masks, float32 [U + 1].
    """

    gates: Gates
    counts: Callable[[float], dict[int, int]]
    end: float
    rest: list[np.ndarray]

    @property
    def last(self) -> int:
        """The place of the last network; 0 is that of the whole one."""
        return GRAINS * len(self.gates) + len(self.rest)

    def mask(self, place: int) -> np.ndarray:
        """The unit mask, float32 [U + 1], at a place, 0 .. last; the gates must be open."""
        grain, moved = divmod(place, len(self.gates))
        if place > GRAINS * len(self.gates):
            return self.rest[place - GRAINS * len(self.gates) - 1]
        now = self.counts(self.end * (grain / GRAINS))
        after = self.counts(self.end * ((grain + 1) / GRAINS)) if moved else now
        counts = now | {number: after[number] for number in range(moved) if number in after}
        return without(self.gates, counts)


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
