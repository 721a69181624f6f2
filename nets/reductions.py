"""Means, sums, extremes and lengths over the channels, as a layer: a mask-aware one can stand in.

`keras.ops.mean(x, axis=-1)` of the user's is an `OverChannels` in the core and the same operation
in what comes back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from .keras_graph import Call, origin_of

# By the class of the operation.
FUNCTIONS = {
    "Mean": keras.ops.mean,
    "Sum": keras.ops.sum,
    "Max": keras.ops.max,
    "Amax": keras.ops.max,
    "Min": keras.ops.min,
    "Amin": keras.ops.min,
    "Var": keras.ops.var,
    "Std": keras.ops.std,
    "Norm": keras.ops.norm,
}


@keras.saving.register_keras_serializable("ekg_tf")
class OverChannels(keras.layers.Layer):
    """A reduction over the last axis.

    Args:
        kind: a key of FUNCTIONS. keepdims: leaves an axis of size 1.
    """

    def __init__(self, kind: str, keepdims: bool = False, **options: Any):
        super().__init__(**options)
        self.kind, self.keepdims = kind, keepdims

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"kind": self.kind, "keepdims": self.keepdims}

    def call(self, x: Any) -> Any:
        """x float [n, ..., c] -> [n, ...], or [n, ..., 1]."""
        return FUNCTIONS[self.kind](x, axis=-1, keepdims=self.keepdims)

    def operation(self, rank: int) -> keras.Operation:
        """The operation of `keras.ops` that it stands for.

        Args:
            rank: of what it is given, the batch counted.
        """
        made = origin_of(self.call(keras.KerasTensor((None,) * rank)))
        assert made is not None
        config = made.operation.get_config() | {"name": self.name}
        return type(made.operation).from_config(config)


def over_channels(call: Call, name: str) -> OverChannels | None:
    """The layer for a reduction of floats over their channels alone; None for another call."""
    operation = call.operation
    if type(operation).__name__ not in FUNCTIONS or not _of_channels(call, operation.axis):
        return None
    usual = {"initial": (None,), "ord": (None, 2)}
    if any(getattr(operation, key, None) not in values for key, values in usual.items()):
        return None
    return OverChannels(
        type(operation).__name__, bool(operation.keepdims), name=name, dtype="float32"
    )


def unit_length(call: Call, name: str) -> Callable[[Any], Any] | None:
    """`keras.ops.normalize` over the channels alone, in parts; None for another call."""
    operation, ops = call.operation, keras.ops
    known = type(operation).__name__ == "Normalize" and operation.order == 2
    if not known or not _of_channels(call, operation.axis):
        return None
    total = OverChannels("Sum", keepdims=True, name=name, dtype="float32")
    least = keras.config.epsilon() if operation.epsilon is None else operation.epsilon
    return lambda x: x * ops.rsqrt(ops.maximum(total(ops.square(x)), least**2))


def _of_channels(call: Call, axis: Any) -> bool:
    """Whether a call runs over the last axis, and no other, of floats alone."""
    if len(call.inputs) != 1 or axis is None:
        return False
    tensor, rank = call.inputs[0], len(call.inputs[0].shape)
    alone = [int(one) % rank for one in np.atleast_1d(axis)] == [rank - 1]
    return alone and rank > 1 and keras.backend.is_float_dtype(tensor.dtype)
