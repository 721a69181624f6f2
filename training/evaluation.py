"""Forward passes, losses and metrics, and batch-norm statistics of Keras models.

An evaluation batch is a dict with "inputs" float32 [b, ...] and "targets" [b, ...], perhaps
"weights"; each is a tuple where a network has several. A model gives outputs as a core does, logits
instead of probabilities. "bn" names what batch norms normalise by: "inference" (moving statistics)
or "batch".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from ..nets.keras_graph import calls_of, is_functional
from ..nets.stateless import batch_norms, batch_statistics, call, for_any_size, read
from ..utils import cluster
from ..utils.trees import parts_of
from .metrics import UserMetrics
from .task import Task

NEARLY_ONE = 0.999  # a momentum

Batch = dict[str, Any]
BatchNormMode = Literal["inference", "batch"]


def make_forward(
    model: keras.Model, *, bn: BatchNormMode, compile: bool = False
) -> Callable[[Any], Any]:
    """A tf.function: inputs float32 [b, ...] -> outputs float32 [b, ...], tuples where there are
    several.

    bn="batch" normalises by the batch's own statistics, without dropout. No variable is changed.
    Raises ValueError for another `bn`.
    """
    if bn not in ("inference", "batch"):
        raise ValueError(f"bn is {bn!r}, expected 'inference' or 'batch'")

    def outputs(values, inputs):
        if bn == "inference":
            return call(model, values, inputs, training=False)[0]
        with batch_statistics(model):
            return call(model, values, inputs, training=True)[0]

    outputs = tf.function(outputs, jit_compile=compile, autograph=False)

    @tf.function(autograph=False, reduce_retracing=True)
    def forward(inputs):
        return outputs(read(model), inputs)

    return forward


def make_evaluate(
    model: keras.Model,
    task: Task,
    *,
    bn: BatchNormMode = "inference",
    compile: bool = False,
    top: int = 5,
    shared: bool = False,
    errors: bool = False,
) -> Callable[[Iterable[Batch]], dict[str, Any]]:
    """A traced-once `evaluate`, for calling again and again: batches -> its dict.

    Args:
        shared: the batches are this machine's part of all (`utils.cluster`); the result is that on
            all of them, the same on every machine. Not for tasks with metrics of the user's, which
            Keras computes on all outputs together.
        errors: give "metrics_error" as well, the standard errors of the user's metrics.
    """
    forward = make_forward(model, bn=bn, compile=compile)
    metrics = UserMetrics(task, errors=errors)

    @for_any_size
    @tf.function(autograph=False, reduce_retracing=True)
    def run(batch):
        outputs = forward(batch["inputs"])
        losses = task.example_losses(outputs, batch["targets"], batch.get("weights"))
        sums = [tf.reduce_sum(losses), tf.reduce_sum(losses**2)]
        if task.is_classifier:
            sums += _hits(outputs, tf.cast(batch["targets"], tf.int32), (1, top))
        return tf.stack(sums), outputs if metrics.any else ()

    def evaluate(batches):
        rows, examples = [np.zeros(4 if task.is_classifier else 2)], 0
        for batch in batches:
            needed = {key: batch[key] for key in ("inputs", "targets", "weights") if key in batch}
            sums, outputs = run(needed)
            rows.append(sums.numpy())
            examples += int(parts_of(batch["inputs"])[0].shape[0])
            if metrics.any:
                metrics.update(outputs, batch["targets"], batch.get("weights"))
        sums = np.array([*np.sum(rows, axis=0, dtype=np.float64), examples])
        *sums, examples = cluster.summed(sums) if shared else sums
        if not examples:
            raise ValueError("there is no example to evaluate on")
        loss, squares, *hits = sums
        mean = loss / examples
        variance = np.maximum(0.0, squares / examples - mean**2)
        result = {"loss": float(mean), "loss_error": float(np.sqrt(variance / examples))}
        if task.is_classifier:
            classes = model.output_shape[-1]
            top1, topk = (float(100 * one / examples) for one in hits)
            result |= {"top1": top1, f"top{top}": topk if classes > top else None}
        result |= {"examples": int(examples)}
        if metrics.any and errors:
            result |= {"metrics_error": metrics.errors()}
        return result | ({"metrics": metrics.result()} if metrics.any else {})

    return evaluate


def _hits(logits: tf.Tensor, labels: tf.Tensor, tops: tuple[int, ...]) -> list[tf.Tensor]:
    """How many of the labels, int32 [n], are among the first k of the logits [n, classes]."""
    own = tf.gather(logits, labels, axis=1, batch_dims=1)[:, None]
    # Ties go to the lower class, as in argmax. NaN is tested for, since TensorFlow turns
    # not (a <= b) into a > b.
    tied = (logits == own) & (tf.range(logits.shape[-1]) < labels[:, None])
    ahead = (logits > own) | tied | tf.math.is_nan(logits - own)
    rank = tf.math.count_nonzero(ahead, axis=1)
    return [tf.cast(tf.math.count_nonzero(rank < k), tf.float32) for k in tops]


def evaluate(model: keras.Model, task: Task, batches: Iterable[Batch], **options) -> dict:
    """What a network is worth on batches.

    Args:
        model: its outputs are as a core's.
        options: as in `make_evaluate` (bn, compile, top, shared, errors); traces anew each time.

    Returns:
        {"loss": mean of the task's loss, "loss_error": its standard error, "examples": count}; of a
        classifier "top1" and "top5" in percent (None up to five classes); "metrics" {name: value}
        where the task has some of the user's, "metrics_error" {name: standard error} if asked for.

    Raises:
        ValueError: there is no example.
    """
    return make_evaluate(model, task, **options)(batches)


def reestimate_bn(
    model: keras.Model,
    batches: Iterable[Batch],
    *,
    compile: bool = False,
    frozen: bool = False,
    shared: bool = False,
) -> None:
    """Sets the moving statistics of all batch norms to averages over the given batches.

    Each becomes the mean of the batches' own statistics, weighted by batch size: the variance is
    that within batches (over n, as Keras's), so batches should be large and shuffled. One that the
    network uses several times has the mean over its uses, as after a training. Dropout is
    off. All are set after the last batch, and nothing else changes. A
    model without batch norms is left alone; frozen ones are, but with `frozen`. With `shared` the
    batches are this machine's part of all; the averages are over all of them.
    Raises ValueError when there is no batch.
    """
    norms = batch_norms(model, frozen=frozen)
    moving = [v for n in norms for v in (n.moving_mean, n.moving_variance)]
    if not moving:
        return
    uses = _uses(model, norms)
    momentum = 0.0 if max(uses) == 1 else NEARLY_ONE
    # From zero, the values of n uses count (1 - m) m^(n - 1), ..., (1 - m): 1 - m^n together.
    parts = [1 - momentum**count for count in uses for _ in range(2)]

    def statistics(values, inputs):
        # momentum 0: the new moving value is the batch's; zeros, because 0 * NaN is NaN
        chosen = {id(v) for v in moving}
        pairs = zip(model.variables, values, strict=True)
        values = [tf.zeros_like(x) if id(v) in chosen else x for v, x in pairs]
        with batch_statistics(model, frozen=frozen, momentum=momentum):
            new = call(model, values, inputs, training=True, updated=moving)[1]
        return tf.concat([tf.reshape(x, [-1]) for x in new], 0)

    statistics = tf.function(statistics, jit_compile=compile, autograph=False)
    run = tf.function(lambda inputs: statistics(read(model), inputs), autograph=False)
    run = for_any_size(run)
    total, examples = np.zeros(sum(v.shape.num_elements() for v in moving)), 0
    for batch in batches:
        size = int(parts_of(batch["inputs"])[0].shape[0])
        total = total + size * run(batch["inputs"]).numpy().astype(np.float64)
        examples += size
    if shared:
        *total, examples = cluster.summed(np.array([*total, examples]))
        total = np.array(total)
    if not examples:
        raise ValueError("there is no batch to re-estimate the batch-norm statistics on")
    pieces = np.split(total / examples, np.cumsum([v.shape.num_elements() for v in moving])[:-1])
    for variable, piece, part in zip(moving, pieces, parts, strict=True):
        variable.assign((piece / part).reshape(variable.shape).astype(np.float32))


def _uses(model: keras.Model, norms: Sequence[keras.layers.Layer]) -> list[int]:
    """How often a network runs each of some layers; 1 where that is inside of another, unseen."""
    calls = calls_of(model) if is_functional(model) else []
    counts = Counter(id(call.operation) for call in calls)
    return [max(1, counts[id(norm)]) for norm in norms]
