"""What layers of the user's hold themselves, as tensors and layers of the network around them.

A variable that a layer only calls on becomes the rows of an `Embedding`, looked up for every
example or once; a kernel becomes a convolution or a `Dense` (`nets.kernels`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from .keras_graph import Call
from .kernels import kernel_of, layer_of, usage_of
from .trace import Held, size_of

if TYPE_CHECKING:
    from .flatten import Flat

L = keras.layers


class HeldTensors:
    """The tensors and layers of one copy of a network, each made once.

    Args:
        flat: the network's parts, which learn of the layers that are made.
        first: an input of the network.
        name: (wanted, owner) -> a name that is free, and taken from now on.
    """

    def __init__(self, flat: Flat, first: keras.KerasTensor, name: Callable[[str, str], str]):
        self._flat, self._first, self._name = flat, first, name
        self._homes: dict[int, tuple[Held, Any]] = {}
        self._indices: dict[Any, Any] = {}
        self._kernels: dict[Any, tuple[Any, keras.Layer]] = {}

    def tensor(self, held: Held) -> Any:
        """What a layer holds, as a tensor of the network: of the held shape, or one per example."""
        if id(held.value) not in self._homes:
            rows, shape = size_of(held.shape), held.shape
            if isinstance(held.value, keras.Variable) or _is_state(held):
                tensor = self._table(held)(self._index(rows, held.per_example))
                if held.per_example:
                    tensor = tensor if len(shape) == 3 else L.Reshape(shape[1:])(tensor)
                else:
                    tensor = tensor[0, 0] if len(shape) == 1 else tensor[0]
                    if len(shape) > 2:
                        tensor = keras.ops.reshape(tensor, (*shape[:-1], -1))
            else:
                tensor = self._constant(held)
            self._homes[id(held.value)] = held, tensor
        return self._homes[id(held.value)][1]

    def _table(self, held: Held) -> keras.layers.Embedding:
        """An Embedding whose rows are what a layer holds; no training changes those of an array."""
        value, layer = held.value, held.layer
        shape = tuple(value.shape) or (1,)
        rows, width = size_of(shape), shape[-1]
        name = self._name(f"{layer.name}_{getattr(value, 'name', 'constant')}", layer.name)
        regularizer = getattr(value, "regularizer", None)
        table = L.Embedding(
            rows, width, embeddings_regularizer=regularizer, name=name, dtype="float32"
        )
        table.build((None, rows))
        table.embeddings.assign(keras.ops.reshape(value, (rows, width)))
        table.trainable = bool(getattr(value, "trainable", False) and layer.trainable)
        if not isinstance(value, keras.Variable):
            self._flat.constants.add(name)
        self._flat.policies.setdefault(name, policy_of(layer))
        self._flat.trainable.setdefault(name, table.trainable)
        return table

    def _constant(self, held: Held) -> Any:
        """Numbers that a layer is called on, of the held shape and its dtype."""
        value = keras.ops.convert_to_numpy(held.value).reshape(held.shape)
        zero = keras.ops.cast(self._zero(held.per_example), str(value.dtype))
        if held.per_example:
            zero = keras.ops.reshape(zero, (-1, *[1] * (value.ndim - 1)))
            return keras.ops.logical_or(zero, value) if value.dtype == bool else zero + value
        return (zero + value.reshape(1, -1))[0] if value.ndim == 1 else zero + value

    def _index(self, rows: int, per_example: bool) -> Any:
        """The numbers of an array's rows, int32 [n or 1, rows]."""
        key = rows, per_example
        if key not in self._indices:
            zero = self._zero(per_example)
            self._indices[key] = zero + np.arange(rows, dtype=np.int32)[None] if rows > 1 else zero
        return self._indices[key]

    def _zero(self, per_example: bool) -> Any:
        """A zero for every example, or one alone, int32 [n or 1, 1], of the network's input."""
        if per_example not in self._indices:
            zeros = keras.ops.zeros_like(self._first, dtype="int32")
            axes = list(range(per_example, len(zeros.shape)))
            largest = keras.ops.max(zeros, axis=axes, keepdims=True) if axes else zeros
            self._indices[per_example] = keras.ops.reshape(largest, (-1, 1))
        return self._indices[per_example]

    def by_kernel(self, call: Call, owner: str, args: tuple, kwargs: dict[str, Any]) -> Any:
        """What a call gives as a layer of Keras's, where it is one with a kernel that is held, or
        constant; None for another call."""
        if kernel_of(call) is None:
            return None
        inputs, kernel, *vectors = (*args, *kwargs.values())
        if isinstance(kernel, keras.KerasTensor):
            return None
        value, layer, factor = kernel, None, 1.0
        if isinstance(kernel, Held):
            value, layer, factor = kernel.value, kernel.layer, kernel.factor
        bias = vectors[0].value if vectors else None
        key = id(value), factor, usage_of(call), id(bias)
        if key not in self._kernels:
            wanted = f"{layer.name}_{getattr(value, 'name', 'kernel')}" if layer else ""
            name = self._name(wanted or call.operation.name, owner)
            made = layer_of(call, value, bias, name)
            if factor != 1:
                first, *others = made.get_weights()
                made.set_weights([first * np.asarray(factor, first.dtype), *others])
            made.trainable = made.trainable and (layer is None or layer.trainable)
            if not isinstance(value, keras.Variable):
                self._flat.constants.add(name)
            self._flat.policies.setdefault(name, "float32" if layer is None else policy_of(layer))
            self._flat.trainable.setdefault(name, made.trainable)
            self._kernels[key] = value, made  # its id is taken as long as it is there
        return self._kernels[key][1](inputs)


def _is_state(held: Held) -> bool:
    """Whether a layer holds rows of zeros, as a state to begin with, whose channels may go."""
    value = held.value
    rows = held.repeated and isinstance(value, np.ndarray) and held.shape[-1] > 1
    return rows and value.dtype.kind == "f" and not value.any()


def policy_of(layer: keras.Layer) -> Any:
    """The dtype as a configuration has it."""
    return keras.dtype_policies.serialize(layer.dtype_policy)
