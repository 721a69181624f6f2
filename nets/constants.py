"""Sums and products with an array that has a number for every channel, as a layer.

`x + positions` of the user's, where `positions` [steps, channels] never changes, is a
`WithConstant` in the core, and the same operation with what is left of the array in what comes
back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from .keras_graph import Call

ops = keras.ops
# By the class of the operation.
FUNCTIONS = {
    "Add": ops.add,
    "Subtract": ops.subtract,
    "Multiply": ops.multiply,
    "Divide": ops.divide,
    "TrueDivide": ops.true_divide,
    "Maximum": ops.maximum,
    "Minimum": ops.minimum,
}


@keras.saving.register_keras_serializable("ekg_tf")
class WithConstant(keras.layers.Layer):
    """An operation of a tensor and an array.

    Args:
        kind: a key of FUNCTIONS.
        value: float [..., c], which broadcasts with the tensor.
        first: the array is the first operand.
    """

    def __init__(self, kind: str, value: Any, first: bool = False, **options: Any):
        super().__init__(**options)
        self.kind, self.value, self.first = kind, np.asarray(value), first

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "kind": self.kind,
            "value": self.value,
            "first": self.first,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> WithConstant:
        """A file has its own form of arrays."""
        value = config["value"]
        if isinstance(value, dict):
            value = keras.saving.deserialize_keras_object(value)
        return super().from_config(config | {"value": value})

    def call(self, x: Any) -> Any:
        """x float [n, ..., c] -> the same, or what broadcasting makes of it."""
        return self.applied(x, ops.cast(self.value, x.dtype))

    def applied(self, x: Any, value: Any) -> Any:
        """The operation with an array that takes the place of its own."""
        operands = (value, x) if self.first else (x, value)
        return FUNCTIONS[self.kind](*operands)

    def operation(self, rank: int) -> Callable:
        """What it stands for, a call of `keras.ops`; `rank` is unused."""
        return lambda x: self.applied(x, self.value)


def with_constant(call: Call, name: str) -> Callable | None:
    """The layer for an operation with an array that has a number for every channel; None for
    another call."""
    kind = type(call.operation).__name__
    if kind not in FUNCTIONS or len(call.inputs) != 1 or len(call.values) != 2:
        return None
    first = not isinstance(call.values[0], keras.KerasTensor)
    tensor, array = call.inputs[0], call.values[0 if first else 1]
    shape = tuple(getattr(array, "shape", ()))
    if isinstance(array, keras.Variable) or not tensor.shape or not shape:
        return None
    if shape[-1] == 1 or shape[-1] != tensor.shape[-1]:
        return None
    if not keras.backend.is_float_dtype(tensor.dtype):
        return None
    layer = WithConstant(kind, ops.convert_to_numpy(array), first, name=name, dtype="float32")
    return lambda *operands: layer(operands[1 if first else 0])
