"""What a layer does when it is called, as calls of the layers inside it and of `keras.ops`.

    trace = traced(layer, args, kwargs)     # with symbolic tensors
    trace.calls                             # in an order in which they can be run

The layer's own `call`, with functions of Keras and of TensorFlow (`nets.tf_calls`) in it, runs on
symbolic inputs whose batch has BATCH examples (`nets.trace`), and the number is taken out of what
comes of it (`nets.any_batch`).
Variables that the layer holds itself, and constants that a layer inside it is called on, are inputs
of the trace (`Held`). What a subclass of one of Keras's layers leaves to `super().call` is a call
of that layer.
"""

from __future__ import annotations

import contextlib
import itertools
import types
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from ..utils.errors import line_of
from .any_batch import of_any_batch
from .blocks import with_blocks
from .keras_graph import (
    Arguments,
    Call,
    as_written,
    calls_of,
    calls_to,
    ends,
    forget,
    has_graph,
    is_stock,
    layers_in,
    own_variables,
    shell_of,
    takes_training,
)
from .tf_calls import as_keras_ops
from .trace import BATCH, BLOCKS, OPEN, Closed, Held, Trace, in_call, row_of_all, tensors_in

OF_KERAS = frozenset(vars(keras.layers.Layer()))  # what every layer holds, lists of variables too


def traced(
    layer: keras.Layer,
    args: tuple,
    kwargs: dict[str, Any],
    part: keras.Layer | None = None,
    *,
    direct: bool = False,
) -> Trace:
    """Runs a layer's `call` on symbolic tensors like those in `args` and `kwargs`.

    Args:
        part: the layer as the one of Keras's that its class is derived from, with the same
            variables (`as_stock`): it is called where the layer calls its base class.
        direct: it is called as `_run` says, also where that doesn't seem to be needed.

    Raises:
        Closed: it can't be run so, it does something else in training, or it uses weights in a
            way that isn't known.
    """
    kwargs = {key: value for key, value in kwargs.items() if value is not None}
    some_open = any(None in one.shape[1:] for one in tensors_in(args, kwargs))
    reason = ""
    for sized in (False, True) if some_open else (False,):
        try:
            return _traced(layer, args, kwargs, part, sized, direct)
        except Closed as problem:
            reason = reason or str(problem)
    raise Closed(reason)


def _traced(
    layer: keras.Layer,
    args: tuple,
    kwargs: dict,
    part: keras.Layer | None,
    sized: bool,
    direct: bool,
) -> Trace:
    """As `traced`, where open sizes are left open or have stand-ins.

    Raises:
        Closed: likewise.
    """
    complete = False
    if not direct:
        with contextlib.suppress(_Failed):
            trace = _run(layer, args, kwargs, part, direct=False, sized=sized)
            complete = not _unseen(layer, trace)
    if not complete:
        try:
            trace = _run(layer, args, kwargs, part, direct=True, sized=sized)
        except _Failed as failure:
            raise Closed(f"can't be run on symbolic tensors: {failure}") from None
    unused = _unseen(layer, trace)
    if unused and _reads_variables(trace):
        raise Closed(f"uses the weights of {unused[0]} in a way that isn't known")
    if takes_training(layer) and kwargs.get("training") is None:
        trace = _with_training(layer, args, kwargs, part, trace)
    return replace(of_any_batch(trace, layer), unused=unused)


class _Failed(Exception):
    """A layer's own code failed on symbolic tensors."""


def _run(
    layer: keras.Layer,
    args: tuple,
    kwargs: dict[str, Any],
    part: keras.Layer | None,
    *,
    direct: bool,
    sized: bool,
) -> Trace:
    """One run of `call`.

    Args:
        part: as of `traced`.
        direct: calls the layers inside it so that constants become inputs of the trace, and so
            that their own calls become part of it where they give more than tensors.
        sized: sizes of OPEN stand in for open ones.
    """
    tensors = tensors_in(args, kwargs)
    inputs = {
        id(one): keras.Input(batch_shape=_shape(one, sized), dtype=in_call(one.dtype, layer))
        for one in tensors
    }
    args, kwargs = keras.tree.map_structure(lambda one: inputs.get(id(one), one), (args, kwargs))
    held = _Holder(direct)
    if takes_training(layer):
        kwargs = {"training": None} | kwargs
    try:
        shell = held.stand_in(layer) if part is None else shell_of(layer, _deferring(layer, part))
        with as_keras_ops():
            outputs = shell.call(*args, **kwargs)
    except Exception as error:  # the layer's own code may raise anything
        raise _Failed(line_of(error)) from None
    calls = calls_to(keras.tree.flatten(outputs))
    forget(calls)
    calls = with_blocks(calls, keras.tree.flatten(outputs))
    return Trace(calls, list(inputs.values()), outputs, held.found, sized)


def _deferring(layer: keras.Layer, part: keras.Layer) -> type[keras.Layer]:
    """The layer's class, but that its base class's call is a call of `part`."""
    base = types.new_class(type(part).__name__, (type(part),))
    base.call = lambda _, *args, **kwargs: part(*args, **kwargs)
    return types.new_class(type(layer).__name__, (type(layer), base))


def _shape(tensor: keras.KerasTensor, sized: bool) -> tuple:
    shape = tuple(tensor.shape)
    shape = (BATCH, *shape[1:]) if shape[:1] == (None,) else shape
    if not sized:
        return shape
    pairs = itertools.zip_longest(shape[1:], OPEN[: len(shape) - 1])
    return (*shape[:1], *(b * BLOCKS if a is None and b else a for a, b in pairs))


class _Array(keras.KerasTensor):
    """Stands for an array: Keras takes no `x[:2]` and no `x[None]` of what stands for a batch."""

    def __getitem__(self, key: Any) -> keras.KerasTensor:
        return super().__getitem__(key if isinstance(key, tuple) else (key,))


class _Holder:
    """Stands inputs of the trace in for variables and constants."""

    def __init__(self, direct: bool):
        self.found: dict[int, Held] = {}
        self._direct = direct
        self._tensors: dict[int, tuple[Any, keras.KerasTensor]] = {}

    def tensor(self, value: Any, layer: keras.Layer) -> keras.KerasTensor:
        """The input that stands for a variable or an array."""
        if id(value) not in self._tensors:
            row = row_of_all(value)
            held = Held(value, layer) if row is None else Held(row, layer, repeated=True)
            shape = held.shape if row is None else (BATCH, *held.shape[1:])
            tensor = keras.Input(batch_shape=shape, dtype=held.dtype)
            tensor.__class__ = _Array
            self._tensors[id(value)] = value, tensor  # its id is taken as long as it is there
            self.found[id(tensor)] = held
        return self._tensors[id(value)][1]

    def stand_in(self, layer: keras.Layer) -> keras.Layer:
        """The layer in another shell, whose variables are inputs of the trace.

        Raises:
            Closed: a variable that isn't simply an attribute, or has a constraint.
        """
        shell = shell_of(layer, type(layer))
        shell.__dict__["add_loss"] = _no_loss
        left = {id(variable): variable for variable in own_variables(layer)}
        own = set(left)
        for name, value in layer.__dict__.items():
            if name in OF_KERAS:
                continue
            held = [one for one in _leaves(value) if id(one) in own]
            if held:
                if constrained := [one.name for one in held if one.constraint is not None]:
                    raise Closed(f"holds a variable with a constraint ({constrained[0]})")
                tensors = {id(one): self.tensor(one, layer) for one in held}
                shell.__dict__[name] = _replaced(value, tensors)
                for one in held:
                    left.pop(id(one), None)
            elif self._direct and not name.startswith("_"):
                shell.__dict__[name] = self._with_calls(value)
        if left:
            names = ", ".join(variable.name for variable in left.values())
            raise Closed(f"holds variables in a way that isn't known ({names})")
        return shell

    def _with_calls(self, value: Any) -> Any:
        if isinstance(value, keras.Layer):
            return _Inner(self, value)
        if isinstance(value, list | tuple) and any(isinstance(v, keras.Layer) for v in value):
            return [self._with_calls(one) for one in value]
        return value


def _leaves(value: Any) -> Iterator[Any]:
    """A value, or those in a list or dict of them, at any depth. Not by `keras.tree`, which sorts
    the keys: those of a compiled model's dicts are layers."""
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list | tuple):
        yield value
        return
    for one in value:
        yield from _leaves(one)


def _replaced(value: Any, others: dict[int, Any]) -> Any:
    """The same, with others in place of some values."""
    if isinstance(value, dict):
        return {key: _replaced(one, others) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_replaced(one, others) for one in value]
    return others.get(id(value), value)


def _no_loss(loss: Any) -> None:
    raise Closed("its parts don't add to the loss what it adds (add_loss)")


class _Inner:
    """A layer inside the one that is traced."""

    def __init__(self, holder: _Holder, layer: keras.Layer):
        self._holder, self._layer = holder, layer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        flat = keras.tree.flatten((args, kwargs))
        if not any(isinstance(one, keras.KerasTensor) for one in flat) and self._layer.weights:
            args, kwargs = keras.tree.map_structure(
                lambda one: self._holder.tensor(one, self._layer) if hasattr(one, "dtype") else one,
                (args, kwargs),
            )
        if has_graph(self._layer):
            return self._layer_by_layer(*args, **kwargs)
        try:
            return self._layer(*args, **kwargs)
        except Exception:  # the layer's own code may raise anything
            if is_stock(self._layer):
                raise
        # Its own call, in place: what Keras notes of a call can't be anything but tensors.
        if takes_training(self._layer):
            kwargs = {"training": None} | kwargs
        return self._holder.stand_in(self._layer).call(*args, **kwargs)

    def _layer_by_layer(self, inputs: Any, training: bool | None = None, **_: Any) -> Any:
        """A model's calls in place: they may fit other sizes than it was built for."""
        given, outputs = ends(self._layer)
        given = keras.tree.flatten(given)
        values = {id(a): b for a, b in zip(given, keras.tree.flatten(inputs), strict=True)}
        for call in calls_of(self._layer):
            args, kwargs = as_written(call, values)
            if training is not None and takes_training(call.operation):
                kwargs |= {"training": training}
            results = keras.tree.flatten(call.operation(*args, **kwargs))
            values |= {id(t): value for t, value in zip(call.outputs, results, strict=True)}
        return keras.tree.map_structure(lambda one: values[id(one)], outputs)


def _unseen(layer: keras.Layer, trace: Trace) -> tuple[str, ...]:
    """What the layer has that doesn't show among the calls: names of layers with weights, and of
    variables. A number that was made of one shows when the two are compared (`nets.opened`)."""
    seen = {id(one) for call in trace.calls for one in _layers_of(call.operation)}
    reached = {id(one) for call in trace.calls for one in call.inputs}
    held = {id(one.value) for key, one in trace.held.items() if key in reached}
    inner = (one for one in layers_in(layer)[1:] if id(one) not in seen)
    layers = [one.name for one in inner if (mine := _own(one)) and not mine & held]
    own = [one.value.name for key, one in trace.held.items() if key not in reached]
    return (*layers, *own)


def _reads_variables(trace: Trace) -> bool:
    """Whether a call takes a variable as it is, such as the kernel of another layer."""
    flat = [one for call in trace.calls for one in keras.tree.flatten(call.values)]
    return any(isinstance(one, keras.Variable) for one in flat)


def _layers_of(operation: keras.Operation) -> list[keras.Layer]:
    return layers_in(operation) if isinstance(operation, keras.Layer) else []


def _with_training(
    layer: keras.Layer, args: tuple, kwargs: dict, part: keras.Layer | None, trace: Trace
) -> Trace:
    """The trace, with what the layer calls in training alone, such as dropout.

    Raises:
        Closed: it branches on `training` in another way.
    """
    direct = any(id(held.value) not in _own(layer) for held in trace.held.values())
    for how in (direct, not direct):
        try:
            sized = trace.sized
            options = kwargs | {"training": True}
            training = _run(layer, args, options, part, direct=how, sized=sized)
        except _Failed:
            continue
        if (joined := _joined(trace, training)) is not None:
            return joined
    raise Closed("does something else in training")


def _joined(trace: Trace, training: Trace) -> Trace | None:
    """A trace for both, from one of training; None where they have other steps, but for some that
    change nothing outside of training."""

    def step(call: Call) -> Any:
        # A layer without weights may be made anew in every call.
        operation = call.operation
        return id(operation) if getattr(operation, "weights", ()) else type(operation)

    if [step(call) for call in trace.calls] == [step(call) for call in training.calls]:
        return trace
    left, calls = list(trace.calls), []
    for call in training.calls:
        known = left.pop(0) if left and step(left[0]) == step(call) else None
        if known is None and not _only_in_training(call):
            return None
        kwargs = {key: one for key, one in call.arguments.kwargs.items() if key != "training"}
        if known is not None and "training" in known.arguments.kwargs:
            kwargs["training"] = known.arguments.kwargs["training"]
        arguments = Arguments(call.arguments.args, kwargs)
        calls.append(Call(call.operation, arguments, call.inputs, call.outputs))
    if left:
        return None
    return Trace(calls, training.inputs, training.outputs, training.held, training.sized)


def _only_in_training(call: Call) -> bool:
    """Whether a call gives what it is given outside of training, as dropout and augmentation do."""
    operation, tensors = call.operation, (*call.inputs, *call.outputs)
    if not takes_training(operation) or len(tensors) != 2:
        return False
    given, made = tensors
    if tuple(given.shape) != tuple(made.shape) or None in given.shape:
        return False
    example = np.random.default_rng(0).normal(size=(2, *given.shape[1:]))
    example = keras.ops.cast(example, given.dtype)
    try:
        found = operation(example, training=False)
    except Exception:  # the layer's own code may raise anything
        return False
    return bool(np.array_equal(*map(keras.ops.convert_to_numpy, (example, found))))


def _own(layer: keras.Layer) -> set[int]:
    """The ids of the variables that it holds itself."""
    return {id(variable) for variable in own_variables(layer)}
