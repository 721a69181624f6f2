"""What exported networks are worth on data: the task's figures, and their distance from Keras."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from ..nets.outputs import Output
from ..options.kinds import CLASSES, NUMBERS
from ..training.metrics import UserMetrics
from ..training.task import Task
from ..utils.trees import mapped, parts_of, tree_of
from .runtimes import Runtime


def measured(runs: Sequence[Runtime], task: Task, batches: Iterable[dict[str, Any]]) -> list[dict]:
    """The figures of every runtime, in one pass over the batches.

    Args:
        runs: Keras's own is the first. batches: as `dataloader.eval_batches` gives them.

    Returns:
        One dict for each: of a classifier "top1" in percent, of another task "loss" and, where it
        has the user's metrics, "metrics" {name: value}. "agreement" with the first in percent: of
        equal argmax (of every pixel, where there are any) or of equal sides of 0.5, mean over the
        outputs that have either; None where none has. "max_difference" from the first and
        "largest_output", over all outputs.
    """
    tallies = [Tally(task) for _ in runs]
    for batch in batches:
        inputs = mapped(_array, batch["inputs"])
        outputs = [parts_of(run(inputs)) for run in runs]
        for tally, values in zip(tallies, outputs, strict=True):
            tally.update(batch, values, outputs[0])
    return [tally.row() for tally in tallies]


def _array(tensor: tf.Tensor) -> np.ndarray:
    return tensor.numpy()


class Tally:
    """The figures of one runtime, summed batch by batch."""

    def __init__(self, task: Task):
        self._task, self._metrics = task, UserMetrics(task)
        self._examples, self._value = 0, 0.0  # hits, or the sum of the losses
        self._alike, self._decisions = np.zeros((2, len(task.heads)))
        self._worst, self._largest = 0.0, 0.0

    def update(self, batch: dict[str, Any], outputs: tuple, reference: tuple) -> None:
        """Takes in a batch.

        Args:
            batch: of `dataloader.eval_batches`.
            outputs, reference: what this runtime and Keras give for it, float32 [b, ...] each.
        """
        self._examples += len(outputs[0])
        targets, weights = batch["targets"], batch.get("weights")
        if self._task.is_classifier:
            self._value += (outputs[0].argmax(1) == np.asarray(targets)).sum()
        else:
            core = tree_of(
                head.output.logits(tf.constant(one, tf.float32))
                for head, one in zip(self._task.heads, outputs, strict=True)
            )
            losses = self._task.example_losses(core, targets, weights)
            self._value += float(tf.reduce_sum(losses))
            if self._metrics.any:
                self._metrics.update(core, targets, weights)
        triples = zip(self._task.heads, outputs, reference, strict=True)
        for number, (head, one, wanted) in enumerate(triples):
            # Not max, to which NaN is no larger than anything.
            self._worst = np.maximum(self._worst, np.abs(one - wanted).max())
            self._largest = np.maximum(self._largest, np.abs(one).max())
            if head.output.kind != NUMBERS:
                alike = _decided(head.output, one) == _decided(head.output, wanted)
                self._alike[number] += alike.sum()
                self._decisions[number] += alike.size

    def row(self) -> dict[str, Any]:
        """The figures of all batches, as `measured` says."""
        figures: dict[str, Any] = {}
        if self._task.is_classifier:
            figures["top1"] = 100 * self._value / self._examples
        else:
            figures["loss"] = self._value / self._examples
            if metrics := self._metrics.result():
                figures["metrics"] = metrics
        decided = self._decisions > 0
        shares = self._alike[decided] / self._decisions[decided]
        return figures | {
            "agreement": 100 * float(shares.mean()) if len(shares) else None,
            "max_difference": float(self._worst),
            "largest_output": float(self._largest),
        }


def _decided(output: Output, values: np.ndarray) -> np.ndarray:
    """The class, or for each of independent ones whether it is there, out of what is given."""
    if output.kind == CLASSES:
        return values.argmax(-1)
    return values > (0.5 if output.applied else 0.0)
