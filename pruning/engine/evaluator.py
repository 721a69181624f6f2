"""Evaluates proposals on D_val: the only place that knows how.

`NaiveEvaluator` runs the whole masked network for every proposal and is the reference.
`ExactEvaluator` gives the same rewards faster: it keeps the current network's activations at the
cuts, runs a proposal from the cut before its gate on sliced kernels, and stops as soon as a
proposal can no longer be the best. `fast.FastEvaluator` evaluates fewer proposals, some on a part
of D_val only, and does not always choose the best one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import keras
import numpy as np
import tensorflow as tf

from ...nets.graph import ChannelGraph
from ...nets.stateless import arranged, batch_statistics
from ...utils import cluster
from ...utils.trees import mapped, rows_of, tree_of
from ..space.candidates import Proposal, rises_of, valued, weights_of
from ..worth.rewards import Reward
from .current import CurrentNetwork, joined
from .validation import Validation

# Rewards closer than this (as a share of them where they are above 1) are told apart only by
# evaluating to the end.
TIE = 1e-6
Found = TypeVar("Found")


@dataclass(frozen=True)
class Outcome:
    """The best proposal of a step.

    `chosen` are the numbers of the proposals that are taken at once: mostly the best one alone.
    `reward` and `outputs` are those of the network without them, outputs on D_val, tree of float32
    [n, ...]. `rewards` has one entry per proposal, float64; NaN where a proposal was left out or
    not finished. `evaluations` networks were run, on `images` examples together.
    """

    chosen: tuple[int, ...]
    reward: float
    rewards: np.ndarray
    outputs: Any
    evaluations: int
    images: int

    @property
    def best(self) -> int:
        """Number of the best proposal."""
        return self.chosen[0]


# (proposals, best first) -> the numbers of those that can be taken at once
Together = Callable[[list[Proposal]], list[int]]


class Trials:
    """How far the proposals of a step have been evaluated. Each is one thread's at a time.

    Outputs are kept only of proposals that may still be the best: they can be large.

    Args:
        proposals: of the step.
        reward: of the step.
        current: the current network's outputs on D_val, tree of float32 [n, ...].

    Attributes:
        losses: minus the rewards, float64 [proposals]; infinite until a proposal is finished.
        weights: of the proposals, float64 [proposals].
        images: examples that each has seen, int64 [proposals].
    """

    def __init__(self, proposals: list[Proposal], reward: Reward, current: Any):
        self.proposals, self.reward = proposals, reward
        self.losses = np.full(len(proposals), np.inf)
        self.weights = weights_of(proposals)
        self.images = np.zeros(len(proposals), int)
        self._sums = np.zeros(len(proposals))
        self._outputs: list[list[Any]] = [[] for _ in proposals]
        self._batches = [0] * len(proposals)
        self._owners = np.zeros(len(proposals), int)
        self._joint = 0  # networks without several proposals that were run
        # What the first i examples cost the current network, and at least the others any network
        # (-inf as long as one of them has no known bound).
        own = cluster.agreed(reward.all_losses(current)).astype(np.float64)
        self._current = np.concatenate([[0], np.cumsum(own)])
        self._rest = reward.least_losses().astype(np.float64)[::-1].cumsum()[::-1]
        self._rest = np.append(self._rest, 0)

    def batches(self, index: int) -> int:
        """Number of batches that a proposal has seen."""
        return self._batches[index]

    def add(self, index: int, rows: slice, outputs: Any) -> None:
        """Takes in a proposal's outputs on its next batch, tree of float32 [rows, ...]."""
        self._sums[index] += float(tf.reduce_sum(self.reward.losses(outputs, rows)))
        self._outputs[index].append(mapped(lambda one: one.numpy(), outputs))
        self._batches[index] += 1
        self.images[index] = rows.stop
        if rows.stop == len(self._current) - 1:
            self.losses[index] = self._sums[index] / rows.stop
            values = self.values()
            for one in np.flatnonzero(np.isfinite(values) & (values > values.min())):
                self.forget(one)

    def deal(self, order: np.ndarray) -> None:
        """Shares the proposals out over the machines (`utils.cluster`), in turn in this order."""
        self._owners[order] = np.arange(len(order)) % cluster.size()

    def own(self, order: np.ndarray) -> list[int]:
        """Those of some proposals that this machine evaluates."""
        return [int(index) for index in order if self._owners[index] == cluster.rank()]

    def exchange(self) -> None:
        """Tells the other machines how far this one's proposals are, and learns of theirs."""
        if cluster.size() == 1:
            return
        every = cluster.collected([self.losses, self._sums, self.images])
        for worker, arrays in enumerate(every):
            theirs = self._owners == worker
            for known, told in zip((self.losses, self._sums, self.images), arrays, strict=True):
                known[theirs] = told[theirs]

    def forget(self, index: int) -> None:
        """Lets go of the outputs of a proposal that won't be the best."""
        self._outputs[index] = []

    def hopeless(self, index: int) -> bool:
        """Whether a proposal must end worse than a finished one."""
        # Another thread may lower the least loss meanwhile: that only delays giving up.
        least = (self._sums[index] + self._rest[self.images[index]]) / (len(self._current) - 1)
        most = self.current_loss + rises_of(self.values().min(), self.weights[index])
        return bool(np.isfinite(most) and least > most + TIE * max(1.0, abs(most)))

    def values(self) -> np.ndarray:
        """As `valued`, of the finished proposals: the least is the best; infinite for the others.
        float64 [proposals]"""
        return valued(self.losses - self.current_loss, self.weights)

    @property
    def current_loss(self) -> float:
        """Of the current network."""
        return float(self._current[-1]) / (len(self._current) - 1)

    @property
    def excess(self) -> float:
        """What of the current network's loss may differ between networks, above 0: what it is more
        than the least one, or its size where that isn't known."""
        more = float(self._current[-1] - self._rest[0]) / (len(self._current) - 1)
        return max(more if np.isfinite(more) else abs(self.current_loss), TIE)

    def rises(self) -> np.ndarray:
        """Loss minus the current network's on the images seen, float64 [proposals]; NaN if none."""
        seen = np.where(self.images > 0, self.images, np.nan)
        return (self._sums - self._current[self.images]) / seen

    def ratios(self) -> np.ndarray:
        """Loss over the current network's on the images seen, float64 [proposals]; NaN if none."""
        own = self._current[self.images]
        own = np.where(own < -TIE, own, np.maximum(own, TIE))
        return np.where(self.images > 0, self._sums / own, np.nan)

    def outcome(self) -> Outcome:
        """The best one of the finished proposals."""
        best = int(np.argmin(self.values()))
        owner, outputs = int(self._owners[best]), None
        if owner == cluster.rank():
            outputs = mapped(lambda *parts: np.concatenate(parts), *self._outputs[best])
        outputs = cluster.agreed(outputs, owner)
        return self._outcome((best,), float(-self.losses[best]), outputs)

    def joint(self, chosen: Sequence[int], outputs: Any, most: float) -> Outcome | None:
        """The outcome of taking several proposals at once.

        Args:
            outputs: of the network without all of them on D_val, tree of float32 [n, ...].
            most: None is returned if the loss is more than so much above the current network's.
        """
        self._joint += 1
        loss = float(self.reward.all_losses(outputs).astype(np.float64).mean())
        if not loss - self.current_loss <= most:
            return None
        return self._outcome(tuple(int(index) for index in chosen), -loss, outputs)

    def _outcome(self, chosen: tuple[int, ...], reward: float, outputs: Any) -> Outcome:
        rewards = np.where(np.isinf(self.losses), np.nan, -self.losses)
        run = int(np.count_nonzero(self.images)) + self._joint
        images = int(self.images.sum()) + self._joint * (len(self._current) - 1)
        return Outcome(chosen, reward, rewards, outputs, run, images)


class ExactEvaluator:
    """Prefix cache, sliced kernels and exact early stop.

    Args:
        graph: the channel graph of theta_0.
        data: D_val.
        options: those of `CurrentNetwork`. Every machine evaluates whole proposals on all of
            D_val, so the choice does not depend on the number of machines.
    """

    FIRST = 2  # proposals of each machine whose losses all of them learn before the others begin

    def __init__(self, graph: ChannelGraph, data: Validation, **options):
        self.current = CurrentNetwork(graph, data, **options)
        self._ratios: dict[int, float] = {}

    def set_current(self, mask: np.ndarray) -> Any:
        """Makes the network under `mask` the current one; returns its outputs on D_val, tree of
        float32 [n, ...]."""
        return self.current.set(mask)

    def set_current_with_importance(
        self, mask: np.ndarray, reward: Reward
    ) -> tuple[Any, np.ndarray]:
        """As `CurrentNetwork.set_with_importance`."""
        return self.current.set_with_importance(mask, reward)

    def remember(self, ratios: dict[int, float]) -> None:
        """Takes in the `ratios` of an earlier process."""
        self._ratios.update(ratios)

    def ratios(self) -> dict[int, float]:
        """{gate: expected loss after its removal over the current network's loss}: a mean of the
        evaluations so far in which each counts as much as all earlier ones."""
        return dict(self._ratios)

    def state(self) -> dict[str, Any]:
        """What a choice depends on that isn't in the history: nothing."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes in the `state` of an earlier process."""

    def best(
        self, proposals: list[Proposal], reward: Reward, together: Together | None = None
    ) -> Outcome:
        """The best proposal, by reward and weight; the same choice as `NaiveEvaluator`.

        Proposals of the best expected reward go first, so that later ones can be given up early.

        Args:
            together: which proposals may be taken at once, for evaluators that do so; None: one.
        """
        trials = Trials(proposals, reward, self.current.outputs)
        ratios = np.array([self._ratios.get(one.gate, 0) for one in proposals])
        expected = valued((ratios - 1) * trials.current_loss, trials.weights)
        order = np.argsort(expected, kind="stable")
        trials.deal(order)
        first = self.FIRST * cluster.size() if cluster.size() > 1 else 0
        if first:
            self._run(trials, order[:first])
        self._run(trials, order[first:])
        self._take_in(trials)
        return trials.outcome()

    def each(self, proposals: list[Proposal], use: Callable[[Any], Found]) -> list[Found]:
        """What a function makes of every proposal, none of which is given up.

        Args:
            use: outputs on D_val, tree of float32 [n, ...] -> anything; called by several threads.
        """

        def run(proposal: Proposal) -> Found:
            outputs = self.current.without(proposal)
            batches = joined([outputs(number) for number in range(len(self.current.rows))])
            return use(batches)

        return list(self.current.pool.map(run, proposals))

    def _take_in(self, trials: Trials) -> None:
        """Remembers what proposals have cost."""
        for one, ratio in zip(trials.proposals, trials.ratios().tolist(), strict=True):
            if np.isfinite(ratio):
                self._ratios[one.gate] = (self._ratios.get(one.gate, ratio) + ratio) / 2

    def _run(self, trials: Trials, order: np.ndarray) -> None:
        """Runs proposals side by side until each has seen all batches, or is hopeless."""

        def run(index: int) -> None:
            outputs = self.current.without(trials.proposals[index])
            for number, rows in enumerate(self.current.rows):
                trials.add(index, rows, outputs(number))
                if trials.hopeless(index):
                    trials.forget(index)
                    return

        list(self.current.pool.map(run, trials.own(order)))
        trials.exchange()


class NaiveEvaluator(ExactEvaluator):
    """The reference: a full masked forward pass for every proposal, nothing reused."""

    def __init__(self, graph: ChannelGraph, data: Validation, **options):
        super().__init__(graph, data, **options)
        self._inputs = [mapped(tf.constant, rows_of(data.inputs, one)) for one in data.batches()]
        self._graph = graph
        gated, self._mask = graph.gated()

        @tf.function(autograph=False)
        def forward(inputs):
            with batch_statistics(gated):
                return tree_of(keras.tree.flatten(gated(arranged(gated, inputs), training=True)))

        self._forward = forward

    def best(
        self, proposals: list[Proposal], reward: Reward, together: Together | None = None
    ) -> Outcome:
        """Evaluates every proposal and takes the first of the best."""
        rewards, best = [], 0
        now = float(tf.reduce_mean(reward.all_losses(self._outputs(self._before(proposals[0])))))
        weights = weights_of(proposals)
        for number, proposal in enumerate(proposals):
            outputs = self._outputs(proposal.mask)
            rewards.append(-float(tf.reduce_mean(reward.all_losses(outputs))))
            values = valued(-np.array(rewards) - now, weights[: number + 1])
            if number == 0 or values[-1] < values[best]:
                best, kept = number, outputs
        best = int(cluster.agreed(np.array(best)))
        rewards, kept = cluster.agreed(np.array(rewards)), cluster.agreed(kept)
        examples = len(proposals) * self.current.rows[-1].stop
        chosen, reward = (best,), float(rewards[best])
        return Outcome(chosen, reward, rewards, kept, len(proposals), examples)

    def each(self, proposals: list[Proposal], use: Callable[[Any], Found]) -> list[Found]:
        """As `ExactEvaluator.each`, one after the other."""
        return [use(self._outputs(one.mask)) for one in proposals]

    def _before(self, proposal: Proposal) -> np.ndarray:
        """The current network's mask, float32 [U + 1]."""
        mask = proposal.mask.copy()
        mask[self._graph.groups[proposal.gate].start + proposal.channels] = 1
        return mask

    def _outputs(self, mask: np.ndarray) -> Any:
        self._mask.assign(mask)
        return joined([self._forward(inputs) for inputs in self._inputs])
