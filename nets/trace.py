"""A layer's call in parts, and those parts on real values.

What runs symbolically for it has BATCH examples, a number that no real axis has: where it or a
multiple turns up in the size of a reshape, the batch is meant. A layer inside another one is traced
on tensors of the outer trace, whose batch may be such a multiple.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from .keras_graph import Call, as_written

BATCH = 211
OPEN = (223, 227, 229)  # likewise, for the first axes whose size is open, where they are needed
BLOCKS = 12  # times these, since some sizes are divided


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
        return in_call(dtype, self.layer) if isinstance(self.value, keras.Variable) else dtype

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


def tensors_in(args: tuple, kwargs: dict[str, Any]) -> list[keras.KerasTensor]:
    """The symbolic tensors among the arguments of a call, each once."""
    flat = keras.tree.flatten((args, kwargs))
    return list({id(one): one for one in flat if isinstance(one, keras.KerasTensor)}.values())


def in_call(dtype: str, layer: keras.Layer) -> str:
    """The dtype that numbers have inside a layer's call."""
    cast = layer.autocast and keras.backend.is_float_dtype(dtype)
    return layer.compute_dtype if cast else dtype


def stands_for_open(size: int | None) -> bool:
    """Whether a size may come of one that stands in for an open one."""
    return bool(size) and any(size % one == 0 for one in OPEN)


def of_batch(size: int | None) -> int:
    """How many times BATCH a size is; 0 where it has nothing to do with the batch."""
    return size // BATCH if size and size % BATCH == 0 else 0


def row_of_all(value: Any) -> np.ndarray | None:
    """The row [1, ...] of an array that has the same one for every example; None for any other."""
    symbolic = isinstance(value, keras.KerasTensor | keras.Variable)
    if symbolic or tuple(getattr(value, "shape", ()))[:1] != (BATCH,):
        return None
    array = keras.ops.convert_to_numpy(value)
    return array[:1] if (array == array[:1]).all() else None


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
        if shape and of_batch(shape[0]):
            shape[0] = count * of_batch(shape[0])
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
