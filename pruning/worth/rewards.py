"""The reward: validation loss and the ensemble's knowledge (docs/method.md 1, steps e and f).

Outputs are trees (`utils.trees`): one array float32 [n, ...], or a tuple of several.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf

from ...options.methods import TEACHERS
from ...training.task import Task
from ...utils.trees import mapped, parts_of, rows_of, tree_of
from ..engine.validation import Validation


class Knowledge:
    """The teacher outputs T_i that the reward compares a sub-network with.

    `none`: no teacher; `single`: the outputs of theta_0 throughout; `ensemble`: the mean of the
    outputs of theta_0 .. theta_i.
    """

    def __init__(self, kind: str):
        if kind not in TEACHERS:
            raise ValueError(f"teacher {kind!r} is none of {TEACHERS}")
        self.kind = kind
        self._sum: Any = None
        self._count = 0

    def add(self, outputs: Any, removals: int = 1) -> None:
        """Takes in the outputs of the next accepted network, tree of float32 [n, ...].

        It counts for as many networks as there were `removals` on the way to it.
        """
        if self.kind == "none" or (self.kind == "single" and self._count):
            return
        # Summed in float64: the running mean of a long search must not depend on rounding.
        if self._sum is None:
            self._sum = mapped(lambda one: removals * one.astype(np.float64), outputs)
        else:
            self._sum = mapped(
                lambda one, sum: removals * one.astype(np.float64) + sum, outputs, self._sum
            )
        self._count += removals

    @property
    def outputs(self) -> Any:
        """T_i, tree of float32 [n, ...]; None without a teacher."""
        return mapped(lambda one: (one / self._count).astype(np.float32), self._sum)


class Reward:
    """R(theta) = -L(D_val; theta) - L(T; theta), both means over the n examples of D_val.

    L(D_val) is the task's own loss, L(T) its `knowledge_losses` of the teacher.

    Args:
        task: what the network is trained for.
        val: D_val.
        teacher: T, tree of float32 [n, ...]; None leaves out the second term.

    Attributes:
        task: as given.
        kind: rewards of one task and kind have terms of one structure and the same `losses_on`.
    """

    def __init__(self, task: Task, val: Validation, teacher: Any = None):
        self.task = task
        self.kind = type(self), teacher is not None
        self._val = val
        self._terms = _terms(val)
        if teacher is not None:
            self._terms["prepared"] = task.prepared(teacher, teacher)

    def terms(self, rows: slice) -> dict[str, Any]:
        """What `losses_on` needs of the examples in `rows`: nested tensors [rows, ...]."""
        return tf.nest.map_structure(lambda one: one[rows], self._terms)

    @property
    def losses_on(self) -> Callable[[Any, dict[str, Any]], tf.Tensor]:
        """(tree of outputs float32 [rows, ...], terms of the same rows) -> minus the rewards,
        float32 [rows]; TensorFlow alone, depending on the reward's kind and task only."""
        return partial(self._losses, self.task)

    @staticmethod
    def _losses(task: Task, outputs: Any, terms: dict[str, Any]) -> tf.Tensor:
        own = task.example_losses(outputs, terms["targets"], terms.get("weights"))
        if "prepared" not in terms:
            return own
        return own + task.knowledge_losses(terms["prepared"], outputs)

    def losses(self, outputs: Any, rows: slice = slice(None)) -> tf.Tensor:
        """Minus the reward of each example in `rows`, float32 [rows].

        Args:
            outputs: tree of tensors float32 [rows, ...].
        """
        return self.losses_on(outputs, self.terms(rows))

    def all_losses(self, outputs: Any) -> np.ndarray:
        """Minus the reward of every example of D_val, float32 [n].

        Args:
            outputs: tree of float32 arrays [n, ...].
        """
        return _by_batches(self.losses, self.task, self._val, outputs)

    def least_losses(self) -> np.ndarray:
        """The least that `losses` can be for each example, float32 [n]; -inf where unknown."""
        count = len(self._val)
        if "prepared" in self._terms:
            return self.task.least_losses(self._terms["prepared"], count)
        alone = replace(self.task, knowledge=None)
        nothing = tree_of(np.zeros((count, 1), np.float32) for _ in alone.heads)
        return alone.least_losses(alone.prepared(None, nothing), count)


def _terms(val: Validation) -> dict[str, Any]:
    """The tensors of D_val that losses are computed with."""
    terms = {"targets": mapped(_tensor, val.targets)}
    if any(one is not None for one in parts_of(val.weights)):
        ones = np.ones(len(val), np.float32)
        weights = (ones if one is None else one for one in parts_of(val.weights))
        terms["weights"] = tree_of(tf.constant(one, tf.float32) for one in weights)
    return terms


def _tensor(array: np.ndarray) -> tf.Tensor:
    whole = np.asarray(array).dtype.kind in "biu"
    return tf.constant(array, tf.int32 if whole else tf.float32)


def _by_batches(losses: Callable, task: Task, val: Validation, outputs: Any) -> np.ndarray:
    """losses(outputs, rows) of all rows, float32 [n].

    At once for logits; by batches where outputs may be as large as images.
    """
    batches = [slice(None)] if task.is_classifier else val.batches()
    found = [losses(mapped(tf.constant, rows_of(outputs, rows)), rows).numpy() for rows in batches]
    return np.concatenate(found)


def loss_and_accuracy(task: Task, val: Validation, outputs: Any) -> tuple[float, float | None]:
    """The task's mean loss of outputs on D_val, and top-1 in percent (None: not a classifier).

    Args:
        outputs: tree of float32 arrays [n, ...].
    """
    losses = Reward(task, val).all_losses(outputs)
    if not task.is_classifier:
        return float(np.mean(losses, dtype=np.float64)), None
    accuracy = 100 * float(np.mean(outputs.argmax(-1) == val.targets))
    return float(tf.reduce_mean(losses)), accuracy
