"""Losses of the fine-tuning (docs/method.md 3): cross-entropy plus knowledge, over its views.

Each function returns a `loss_fn(logits, batch, teacher_logits)` for `op_utils.make_train_step`:
logits float32 [views, b, classes], batch["targets"] int32 [b] -> (scalar, metrics). The formula
sums over the views; the paper averages their gradients, so the loss here is the mean over views.
"""

import math
from collections.abc import Callable

import tensorflow as tf

LossFunction = Callable[[tf.Tensor, dict, tf.Tensor | None], tuple[tf.Tensor, dict]]


def label_losses(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Cross-entropy of every view of every example, float32 [views, b]."""
    repeated = tf.broadcast_to(labels, tf.shape(logits)[:-1])
    return tf.nn.sparse_softmax_cross_entropy_with_logits(repeated, logits)


def distillation(teacher: tf.Tensor, student: tf.Tensor, temperature: float) -> tf.Tensor:
    """T * KL(softmax(teacher / T) || softmax(student / T)), mean over all but the last axis.

    The factor is T, as published, not T squared. Logits float32 [..., classes], broadcast together.
    """
    teacher = teacher + tf.zeros_like(student)
    log_p = tf.nn.log_softmax(teacher / temperature)
    log_q = tf.nn.log_softmax(student / temperature)
    return temperature * tf.reduce_mean(tf.reduce_sum(tf.exp(log_p) * (log_p - log_q), -1))


def select_teachers(bank: tf.Tensor, labels: tf.Tensor, student_loss: tf.Tensor) -> tuple:
    """The mean of the bank's teachers that are at least as good as the student on this batch.

    Args:
        bank: logits float32 [b, classes, K].
        labels: int32 [b].
        student_loss: scalar, the student's mean cross-entropy on the batch.

    Returns:
        (mean logits float32 [b, classes], number of chosen teachers float32; both 0 if none is).
    """
    per_teacher = tf.transpose(bank, [2, 0, 1])
    losses = tf.reduce_mean(label_losses(per_teacher, labels), axis=-1)
    chosen = tf.cast(losses <= student_loss, tf.float32)
    count = tf.reduce_sum(chosen)
    return tf.einsum("k,bck->bc", chosen, bank) / tf.maximum(count, 1.0), count


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


def _bank_rows(batch: dict, num_classes: int) -> tf.Tensor:
    """The bank's logits for a batch, float32 [b, classes, K]."""
    if "teacher" in batch:
        return batch["teacher"]
    parts = (batch[f"teacher_{name}"] for name in ("logits", "classes", "rest"))
    return expanded(*parts, num_classes)


def accuracy(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Top-1 in percent over views and examples, scalar."""
    hits = tf.equal(tf.argmax(logits, -1, tf.int32), labels)
    return 100 * tf.reduce_mean(tf.cast(hits, tf.float32))


def plain_loss() -> LossFunction:
    """Cross-entropy alone."""

    def loss_fn(logits, batch, teacher_logits):
        loss = tf.reduce_mean(label_losses(logits, batch["targets"]))
        return loss, {"accuracy": accuracy(logits, batch["targets"])}

    return loss_fn


def single_loss(temperature: float) -> LossFunction:
    """Cross-entropy plus distillation from one teacher that sees the same views."""

    def loss_fn(logits, batch, teacher_logits):
        label_loss = tf.reduce_mean(label_losses(logits, batch["targets"]))
        distilled = distillation(teacher_logits, logits, temperature)
        metrics = {"accuracy": accuracy(logits, batch["targets"]), "label_loss": label_loss}
        return label_loss + distilled, metrics | {"distillation_loss": distilled}

    return loss_fn


def kd_loss(temperature: float, alpha: float) -> LossFunction:
    """Hinton et al. 2015: (1 - alpha) * cross-entropy + alpha * T^2 * KL to one teacher."""

    def loss_fn(logits, batch, teacher_logits):
        label_loss = tf.reduce_mean(label_losses(logits, batch["targets"]))
        # `distillation` has one factor of T in it.
        distilled = temperature * distillation(teacher_logits, logits, temperature)
        metrics = {"accuracy": accuracy(logits, batch["targets"]), "label_loss": label_loss}
        metrics["distillation_loss"] = distilled
        return (1 - alpha) * label_loss + alpha * distilled, metrics

    return loss_fn


def ensemble_loss(temperature: float) -> LossFunction:
    """Cross-entropy plus distillation from the bank, whose rows (`open_bank`) are in batch."""

    def loss_fn(logits, batch, teacher_logits):
        label_loss = tf.reduce_mean(label_losses(logits, batch["targets"]))
        # The choice of teachers is a comparison: no gradient flows through it.
        bank = _bank_rows(batch, logits.shape[-1])
        mean, count = select_teachers(bank, batch["targets"], label_loss)
        distilled = distillation(mean, logits, temperature) * tf.minimum(count, 1.0)
        metrics = {"accuracy": accuracy(logits, batch["targets"]), "label_loss": label_loss}
        metrics |= {"distillation_loss": distilled, "teachers": count}
        return label_loss + distilled, metrics

    return loss_fn
