"""Losses of the fine-tuning (docs/method.md 3): the task's own plus knowledge, over its views.

Each function returns a `loss_fn(outputs, batch, taught)` for `op_utils.make_train_step`: outputs
float32 [views, b, ...], batch["targets"] [b, ...], taught: the outputs of every teacher that runs
beside the student -> (scalar, metrics). The formula sums over the views; the paper averages their
gradients, so the loss here is the mean over views.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from ...options.finetuning import ALL, CODE, PAPER
from ...training.task import Task
from ...utils.trees import mapped, parts_of

LossFunction = Callable[[Any, dict, Sequence], tuple[tf.Tensor, dict]]


def task_loss(
    task: Task, outputs: Any, batch: dict, *, viewed: bool = False
) -> tuple[tf.Tensor, dict]:
    """The task's own loss, mean over views and examples, and the metrics that go with it.

    Args:
        viewed: as in `Task.view_losses`.

    Returns:
        (scalar, {"accuracy": percent, for classifiers}).
    """
    losses = task.view_losses(outputs, batch["targets"], batch.get("weights"), viewed=viewed)
    accuracy = task.accuracy(outputs, batch["targets"])
    return tf.reduce_mean(losses), {} if accuracy is None else {"accuracy": accuracy}


def select_teachers(
    task: Task,
    bank: Any,
    batch: dict,
    student_loss: tf.Tensor,
    axis: int = -1,
    *,
    viewed: bool = False,
) -> tuple[Any, tf.Tensor]:
    """The teachers that are at least as good as the student on this batch: the paper's rule.

    Args:
        bank: outputs float32 [b, ..., K], or with axis 0 [K, views, b, ...]; a tuple where there
            are several.
        batch: "targets" and, where there are some, "weights".
        student_loss: scalar, the student's mean loss on the batch.
        axis: of the teachers.
        viewed: as in `Task.view_losses`; only with teachers that run beside the student.

    Returns:
        As `mean_of`.
    """
    per_teacher = mapped(lambda x: _first(x, axis), bank)
    targets, weights = batch["targets"], batch.get("weights")
    if axis == -1:
        losses = tf.reduce_mean(task.view_losses(per_teacher, targets, weights), axis=-1)
    else:
        found = [task.view_losses(x, targets, weights, viewed=viewed) for x in _each(per_teacher)]
        losses = tf.stack([tf.reduce_mean(one) for one in found])
    return mean_of(bank, losses <= student_loss, axis)


def teachers_of_code(
    task: Task, bank: Any, student: Any, temperature: float, best: int, axis: int = -1
) -> tuple[Any, tf.Tensor]:
    """The teachers that the published code takes: those nearer to the best one than the student is.

    No labels are looked at, and the best teacher always stays.

    Args:
        bank, axis: as of `select_teachers`.
        student: outputs float32 [views, b, ...]; rows of a bank are compared with the mean over the
            views, teachers that run beside the student (axis 0) with view by view.
        best: number of the teacher with the lowest loss on D_val.

    Returns:
        As `mean_of`.
    """
    each = _each(mapped(lambda x: _first(x, axis), bank))
    if axis == -1:
        student = mapped(lambda x: tf.reduce_mean(x, axis=0), student)
    top = each[best]
    apart = tf.stack([task.distillation(top, one, temperature) for one in each])
    nearer = apart < task.distillation(top, student, temperature)
    return mean_of(bank, nearer | (tf.range(len(each)) == best), axis)


def _each(per_teacher: Any) -> list[Any]:
    """The outputs of every teacher, a tree each, of those of all, [K, ...]."""
    count = parts_of(per_teacher)[0].shape[0]
    return [mapped(lambda x, k=k: x[k], per_teacher) for k in range(count)]


def mean_of(bank: Any, chosen: tf.Tensor, axis: int = -1) -> tuple[Any, tf.Tensor]:
    """The mean of some of the teachers.

    Args:
        bank, axis: as of `select_teachers`. chosen: bool [K].

    Returns:
        (mean outputs float32 [b, ...] or [views, b, ...]; number of chosen teachers float32; both 0
        if none is).
    """
    chosen = tf.cast(chosen, tf.float32)
    count = tf.reduce_sum(chosen)

    def mean(teachers: tf.Tensor) -> tf.Tensor:
        if axis == -1 and len(teachers.shape) == 3:
            return tf.einsum("k,bck->bc", chosen, teachers) / tf.maximum(count, 1.0)
        return tf.tensordot(chosen, _first(teachers, axis), 1) / tf.maximum(count, 1.0)

    return mapped(mean, bank), count


def _first(teachers: tf.Tensor, axis: int) -> tf.Tensor:
    """The teachers' axis before all others."""
    rank = len(teachers.shape)
    return tf.transpose(teachers, [rank - 1, *range(rank - 1)]) if axis == -1 else teachers


def expanded(logits: tf.Tensor, classes: tf.Tensor, rest: tf.Tensor, num_classes: int) -> tf.Tensor:
    """All logits from a top-k bank's rows: what was left out gets equal shares of its mass.

    Args:
        logits: float32 [b, K, k]. classes: [b, K, k], whole numbers of any type.
        rest: float32 [b, K], log-sum-exp of the other num_classes - k logits.

    Returns:
        float32 [b, num_classes, K].
    """
    teachers, k = logits.shape[-2:]
    others = rest - math.log(max(1, num_classes - k))
    flat = tf.repeat(tf.reshape(others, [-1, 1]), num_classes, axis=1)
    columns = tf.reshape(tf.cast(classes, tf.int32), [-1])
    rows = tf.repeat(tf.range(tf.shape(flat)[0]), k)
    places = tf.stack([rows, columns], axis=1)
    flat = tf.tensor_scatter_nd_update(flat, places, tf.reshape(logits, [-1]))
    return tf.transpose(tf.reshape(flat, [-1, teachers, num_classes]), [0, 2, 1])


def _bank_rows(batch: dict, outputs: Any) -> Any:
    """The bank's outputs for a batch, float32 [b, ..., K] for each output [views, b, ...]."""
    parts = parts_of(outputs)
    if len(parts) > 1:
        return tuple(batch[f"teacher_{number}"] for number in range(len(parts)))
    if "teacher" in batch:
        return batch["teacher"]
    rows = (batch[f"teacher_{name}"] for name in ("logits", "classes", "rest"))
    return expanded(*rows, outputs.shape[-1])


def plain_loss(task: Task, *, viewed: bool = False) -> LossFunction:
    """The task's loss alone; `viewed` as in `Task.view_losses`, here and below."""

    def loss_fn(outputs, batch, taught):
        return task_loss(task, outputs, batch, viewed=viewed)

    return loss_fn


def single_loss(task: Task, temperature: float, *, viewed: bool = False) -> LossFunction:
    """The task's loss plus distillation from one teacher that sees the same views."""

    def loss_fn(outputs, batch, taught):
        label_loss, metrics = task_loss(task, outputs, batch, viewed=viewed)
        distilled = task.distillation(taught[0], outputs, temperature)
        metrics |= {"label_loss": label_loss, "distillation_loss": distilled}
        return label_loss + distilled, metrics

    return loss_fn


def kd_loss(task: Task, temperature: float, alpha: float, *, viewed: bool = False) -> LossFunction:
    """Hinton et al. 2015: (1 - alpha) * the task's loss + alpha * T^2 * KL to one teacher."""

    def loss_fn(outputs, batch, taught):
        label_loss, metrics = task_loss(task, outputs, batch, viewed=viewed)
        # `distillation` has one factor of T in it.
        distilled = temperature * task.distillation(taught[0], outputs, temperature)
        metrics |= {"label_loss": label_loss, "distillation_loss": distilled}
        return (1 - alpha) * label_loss + alpha * distilled, metrics

    return loss_fn


def ensemble_loss(
    task: Task, temperature: float, *, rule: str = PAPER, best: int = 0, viewed: bool = False
) -> LossFunction:
    """The task's loss plus distillation from the bank's teachers: their rows (`open_bank`) in the
    batch or, without a written bank, the teachers that run beside the student.

    Args:
        rule: of `options.finetuning.TEACHER_RULES`, which teachers a batch uses; their number is
            the metric "teachers".
        best: number of the teacher with the lowest loss on D_val, for the rule of the code.
    """

    def loss_fn(outputs, batch, taught):
        label_loss, metrics = task_loss(task, outputs, batch, viewed=viewed)
        # The choice of teachers is a comparison: no gradient flows through it.
        if taught:
            bank, axis = mapped(lambda *each: tf.stack(each), *taught), 0
        else:
            bank, axis = _bank_rows(batch, outputs), -1
        if rule == ALL:
            every = tf.ones([parts_of(bank)[0].shape[axis]], tf.bool)
            mean, count = mean_of(bank, every, axis)
        elif rule == CODE:
            mean, count = teachers_of_code(task, bank, outputs, temperature, best, axis)
        else:
            mean, count = select_teachers(task, bank, batch, label_loss, axis, viewed=viewed)
        distilled = task.distillation(mean, outputs, temperature) * tf.minimum(count, 1.0)
        metrics |= {"label_loss": label_loss, "distillation_loss": distilled, "teachers": count}
        return label_loss + distilled, metrics

    return loss_fn
