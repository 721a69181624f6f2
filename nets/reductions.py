"""Means, sums and extremes over the channels, as a layer: a mask-aware one can then stand in.

`keras.ops.mean(x, axis=-1)` of the user's is an `OverChannels` in the core and the same operation
in what comes back.
"""

from __future__ import annotations

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
    operation, (tensor, *others) = call.operation, call.inputs or (None,)
    if type(operation).__name__ not in FUNCTIONS or others or tensor is None:
        return None
    rank, axis = len(tensor.shape), operation.axis
    alone = axis is not None and [int(one) % rank for one in np.atleast_1d(axis)] == [rank - 1]
    plain = getattr(operation, "initial", None) is None
    if not (alone and plain and rank > 1 and keras.backend.is_float_dtype(tensor.dtype)):
        return None
    return OverChannels(type(operation).__name__, bool(operation.keepdims), name=name)
