"""Compiled steps for Keras models: training, forward passes, evaluation, batch-norm statistics.

Shapes and types that every function here agrees on:

* a training batch is a dict: "image" float32 [batch, views, h, w, c], "label" int32 [batch], plus
  any tensors whose first axis is the batch; an evaluation batch has "image" [batch, h, w, c];
* a model takes float32 images [n, h, w, c] and gives logits [n, classes], no softmax;
* "bn" names what batch norms normalise by: "inference" (moving statistics) or "batch".

Models are called inside a keras.StatelessScope with their variables' values as arguments. So the
compiled functions are pure: the same code serves XLA, plain TensorFlow and mirrored replicas, and
a stock keras.layers.BatchNormalization needs no special variables. On two CPU cores (ResNet-20,
batch 64) this is as fast as calling the model directly on its variables.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from utils.cli import UserError

Batch = dict[str, tf.Tensor]
Metrics = dict[str, tf.Tensor]
LossFn = Callable[[tf.Tensor, Batch, "tf.Tensor | None"], tuple[tf.Tensor, Metrics]]
BatchNormMode = Literal["inference", "batch"]


class NonFiniteLoss(UserError):
    """The training loss became NaN or infinite."""


def check_finite(values: tf.Tensor | np.ndarray, first_step: int) -> None:
    """Raises NonFiniteLoss if a loss is NaN or infinite.

    `values` float [steps]: losses of consecutive steps; `first_step`: the number of the first.
    """
    values = np.asarray(values)
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise NonFiniteLoss(
            f"the training loss became {values[bad[0]]} at step {first_step + bad[0]}: try a lower "
            "--learning_rate, float32 instead of mixed precision, or check the images for NaN"
        )


# ---------------------------------------------------------------- pure calls


def _read(model: keras.Model) -> list[tf.Tensor]:
    return [tf.convert_to_tensor(v.value) for v in model.variables]


def _of(variables: Sequence[keras.Variable], model: keras.Model, values: Sequence) -> list:
    """The values of some of the model's variables, out of those of all."""
    by_id = {id(v): value for v, value in zip(model.variables, values, strict=True)}
    return [by_id[id(v)] for v in variables]


def _call(model, values, images, *, training, updated=()):
    """Logits float32 and the new values of the `updated` variables; changes no variable."""
    with keras.StatelessScope(list(zip(model.variables, values, strict=True))) as scope:
        logits = model(images, training=training)
    return tf.cast(logits, tf.float32), [scope.get_current_value(v) for v in updated]


def _batch_norms(model: keras.Model) -> list[keras.layers.Layer]:
    """All layers, nested ones included, that keep moving statistics."""
    return [layer for layer in model._flatten_layers() if hasattr(layer, "moving_variance")]


@contextlib.contextmanager
def _batch_statistics(model: keras.Model, **attributes: float) -> Iterator[None]:
    """While a function is traced: training=True means batch statistics and nothing else.

    Dropout is switched off; `attributes` are set on every batch norm and put back afterwards.
    """
    norms = _batch_norms(model)
    frozen = [layer.name for layer in norms if not layer.trainable]
    if frozen:
        raise ValueError(
            f"{frozen[0]} has trainable=False, which makes Keras use its moving statistics; "
            "leave models that run on batch statistics trainable, nothing changes them here"
        )
    changes = [(layer, name, value) for layer in norms for name, value in attributes.items()]
    changes += [
        (layer, "rate", 0.0)
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.Dropout)
    ]
    before = [getattr(layer, name) for layer, name, _ in changes]
    try:
        for layer, name, value in changes:
            setattr(layer, name, value)
        yield
    finally:
        for (layer, name, _), value in zip(changes, before, strict=True):
            setattr(layer, name, value)


def _updated_in_training(model: keras.Model) -> list[keras.Variable]:
    """The variables that a forward pass with training=True assigns: BN statistics, random seeds.

    The others must not be assigned at all: averaging equal values over three replicas rounds.
    """
    updated = []

    def forward(images):
        with keras.StatelessScope() as scope:
            model(images, training=True)
        updated.extend(v for v in model.variables if scope.get_current_value(v) is not None)

    spec = tf.TensorSpec([None, *model.input_shape[1:]], tf.float32)
    tf.function(forward, autograph=False).get_concrete_function(spec)
    return updated


# ---------------------------------------------------------------- training


def make_train_step(
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    loss_fn: LossFn,
    strategy: tf.distribute.Strategy,
    *,
    accum: int = 1,
    weight_decay: float = 0.0,
    compile: bool = False,
    teacher: keras.Model | None = None,
) -> Callable[[Any, tf.Tensor], Metrics]:
    """A function that takes many training steps for one call from Python.

    The result, train_steps(iterator, steps), draws `steps` (int32 scalar) batches of an iterator
    over strategy.experimental_distribute_dataset(...) and returns float32 [steps] series: "loss"
    (without the L2 term) and the metrics of loss_fn, averaged over replicas, and "examples" (the
    global batch size). It raises tf.errors.OutOfRangeError when the iterator ends too early.

    Gradients are the mean over the global batch plus weight_decay * w for every trainable (L2, not
    Keras's decoupled weight decay). Regularisers of layers are not added. Batch norms see all views
    of a micro-batch together; their new moving statistics are averaged over replicas.

    Args:
        model, optimizer: created under strategy.scope().
        strategy: for a single device tf.distribute.get_strategy(), which compiles the update too.
            Make one MirroredStrategy per process: TensorFlow mixes up the messages of two.
        loss_fn: (logits float32 [views, batch, classes], batch dict, teacher logits of the same
            shape or None) -> (scalar loss, the mean over examples; dict of scalar metrics).
        accum: micro-batches that each replica's batch is cut into.
        compile: XLA.
        teacher: runs on the same views with batch statistics and is never changed.
    Raises:
        ValueError: accum < 1 or, at the first call, not a divisor of a replica's batch.
    """
    if accum < 1:
        raise ValueError(f"accum is {accum}, expected at least 1")
    with strategy.scope():
        replicated = tf.distribute.has_strategy()
        optimizer.build(model.trainable_variables)
        updated = _updated_in_training(model)
    scale = 1 / strategy.num_replicas_in_sync
    micro_batch = _make_micro_batch(model, updated, loss_fn, teacher)
    gradients = _make_gradients(model, updated, micro_batch, accum, weight_decay, scale)
    if replicated:
        gradients = tf.function(gradients, jit_compile=compile, autograph=False)

    def update(values, teacher_values, batch):
        grads, state, metrics = gradients(values, teacher_values, batch)
        optimizer.apply(grads, model.trainable_variables)
        _assign_state(updated, state, replicated)
        return metrics

    # What passes between replicas cannot be compiled; on a single device the update can.
    if not replicated:
        update = tf.function(update, jit_compile=compile, autograph=False)

    def step(batch):
        return update(_read(model), _read(teacher) if teacher else [], batch)

    return _make_loop(step, strategy)


def _make_loop(step, strategy):
    """train_steps for a step: batch -> metrics, in replica context."""
    names = []

    def row(batch):
        metrics = step(batch)
        names[:] = metrics
        return tf.stack(list(metrics.values()))

    @tf.function(autograph=False)
    def train_steps(iterator, steps):
        def one(i, rows):
            values = strategy.run(row, args=(next(iterator),))
            return i + 1, rows.write(i, strategy.reduce("SUM", values, axis=None))

        rows = tf.TensorArray(tf.float32, size=steps)
        _, rows = tf.while_loop(lambda i, _: i < steps, one, (tf.constant(0), rows))
        return dict(zip(names, tf.unstack(rows.stack(), len(names), axis=1), strict=True))

    return train_steps


def _make_micro_batch(model, updated, loss_fn, teacher):
    """(values, teacher values, batch) -> (gradients, new state, metrics), on one device."""

    def micro_batch(values, teacher_values, batch):
        image = batch["image"]
        views = image.shape[1]
        merged = tf.reshape(image, [-1, *image.shape[2:]])  # the views of an example side by side

        def by_view(logits):
            return tf.transpose(tf.reshape(logits, [-1, views, logits.shape[-1]]), [1, 0, 2])

        target = None
        if teacher is not None:
            with _batch_statistics(teacher):
                target = by_view(_call(teacher, teacher_values, merged, training=True)[0])
        weights = _of(model.trainable_variables, model, values)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(weights)
            logits, state = _call(model, values, merged, training=True, updated=updated)
            loss, metrics = loss_fn(by_view(logits), batch, target)
        grads = tape.gradient(loss, weights, unconnected_gradients="zero")
        metrics = {name: tf.cast(value, tf.float32) for name, value in metrics.items()}
        return grads, state, {"loss": loss, **metrics}

    return micro_batch


def _make_gradients(model, updated, micro_batch, accum, weight_decay, scale):
    """The same signature as a micro-batch's, for a replica's whole batch.

    Gradients and metrics come multiplied by `scale` (1 / replicas), so that summing them over the
    replicas, which Keras's optimizers do with gradients, averages them.
    """

    def accumulate(values, teacher_values, batch):
        parts = {key: _cut(tensor, accum) for key, tensor in batch.items()}
        part = tf.function(micro_batch, autograph=False)
        first = {key: tensor[0] for key, tensor in parts.items()}
        spec = part.get_concrete_function(values, teacher_values, first).structured_outputs
        zeros = [tf.zeros(v.shape, v.dtype) for v in spec[0]], {k: tf.zeros([]) for k in spec[2]}
        places = {id(v): i for i, v in enumerate(model.variables)}

        def one(i, grads, state, metrics):
            now = list(values)
            for variable, value in zip(updated, state, strict=True):
                now[places[id(variable)]] = value
            new = part(now, teacher_values, {key: tensor[i] for key, tensor in parts.items()})
            grads = [a + b for a, b in zip(grads, new[0], strict=True)]
            return i + 1, grads, new[1], {k: metrics[k] + new[2][k] for k in metrics}

        start = (tf.constant(0), zeros[0], _of(updated, model, values), zeros[1])
        return tf.while_loop(lambda i, *_: i < accum, one, start)[1:]

    def gradients(values, teacher_values, batch):
        whole = micro_batch if accum == 1 else accumulate
        grads, state, metrics = whole(values, teacher_values, batch)
        weights = _of(model.trainable_variables, model, values)
        grads = [
            g * (scale / accum) + w * (weight_decay * scale)
            for g, w in zip(grads, weights, strict=True)
        ]
        metrics = {name: value * (scale / accum) for name, value in metrics.items()}
        metrics["examples"] = tf.cast(tf.shape(batch["label"])[0], tf.float32)
        return grads, state, metrics

    return gradients


def _cut(tensor: tf.Tensor, accum: int) -> tf.Tensor:
    """[b, ...] -> [accum, b / accum, ...]."""
    size = tensor.shape[0]
    if size is not None and size % accum:
        raise ValueError(f"a batch of {size} per replica cannot be cut into {accum} equal parts")
    return tf.reshape(tensor, [accum, -1 if size is None else size // accum, *tensor.shape[1:]])


def _assign_state(variables, values, replicated: bool) -> None:
    """Assigns new values in replica context: floats averaged over replicas, integers as they are.

    Random seeds, the integers among them, advance alike in all replicas.
    """
    if not replicated:
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        return
    context = tf.distribute.get_replica_context()
    floats = [i for i, value in enumerate(values) if value.dtype.is_floating]
    if floats:  # one message instead of one per layer
        flat = tf.concat([tf.reshape(values[i], [-1]) for i in floats], 0)
        flat = context.all_reduce("MEAN", flat)
        pieces = tf.split(flat, [values[i].shape.num_elements() for i in floats])
        values = list(values)
        for i, piece in zip(floats, pieces, strict=True):
            values[i] = tf.reshape(piece, values[i].shape)

    def assign(strategy, values):
        for variable, value in zip(variables, values, strict=True):
            strategy.extended.update(
                variable.value, lambda v, new: v.assign(new), args=(value,), group=False
            )

    if variables:
        context.merge_call(assign, args=(values,))


# ---------------------------------------------------------------- evaluation


def make_forward(
    model: keras.Model, *, bn: BatchNormMode, compile: bool = False
) -> Callable[[tf.Tensor], tf.Tensor]:
    """A tf.function: images float32 [b, h, w, c] -> logits float32 [b, classes].

    bn="batch" normalises by the batch's own statistics, without dropout. No variable is changed.
    Raises ValueError for another `bn` or, at the first call, for frozen batch norms with "batch".
    """
    if bn not in ("inference", "batch"):
        raise ValueError(f"bn is {bn!r}, expected 'inference' or 'batch'")

    def logits(values, images):
        if bn == "inference":
            return _call(model, values, images, training=False)[0]
        with _batch_statistics(model):
            return _call(model, values, images, training=True)[0]

    logits = tf.function(logits, jit_compile=compile, autograph=False)

    @tf.function(autograph=False, reduce_retracing=True)
    def forward(images):
        return logits(_read(model), images)

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
            rows.append(sums(batch["image"], batch["label"]))
            examples += int(batch["label"].shape[0])
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


def reestimate_bn(model: keras.Model, batches: Iterable[Batch], *, compile: bool = False) -> None:
    """Sets the moving statistics of all batch norms to averages over the given batches.

    Each becomes the mean of the batches' own statistics, weighted by batch size: the variance is
    that within batches (over n, as Keras's), so batches should be large and shuffled. Images are
    [b, h, w, c]; dropout is off. All are set after the last batch, and nothing else changes. A
    model without batch norms is left alone.
    Raises ValueError when there is no batch or a batch norm is frozen.
    """
    moving = [v for n in _batch_norms(model) for v in (n.moving_mean, n.moving_variance)]
    if not moving:
        return

    def statistics(values, images):
        # momentum 0: the new moving value is the batch's; zeros, because 0 * NaN is NaN
        chosen = {id(v) for v in moving}
        pairs = zip(model.variables, values, strict=True)
        values = [tf.zeros_like(x) if id(v) in chosen else x for v, x in pairs]
        with _batch_statistics(model, momentum=0.0):
            new = _call(model, values, images, training=True, updated=moving)[1]
        return tf.concat([tf.reshape(x, [-1]) for x in new], 0)

    statistics = tf.function(
        statistics, jit_compile=compile, autograph=False, reduce_retracing=True
    )
    total, examples = 0.0, 0
    for batch in batches:
        size = int(batch["image"].shape[0])
        total = total + size * statistics(_read(model), batch["image"]).numpy().astype(np.float64)
        examples += size
    if not examples:
        raise ValueError("there is no batch to re-estimate the batch-norm statistics on")
    pieces = np.split(total / examples, np.cumsum([v.shape.num_elements() for v in moving])[:-1])
    for variable, piece in zip(moving, pieces, strict=True):
        variable.assign(piece.reshape(variable.shape).astype(np.float32))


# ---------------------------------------------------------------- mixed precision


def to_policy(model: keras.Model, policy: str) -> keras.Model:
    """A functional model of the same layers and weights under a dtype policy ("mixed_bfloat16").

    Variables stay float32 and in the same order, so clone and model exchange weights by
    set_weights; the output layer computes float32 logits. Raises ValueError for nested models.
    """
    last = model.output._keras_history.operation
    if any(isinstance(layer, keras.Model) for layer in model.layers):
        raise ValueError("a model that contains models cannot change its dtype policy")

    def clone(layer):
        config = layer.get_config() | {"dtype": "float32" if layer is last else policy}
        return type(layer).from_config(config)

    converted = keras.models.clone_model(model, clone_function=clone)
    converted.set_weights(model.get_weights())
    return converted
