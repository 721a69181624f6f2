"""A trace without the number BATCH, so that it runs on any number of examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from .keras_graph import Arguments, Call, calls_to, is_op
from .kernels import kernel_of, usage_of
from .op_rules import CONDITIONS, MERGES
from .trace import BATCH, Closed, Held, Trace, of_batch, row_of_all

STRETCHING = MERGES | CONDITIONS  # operations that stretch an axis of size 1


def of_any_batch(trace: Trace, layer: keras.Layer) -> Trace:
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

    def final(one: Any) -> Any:
        while id(one) in replaced:
            one = replaced[id(one)]
        return one

    calls = [_with_inputs(call, final) for call in calls]
    outputs = keras.tree.map_structure(final, trace.outputs)
    return replace(trace, calls=calls, outputs=outputs, held=held)


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
        row = row_of_all(one)
        if row is None or stretched:
            return one if row is None else row
        tensor = keras.Input(batch_shape=one.shape, dtype=str(row.dtype))
        held[id(tensor)] = Held(row, layer, repeated=True)
        return tensor

    def changed(tree: Any, stretched: bool) -> Any:
        return keras.tree.map_structure(lambda one: once(one, stretched), tree)

    if all(row_of_all(one) is None for one in call.constants):
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
    batches = bool(before and after) and of_batch(before[0]) and of_batch(after[0])
    if any(of_batch(size) for size in (after[1:] if batches else after)):
        raise Closed("mixes the examples with their positions")
    if after:
        after[0 if batches else -1] = -1
    operation = type(call.operation)(tuple(after), name=call.operation.name)
    return Call(operation, Arguments((call.inputs[0],)), call.inputs, call.outputs)
