"""Whether what a layer was opened into computes what the layer does, on random numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from ..utils.devices import full_float32
from ..utils.errors import line_of
from .keras_graph import takes_training, tell_query_mask, values_of
from .trace import Closed, Trace, examples, run, tensors_in

TOLERANCE = {"float16": 2e-2, "bfloat16": 1e-1}  # of an opened layer, relative; else 1e-4


def check_trace(layer: keras.Layer, trace: Trace, args: tuple, kwargs: dict[str, Any]) -> None:
    """Compares a trace with its layer on random numbers, for batches of two sizes.

    The second time all weights are others: a number that was made of one must not stay as it was.

    Raises:
        Closed: they differ, or the trace can't be run.
    """
    rng = np.random.default_rng(0)
    with values_of([]):  # the layer may be one that assigns to its weights
        _compare_runs(layer, trace, args, kwargs, dict(examples(trace, 2, rng)))
    with values_of([(one, _other(one, rng)) for one in layer.weights]):
        try:
            _compare_runs(layer, trace, args, kwargs, dict(examples(trace, 3, rng)))
        except _Differs:
            why = "uses or changes weights, perhaps of a layer inside it, in a way that isn't known"
            raise Closed(why) from None


class _Differs(Closed):
    """Two ways to compute the same don't."""


def _other(variable: keras.Variable, rng: np.random.Generator) -> Any:
    """A variable's value, a little larger everywhere if it has a fraction."""
    value = keras.ops.convert_to_tensor(variable)
    if not keras.backend.is_float_dtype(variable.dtype):
        return value
    factor = keras.ops.cast(rng.uniform(1.0, 1.3, variable.shape), variable.dtype)
    return value * factor + keras.ops.cast(rng.uniform(0, 0.1, variable.shape), variable.dtype)


@full_float32()
def _compare_runs(layer, trace: Trace, args: tuple, kwargs: dict, values: dict[int, Any]) -> None:
    pairs = zip(tensors_in(args, kwargs), trace.inputs, strict=True)
    real = {id(a): values[id(b)] for a, b in pairs}
    real_args, real_kwargs = keras.tree.map_structure(
        lambda one: real.get(id(one), one), (args, kwargs)
    )
    try:  # before the layer, which may change its weights when it is called
        found = _at_inference(lambda: run(trace, values))
    except Exception as error:  # what was found out symbolically may not run
        open_sizes = any(None in one.shape[1:] for one in tensors_in(args, kwargs))
        remedy = "; give keras.Input all sizes but the batch" if open_sizes else ""
        line = f"asks for sizes that are known only later: {line_of(error)}{remedy}"
        raise Closed(line) from None
    _compare(layer, _expected(layer, real_args, real_kwargs), found)


class _Network(keras.Layer):
    """Calls a function as a network calls its layers."""

    def __init__(self, function: Callable[[], Any]):
        super().__init__()
        self._function = function

    def call(self, inputs: Any, training: bool = False) -> Any:
        return self._function()


def _at_inference(function: Callable[[], Any]) -> Any:
    """What a function gives outside of training: layers that are called without `training`, such as
    augmentation, ask the network that they are in."""
    return _Network(function)(np.zeros(1, np.float32), training=False)


def _expected(layer: keras.Layer, args: tuple, kwargs: dict[str, Any]) -> list:
    """What a layer gives on numbers.

    Raises:
        Closed: it fails.
    """
    if takes_training(layer):  # a call may ask for it
        kwargs = {"training": False} | kwargs
    try:
        return keras.tree.flatten(_at_inference(lambda: layer(*args, **kwargs)))
    except Exception as error:  # the layer's own code may raise anything
        raise Closed(f"can't be run on random numbers: {line_of(error)}") from None


def _compare(layer: keras.Layer, expected: list, found: list) -> None:
    for a, b in zip(expected, found, strict=True):
        if a is None and b is None:
            continue
        a, b = (np.asarray(keras.ops.convert_to_numpy(one), np.float64) for one in (a, b))
        largest = float(np.abs(a).max()) if a.size else 0.0
        tolerance = TOLERANCE.get(layer.compute_dtype, 1e-4) * max(1e-6, largest)
        if a.shape != b.shape or not (np.abs(a - b) <= tolerance).all():
            raise _Differs("computes something else when it is opened")


@full_float32()
def check_opened(layer: keras.Layer, parts: Callable, args: tuple, kwargs: dict) -> None:
    """Compares an opened copy with the layer on random numbers.

    Raises:
        Closed: they differ, or the copy can't be run on symbolic tensors.
    """
    flat = keras.tree.flatten((args, kwargs))
    tensors = [one for one in flat if isinstance(one, keras.KerasTensor)]
    places = {id(one): number for number, one in enumerate(tensors)}
    fresh = [keras.Input(batch_shape=one.shape, dtype=one.dtype) for one in tensors]

    def filled(values: list) -> tuple:
        return keras.tree.map_structure(
            lambda one: values[places[id(one)]] if id(one) in places else one, (args, kwargs)
        )

    try:
        symbolic_args, symbolic_kwargs = filled(fresh)
        outputs = parts(*symbolic_args, **symbolic_kwargs)
        opened = keras.Model(fresh, keras.tree.flatten(outputs))
    except Exception as error:  # the user's own code may raise anything
        raise Closed(f"can't be run on symbolic tensors: {line_of(error)}") from None
    rng = np.random.default_rng(0)
    values = [_example(one, rng) for one in tensors]
    real_args, real_kwargs = filled(values)
    tell_query_mask(real_args, real_kwargs)
    expected = _expected(layer, real_args, real_kwargs)
    try:
        found = keras.tree.flatten(opened(values, training=False))
    except Exception as error:  # what was found out symbolically may not run
        raise Closed(f"asks for sizes that are known only later: {line_of(error)}") from None
    _compare(layer, expected, found)


def _example(tensor: keras.KerasTensor, rng: np.random.Generator) -> Any:
    shape = [
        2 if size is None and axis == 0 else size or 8 for axis, size in enumerate(tensor.shape)
    ]
    if keras.backend.is_float_dtype(tensor.dtype):
        return keras.ops.cast(rng.normal(size=shape), tensor.dtype)
    return keras.ops.cast(rng.integers(0, 2, shape), tensor.dtype)
