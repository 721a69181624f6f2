"""What layers of the user's hold themselves, as tensors and layers of the network around them.

A variable that a layer only calls on becomes the rows of an `Embedding`, looked up for every
example or once; a kernel becomes a convolution or a `Dense` (`nets.kernels`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from .keras_graph import Call, origin_of
from .kernels import kernel_of, layer_of, usage_of
from .op_rules import MERGES
from .products import product_of
from .traced import Held, size_of

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
                tensor = self._table_of(held)(self._index(rows, held.per_example))
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

    def _table_of(self, held: Held) -> keras.layers.Embedding:
        """An Embedding whose rows are what a layer holds."""
        value, layer = held.value, held.layer
        wanted = f"{layer.name}_{getattr(value, 'name', 'constant')}"
        trained = getattr(value, "trainable", False) and layer.trainable
        return self._table(value, wanted, layer.name, policy_of(layer), trained)

    def _table(
        self, value: Any, wanted: str, owner: str, policy: Any = "float32", trained: bool = False
    ) -> keras.layers.Embedding:
        """An Embedding whose rows are a variable's, or an array's, which no training changes."""
        shape = tuple(value.shape) or (1,)
        rows, width = size_of(shape), shape[-1]
        name = self._name(wanted, owner)
        regularizer = getattr(value, "regularizer", None)
        table = L.Embedding(
            rows, width, embeddings_regularizer=regularizer, name=name, dtype="float32"
        )
        table.build((None, rows))
        table.embeddings.assign(keras.ops.reshape(value, (rows, width)))
        table.trainable = trained
        if not isinstance(value, keras.Variable):
            self._flat.constants.add(name)
        self._flat.policies.setdefault(name, policy)
        self._flat.trainable.setdefault(name, trained)
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

    def by_channel(
        self, call: Call, owner: str, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]]:
        """A call's arguments, an array with a number for every channel, such as an encoding of
        positions, as a table that no training changes: it loses columns with the channels."""
        tensors = [one for one in keras.tree.flatten((args, kwargs)) if is_symbolic(one)]
        if type(call.operation).__name__ not in MERGES or len(tensors) != 1:
            return args, kwargs
        shape = tuple(tensors[0].shape)

        def in_table(one: Any) -> Any:
            if not _is_per_channel(one, shape):
                return one
            array = keras.ops.convert_to_numpy(one)
            table = self._table(array, f"{call.operation.name}_constant", owner)
            values = table(self._index(size_of(array.shape), False))
            return keras.ops.reshape(values, (*(array.shape[:-1] or (1,)), -1))

        found = any(_is_per_channel(one, shape) for one in call.constants)
        if not found or not _may_lose_channels(tensors[0]):
            return args, kwargs
        return keras.tree.map_structure(in_table, (args, kwargs))

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


def is_symbolic(value: Any) -> bool:
    return isinstance(value, keras.KerasTensor)


def _is_per_channel(value: Any, shape: tuple) -> bool:
    """Whether a value is an array of floats with a number for every channel of a tensor, the same
    for all examples.

    Args:
        shape: the tensor's.
    """
    sizes = tuple(getattr(value, "shape", ()))
    if is_symbolic(value) or not sizes or sizes[-1] != shape[-1] or sizes[-1] == 1:
        return False
    alike = len(sizes) < len(shape) or (len(sizes) == len(shape) and sizes[0] == 1)
    return alike and keras.backend.is_float_dtype(keras.backend.standardize_dtype(value.dtype))


def _may_lose_channels(tensor: keras.KerasTensor) -> bool:
    """Whether a tensor comes of weights, and its last axis isn't one of positions, as that of
    attention's scores is."""
    left, seen = [tensor], set()
    while left:
        call = origin_of(left.pop())
        if call is None or id(call.outputs[0]) in seen:
            continue
        seen.add(id(call.outputs[0]))
        if (product := product_of(call.operation, call.values)) is not None:
            lasts = [side[-1:] for side in product.sides]
            if not any(
                product.runs_over_channels(number) and one == product.output[-1:]
                for number, one in enumerate(lasts)
            ):
                continue
        if getattr(call.operation, "weights", ()):
            return True
        left += call.inputs
    return False


def policy_of(layer: keras.Layer) -> Any:
    """The dtype as a configuration has it."""
    return keras.dtype_policies.serialize(layer.dtype_policy)
