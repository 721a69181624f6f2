"""Copies and rebuilds of networks: the only place that clones.

Whatever is copied carries everything over: weights, state that layers keep outside of them (an
adapted Normalization, vocabularies), random seeds' states, trainable flags. Layers keep their
names.
"""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import keras
import numpy as np

from ..utils.errors import UserError, line_of
from .keras_graph import Call, calls_of, ends, has_graph, is_op, layers_in, plain_products

L = keras.layers
Make = Callable[[keras.Operation], keras.Operation]
Shapes = Sequence[Sequence[int | None]]


def config_of(operation: keras.Operation) -> dict[str, Any]:
    """The configuration of an operation.

    Keras has none for a layer that takes nothing but the options of all layers and was given a
    dtype policy as an object, such as Identity.
    """
    try:
        return operation.get_config()
    except NotImplementedError:
        options = inspect.signature(type(operation).__init__).parameters
        plain = all(one.kind is one.VAR_KEYWORD for one in [*options.values()][1:])
        if not (plain and isinstance(operation, keras.Layer)):
            raise
        dtype = keras.dtype_policies.serialize(operation.dtype_policy)
        return {"name": operation.name, "trainable": operation.trainable, "dtype": dtype}


def with_config(operation: keras.Operation, **changes: Any) -> keras.Operation:
    """A fresh operation with the configuration of another one, changed in the keys it has."""
    config = config_of(operation)
    config |= {key: value for key, value in changes.items() if key in config}
    return type(operation).from_config(config)


def carry_over(old: keras.Layer, new: keras.Layer, *, seeds: bool = True) -> None:
    """Gives a built copy all that the original layer has beside its configuration.

    Both are built and hold the same layers. It goes the way that Keras's own files go, so a layer
    that is read back right from a file is copied right.

    Args:
        seeds: the states of random numbers, too.
    """
    for source, target in zip(*map(_but_inputs, (old, new)), strict=True):
        target.trainable = source.trainable
        store: dict[str, Any] = {}
        source.save_own_variables(store)
        # A file gives arrays, never plain numbers.
        plain = {k: np.asarray(v) for k, v in store.items() if isinstance(v, int | float)}
        store |= plain
        if store or hasattr(source, "finalize_state"):
            target.load_own_variables(store)
        if hasattr(source, "save_assets") and hasattr(target, "load_assets"):
            with tempfile.TemporaryDirectory() as folder:
                source.save_assets(folder)
                target.load_assets(folder)
        if not seeds:
            continue
        weights = {id(v) for v in source.weights}
        states = [v for v in source.variables if id(v) not in weights]
        into = {id(v) for v in target.weights}
        for a, b in zip(states, [v for v in target.variables if id(v) not in into], strict=False):
            if a.shape == b.shape:
                b.assign(a)


def _but_inputs(layer: keras.Layer) -> list[keras.Layer]:
    """The layers in it without those of a Sequential's input, which it has once it was called."""
    return [one for one in layers_in(layer) if not isinstance(one, L.InputLayer)]


def replay(
    calls: Iterable[Call], values: dict[int, Any], operation_of: Callable[[Call], Callable]
) -> None:
    """Calls an operation in place of every call; `values` {id of KerasTensor: tensor} grows."""
    with plain_products():
        for call in calls:
            args, kwargs = call.arguments.fill_in(values)
            results = keras.tree.flatten(operation_of(call)(*args, **kwargs))
            values.update((id(t), value) for t, value in zip(call.outputs, results, strict=True))


def like(
    tensor: keras.KerasTensor, dtype: str | None = None, shape: Sequence[int | None] | None = None
) -> keras.KerasTensor:
    """An input as this one, for batches of any size; of another `shape` without the batch."""
    sizes = tensor.shape[1:] if shape is None else shape
    return keras.Input(batch_shape=(None, *sizes), dtype=dtype or tensor.dtype, name=tensor.name)


def rebuilt(
    model: keras.Model,
    make: Make = with_config,
    *,
    carry: Callable[[keras.Layer, keras.Layer], None] = carry_over,
    without_training: Collection[str] = (),
    shapes: Shapes | None = None,
) -> keras.Model:
    """A functional model with the calls of another one, on new operations.

    Args:
        model: functional or Sequential.
        make: gives the new operation for an old one; called once for each.
        carry: what goes over from an old layer to the new one, once this is built.
        without_training: names of the layers whose calls lose their `training`.
        shapes: of its inputs without the batch, in the order in which they are flattened; None:
            those of the model.
    """
    made: dict[int, tuple[keras.Operation, keras.Operation]] = {}

    def operation_of(call: Call) -> Callable:
        old = call.operation
        if id(old) not in made:
            made[id(old)] = old, _op(old) if is_op(old) else make(old)
        new = made[id(old)][1]
        if old.name not in without_training:
            return new
        return lambda *args, training=None, **kwargs: new(*args, **kwargs)

    inputs, outputs = ends(model)
    olds = keras.tree.flatten(inputs)
    sizes = [one.shape[1:] for one in olds] if shapes is None else shapes
    news = [like(one, shape=shape) for one, shape in zip(olds, sizes, strict=True)]
    fresh = keras.tree.pack_sequence_as(inputs, news)
    values = {id(old): new for old, new in zip(olds, news, strict=True)}
    replay(calls_of(model), values, operation_of)
    results = keras.tree.map_structure(lambda tensor: values[id(tensor)], outputs)
    copy = keras.Model(fresh, results, name=model.name)
    for old, new in made.values():
        if isinstance(old, keras.Layer):
            carry(old, new)
    return copy


def _op(operation: keras.Operation) -> keras.Operation:
    """A copy of an operation of keras.ops, or itself where it has no configuration: it holds no
    state."""
    try:
        return with_config(operation)
    except (NotImplementedError, TypeError, ValueError):
        return operation


def has_open_inputs(model: keras.Model) -> bool:
    """Whether it takes inputs of more than one size."""
    return any(None in one.shape[1:] for one in model.inputs)


def at_shapes(model: keras.Model, shapes: Shapes) -> keras.Model:
    """The same for inputs of one size, by which its FLOPs are counted; itself where none is open.

    Args:
        shapes: of its inputs without the batch, in the order in which they are flattened.

    Raises:
        UserError: it can't take them.
    """
    if not has_open_inputs(model):
        return model
    if len(shapes) != len(model.inputs):
        raise UserError(f"{model.name} has {len(model.inputs)} inputs: {len(shapes)} shapes for it")
    try:
        return rebuilt(model, shapes=shapes)
    except Exception as error:  # layers may say no in any way
        line = line_of(error)
        sizes = " and ".join(str(tuple(one)) for one in shapes)
        raise UserError(f"{model.name} can't take inputs of shape {sizes}: {line}") from None


def copied(model: keras.Model) -> keras.Model:
    """An equal model on layers of its own."""
    return rebuilt(model)


def changed(
    model: keras.Model,
    changes: Mapping[str, Mapping[str, Any]],
    carry: Callable[[keras.Layer, keras.Layer], None] = carry_over,
) -> keras.Model:
    """The model with changed configurations, {layer name: {key: value}}, keys it has alone."""
    return rebuilt(model, lambda one: with_config(one, **changes.get(one.name, {})), carry=carry)


def carry_equal_shapes(old: keras.Layer, new: keras.Layer) -> None:
    """As `carry_over`, but for variables whose shape has changed: these stay fresh."""
    new.trainable = old.trainable
    same = all(a.shape == b.shape for a, b in zip(old.weights, new.weights, strict=True))
    if same:
        return carry_over(old, new)
    for a, b in zip(old.weights, new.weights, strict=True):
        if a.shape == b.shape:
            b.assign(a)


def resized(model: keras.Model, widths: Mapping[str, int]) -> keras.Model:
    """The model with other layer widths; weights of unchanged shape are copied, others fresh.

    Args:
        widths: {layer name: output channels}; layers without a width of their own (batch norm,
            depthwise convolutions) are ignored.
    """
    changes = {name: {"filters": n, "units": n} for name, n in widths.items()}
    return changed(model, changes, carry_equal_shapes)


def to_policy(model: keras.Model, policy: str) -> keras.Model:
    """A functional model of the same layers and weights under a dtype policy ("mixed_bfloat16").

    Variables stay float32 and in the same order, so clone and model exchange weights by
    set_weights; the output layer, and what a concatenation there joins, computes float32. Layers
    that draw random numbers begin anew, so that these depend on Keras's seed alone.

    Raises:
        ValueError: nested models.
    """
    calls = calls_of(model)
    if any(has_graph(call.operation) for call in calls):
        raise ValueError("a model that contains models cannot change its dtype policy")
    makers = {id(tensor): call for call in calls for tensor in call.outputs}
    # What has no weights only passes on or joins: the layers before it compute float32 as well.
    waiting, names = [id(tensor) for tensor in model.outputs], set()
    while waiting:
        call = makers.get(waiting.pop())
        if call is None or call.operation.name in names:
            continue
        names.add(call.operation.name)
        if not getattr(call.operation, "weights", ()):
            waiting += [id(tensor) for tensor in call.inputs]

    def make(layer: keras.Operation) -> keras.Operation:
        if not keras.backend.is_float_dtype(layer.compute_dtype):  # whole numbers or strings
            return with_config(layer)
        return with_config(layer, dtype="float32" if layer.name in names else policy)

    return rebuilt(model, make, carry=partial(carry_over, seeds=False))
