"""Channels in another order, as a layer: each keeps to its own place as others go.

ShuffleNet's `take(x, [0, 12, 1, 13, ...], -1)`, also written as a reshape, a transposition and a
reshape (`nets.blocks`), is a `Shuffled` in the core, and one of what is left in what comes back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from .keras_graph import Call


@keras.saving.register_keras_serializable("ekg_tf")
class Shuffled(keras.layers.Layer):
    """The channels in another order.

    Args:
        indices: place c of the output holds channel indices[c]; each channel once.
    """

    def __init__(self, indices: Sequence[int], **options: Any):
        super().__init__(**options)
        self.indices = tuple(map(int, indices))

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"indices": self.indices}

    def call(self, x: Any) -> Any:
        """x [n, ..., c] -> the same shape."""
        return keras.ops.take(x, list(self.indices), axis=-1)

    def operation(self, rank: int) -> Callable:
        """What it stands for, a call of `keras.ops`; `rank` is unused."""
        return self.call


def shuffled(call: Call, name: str) -> Callable | None:
    """The layer for a call that takes every channel once, in a fixed order; None for another."""
    if type(call.operation).__name__ != "Take" or len(call.inputs) != 1 or len(call.values) < 2:
        return None
    shape, indices = call.inputs[0].shape, np.asarray(call.values[1])
    axis = call.operation.axis
    if not shape or axis is None or axis % len(shape) != len(shape) - 1 or indices.ndim != 1:
        return None
    if not np.array_equal(np.sort(indices), np.arange(shape[-1] or 0)):
        return None
    layer = Shuffled(indices, name=name, dtype="float32")
    return lambda x, _: layer(x)
