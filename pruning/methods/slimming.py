"""AutoSlim's greedy slimming (Yu & Huang 2019; docs/method.md 7) of a trained supernet.

Starting from the whole network, each step looks at every gate's next narrower width of the grid and
takes the one that leaves the best accuracy on D_val (the least loss where there are no classes).
"""

import time
from typing import Any

import numpy as np
import tensorflow as tf

from ...nets.gates import Gates
from ...training.task import Task
from ..space.candidates import Candidates, Proposal, Size, removable
from ..space.width_grid import WidthGrid, narrower
from ..worth.rewards import Reward
from .greedy import GreedySearch

# Accuracies on a small D_val are often equal: the loss decides then. It weighs so little that
# 1 of cross-entropy counts as an error in a thousand images.
LOSS_WEIGHT = 1e-3


class AccuracyReward(Reward):
    """Minus the share of wrong answers, minus LOSS_WEIGHT times the mean cross-entropy.

    Tasks without classes have no accuracy: minus the task's own loss alone.
    """

    @staticmethod
    def _losses(task: Task, outputs: Any, terms: dict[str, Any]) -> tf.Tensor:
        targets = terms["targets"]
        loss = task.example_losses(outputs, targets, terms.get("weights"))
        if not task.is_classifier:
            return loss
        wrong = tf.cast(tf.argmax(outputs, -1, tf.int32) != targets, tf.float32)
        return wrong + LOSS_WEIGHT * loss


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

    def screened(self, proposals: list[Proposal]) -> list[Proposal]:
        """All: nothing is ranked here, so a removal's cost is of no interest."""
        return proposals


class SlimmingSearch(GreedySearch):
    """Removes grid steps by validation accuracy; the order of the channels stays the supernet's."""

    def _make_candidates(self, gates: Gates) -> Candidates:
        round_to = self.options.budget.round_to
        grid = WidthGrid(gates, self.options.method.width_steps, round_to)
        return GridCandidates(gates, self.budget.size, self.target, grid, round_to)

    def _step(self) -> dict | None:
        begin = time.perf_counter()
        self.evaluator.set_current(self.gates.mask())
        reward = AccuracyReward(self.task, self.val)
        proposals = self._proposals(np.zeros(self.graph.num_units + 1))
        return self._take_proposal(proposals, reward, {"start": time.perf_counter() - begin})
