"""AutoSlim's greedy slimming (Yu & Huang 2019; docs/method.md 7) of a trained supernet.

Starting from the whole network, each step looks at every gate's next narrower width of the grid and
takes the one that leaves the best accuracy on D_val.
"""

import time

import numpy as np
import tensorflow as tf

from ...nets.gates import Gates
from ..space.candidates import Candidates, Size, removable
from ..space.width_grid import WidthGrid, narrower
from ..worth.rewards import Reward
from .greedy import GreedySearch

# Accuracies on a small D_val are often equal: the loss decides then. It weighs so little that
# 1 of cross-entropy counts as an error in a thousand images.
LOSS_WEIGHT = 1e-3


class AccuracyReward(Reward):
    """Minus the share of wrong answers, minus LOSS_WEIGHT times the mean cross-entropy.

    Args:
        labels: int32 [n].
        num_classes: number of logits.
    """

    def __init__(self, labels: np.ndarray, num_classes: int):
        super().__init__(labels, None, num_classes)

    def losses(self, logits: tf.Tensor, rows: slice = slice(None)) -> tf.Tensor:
        """Minus the reward of each example in `rows`, float32 [rows]; logits [rows, classes]."""
        labels = self.targets[rows]
        wrong = tf.cast(tf.argmax(logits, -1, tf.int32) != labels, tf.float32)
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        return wrong + LOSS_WEIGHT * loss

    def least_losses(self) -> np.ndarray:
        """The least that `losses` can be for each example: zeros, float32 [n]."""
        return np.zeros(len(self.targets), np.float32)


class GridCandidates(Candidates):
    """One step down its grid for every gate, reduced to the target where it would fall below.

    Args:
        grid: the widths. The others are those of `Candidates`.
    """

    def __init__(self, gates: Gates, size: Size, target: float, grid: WidthGrid, round_to: int = 1):
        super().__init__(gates, size, target, 0.0, round_to=round_to)
        self._grid = grid

    def removals(self, number: int) -> list[int]:
        gate = self._gates[number]
        width = narrower(self._grid.grids[number], gate)
        return [] if width is None else removable(gate, gate.width - width, self._round_to)


class SlimmingSearch(GreedySearch):
    """Removes grid steps by validation accuracy; the order of the channels stays the supernet's."""

    def _make_candidates(self) -> Candidates:
        round_to = self.options.budget.round_to
        grid = WidthGrid(self.gates, self.options.method.width_steps, round_to)
        return GridCandidates(self.gates, self.budget.size, self.target, grid, round_to)

    def _step(self) -> dict:
        begin = time.perf_counter()
        self.evaluator.set_current(self.gates.mask())
        reward = AccuracyReward(self.val.targets, self.graph.model.output_shape[-1])
        # Nothing is ranked here: a removal's cost is of no interest.
        proposals = self._proposals(np.zeros(self.graph.num_units + 1))
        return self._take_proposal(proposals, reward, {"start": time.perf_counter() - begin})
