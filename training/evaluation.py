"""Forward passes, accuracy and batch-norm statistics of Keras models.

An evaluation batch is a dict with "inputs" float32 [b, h, w, c] and "targets" int32 [b]; a model
gives logits [b, classes], no softmax. "bn" names what batch norms normalise by: "inference" (moving
statistics) or "batch".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import keras
import numpy as np
import tensorflow as tf

from ..nets.stateless import batch_norms, batch_statistics, call, read

Batch = dict[str, tf.Tensor]
BatchNormMode = Literal["inference", "batch"]


def make_forward(
    model: keras.Model, *, bn: BatchNormMode, compile: bool = False
) -> Callable[[tf.Tensor], tf.Tensor]:
    """A tf.function: images float32 [b, h, w, c] -> logits float32 [b, classes].

    bn="batch" normalises by the batch's own statistics, without dropout. No variable is changed.
    Raises ValueError for another `bn`.
    """
    if bn not in ("inference", "batch"):
        raise ValueError(f"bn is {bn!r}, expected 'inference' or 'batch'")

    def logits(values, images):
        if bn == "inference":
            return call(model, values, images, training=False)[0]
        with batch_statistics(model):
            return call(model, values, images, training=True)[0]

    logits = tf.function(logits, jit_compile=compile, autograph=False)

    @tf.function(autograph=False, reduce_retracing=True)
    def forward(images):
        return logits(read(model), images)

    return forward


def make_evaluate(
    model: keras.Model, *, bn: BatchNormMode = "inference", compile: bool = False, top: int = 5
) -> Callable[[Iterable[Batch]], dict[str, float | int | None]]:
    """A traced-once `evaluate`, for calling again and again: batches -> its dict."""
    forward = make_forward(model, bn=bn, compile=compile)
    classes = model.output_shape[-1]

    @tf.function(autograph=False, reduce_retracing=True)
    def sums(images, labels):
        logits, labels = forward(images), tf.cast(labels, tf.int32)
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        own = tf.gather(logits, labels, axis=1, batch_dims=1)[:, None]
        # Ties go to the lower class, as in argmax. NaN is tested for, since TensorFlow turns
        # not (a <= b) into a > b.
        tied = (logits == own) & (tf.range(classes) < labels[:, None])
        ahead = (logits > own) | tied | tf.math.is_nan(logits - own)
        rank = tf.math.count_nonzero(ahead, axis=1)
        hits = [tf.math.count_nonzero(rank < k) for k in (1, top)]
        return tf.stack([tf.reduce_sum(loss), *(tf.cast(n, tf.float32) for n in hits)])

    def evaluate(batches):
        rows, examples = [], 0
        for batch in batches:
            rows.append(sums(batch["inputs"], batch["targets"]))
            examples += int(batch["targets"].shape[0])
        if not examples:
            raise ValueError("there is no example to evaluate on")
        loss, top1, topk = np.sum([row.numpy() for row in rows], axis=0, dtype=np.float64)
        return {
            "loss": float(loss / examples),
            "top1": float(100 * top1 / examples),
            f"top{top}": float(100 * topk / examples) if classes > top else None,
            "examples": examples,
        }

    return evaluate


def evaluate(model: keras.Model, batches: Iterable[Batch], **options) -> dict:
    """{"loss": mean cross-entropy, "top1" and "top5": percent, "examples": count} over batches.

    "top5" is None up to five classes. Options as in make_evaluate (bn, compile, top); traces anew
    at every call. Raises ValueError when there is no example.
    """
    return make_evaluate(model, **options)(batches)


def reestimate_bn(
    model: keras.Model, batches: Iterable[Batch], *, compile: bool = False, frozen: bool = False
) -> None:
    """Sets the moving statistics of all batch norms to averages over the given batches.

    Each becomes the mean of the batches' own statistics, weighted by batch size: the variance is
    that within batches (over n, as Keras's), so batches should be large and shuffled. Images are
    [b, h, w, c]; dropout is off. All are set after the last batch, and nothing else changes. A
    model without batch norms is left alone; frozen ones are, but with `frozen`.
    Raises ValueError when there is no batch.
    """
    norms = batch_norms(model, frozen=frozen)
    moving = [v for n in norms for v in (n.moving_mean, n.moving_variance)]
    if not moving:
        return

    def statistics(values, images):
        # momentum 0: the new moving value is the batch's; zeros, because 0 * NaN is NaN
        chosen = {id(v) for v in moving}
        pairs = zip(model.variables, values, strict=True)
        values = [tf.zeros_like(x) if id(v) in chosen else x for v, x in pairs]
        with batch_statistics(model, frozen=frozen, momentum=0.0):
            new = call(model, values, images, training=True, updated=moving)[1]
        return tf.concat([tf.reshape(x, [-1]) for x in new], 0)

    statistics = tf.function(
        statistics, jit_compile=compile, autograph=False, reduce_retracing=True
    )
    total, examples = 0.0, 0
    for batch in batches:
        size = int(batch["inputs"].shape[0])
        total = total + size * statistics(read(model), batch["inputs"]).numpy().astype(np.float64)
        examples += size
    if not examples:
        raise ValueError("there is no batch to re-estimate the batch-norm statistics on")
    pieces = np.split(total / examples, np.cumsum([v.shape.num_elements() for v in moving])[:-1])
    for variable, piece in zip(moving, pieces, strict=True):
        variable.assign(piece.reshape(variable.shape).astype(np.float32))
