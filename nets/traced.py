"""What a layer does when it is called, as calls of the layers inside it and of `keras.ops`.

    trace = traced(layer, args, kwargs)     # with symbolic tensors
    trace.calls                             # in an order in which they can be run

The layer's own `call`, with functions of Keras and of TensorFlow (`nets.tf_calls`) in it, runs on
symbolic inputs whose batch has BATCH examples, a number that no real axis has: where it or a
multiple turns up in the size of a reshape, the batch is meant. A layer inside another one is traced
on tensors of the outer trace, whose batch may be such a multiple.
Variables that the layer holds itself, and constants that a layer inside it is called on, are inputs
of the trace (`Held`). What a subclass of one of Keras's layers leaves to `super().call` is a call
of that layer. Attention's products of matrices become einsums, whose letters say where the
channels are.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from .keras_graph import (
    Call,
    Einsum,
    calls_of,
    calls_to,
    ends,
    forget,
    has_graph,
    is_op,
    is_stock,
    layers_in,
    own_variables,
    shell_of,
    takes_training,
)
from .tf_calls import as_keras_ops

BATCH = 211


class Closed(Exception):
    """A layer can't be opened; the text says why."""


@dataclass(frozen=True)
class Held:
    """An input of a trace that isn't one of the layer's own inputs.

    Attributes:
        value: a variable, or a constant array.
        layer: that has it.
        per_example: the leading axis, of size 1, stands for the batch and gets its size.
    """

    value: Any
    layer: keras.Layer

    @property
    def shape(self) -> tuple[int, ...]:
        """As the trace has it: a single number is an array of one."""
        return tuple(self.value.shape) or (1,)

    @property
    def per_example(self) -> bool:
        return len(self.shape) > 1 and self.shape[0] == 1


@dataclass(frozen=True)
class Trace:
    """A layer's call in parts.

    Attributes:
        calls: on the tensors of the trace.
        inputs: in the order of the tensors among the layer's arguments.
        outputs: in the layer's own structure; tensors of the trace, or constants.
        held: {id of a tensor: what it stands for}.
    """

    calls: list[Call]
    inputs: list[keras.KerasTensor]
    outputs: Any
    held: dict[int, Held]


@dataclass(frozen=True)
class Arguments:
    """The arguments of a call that is written anew."""

    args: tuple
    kwargs: dict[str, Any] = field(default_factory=dict)

    def fill_in(self, values: dict[int, Any]) -> tuple[tuple, dict[str, Any]]:
        """The arguments with `values` {id of a KerasTensor: value} in place."""
        return keras.tree.map_structure(
            lambda one: values[id(one)] if isinstance(one, keras.KerasTensor) else one,
            (self.args, self.kwargs),
        )


def traced(
    layer: keras.Layer, args: tuple, kwargs: dict[str, Any], part: keras.Layer | None = None
) -> Trace:
    """Runs a layer's `call` on symbolic tensors like those in `args` and `kwargs`.

    Args:
        part: the layer as the one of Keras's that its class is derived from, with the same
            variables (`as_stock`): it is called where the layer calls its base class.

    Raises:
        Closed: it can't be run so, it does something else in training, or it has weights that
            don't show among its calls.
    """
    kwargs = {key: value for key, value in kwargs.items() if value is not None}
    try:
        trace = _run(layer, args, kwargs, part, direct=False)
        problem = _unseen(layer, trace)
    except _Failed as failure:
        problem = str(failure)
    if problem:
        try:
            trace = _run(layer, args, kwargs, part, direct=True)
        except _Failed as failure:
            raise Closed(f"can't be run on symbolic tensors: {failure}") from None
        if problem := _unseen(layer, trace):
            raise Closed(problem)
    if takes_training(layer) and kwargs.get("training") is None:
        _check_training(layer, args, kwargs, part, trace)
    return Trace(*_rewritten(trace))


class _Failed(Exception):
    """A layer's own code failed on symbolic tensors."""


def _run(
    layer: keras.Layer,
    args: tuple,
    kwargs: dict[str, Any],
    part: keras.Layer | None,
    *,
    direct: bool,
) -> Trace:
    """One run of `call`.

    Args:
        part: as of `traced`.
        direct: calls the layers inside it so that constants become inputs of the trace, and so
            that their own calls become part of it where they give more than tensors.
    """
    tensors = tensors_in(args, kwargs)
    inputs = {id(one): keras.Input(batch_shape=_shape(one), dtype=one.dtype) for one in tensors}
    args, kwargs = keras.tree.map_structure(lambda one: inputs.get(id(one), one), (args, kwargs))
    held = _Holder(direct)
    if takes_training(layer):
        kwargs = {"training": None} | kwargs
    try:
        shell = held.stand_in(layer) if part is None else shell_of(layer, _deferring(layer, part))
        with as_keras_ops():
            outputs = shell.call(*args, **kwargs)
    except Exception as error:  # the layer's own code may raise anything
        raise _Failed(_line(error)) from None
    calls = calls_to(keras.tree.flatten(outputs))
    forget(calls)
    return Trace(calls, list(inputs.values()), outputs, held.found)


def _deferring(layer: keras.Layer, part: keras.Layer) -> type[keras.Layer]:
    """The layer's class, but that its base class's call is a call of `part`."""
    base = types.new_class(type(part).__name__, (type(part),))
    base.call = lambda _, *args, **kwargs: part(*args, **kwargs)
    return types.new_class(type(layer).__name__, (type(layer), base))


def tensors_in(args: tuple, kwargs: dict[str, Any]) -> list[keras.KerasTensor]:
    """The symbolic tensors among the arguments of a call, each once."""
    flat = keras.tree.flatten((args, kwargs))
    return list({id(one): one for one in flat if isinstance(one, keras.KerasTensor)}.values())


def _shape(tensor: keras.KerasTensor) -> tuple:
    shape = tuple(tensor.shape)
    return (BATCH, *shape[1:]) if shape[:1] == (None,) else shape


def _of_batch(size: int | None) -> int:
    """How many times BATCH a size is; 0 where it has nothing to do with the batch."""
    return size // BATCH if size and size % BATCH == 0 else 0


class _Holder:
    """Stands inputs of the trace in for variables and constants."""

    def __init__(self, direct: bool):
        self.found: dict[int, Held] = {}
        self._direct = direct
        self._tensors: dict[int, keras.KerasTensor] = {}

    def tensor(self, value: Any, layer: keras.Layer) -> keras.KerasTensor:
        """The input that stands for a variable or an array."""
        if id(value) not in self._tensors:
            held = Held(value, layer)
            dtype = keras.backend.standardize_dtype(value.dtype)
            tensor = keras.Input(batch_shape=held.shape, dtype=dtype)
            self._tensors[id(value)], self.found[id(tensor)] = tensor, held
        return self._tensors[id(value)]

    def stand_in(self, layer: keras.Layer) -> keras.Layer:
        """The layer in another shell, whose variables are inputs of the trace.

        Raises:
            Closed: a variable that isn't simply an attribute, or has a constraint.
        """
        shell = shell_of(layer, type(layer))
        left = {id(variable): variable for variable in own_variables(layer)}
        for name, value in layer.__dict__.items():
            if id(value) in left:
                if value.constraint is not None:
                    raise Closed(f"holds a variable with a constraint ({value.name})")
                shell.__dict__[name] = self.tensor(value, layer)
                del left[id(value)]
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
            args, kwargs = call.arguments.fill_in(values)
            if training is not None and takes_training(call.operation):
                kwargs |= {"training": training}
            results = keras.tree.flatten(call.operation(*args, **kwargs))
            values |= {id(t): value for t, value in zip(call.outputs, results, strict=True)}
        return keras.tree.map_structure(lambda one: values[id(one)], outputs)


def _unseen(layer: keras.Layer, trace: Trace) -> str:
    """What the layer has that doesn't show among the calls, in words; "" where all does."""
    seen = {id(one) for call in trace.calls for one in _layers_of(call.operation)}
    reached = {id(one) for call in trace.calls for one in call.inputs}
    for inner in layers_in(layer)[1:]:
        if list(own_variables(inner)) and id(inner) not in seen:
            mine = {id(variable) for variable in own_variables(inner)}
            if not any(id(held.value) in mine for held in trace.held.values()):
                return f"uses the weights of {inner.name} in a way that isn't known"
    for key, held in trace.held.items():
        if key not in reached:
            return f"holds a variable that it doesn't use in its call ({held.value.name})"
    return ""


def _layers_of(operation: keras.Operation) -> list[keras.Layer]:
    return layers_in(operation) if isinstance(operation, keras.Layer) else []


def _check_training(
    layer: keras.Layer, args: tuple, kwargs: dict, part: keras.Layer | None, trace: Trace
) -> None:
    """Refuses layers that branch on `training` themselves."""

    def steps(one: Trace) -> list:
        # A layer without weights may be made anew in every call.
        every = (call.operation for call in one.calls)
        return [id(op) if getattr(op, "weights", ()) else type(op) for op in every]

    direct = any(id(held.value) not in _own(layer) for held in trace.held.values())
    for how in (direct, not direct):
        try:
            training = _run(layer, args, kwargs | {"training": True}, part, direct=how)
        except _Failed:
            continue
        if steps(training) == steps(trace):
            return
    raise Closed("does something else in training")


def _own(layer: keras.Layer) -> set[int]:
    return {id(variable) for variable in own_variables(layer)}


# ---------------------------------------------------------------- written anew


def _rewritten(trace: Trace) -> tuple[list[Call], list, Any, dict[int, Held]]:
    """The calls without the number BATCH, and with einsums in place of products of matrices."""
    makers = {id(tensor): call for call in trace.calls for tensor in call.outputs}
    replaced: dict[int, Any] = {}
    calls = []
    for call in trace.calls:
        kind = type(call.operation).__name__ if is_op(call.operation) else ""
        if kind in ("Tile", "BroadcastTo") and _only_repeats_examples(call):
            replaced[id(call.outputs[0])] = call.inputs[0]
            continue
        if kind == "Reshape":
            call = _reshape_of_any_batch(call)
        elif kind == "Matmul":
            call = _einsum_of(call, makers)
        calls.append(call)
    if not replaced:
        return calls, trace.inputs, trace.outputs, trace.held

    def final(one: Any) -> Any:
        while id(one) in replaced:
            one = replaced[id(one)]
        return one

    calls = [_with_inputs(call, final) for call in calls]
    return calls, trace.inputs, keras.tree.map_structure(final, trace.outputs), trace.held


def _with_inputs(call: Call, final: Callable[[Any], Any]) -> Call:
    inputs = tuple(final(one) for one in call.inputs)
    if all(a is b for a, b in zip(inputs, call.inputs, strict=True)):
        return call
    args, kwargs = keras.tree.map_structure(final, (call.arguments.args, call.arguments.kwargs))
    return Call(call.operation, Arguments(args, kwargs), inputs, call.outputs)


def _only_repeats_examples(call: Call) -> bool:
    """Whether a Tile or BroadcastTo gives every example the same, and does nothing else."""
    before, after = tuple(call.inputs[0].shape), tuple(call.outputs[0].shape)
    return before[:1] == (1,) and after == (BATCH, *before[1:])


def _reshape_of_any_batch(call: Call) -> Call:
    before, after = list(call.inputs[0].shape), list(call.outputs[0].shape)
    if None in before or None in after:
        raise Closed("asks for sizes that are known only later")
    batches = bool(before and after) and _of_batch(before[0]) and _of_batch(after[0])
    if any(_of_batch(size) for size in (after[1:] if batches else after)):
        raise Closed("mixes the examples with their positions")
    if after:
        after[0 if batches else -1] = -1
    operation = type(call.operation)(tuple(after), name=call.operation.name)
    return Call(operation, Arguments((call.inputs[0],)), call.inputs, call.outputs)


LETTERS = "abcdefghij"


def _einsum_of(call: Call, makers: dict[int, Call]) -> Call:
    """A product of matrices as an einsum; over a turned matrix, as one of what was turned."""
    if len(call.inputs) != 2:
        return call
    a, b = call.inputs
    rank = len(a.shape)
    if rank != len(b.shape) or rank < 3 or rank > len(LETTERS) or a.shape[:-2] != b.shape[:-2]:
        return call
    batch = LETTERS[: rank - 2]
    turned = makers.get(id(b))
    if turned is not None and _turns_the_matrix(turned, rank):
        inputs, subscripts = (a, turned.inputs[0]), f"{batch}qx,{batch}kx->{batch}qk"
    else:
        inputs, subscripts = (a, b), f"{batch}qx,{batch}xk->{batch}qk"
    operation = Einsum(subscripts, name=call.operation.name)
    return Call(operation, Arguments(inputs), inputs, call.outputs)


def _turns_the_matrix(call: Call, rank: int) -> bool:
    """Whether a call exchanges the last two axes, and no other."""
    operation, kind = call.operation, type(call.operation).__name__
    if kind == "Transpose" and operation.axes is not None:
        axes = [axis % rank for axis in operation.axes]
        return axes == [*range(rank - 2), rank - 1, rank - 2]
    if kind == "Swapaxes":
        return {operation.axis1 % rank, operation.axis2 % rank} == {rank - 2, rank - 1}
    return False


def run(trace: Trace, values: dict[int, Any]) -> Any:
    """A trace on real values, by the layers that it was made of; for a comparison.

    Args:
        values: {id of an input: array}; for held ones too.
    """
    values = dict(values)
    for call in trace.calls:
        args, kwargs = call.arguments.fill_in(values)
        results = keras.tree.flatten(call.operation(*args, **kwargs))
        values |= {id(t): value for t, value in zip(call.outputs, results, strict=True)}
    return [
        values[id(one)] if isinstance(one, keras.KerasTensor) else one
        for one in keras.tree.flatten(trace.outputs)
    ]


def examples(trace: Trace, count: int, rng: np.random.Generator) -> Iterator[tuple[int, Any]]:
    """Random values of a trace's inputs for so many examples, and those of the held ones."""
    for one in trace.inputs:
        shape = [size or 8 for size in one.shape]
        if shape and _of_batch(shape[0]):
            shape[0] = count * _of_batch(shape[0])
        if keras.backend.is_float_dtype(one.dtype):
            yield id(one), keras.ops.cast(rng.normal(size=shape), one.dtype)
        else:
            yield id(one), keras.ops.cast(rng.integers(0, 2, shape), one.dtype)
    for key, held in trace.held.items():
        value = keras.ops.reshape(keras.ops.convert_to_tensor(held.value), held.shape)
        yield key, keras.ops.repeat(value, count, axis=0) if held.per_example else value


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def size_of(shape: tuple[int, ...]) -> int:
    """The number of rows of a held array as a table: all its axes but the last."""
    return math.prod(shape[:-1])
