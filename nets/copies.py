"""Copies of a network's layers and operations, in float32, each under a name of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from ..utils.errors import UserError, line_of
from .constants import with_constant
from .keras_graph import Call
from .layer_rules import KERNEL_LAYERS
from .op_rules import equal_part
from .parts import fixed_parts
from .rebuild import carry_over, config_of
from .reductions import over_channels, unit_length
from .shuffles import shuffled
from .tf_calls import as_keras_ops

if TYPE_CHECKING:
    from .flatten import Flat

L = keras.layers
FLOATS = ("float16", "bfloat16", "float32", "float64")
ENDING = (*KERNEL_LAYERS, L.Activation, L.EinsumDense)  # their activation is the last thing they do


class Copies:
    """The copies that one pass over a network makes.

    Args:
        flat: whose `policies`, `trainable` and `places` grow.

    Attributes:
        made: {id of a layer: what is called instead}.
    """

    def __init__(self, flat: Flat):
        self.made: dict[int, Callable] = {}
        self._flat = flat
        self._pairs: list[tuple[Any, keras.Layer]] = []
        self._names: set[str] = set()
        self._outer: list[str] = []  # models and layers that are being opened

    @contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """While a model or layer of this name is opened."""
        self._outer.append(name)
        try:
            yield
        finally:
            self._outer.pop()

    def name(self, wanted: str, owner: str) -> str:
        """A free name, taken from now on, and where it comes from noted."""
        name = self.free_name(wanted, owner)
        self._names.add(name)
        if self._outer:  # the outermost may have been opened out of something by an earlier pass
            first, *others = self._outer
            places = self._flat.places
            places.setdefault(name, "/".join([places.get(first, first), *others, wanted]))
        return name

    def free_name(self, wanted: str, owner: str) -> str:
        """A name that isn't taken yet, and isn't by this either."""
        name = wanted if wanted not in self._names else f"{owner}_{wanted}"
        number = 1
        while name in self._names:
            name, number = f"{owner}_{wanted}_{number}", number + 1
        return name

    def put(self, layer: keras.Layer, made: Callable, name: str) -> None:
        """Notes what is called instead of a layer, and the name that it has taken."""
        self.made[id(layer)] = made
        self._names.add(name)

    def of_operation(self, call: Call, owner: str) -> Callable:
        """What stands for an operation, which may have become a layer."""
        operation = call.operation
        name = self.name(operation.name, owner)
        if (reduction := over_channels(call, name) or unit_length(call, name)) is not None:
            return reduction
        if (part := equal_part(call)) is not None:
            return lambda x, _: keras.ops.split(x, part[0], axis=-1)[part[1]]
        for known in (fixed_parts, with_constant, shuffled):
            if (made := known(call, name)) is not None:
                return made
        if type(operation).__name__ == "Reshape" and _keeps_the_batch(operation, call.inputs[0]):
            # As a layer its sizes follow the channels.
            return keras.layers.Reshape(tuple(operation.newshape[1:]), name=name)
        try:
            return type(operation).from_config(operation.get_config() | {"name": name})
        except (NotImplementedError, TypeError, ValueError):
            return operation  # it holds no state

    def of_layer(self, call: Call, owner: str) -> Any:
        """A layer's copy: one for all its calls, but one per call where it has no weights.

        Raises:
            UserError: it doesn't come back from its own configuration.
        """
        layer = call.operation
        if id(layer) in self.made and layer.weights:
            return self.made[id(layer)]
        name = self.name(layer.name, owner)
        activation = getattr(layer, "activation", None)
        apart = type(layer) in ENDING and _comes_apart(activation, call.outputs[0])
        config = _config_of(layer)
        policy = config.get("dtype")
        changes: dict[str, Any] = {"name": name}
        if "dtype" in config and layer.dtype_policy.compute_dtype in FLOATS:
            changes["dtype"] = "float32"
        if apart:
            changes["activation"] = "linear"
        copy = _from_config(layer, config | changes)
        self._flat.policies.setdefault(name, policy)
        self._flat.trainable.setdefault(name, layer.trainable)
        if apart:
            return self._with_activation(layer, copy, activation, owner)
        self.made[id(layer)] = copy
        self._pairs.append((layer, copy))
        return copy

    def carry_over(self) -> None:
        """Gives the copies the weights and states of what they were made of."""
        for old, new in self._pairs:
            carry_over(old, new)

    def _with_activation(self, layer, copy, activation, owner: str):
        """An activation that is a layer, or code without a name, becomes a call of its own."""
        if not isinstance(activation, keras.Layer):
            self._pairs.append((layer, copy))

            def followed(*args, **kwargs):
                with as_keras_ops():
                    return activation(copy(*args, **kwargs))

            self.made[id(layer)] = followed
            return followed
        # carry_over walks both side by side: the activation isn't inside the copy any more.
        self._pairs.append((_Without(layer), copy))
        if id(activation) not in self.made:
            name = self.name(f"{layer.name}_{activation.name}", owner)
            config = activation.get_config() | {"name": name}
            if "dtype" in config:
                config["dtype"] = "float32"
            self.made[id(activation)] = _from_config(activation, config)
            self._pairs.append((activation, self.made[id(activation)]))
            self._flat.policies.setdefault(name, layer.get_config().get("dtype"))
            self._flat.trainable.setdefault(name, layer.trainable)
        after = self.made[id(activation)]

        def both(*args, **kwargs):
            return after(copy(*args, **kwargs))

        self.made[id(layer)] = both
        return both


class _Without:
    """A layer as `carry_over` sees it, without the layers inside it."""

    def __init__(self, layer: keras.Layer):
        self._layer = layer

    def _flatten_layers(self) -> list:
        return [self._layer]


def _keeps_the_batch(operation: keras.Operation, tensor: keras.KerasTensor) -> bool:
    """Whether an operation Reshape leaves the examples apart."""
    before, after = tensor.shape[1:], tuple(operation.newshape)
    if not after or after[0] not in (-1, None) or None in before:
        return False
    sizes = [size for size in after[1:] if size != -1]
    return len(sizes) == len(after) - 1 and math.prod(sizes) == math.prod(before)


def _comes_apart(activation: Any, output: keras.KerasTensor) -> bool:
    """Whether an activation becomes calls of its own: a layer, or code that isn't Keras's and that
    can be run on symbolic tensors."""
    if isinstance(activation, keras.Layer):
        return True
    name, module = (getattr(activation, key, "") or "" for key in ("__name__", "__module__"))
    package = module.partition(".")[0]
    if activation is None or package == "keras":
        return _read_back_as_another(activation, name)
    if name == "<lambda>" or package == "tensorflow":
        return True  # no file brings it back
    try:
        with as_keras_ops():
            made = activation(keras.KerasTensor(output.shape, output.dtype))
    except Exception:  # the user's own code may raise anything
        return False
    return isinstance(made, keras.KerasTensor) and made.shape == output.shape


def _read_back_as_another(activation: Any, name: str) -> bool:
    """Whether a file brings an activation back as another function of its name: keras.ops.gelu is
    an approximation, keras.activations.gelu isn't."""
    if activation is None or not activation.__module__.startswith("keras.src.ops"):
        return False
    numbers = np.linspace(-3, 3, 13, dtype=np.float32)
    try:
        other = keras.activations.get(name)
    except ValueError:
        return True
    return not np.array_equal(*(np.asarray(one(numbers)) for one in (activation, other)))


def _config_of(layer: keras.Layer) -> dict[str, Any]:
    try:
        return config_of(layer)
    except Exception as error:  # the user's own code may raise anything
        raise UserError(
            f"layer {layer.name} ({type(layer).__name__}) has no configuration: {line_of(error)}; "
            "let get_config() return all arguments of __init__"
        ) from None


def _from_config(layer: keras.Layer, config: dict[str, Any]) -> keras.Layer:
    try:
        return type(layer).from_config(config)
    except Exception as error:  # the user's own code may raise anything
        raise UserError(
            f"layer {layer.name} ({type(layer).__name__}) can't be made again from its own "
            f"get_config(): {line_of(error)}; let get_config() return all arguments of __init__"
        ) from None
