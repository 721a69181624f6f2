"""Keras models as pure functions: called on their variables' values, changing no variable.

So what is compiled from them is pure: the same code serves XLA, plain TensorFlow and mirrored
replicas, and a stock keras.layers.BatchNormalization needs no special variables. On two CPU cores
(ResNet-20, batch 64) this is as fast as calling the model directly on its variables.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from ..utils.trees import mapped, parts_of, tree_of
from .keras_graph import calls_of, ends, has_graph, inference_only, is_functional, layers_in


def read(model: keras.Model) -> list[tf.Tensor]:
    """The current values of all the model's variables."""
    return [tf.convert_to_tensor(v.value) for v in model.variables]


def of(variables: Sequence[keras.Variable], model: keras.Model, values: Sequence) -> list:
    """The values of some of the model's variables, out of those of all."""
    by_id = {id(v): value for v, value in zip(model.variables, values, strict=True)}
    return [by_id[id(v)] for v in variables]


def call(
    model: Any, values: Sequence, inputs: Any, *, training: bool | None, updated: Sequence = ()
) -> tuple[Any, list]:
    """Calls a model; changes no variable.

    Args:
        inputs: tree (`utils.trees`): one tensor, or a tuple of several in the model's order.

    Returns:
        (tree of the outputs, all float32: one tensor, or a tuple of several; the new values of the
        `updated` variables).
    """
    with keras.StatelessScope(list(zip(model.variables, values, strict=True))) as scope:
        found = keras.tree.flatten(model(arranged(model, inputs), training=training))
    outputs = mapped(lambda one: tf.cast(one, tf.float32), tree_of(found))
    return outputs, [scope.get_current_value(v) for v in updated]


def for_any_size(function: Any) -> Callable[[Any], Any]:
    """A tf.function of a tree of tensors [b, ...], traced once for all b: tracing takes longer than
    many a batch, and the last batch is mostly a smaller one."""

    def run(batch: Any) -> Any:
        if not function.experimental_get_tracing_count():
            shapes = keras.tree.map_structure(
                lambda one: tf.TensorSpec([None, *one.shape[1:]], one.dtype), batch
            )
            function.get_concrete_function(shapes)
        return function(batch)

    return run


def arranged(model: Any, inputs: Any) -> Any:
    """Several inputs in the structure that the model takes them in; one goes as it is."""
    if not isinstance(inputs, tuple | list) or not has_graph(model):
        return inputs
    return keras.tree.pack_sequence_as(ends(model)[0], parts_of(inputs))


def batch_norms(model: keras.Model, *, frozen: bool = False) -> list[keras.layers.Layer]:
    """All layers, nested ones included, that keep and update moving statistics.

    Not those that the network always runs by them: frozen ones, but with `frozen`, and those that
    are called with training=False.
    """
    calls = calls_of(model) if is_functional(model) else []
    fixed = inference_only(calls)
    return [
        layer
        for layer in layers_in(model)
        if hasattr(layer, "moving_variance")
        and (frozen or layer.trainable)
        and layer.name not in fixed
    ]


@contextlib.contextmanager
def batch_statistics(
    model: keras.Model, *, frozen: bool = False, **attributes: float
) -> Iterator[None]:
    """While a function is traced: training=True means batch statistics and nothing else.

    Dropout is switched off; `attributes` are set on every batch norm and put back afterwards. Batch
    norms that the network runs by their moving statistics go on so, but with `frozen`.
    """
    norms = batch_norms(model, frozen=frozen)
    attributes |= {"trainable": True} if frozen else {}
    changes = [(layer, name, value) for layer in norms for name, value in attributes.items()]
    changes += [
        (layer, "rate", 0.0)
        for layer in layers_in(model)
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
