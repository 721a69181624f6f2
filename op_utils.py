"""The compiled training step of Keras models: XLA, accumulation, replicas.

Shapes and types that every function here agrees on:

* a training batch is a dict: "inputs" float32 [batch, views, ...], "targets" [batch, ...], plus any
  tensors whose first axis is the batch;
* a model takes float32 inputs [n, ...] and gives outputs [n, ...], logits instead of probabilities;
* where there are several inputs, outputs or targets, each of these is a tuple.

Models are called as pure functions, see `nets.stateless`; `training.evaluation` has the
forward passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from .nets.stateless import batch_statistics, call, of, read
from .utils import cluster
from .utils.errors import UserError
from .utils.trees import mapped, parts_of, tree_of

Batch = dict[str, Any]
Metrics = dict[str, tf.Tensor]
# (outputs, batch, outputs of every teacher) -> (loss, metrics)
LossFn = Callable[[Any, Batch, Sequence], tuple[tf.Tensor, Metrics]]
# (values of all variables, batch, updated variables) -> (loss, metrics, values of the updated ones)
Forward = Callable[[list, Batch, list], tuple[tf.Tensor, Metrics, list]]


class NonFiniteLoss(UserError):
    """The training loss became NaN or infinite."""


def check_finite(
    values: tf.Tensor | np.ndarray, first_step: int, cause: Callable[[int], str]
) -> None:
    """Raises NonFiniteLoss if a loss is NaN or infinite.

    Args:
        values: float [steps], losses of consecutive steps. first_step: the number of the first.
        cause: (place in `values` of the first bad one) -> what was NaN first, in words.
    """
    values = np.asarray(values)
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        place = int(bad[0])
        raise NonFiniteLoss(
            f"the training loss became {values[place]} at step {first_step + place}: {cause(place)}"
        )


def _updated_in_training(model: keras.Model) -> list[keras.Variable]:
    """The variables that a forward pass with training=True assigns: BN statistics, random seeds.

    The others must not be assigned at all: averaging equal values over three replicas rounds.
    """
    updated = []

    def forward(inputs):
        with keras.StatelessScope() as scope:
            model(inputs, training=True)
        updated.extend(v for v in model.variables if scope.get_current_value(v) is not None)

    specs = [tf.TensorSpec([None, *one.shape[1:]], tf.float32) for one in model.inputs]
    tf.function(forward, autograph=False).get_concrete_function(tree_of(specs))
    return updated


# ---------------------------------------------------------------- training


def make_train_step(
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    loss_fn: LossFn | None,
    strategy: tf.distribute.Strategy,
    *,
    accum: int = 1,
    weight_decay: float = 0.0,
    compile: bool = False,
    teachers: Sequence[keras.Model] = (),
    forward: Forward | None = None,
    run: Callable = call,
    momentum: float | None = None,
) -> Callable[[Any, tf.Tensor], Metrics]:
    """A function that takes many training steps for one call from Python.

    The result, train_steps(iterator, steps), draws `steps` (int32 scalar) batches of an iterator
    over `distributed` batches and returns float32 [steps] series: "loss"
    (without the L2 term) and the metrics of loss_fn, averaged over replicas, and "examples" (the
    global batch size). It raises tf.errors.OutOfRangeError when the iterator ends too early.

    Gradients are the mean over the global batch plus weight_decay * w for every trainable (L2, not
    Keras's decoupled weight decay). Regularisers of layers are not added. Batch norms see all views
    of a micro-batch together; their new moving statistics are averaged over replicas.

    Args:
        model, optimizer: created under strategy.scope().
        strategy: for a single device tf.distribute.get_strategy(), which compiles the update too.
            Make one MirroredStrategy per process: TensorFlow mixes up the messages of two.
        loss_fn: (outputs float32 [views, batch, ...], batch dict, the outputs of each teacher of
            the same shapes) -> (scalar loss, the mean over examples; dict of scalar metrics).
        accum: micro-batches that each replica's batch is cut into.
        compile: XLA.
        teachers: run on the same views with batch statistics and are never changed but for
            `momentum`.
        forward: takes the place of calling the model and loss_fn (then None), for losses that need
            more than the outputs: a pure function of the values of model.variables and a
            micro-batch to the loss, its metrics and the new values of the given variables.
        run: as `nets.stateless.call`, for the network in training; `nets.sections` has one that
            needs less memory.
        momentum: the teachers, which have the model's layers, follow it: after every step each
            trainable of theirs becomes momentum * itself + (1 - momentum) * the model's.
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
    micro_batch = _make_micro_batch(model, updated, loss_fn, teachers, forward, run)
    gradients = _make_gradients(model, updated, micro_batch, accum, weight_decay, scale)
    if replicated:
        gradients = tf.function(gradients, jit_compile=compile, autograph=False)

    def update(values, teacher_values, batch):
        grads, state, metrics = gradients(values, teacher_values, batch)
        optimizer.apply(grads, model.trainable_variables)
        _assign_state(updated, state, replicated)
        if momentum is not None:
            for teacher in teachers:
                _follow(teacher, model, momentum, replicated)
        return metrics

    # What passes between replicas cannot be compiled; on a single device the update can.
    if not replicated:
        update = tf.function(update, jit_compile=compile, autograph=False)

    def step(batch):
        return update(read(model), [read(one) for one in teachers], batch)

    return _make_loop(step, strategy)


def distributed(
    strategy: tf.distribute.Strategy, batches: tf.data.Dataset
) -> tf.distribute.DistributedDataset:
    """Batches shared out over a strategy's replicas.

    Args:
        batches: global ones; where there are several machines, this one's part of each.
    """
    if cluster.size() == 1:
        return strategy.experimental_distribute_dataset(batches)
    own = len(strategy.extended.worker_devices)
    size = parts_of(batches.element_spec["inputs"])[0].shape[0]
    if own > 1:
        batches = batches.rebatch(size // own, drop_remainder=True)
    return strategy.distribute_datasets_from_function(lambda context: batches)


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


def _make_micro_batch(model, updated, loss_fn, teachers, forward, run):
    """(values, teachers' values, batch) -> (gradients, new state, metrics), on one device."""

    def by_outputs(values, teacher_values, batch):
        views = parts_of(batch["inputs"])[0].shape[1]
        # The views of an example side by side.
        merged = mapped(lambda x: tf.reshape(x, [-1, *x.shape[2:]]), batch["inputs"])

        def by_view(outputs):
            def one(x):
                x = tf.reshape(x, [-1, views, *x.shape[1:]])
                return tf.transpose(x, [1, 0, *range(2, len(x.shape))])

            return mapped(one, outputs)

        taught = []
        for teacher, its_values in zip(teachers, teacher_values, strict=True):
            with batch_statistics(teacher):
                taught.append(by_view(call(teacher, its_values, merged, training=True)[0]))
        outputs, state = run(model, values, merged, training=True, updated=updated)
        return *loss_fn(by_view(outputs), batch, taught), state

    def micro_batch(values, teacher_values, batch):
        weights = of(model.trainable_variables, model, values)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(weights)
            if forward is None:
                loss, metrics, state = by_outputs(values, teacher_values, batch)
            else:
                loss, metrics, state = forward(values, batch, updated)
        grads = tape.gradient(loss, weights, unconnected_gradients="zero")
        grads = [tf.convert_to_tensor(g) for g in grads]  # an Embedding's is sparse
        metrics = {name: tf.cast(value, tf.float32) for name, value in metrics.items()}
        return grads, state, {"loss": loss, **metrics}

    return micro_batch


def _make_gradients(model, updated, micro_batch, accum, weight_decay, scale):
    """The same signature as a micro-batch's, for a replica's whole batch.

    Gradients and metrics come multiplied by `scale` (1 / replicas), so that summing them over the
    replicas, which Keras's optimizers do with gradients, averages them.
    """

    def accumulate(values, teacher_values, batch):
        parts = {key: mapped(lambda x: _cut(x, accum), tree) for key, tree in batch.items()}

        def part_of(i):
            return {key: mapped(lambda x: x[i], tree) for key, tree in parts.items()}

        part = tf.function(micro_batch, autograph=False)
        spec = part.get_concrete_function(values, teacher_values, part_of(0)).structured_outputs
        zeros = [tf.zeros(v.shape, v.dtype) for v in spec[0]], {k: tf.zeros([]) for k in spec[2]}
        places = {id(v): i for i, v in enumerate(model.variables)}

        def one(i, grads, state, metrics):
            now = list(values)
            for variable, value in zip(updated, state, strict=True):
                now[places[id(variable)]] = value
            new = part(now, teacher_values, part_of(i))
            grads = [a + b for a, b in zip(grads, new[0], strict=True)]
            return i + 1, grads, new[1], {k: metrics[k] + new[2][k] for k in metrics}

        start = (tf.constant(0), zeros[0], of(updated, model, values), zeros[1])
        # One after the other: the forward pass of the next one doesn't wait for this one by itself,
        # and memory would be taken for all.
        return tf.while_loop(lambda i, *_: i < accum, one, start, parallel_iterations=1)[1:]

    def gradients(values, teacher_values, batch):
        whole = micro_batch if accum == 1 else accumulate
        grads, state, metrics = whole(values, teacher_values, batch)
        weights = of(model.trainable_variables, model, values)
        grads = [
            g * (scale / accum) + w * (weight_decay * scale)
            for g, w in zip(grads, weights, strict=True)
        ]
        metrics = {name: value * (scale / accum) for name, value in metrics.items()}
        metrics["examples"] = tf.cast(tf.shape(parts_of(batch["inputs"])[0])[0], tf.float32)
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
    floats = [i for i, value in enumerate(values) if value.dtype.is_floating]
    if floats:  # one message instead of one per layer
        flat = tf.concat([tf.reshape(values[i], [-1]) for i in floats], 0)
        flat = tf.distribute.get_replica_context().all_reduce("MEAN", flat)
        pieces = tf.split(flat, [values[i].shape.num_elements() for i in floats])
        values = list(values)
        for i, piece in zip(floats, pieces, strict=True):
            values[i] = tf.reshape(piece, values[i].shape)
    _assign_in_replicas(variables, values)


def _follow(teacher: keras.Model, model: keras.Model, momentum: float, replicated: bool) -> None:
    """Moves the teacher's trainables towards the model's, in replica context."""
    variables = teacher.trainable_variables
    pairs = zip(variables, model.trainable_variables, strict=True)
    values = [
        momentum * tf.convert_to_tensor(old) + (1 - momentum) * tf.convert_to_tensor(new)
        for old, new in pairs
    ]
    if replicated:
        _assign_in_replicas(variables, values)
    else:
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)


def _assign_in_replicas(variables, values) -> None:
    """Assigns values that are the same in all replicas, in replica context."""

    def assign(strategy, values):
        for variable, value in zip(variables, values, strict=True):
            strategy.extended.update(
                variable.value, lambda v, new: v.assign(new), args=(value,), group=False
            )

    if variables:
        tf.distribute.get_replica_context().merge_call(assign, args=(values,))
