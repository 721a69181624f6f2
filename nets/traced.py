"""What a layer does when it is called, as calls of the layers inside it and of `keras.ops`.

    trace = traced(layer, args, kwargs)     # with symbolic tensors
    trace.calls                             # in an order in which they can be run

The layer's own `call`, with functions of Keras and of TensorFlow (`nets.tf_calls`) in it, runs on
symbolic inputs whose batch has BATCH examples, a number that no real axis has: where it or a
multiple turns up in the size of a reshape, the batch is meant. A layer inside another one is traced
on tensors of the outer trace, whose batch may be such a multiple.
Variables that the layer holds itself, and constants that a layer inside it is called on, are inputs
of the trace (`Held`). What a subclass of one of Keras's layers leaves to `super().call` is a call
of that layer.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import types
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from ..utils.errors import line_of
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
    is_op,
    is_stock,
    layers_in,
    own_variables,
    shell_of,
    takes_training,
)
from .kernels import kernel_of, usage_of
from .op_rules import CONDITIONS, MERGES
from .tf_calls import as_keras_ops

BATCH = 211
OPEN = (223, 227, 229)  # likewise, for the first axes whose size is open, where they are needed
BLOCKS = 12  # times these, since some sizes are divided
STRETCHING = MERGES | CONDITIONS  # operations that stretch an axis of size 1


class Closed(Exception):
    """A layer can't be opened; the text says why."""


@dataclass(frozen=True)
class Held:
    """An input of a trace that isn't one of the layer's own inputs.

    Attributes:
        value: a variable, or a constant array.
        layer: that has it.
        repeated: the layer repeats it for every example.
        kernel: it is used as one, in one way, and for nothing else (`nets.kernels`).
        factor: what stands for it is its value times this number.
        per_example: the leading axis, of size 1, stands for the batch and gets its size.
    """

    value: Any
    layer: keras.Layer
    repeated: bool = False
    kernel: bool = False
    factor: float = 1.0

    @property
    def shape(self) -> tuple[int, ...]:
        """As the trace has it: a single number is an array of one."""
        return tuple(self.value.shape) or (1,)

    @property
    def dtype(self) -> str:
        """As the layer's call sees it: variables of floats in the precision that it computes in."""
        dtype = keras.backend.standardize_dtype(self.value.dtype)
        return _in_call(dtype, self.layer) if isinstance(self.value, keras.Variable) else dtype

    @property
    def per_example(self) -> bool:
        leading = len(self.shape) > 2 and self.shape[0] == 1
        return self.repeated or (leading and not self.kernel)


@dataclass(frozen=True)
class Trace:
    """A layer's call in parts.

    Attributes:
        calls: on the tensors of the trace.
        inputs: in the order of the tensors among the layer's arguments.
        outputs: in the layer's own structure; tensors of the trace, or constants.
        held: {id of a tensor: what it stands for}.
        sized: whether sizes of OPEN stand for open ones.
        unused: names of layers and variables that the layer has and its call doesn't need.
    """

    calls: list[Call]
    inputs: list[keras.KerasTensor]
    outputs: Any
    held: dict[int, Held]
    sized: bool = False
    unused: tuple[str, ...] = ()


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
    return Trace(*_rewritten(trace, layer), sized, unused)


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
        id(one): keras.Input(batch_shape=_shape(one, sized), dtype=_in_call(one.dtype, layer))
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


def _in_call(dtype: str, layer: keras.Layer) -> str:
    """The dtype that numbers have inside a layer's call."""
    cast = layer.autocast and keras.backend.is_float_dtype(dtype)
    return layer.compute_dtype if cast else dtype


def tensors_in(args: tuple, kwargs: dict[str, Any]) -> list[keras.KerasTensor]:
    """The symbolic tensors among the arguments of a call, each once."""
    flat = keras.tree.flatten((args, kwargs))
    return list({id(one): one for one in flat if isinstance(one, keras.KerasTensor)}.values())


def _shape(tensor: keras.KerasTensor, sized: bool) -> tuple:
    shape = tuple(tensor.shape)
    shape = (BATCH, *shape[1:]) if shape[:1] == (None,) else shape
    if not sized:
        return shape
    pairs = itertools.zip_longest(shape[1:], OPEN[: len(shape) - 1])
    return (*shape[:1], *(b * BLOCKS if a is None and b else a for a, b in pairs))


def stands_for_open(size: int | None) -> bool:
    """Whether a size may come of one that stands in for an open one."""
    return bool(size) and any(size % one == 0 for one in OPEN)


def _of_batch(size: int | None) -> int:
    """How many times BATCH a size is; 0 where it has nothing to do with the batch."""
    return size // BATCH if size and size % BATCH == 0 else 0


class _Array(keras.KerasTensor):
    """Stands for an array: Keras takes no `x[:2]` and no `x[None]` of what stands for a batch."""

    def __getitem__(self, key: Any) -> keras.KerasTensor:
        return super().__getitem__(key if isinstance(key, tuple) else (key,))


def _row_of_all(value: Any) -> np.ndarray | None:
    """The row [1, ...] of an array that has the same one for every example; None for any other."""
    symbolic = isinstance(value, keras.KerasTensor | keras.Variable)
    if symbolic or tuple(getattr(value, "shape", ()))[:1] != (BATCH,):
        return None
    array = keras.ops.convert_to_numpy(value)
    return array[:1] if (array == array[:1]).all() else None


class _Holder:
    """Stands inputs of the trace in for variables and constants."""

    def __init__(self, direct: bool):
        self.found: dict[int, Held] = {}
        self._direct = direct
        self._tensors: dict[int, tuple[Any, keras.KerasTensor]] = {}

    def tensor(self, value: Any, layer: keras.Layer) -> keras.KerasTensor:
        """The input that stands for a variable or an array."""
        if id(value) not in self._tensors:
            row = _row_of_all(value)
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


# ---------------------------------------------------------------- written anew


def _rewritten(trace: Trace, layer: keras.Layer) -> tuple[list[Call], list, Any, dict[int, Held]]:
    """A layer's trace without the number BATCH."""
    replaced: dict[int, Any] = {}
    trace = _with_scaled_kernels(trace, layer)
    kernels = _kernels(trace, layer)
    held: dict[int, Held] = {
        key: replace(one, kernel=key in kernels) for key, one in trace.held.items()
    }
    calls = []
    for call in trace.calls:
        call = _with_rows(call, layer, held)
        kind = type(call.operation).__name__ if is_op(call.operation) else ""
        if kind in ("Tile", "BroadcastTo", "Repeat") and _only_repeats_examples(call):
            source, (made,) = call.inputs[0], call.outputs
            if id(source) in held and len(source.shape) == len(made.shape):
                held[id(source)] = replace(held[id(source)], repeated=True)
                replaced[id(made)] = source
                continue
            call, zeros, held[id(zeros)] = _repeated(call, layer)
        calls.append(_reshape_of_any_batch(call))
    if not replaced:
        return calls, trace.inputs, trace.outputs, held

    def final(one: Any) -> Any:
        while id(one) in replaced:
            one = replaced[id(one)]
        return one

    calls = [_with_inputs(call, final) for call in calls]
    return calls, trace.inputs, keras.tree.map_structure(final, trace.outputs), held


def _with_scaled_kernels(trace: Trace, layer: keras.Layer) -> Trace:
    """A trace in which kernels are multiplied by no number first, as they are for equal learning
    rates in all layers: the product is what is held."""
    readers = Counter(id(one) for call in trace.calls for one in call.inputs)
    readers.update(map(id, keras.tree.flatten(trace.outputs)))
    as_kernel = Counter(id(kernel_of(call)) for call in trace.calls)
    calls, held = [], dict(trace.held)
    for call in trace.calls:
        one = held.get(id(call.inputs[0])) if len(call.inputs) == 1 else None
        factor = _factor_of(call) if one is not None and one.layer is layer else None
        if factor is not None and isinstance(one.value, keras.Variable):
            uses = readers[id(call.outputs[0])]
            if readers[id(call.inputs[0])] == 1 and uses and uses == as_kernel[id(call.outputs[0])]:
                del held[id(call.inputs[0])]
                held[id(call.outputs[0])] = replace(one, factor=factor)
                continue
        calls.append(call)
    return replace(trace, calls=calls, held=held)


def _factor_of(call: Call) -> float | None:
    """The number that a call multiplies its tensor by; None for another call."""
    numbers = [one for one in call.constants if np.size(one) == 1]
    known = is_op(call.operation) and type(call.operation).__name__ == "Multiply"
    if not known or len(numbers) != 1 or len(call.values) != 2:
        return None
    return float(np.reshape(keras.ops.convert_to_numpy(numbers[0]), ()))


def _kernels(trace: Trace, layer: keras.Layer) -> set[int]:
    """The ids of what a layer holds as kernels alone, each used in one way: as layers of Keras's
    they would be several."""
    used: dict[int, set[tuple]] = {}
    for call in trace.calls:
        kernel = kernel_of(call)
        for one in call.inputs:
            usage = usage_of(call) if one is kernel else ("other",)
            used.setdefault(id(one), set()).add(usage)
    alone = {key for key, usages in used.items() if len(usages) == 1 and ("other",) not in usages}
    return {key for key in alone & trace.held.keys() if trace.held[key].layer is layer}


def _with_rows(call: Call, layer: keras.Layer, held: dict[int, Held]) -> Call:
    """A call whose arrays don't repeat a row for each of BATCH examples, as a mask made for them
    does: it gets the row where that is stretched, else an input of the trace.

    Args:
        held: of the trace; it grows.
    """
    name = type(call.operation).__name__ if is_op(call.operation) else ""

    def once(one: Any, stretched: bool) -> Any:
        row = _row_of_all(one)
        if row is None or stretched:
            return one if row is None else row
        tensor = keras.Input(batch_shape=one.shape, dtype=str(row.dtype))
        held[id(tensor)] = Held(row, layer, repeated=True)
        return tensor

    def changed(tree: Any, stretched: bool) -> Any:
        return keras.tree.map_structure(lambda one: once(one, stretched), tree)

    if all(_row_of_all(one) is None for one in call.constants):
        return call
    args = changed(call.arguments.args, name in STRETCHING)
    kwargs = {
        key: changed(one, name in STRETCHING or key == "attention_mask")
        for key, one in call.arguments.kwargs.items()
    }
    inputs = [
        one for one in keras.tree.flatten((args, kwargs)) if isinstance(one, keras.KerasTensor)
    ]
    return Call(call.operation, Arguments(args, kwargs), tuple(inputs), call.outputs)


def _with_inputs(call: Call, final: Callable[[Any], Any]) -> Call:
    inputs = tuple(final(one) for one in call.inputs)
    if all(a is b for a, b in zip(inputs, call.inputs, strict=True)):
        return call
    args, kwargs = keras.tree.map_structure(final, (call.arguments.args, call.arguments.kwargs))
    return Call(call.operation, Arguments(args, kwargs), inputs, call.outputs)


def _only_repeats_examples(call: Call) -> bool:
    """Whether a Tile, BroadcastTo or Repeat gives every example the same, and does nothing else."""
    before, after = tuple(call.inputs[0].shape), tuple(call.outputs[0].shape)
    return after[:1] == (BATCH,) and before in (after[1:], (1, *after[1:]))


def _repeated(call: Call, layer: keras.Layer) -> tuple[Call, keras.KerasTensor, Held]:
    """What repeats its input for every example, as a sum of a zero of each with it.

    In this order, since Keras takes a second operand (3, 1, 1) for a bias of (1, 3, 8).

    Returns:
        (call, its first argument, what that stands for).
    """
    source, (made,) = call.inputs[0], call.outputs
    ones = [1] * (len(made.shape) - 1)
    zeros = keras.Input(batch_shape=(BATCH, *ones), dtype=source.dtype)
    held = Held(np.zeros((1, *ones), source.dtype), layer, repeated=True)
    (added,) = calls_to([keras.ops.add(zeros, keras.Input(batch_shape=source.shape))])
    inputs = zeros, source
    return Call(added.operation, Arguments(inputs), inputs, (made,)), zeros, held


def _reshape_of_any_batch(call: Call) -> Call:
    """A call of an operation Reshape without the number BATCH; any other as it is."""
    if not is_op(call.operation) or type(call.operation).__name__ != "Reshape":
        return call
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


def run(trace: Trace, values: dict[int, Any]) -> Any:
    """A trace on real values, by the layers that it was made of; for a comparison.

    Args:
        values: {id of an input: array}; for held ones too.
    """
    values = dict(values)
    for call in trace.calls:
        args, kwargs = as_written(call, values)
        results = keras.tree.flatten(call.operation(*args, **kwargs))
        values |= {id(t): value for t, value in zip(call.outputs, results, strict=True)}
    return [
        values[id(one)] if isinstance(one, keras.KerasTensor) else one
        for one in keras.tree.flatten(trace.outputs)
    ]


def examples(trace: Trace, count: int, rng: np.random.Generator) -> Iterator[tuple[int, Any]]:
    """Random values of a trace's inputs for so many examples, and those of the held ones.

    Sizes that stand in for open ones are others, and not the same for every count.
    """
    times = dict(zip(OPEN, (count, 2 * count, 1), strict=True)) if trace.sized else {}
    sizes = {one * BLOCKS: number * BLOCKS for one, number in times.items()}
    for one in trace.inputs:
        shape = [sizes.get(size, size or 8) for size in one.shape]
        if shape and _of_batch(shape[0]):
            shape[0] = count * _of_batch(shape[0])
        if keras.backend.is_float_dtype(one.dtype):
            yield id(one), keras.ops.cast(rng.normal(size=shape), one.dtype)
        else:
            yield id(one), keras.ops.cast(rng.integers(0, 2, shape), one.dtype)
    for key, held in trace.held.items():
        value = keras.ops.cast(keras.ops.convert_to_tensor(held.value), held.dtype)
        value = keras.ops.reshape(value, held.shape)
        value = value if held.factor == 1 else value * held.factor
        yield key, keras.ops.repeat(value, count, axis=0) if held.per_example else value


def size_of(shape: tuple[int, ...]) -> int:
    """The number of rows of a held array as a table: all its axes but the last."""
    return math.prod(shape[:-1])
