"""Evaluates proposals on D_val: the only place that knows how.

`NaiveEvaluator` runs the whole masked network for every proposal and is the reference.
`ExactEvaluator` gives the same rewards faster: it keeps the current network's activations at the
cuts, runs a proposal from the cut before its gate on sliced kernels, and stops as soon as a
proposal can no longer be the best. `LazyEvaluator` evaluates fewer proposals and does not always
choose the best one.
"""

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import tensorflow as tf

from nets.graph import ChannelGraph
from pruning.candidates import Proposal
from pruning.rewards import Reward
from pruning.segments import ImportancePass, Segments
from utils.provenance import cpu_count
from utils.stateless import batch_statistics

TIE = 1e-6  # rewards closer than this are told apart only by evaluating to the end


@dataclass(frozen=True)
class Validation:
    """D_val in batches of nearly equal size: images float32 [n, h, w, c], labels int32 [n]."""

    images: np.ndarray
    labels: np.ndarray
    batch_images: int

    def batches(self) -> list[slice]:
        """Row ranges of ceil(n / batch_images) batches whose sizes differ by at most one."""
        count = -(-len(self.labels) // self.batch_images)
        edges = np.linspace(0, len(self.labels), count + 1).astype(int)
        return [slice(a, b) for a, b in itertools.pairwise(edges)]


@dataclass(frozen=True)
class Outcome:
    """The best proposal of a step.

    `rewards` has one entry per proposal, float64; NaN where a proposal was left out or given up
    before its end. `logits` are those of the best one on D_val, float32 [n, classes].
    """

    best: int
    reward: float
    rewards: np.ndarray
    logits: np.ndarray
    evaluations: int


class ExactEvaluator:
    """Prefix cache, sliced kernels and exact early stop.

    Args:
        graph: the channel graph of theta_0.
        data: D_val.
        compile: XLA on masked full-width kernels (GPU).
        workers: threads that evaluate proposals side by side; default: one per core, one on a GPU.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        data: Validation,
        *,
        compile: bool = False,
        workers: int | None = None,
    ):
        self._data = data
        self._pool = ThreadPoolExecutor(workers or (1 if compile else cpu_count()))
        self._rows = data.batches()
        self._images = [tf.constant(data.images[rows]) for rows in self._rows]
        self._segments = Segments(graph, compile=compile)
        self._importance: ImportancePass | None = None
        self._weights: dict = {}
        self._cache: list[list[tf.Tensor]] = []  # [batch][cut]
        self._current_logits: np.ndarray | None = None
        self._drops: dict[int, float] = {}

    def set_current(self, mask: np.ndarray) -> np.ndarray:
        """Makes the network under `mask` the current one.

        Returns:
            Its logits on D_val, float32 [n, classes].
        """
        self._weights = self._segments.weights(mask)
        run = partial(self._segments.run, weights=self._weights)
        return self._keep(list(self._pool.map(run, self._images)))

    def set_current_with_importance(
        self, mask: np.ndarray, reward: Reward
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `set_current`, with the Taylor scores of the reward from the same pass.

        Returns:
            (logits float32 [n, classes], scores float64 [U + 1] summed over batches).
        """
        if self._importance is None:
            self._importance = ImportancePass(self._segments)
        self._weights = self._segments.weights(mask)

        def run(rows: slice, images: tf.Tensor) -> tuple:
            labels, teacher = reward.labels[rows], reward.teacher[rows]
            return self._importance.run(images, labels, teacher, self._weights, mask)

        results = list(self._pool.map(run, self._rows, self._images))
        return self._keep([outputs for outputs, _ in results]), sum(one for _, one in results)

    def _keep(self, outputs: list[list[tf.Tensor]]) -> np.ndarray:
        self._cache = [one[:-1] for one in outputs]
        self._current_logits = np.concatenate([one[-1].numpy() for one in outputs])
        return self._current_logits

    def remember(self, drops: dict[int, float]) -> None:
        """Takes in {gate: drop of the reward} as an earlier process measured them."""
        self._drops.update(drops)

    def best(self, proposals: list[Proposal], reward: Reward) -> Outcome:
        """The proposal with the largest reward; the same choice as `NaiveEvaluator`.

        Proposals with the best last known reward go first, so that later ones can be given up
        early.
        """
        least = reward.least_losses()
        current = float(tf.reduce_mean(reward.losses(tf.constant(self._current_logits))))
        expected = [current + self._drops.get(one.gate, -np.inf) for one in proposals]
        losses = np.full(len(proposals), np.inf)
        logits: list[np.ndarray | None] = [None] * len(proposals)

        def evaluate(index: int, best_loss: float | None = None) -> None:
            # Another thread may lower the least loss meanwhile: that only delays giving up.
            limit = losses.min() if best_loss is None else best_loss
            result = self._evaluate(proposals[index], reward, least, limit)
            if result is not None:
                losses[index], logits[index] = result
                self._drops[proposals[index].gate] = losses[index] - current

        evaluations = self._work_off(
            np.argsort(expected, kind="stable"), evaluate, expected, losses
        )
        best = int(np.argmin(losses))
        rewards = np.where(np.isinf(losses), np.nan, -losses)
        return Outcome(best, float(rewards[best]), rewards, logits[best], evaluations)

    def _work_off(self, order, evaluate: Callable, expected: list[float], losses) -> int:
        """Evaluates the proposals in `order` that may be the best; returns how many."""
        list(self._pool.map(evaluate, order))
        return len(order)

    def _evaluate(
        self, proposal: Proposal, reward: Reward, least: np.ndarray, best_loss: float
    ) -> tuple[float, np.ndarray] | None:
        """(minus the reward, logits) of a proposal, or None once it must exceed `best_loss`."""
        first = self._segments.first_segment(proposal.gate)
        weights = self._segments.changed_weights(self._weights, proposal.mask, proposal.gate)
        total, rest, logits = 0.0, float(least.sum()), []
        for number, rows in enumerate(self._rows):
            logits.append(self._segments.run(self._cache[number][first], weights, first)[-1])
            total += float(tf.reduce_sum(reward.losses(logits[-1], rows)))
            rest -= float(least[rows].sum())
            if (total + rest) / len(least) > best_loss + TIE:
                return None
        return total / len(least), np.concatenate([one.numpy() for one in logits])


class LazyEvaluator(ExactEvaluator):
    """Lazy greedy (CELF, Leskovec et al. 2007): the same machinery on fewer proposals.

    A proposal is expected to lower the current network's reward as much as when its gate was last
    evaluated. Proposals are evaluated by falling expectation until a fresh reward beats every stale
    expectation. Rewards are not submodular, so a better proposal may be missed.
    """

    # Evaluated side by side; a constant, for the choice must not depend on the number of cores.
    WAVE = 2

    def _work_off(self, order, evaluate: Callable, expected: list[float], losses) -> int:
        for first in range(0, len(order), self.WAVE):
            if losses.min() <= expected[order[first]]:
                return first
            # Nothing is given up early: every drop that is remembered was measured to its end.
            wave = order[first : first + self.WAVE]
            list(self._pool.map(partial(evaluate, best_loss=np.inf), wave))
        return len(order)

    def drops(self) -> dict[int, float]:
        """{gate: drop of the reward when it was last evaluated}, to go on from after a kill."""
        return dict(self._drops)


class NaiveEvaluator(ExactEvaluator):
    """The reference: a full masked forward pass for every proposal, nothing reused."""

    def __init__(self, graph: ChannelGraph, data: Validation, **options):
        super().__init__(graph, data, **options)
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
        return Outcome(best, rewards[best], np.array(rewards), logits[best], len(proposals))
