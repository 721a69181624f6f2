"""FFP's coarse-to-fine search (Lee & Song, TNNLS 2023; docs/method.md 5).

Coarse: importance scores make whole-network candidates, each a good part of the way to the target.
Fine: the candidates' loss on D_val decides. So a search takes a few rounds of about ten evaluations
instead of many steps; close to the target single gates give a few filters, to end exactly.
"""

import math
import time
from collections.abc import Sequence

import numpy as np

from ...utils import cluster
from ..space.candidates import OVERSHOOT, Proposal, removable
from ..space.widths import relative_scores, smallest, without
from ..worth.rewards import Reward
from .greedy import GreedySearch

# Our reading: the paper gives no numbers.
FRACTION = 0.2  # of the remaining distance to the target that a coarse candidate goes
CLOSE = 0.015  # of the whole size: from here on single gates finish
LARGEST_SHARE = 0.5  # of its filters that a gate loses at once, at most
SUBSETS = (0.2, 1 / 3, 0.5, 2 / 3, 1.0)  # shares of the gates that take part, cheapest first
FINE_STEPS = 2  # with single gates, about, until the target is met
FINE = 8  # single-gate proposals that are evaluated in a step close to the target, cheapest first


class CoarseToFineSearch(GreedySearch):
    """Rounds of whole-network candidates; every accepted one is a row of the history.

    The reward is minus the loss on D_val alone, without a teacher.
    """

    def remaining(self) -> tuple[int, int]:
        """As `GreedySearch.remaining`: coarse rounds each go a fifth of the way that is left, the
        last per cents go gate by gate."""
        distance = self.history.rows[-1]["rate"] - self.wanted.goal
        if distance <= 0:
            return 0, 0
        rounds = max(0, math.ceil(math.log(CLOSE / distance) / math.log(1 - FRACTION)))
        per_round = 2 * len(SUBSETS) + 1
        return rounds + FINE_STEPS, rounds * per_round + FINE_STEPS * FINE

    def _step(self) -> dict | None:
        begin = time.perf_counter()
        reward = Reward(self.task, self.val)
        scores = self._ranked(reward)
        proposals = self._proposals(scores)
        distance = self.history.rows[-1]["rate"] - self.wanted.goal
        coarse = {}
        if proposals and distance > CLOSE and not self._finishing():
            saved = FRACTION * distance * self.budget.full
            goal = self.budget.size(self.gates.mask()) - saved
            coarse = self._coarse(proposals, scores, goal)
        parts = {"importance": time.perf_counter() - begin}
        if coarse and (row := self._take_coarse(coarse, reward, parts)):
            return row
        cheapest = sorted(proposals, key=lambda one: one.cost / one.weight)[:FINE]
        return self._take_proposal(cheapest, reward, parts)

    def _finishing(self) -> bool:
        """Whether whole-network candidates have come to lose more than is allowed."""
        return self.drop is not None and "gate" in self.history.rows[-1]

    def _take_coarse(
        self, coarse: dict[str, np.ndarray], reward: Reward, parts: dict
    ) -> dict | None:
        """Records the best candidate; None where it loses more than is allowed."""
        begin = time.perf_counter()
        names, masks = list(coarse), list(coarse.values())
        outputs = self.evaluator.current.evaluate(masks)
        losses = [float(np.mean(reward.all_losses(one))) for one in outputs]
        losses = cluster.agreed(np.array(losses)).tolist()
        best = int(np.argmin(losses))
        if self._too_bad(outputs[best]):
            return None
        self.gates.set_mask(masks[best])
        return self._record(
            outputs[best],
            parts | {"proposals": time.perf_counter() - begin},
            evaluations=len(masks),
            images=(1 + len(masks)) * len(self.val),
            reward=-losses[best],
            name=names[best],
        )

    def _coarse(
        self, proposals: Sequence[Proposal], scores: np.ndarray, goal: float
    ) -> dict[str, np.ndarray]:
        """Candidates that reach the size `goal`, not far below the target; equal ones once.

        Two rankings of the gates, by the cost of their proposals and by cost per size saved, each
        with several numbers of gates that take part, and a threshold on the scores of all filters.

        Returns:
            {description: unit mask, float32 [U + 1]}.
        """
        size = self.budget.size(self.gates.mask())
        cost = np.array([one.cost for one in proposals])
        saved = np.array([max(size - one.size, 1e-9) for one in proposals])
        gates = np.array([one.gate for one in proposals])
        masks = {}
        for ranking, values in (("cost", cost), ("cost per size saved", cost / saved)):
            order = gates[np.argsort(values, kind="stable")]
            for share in SUBSETS:
                count = max(1, round(share * len(order)))
                masks[f"{count} gates of least {ranking}"] = self._share(order[:count], goal)
        masks["least scores of all filters"] = self._threshold(scores, goal)
        floor = self.target - OVERSHOOT * self.budget.full
        found, seen = {}, set()
        for name, mask in masks.items():
            if mask is None or self.budget.size(mask) < floor:
                continue
            if mask.tobytes() not in seen:
                seen.add(mask.tobytes())
                found[name] = mask
        return found

    def _share(self, chosen: np.ndarray, goal: float) -> np.ndarray | None:
        """The chosen gates lose the same share of their filters; None if the goal is too far."""
        gates, round_to = self.gates, self.options.budget.round_to

        def mask(x: float) -> np.ndarray:
            counts = {}
            for number in chosen:
                wanted = max(1, round(x * LARGEST_SHARE * gates[number].width))
                if removals := removable(gates[number], wanted, round_to):
                    counts[int(number)] = removals[-1]
            return without(gates, counts)

        x = smallest(lambda x: self.budget.size(mask(x)) <= goal, 1e-3)
        return None if x is None else mask(x)

    def _threshold(self, scores: np.ndarray, goal: float) -> np.ndarray | None:
        """Filters leave by rising score, normalised by gate; None if the goal is too far."""
        gates = self.gates
        relative = relative_scores(gates, scores)
        levels = np.unique(np.concatenate(relative))

        def mask(x: float) -> np.ndarray:
            level = levels[min(len(levels) - 1, int(x * len(levels)))]
            counts = {}
            for number, values in enumerate(relative):
                below = min(np.count_nonzero(values <= level), int(LARGEST_SHARE * len(values)))
                if removals := below and removable(
                    gates[number], below, self.options.budget.round_to
                ):
                    counts[number] = removals[-1]
            return without(gates, counts)

        x = smallest(lambda x: self.budget.size(mask(x)) <= goal, 0.5 / len(levels))
        return None if x is None else mask(x)
