"""Evaluates proposals on D_val: the only place that knows how.

`NaiveEvaluator` runs the whole masked network for every proposal and is the reference.
`ExactEvaluator` gives the same rewards faster: it keeps the current network's activations at the
cuts, runs a proposal from the cut before its gate on sliced kernels, and stops as soon as a
proposal can no longer be the best. `LazyEvaluator` evaluates fewer proposals and does not always
choose the best one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import tensorflow as tf

from nets.graph import ChannelGraph
from pruning.candidates import Proposal
from pruning.current import CurrentNetwork, Validation
from pruning.rewards import Reward
from utils.stateless import batch_statistics

TIE = 1e-6  # rewards closer than this are told apart only by evaluating to the end


@dataclass(frozen=True)
class Outcome:
    """The best proposal of a step.

    `rewards` has one entry per proposal, float64; NaN where a proposal was left out or given up
    before its end. `logits` are those of the best one on D_val, float32 [n, classes]; `images` ran
    through some proposal.
    """

    best: int
    reward: float
    rewards: np.ndarray
    logits: np.ndarray
    evaluations: int
    images: int


class ExactEvaluator:
    """Prefix cache, sliced kernels and exact early stop.

    Args:
        graph: the channel graph of theta_0.
        data: D_val.
        options: those of `CurrentNetwork`. Every device evaluates whole proposals on all of D_val,
            so the choice does not depend on the number of devices.
    """

    def __init__(self, graph: ChannelGraph, data: Validation, **options):
        self.current = CurrentNetwork(graph, data, **options)
        self._ratios: dict[int, float] = {}

    def set_current(self, mask: np.ndarray) -> np.ndarray:
        """Makes the network under `mask` the current one; returns its logits on D_val, float32 [n,
        classes]."""
        return self.current.set(mask)

    def set_current_with_importance(
        self, mask: np.ndarray, reward: Reward
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `CurrentNetwork.set_with_importance`."""
        return self.current.set_with_importance(mask, reward)

    def remember(self, ratios: dict[int, float]) -> None:
        """Takes in the `ratios` of an earlier process."""
        self._ratios.update(ratios)

    def ratios(self) -> dict[int, float]:
        """{gate: the loss after its proposal over the current network's loss}, as expected from
        the evaluations so far: each counts as much as all earlier ones of its gate."""
        return dict(self._ratios)

    def best(self, proposals: list[Proposal], reward: Reward) -> Outcome:
        """The proposal with the largest reward; the same choice as `NaiveEvaluator`.

        Proposals with the best expected reward go first, so that later ones can be given up early.
        """
        least = reward.least_losses()
        current = float(tf.reduce_mean(reward.losses(tf.constant(self.current.logits))))
        current = max(current, float(np.finfo(np.float32).tiny))
        expected = [current * self._ratios.get(one.gate, 0) for one in proposals]
        losses = np.full(len(proposals), np.inf)
        logits: list[np.ndarray | None] = [None] * len(proposals)
        images = [0] * len(proposals)

        def evaluate(index: int, best_loss: float | None = None) -> None:
            # Another thread may lower the least loss meanwhile: that only delays giving up.
            limit = losses.min() if best_loss is None else best_loss
            images[index], result = self._evaluate(proposals[index], reward, least, limit)
            if result is not None:
                losses[index], logits[index] = result
                ratio = losses[index] / current
                gate = proposals[index].gate
                self._ratios[gate] = (self._ratios.get(gate, ratio) + ratio) / 2

        order = np.argsort(expected, kind="stable")
        evaluations = self._work_off(order, evaluate, expected, losses, current)
        best = int(np.argmin(losses))
        rewards = np.where(np.isinf(losses), np.nan, -losses)
        return Outcome(best, float(rewards[best]), rewards, logits[best], evaluations, sum(images))

    def _work_off(self, order, evaluate: Callable, expected: list[float], losses, current) -> int:
        """Evaluates the proposals in `order` that may be the best; returns how many.

        Args:
            order: numbers of the proposals by rising `expected` loss.
            evaluate: fills in the loss of a proposal by its number.
            losses: float64 [proposals], infinite where nothing is known yet.
            current: the current network's loss.
        """
        list(self.current.pool.map(evaluate, order))
        return len(order)

    def _evaluate(
        self, proposal: Proposal, reward: Reward, least: np.ndarray, best_loss: float
    ) -> tuple[int, tuple[float, np.ndarray] | None]:
        """(images seen, (minus the reward, logits)) of a proposal; None for the pair once its first
        number must exceed `best_loss`."""
        place, parts = self.current.place, self.current.segments
        first = self.current.cuts.before(parts.first_segment(proposal.gate))
        total, rest, logits = 0.0, float(least.sum()), []
        with tf.device(place.device):
            weights = parts.changed_weights(place.weights, proposal.mask, proposal.gate)
            for number, rows in enumerate(self.current.rows):
                logits.append(parts.logits(place.cache[number][first], weights, first))
                total += float(tf.reduce_sum(reward.losses(logits[-1], rows)))
                rest -= float(least[rows].sum())
                if (total + rest) / len(least) > best_loss + TIE:
                    return rows.stop, None
            logits = np.concatenate([one.numpy() for one in logits])
            return len(least), (total / len(least), logits)


class LazyEvaluator(ExactEvaluator):
    """Lazy greedy (CELF, Leskovec et al. 2007): the same machinery on fewer proposals.

    Proposals are evaluated by falling expectation until a fresh reward beats every stale
    expectation. Rewards are not submodular and differ less between gates than from step to step, so
    a stale expectation is a weak promise: where the choice matters, because even the best removal
    so far costs more than 1 % of the loss, it counts only after three quarters of the evaluations.
    A better proposal may still be missed.
    """

    # Evaluated side by side; a constant, for the choice must not depend on the number of cores.
    WAVE = 2
    CHEAP, SHARE = 1.01, 0.75

    def _work_off(self, order, evaluate: Callable, expected: list[float], losses, current) -> int:
        for first in range(0, len(order), self.WAVE):
            best = losses.min()
            careful = best > self.CHEAP * current and first < self.SHARE * len(order)
            if not careful and best <= expected[order[first]]:
                return first
            # Nothing is given up early: every ratio that is remembered was measured to its end.
            wave = order[first : first + self.WAVE]
            list(self.current.pool.map(partial(evaluate, best_loss=np.inf), wave))
        return len(order)


class NaiveEvaluator(ExactEvaluator):
    """The reference: a full masked forward pass for every proposal, nothing reused."""

    def __init__(self, graph: ChannelGraph, data: Validation, **options):
        super().__init__(graph, data, **options)
        self._images = [tf.constant(data.images[rows]) for rows in data.batches()]
        gated, self._mask = graph.gated()

        @tf.function(autograph=False)
        def forward(images):
            with batch_statistics(gated):
                return gated(images, training=True)

        self._forward = forward

    def best(self, proposals: list[Proposal], reward: Reward) -> Outcome:
        """Evaluates every proposal and takes the first of the largest rewards."""
        logits, rewards = [], []
        for proposal in proposals:
            self._mask.assign(proposal.mask)
            logits.append(
                np.concatenate([self._forward(images).numpy() for images in self._images])
            )
            rewards.append(-float(tf.reduce_mean(reward.losses(logits[-1]))))
        best = int(np.argmax(rewards))
        images = len(proposals) * len(reward.labels)
        return Outcome(best, rewards[best], np.array(rewards), logits[best], len(proposals), images)


EVALUATORS = {"exact": ExactEvaluator, "lazy": LazyEvaluator, "naive": NaiveEvaluator}
