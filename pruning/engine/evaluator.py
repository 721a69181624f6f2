"""Evaluates proposals on D_val: the only place that knows how.

`NaiveEvaluator` runs the whole masked network for every proposal and is the reference.
`ExactEvaluator` gives the same rewards faster: it keeps the current network's activations at the
cuts, runs a proposal from the cut before its gate on sliced kernels, and stops as soon as a
proposal can no longer be the best. `LazyEvaluator` evaluates fewer proposals, some on a part of
D_val only, and does not always choose the best one.
"""

import math
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from ...nets.graph import ChannelGraph
from ...nets.stateless import batch_statistics
from ..space.candidates import Proposal
from ..worth.rewards import Reward
from .current import CurrentNetwork
from .validation import Validation

TIE = 1e-6  # rewards closer than this are told apart only by evaluating to the end


@dataclass(frozen=True)
class Outcome:
    """The best proposal of a step.

    `rewards` has one entry per proposal, float64; NaN where a proposal was left out or given up
    before its end. `logits` are those of the best one on D_val, float32 [n, classes];
    `evaluations` proposals were run, on `images` images together.
    """

    best: int
    reward: float
    rewards: np.ndarray
    logits: np.ndarray
    evaluations: int
    images: int


class Trials:
    """How far the proposals of a step have been evaluated. Each is one thread's at a time.

    Args:
        proposals: of the step.
        reward: of the step.
        current: the current network's logits on D_val, float32 [n, classes].

    Attributes:
        losses: minus the rewards, float64 [proposals]; infinite until a proposal is finished.
        images: that each has seen, int64 [proposals].
    """

    def __init__(self, proposals: list[Proposal], reward: Reward, current: np.ndarray):
        self.proposals, self.reward = proposals, reward
        self.losses = np.full(len(proposals), np.inf)
        self.images = np.zeros(len(proposals), int)
        self._sums = np.zeros(len(proposals))
        self._logits: list[list[np.ndarray]] = [[] for _ in proposals]
        # What the first i examples cost the current network, and at least the others any network.
        own = reward.losses(tf.constant(current)).numpy().astype(np.float64)
        self._current = np.concatenate([[0], np.cumsum(own)])
        self._rest = reward.least_losses().astype(np.float64)[::-1].cumsum()[::-1]
        self._rest = np.append(self._rest, 0)

    def batches(self, index: int) -> int:
        """Number of batches that a proposal has seen."""
        return len(self._logits[index])

    def add(self, index: int, rows: slice, logits: tf.Tensor) -> None:
        """Takes in a proposal's logits on its next batch, float32 [rows, classes]."""
        self._sums[index] += float(tf.reduce_sum(self.reward.losses(logits, rows)))
        self._logits[index].append(logits.numpy())
        self.images[index] = rows.stop
        if rows.stop == len(self._current) - 1:
            self.losses[index] = self._sums[index] / rows.stop

    def hopeless(self, index: int) -> bool:
        """Whether a proposal must end with a larger loss than a finished one."""
        # Another thread may lower the least loss meanwhile: that only delays giving up.
        least = (self._sums[index] + self._rest[self.images[index]]) / (len(self._current) - 1)
        return bool(least > self.losses.min() + TIE)

    @property
    def current_loss(self) -> float:
        """Of the current network."""
        return float(self._current[-1]) / (len(self._current) - 1)

    def ratios(self) -> np.ndarray:
        """Loss over the current network's on the images seen, float64 [proposals]; NaN if none."""
        own = np.maximum(self._current[self.images], TIE)
        return np.where(self.images > 0, self._sums / own, np.nan)

    def outcome(self) -> Outcome:
        """The finished proposal with the largest reward."""
        best = int(np.argmin(self.losses))
        rewards = np.where(np.isinf(self.losses), np.nan, -self.losses)
        logits = np.concatenate(self._logits[best])
        run = int(np.count_nonzero(self.images))
        return Outcome(best, float(rewards[best]), rewards, logits, run, int(self.images.sum()))


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
        """{gate: expected loss after its removal over the current network's loss}: a mean of the
        evaluations so far in which each counts as much as all earlier ones."""
        return dict(self._ratios)

    def best(self, proposals: list[Proposal], reward: Reward) -> Outcome:
        """The proposal with the largest reward; the same choice as `NaiveEvaluator`.

        Proposals of the best expected reward go first, so that later ones can be given up early.
        """
        trials = Trials(proposals, reward, self.current.logits)
        ratios = np.array([self._ratios.get(one.gate, 0) for one in proposals])
        expected = ratios * trials.current_loss
        self._work_off(trials, np.argsort(expected, kind="stable"), expected)
        for one, ratio in zip(proposals, trials.ratios().tolist(), strict=True):
            if np.isfinite(ratio):
                self._ratios[one.gate] = (self._ratios.get(one.gate, ratio) + ratio) / 2
        return trials.outcome()

    def _work_off(self, trials: Trials, order: np.ndarray, expected: np.ndarray) -> None:
        """Finishes every proposal that may be the best.

        Args:
            order: numbers of the proposals by rising `expected` loss.
        """
        self._run(trials, order, give_up=True)

    def _run(self, trials: Trials, order, batches: int | None = None, give_up: bool = False):
        """Runs proposals side by side until each has seen so many batches (None: all), or is
        hopeless."""
        rows = self.current.rows[:batches]
        parts = self.current.segments

        def run(index: int) -> None:
            place, proposal = self.current.place, trials.proposals[index]
            first = self.current.cuts.before(parts.first_segment(proposal.gate))
            with tf.device(place.device):
                weights = parts.changed_weights(place.weights, proposal.mask, proposal.gate)
                for number in range(trials.batches(index), len(rows)):
                    logits = parts.logits(place.cache[number][first], weights, first)
                    trials.add(index, rows[number], logits)
                    if give_up and trials.hopeless(index):
                        return

        list(self.current.pool.map(run, order))


class LazyEvaluator(ExactEvaluator):
    """Lazy greedy (CELF, Leskovec et al. 2007): the same machinery on fewer proposals.

    CELF evaluates proposals by falling expectation until a fresh reward beats every stale
    expectation. But rewards are not submodular: gates differ less than a gate does from step to
    step, so a stale expectation is a weak promise and half of D_val says much more. So three
    quarters of the proposals see the first half of D_val, the best three of them are finished
    unless they are clearly behind there, and then CELF goes on. A better proposal may still be
    missed.
    """

    SCREENED, FINISHED, BEHIND = 3 / 4, 3, 1.05
    # Evaluated side by side; a constant, for the choice must not depend on the number of cores.
    WAVE = 2

    def _work_off(self, trials: Trials, order: np.ndarray, expected: np.ndarray) -> None:
        screened = order[: math.ceil(self.SCREENED * len(order))]
        self._run(trials, screened, math.ceil(len(self.current.rows) / 2))
        ratios = trials.ratios()
        best_first = screened[np.argsort(ratios[screened], kind="stable")][: self.FINISHED]
        bound = self.BEHIND * ratios[best_first[0]]
        self._run(trials, best_first[ratios[best_first] <= bound])
        for first in range(len(screened), len(order), self.WAVE):
            if trials.losses.min() <= expected[order[first]]:
                break
            self._run(trials, order[first : first + self.WAVE])


class NaiveEvaluator(ExactEvaluator):
    """The reference: a full masked forward pass for every proposal, nothing reused."""

    def __init__(self, graph: ChannelGraph, data: Validation, **options):
        super().__init__(graph, data, **options)
        self._images = [tf.constant(data.inputs[rows]) for rows in data.batches()]
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
        images = len(proposals) * len(reward.targets)
        return Outcome(best, rewards[best], np.array(rewards), logits[best], len(proposals), images)


EVALUATORS = {"exact": ExactEvaluator, "lazy": LazyEvaluator, "naive": NaiveEvaluator}
