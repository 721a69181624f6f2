"""A network as a graph of its smallest parts, on layers of its own, in float32.

Models inside the network are inlined. A layer of the user's that is made of other layers or of
`keras.ops` is *opened*: Keras runs its `call` on symbolic tensors, and what it calls becomes part
of the graph. It is compared with the layer itself; where it differs, or can't be run so, the layer
stays closed, with the reason. A layer without weights becomes one layer per call, since its calls
may come to have different widths.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import keras
import numpy as np

from ..utils.errors import UserError
from . import layer_kinds
from .keras_graph import (
    Call,
    calls_of,
    ends,
    functional,
    has_graph,
    is_op,
    is_stock,
    layers_in,
    own_variables,
    rename,
    takes_training,
)
from .openers import OPENERS
from .rebuild import carry_over, like

FLOATS = ("float16", "bfloat16", "float32", "float64")
TOLERANCE = {"float16": 2e-2, "bfloat16": 1e-1}  # of an opened layer, relative; else 1e-4
DEEPEST = 12  # layers inside layers that are opened


@dataclass
class Flat:
    """A network's parts.

    Attributes:
        model: functional, without models inside, float32, for batches of any size; its inputs and
            outputs have the structure of the given ones.
        policies: {layer name: the dtype of its configuration} as it was.
        trainable: {layer name: the flag} as it was.
        closed: {layer name: why it could not be opened}.
    """

    model: keras.Model
    policies: dict[str, Any] = field(default_factory=dict)
    trainable: dict[str, bool] = field(default_factory=dict)
    closed: dict[str, str] = field(default_factory=dict)


def flatten(model: keras.Model) -> Flat:
    """Opens a functional (or Sequential) model; it isn't changed.

    Raises:
        UserError: no graph to read, a layer that doesn't come back from its own configuration,
            quantised or LoRA layers.
    """
    flat = Flat(model)
    for _ in range(DEEPEST):
        step = _Pass(flat)
        flat.model = step.model
        if not step.opened:
            return flat
    raise UserError(f"{model.name} holds layers within layers more than {DEEPEST} deep")


class _Pass:
    """One copy of the whole network, its models inlined and its composite layers opened once."""

    def __init__(self, flat: Flat):
        self.flat, self.opened = flat, False
        self._copies: dict[int, keras.Operation] = {}
        self._pairs: list[tuple[keras.Layer, keras.Layer]] = []
        self._names: set[str] = set()
        self._seen: dict[int, int] = {}
        outer = functional(flat.model)
        inputs, outputs = ends(outer)
        fresh = keras.tree.map_structure(like, inputs)
        results = self._replay(outer, keras.tree.flatten(fresh), {})
        results = keras.tree.pack_sequence_as(outputs, results)
        self.model = keras.Model(fresh, results, name=flat.model.name)
        for old, new in self._pairs:
            carry_over(old, new)

    def _replay(self, model: keras.Model, inputs: list, context: dict[str, Any]) -> list:
        """Calls the copies of a model's layers on `inputs`; its outputs, flat."""
        owner, model = model.name, functional(model)
        tensors = keras.tree.flatten(model.inputs)
        values = {id(t): value for t, value in zip(tensors, inputs, strict=True)}
        for call in calls_of(model):
            args, kwargs = call.arguments.fill_in(values)
            operation = call.operation
            if isinstance(operation, keras.Model) and has_graph(operation):
                training = kwargs.pop("training", None)
                inner = {} if training is None else {"training": training}
                if isinstance(args[0], dict) != isinstance(ends(operation)[0], dict):
                    raise UserError(
                        f"{operation.name} is called with inputs by name but was not made "
                        "with inputs by name, or the other way round: use the same form"
                    )
                given = [values[id(tensor)] for tensor in call.inputs]
                results = self._replay(operation, given, context | inner)
            else:
                if takes_training(operation):
                    kwargs |= context
                results = keras.tree.flatten(self._called(call, owner, args, kwargs))
            values |= {id(t): value for t, value in zip(call.outputs, results, strict=True)}
        return [values[id(tensor)] for tensor in keras.tree.flatten(model.outputs)]

    def _called(self, call: Call, owner: str, args: tuple, kwargs: dict[str, Any]) -> Any:
        operation = call.operation
        if is_op(operation):
            return self._copy_of_op(call, owner)(*args, **kwargs)
        _refuse(operation)
        if operation.name not in self.flat.closed:
            try:
                if type(operation) in OPENERS:
                    return self._in_parts(call, args, kwargs)
                if may_open(operation):
                    return self._opened(operation, owner, args, kwargs)
            except _Closed as reason:
                self.flat.closed[operation.name] = str(reason)
        return self._copy(operation, owner)(*args, **kwargs)

    # ---------------------------------------------------------------- copies

    def _name(self, wanted: str, owner: str) -> str:
        name = wanted if wanted not in self._names else f"{owner}_{wanted}"
        number = 1
        while name in self._names:
            name, number = f"{owner}_{wanted}_{number}", number + 1
        self._names.add(name)
        return name

    def _copy_of_op(self, call: Call, owner: str) -> keras.Operation:
        operation = call.operation
        name = self._name(operation.name, owner)
        if type(operation).__name__ == "Reshape" and _keeps_the_batch(operation, call.inputs[0]):
            # As a layer its sizes follow the channels.
            return keras.layers.Reshape(tuple(operation.newshape[1:]), name=name)
        try:
            return type(operation).from_config(operation.get_config() | {"name": name})
        except (NotImplementedError, TypeError, ValueError):
            return operation  # it holds no state

    def _copy(self, layer: keras.Layer, owner: str) -> keras.Operation:
        """The layer's copy: one for all its calls, but one per call where it has no weights."""
        if id(layer) in self._copies and layer.weights:
            return self._copies[id(layer)]
        name = self._name(layer.name, owner)
        activation = getattr(layer, "activation", None)
        apart = isinstance(activation, keras.Layer)
        config = layer.get_config()
        policy = config.get("dtype")
        changes: dict[str, Any] = {"name": name}
        if "dtype" in config and layer.dtype_policy.compute_dtype in FLOATS:
            changes["dtype"] = "float32"
        if apart:
            changes["activation"] = "linear"
        copy = _from_config(layer, config | changes)
        self.flat.policies.setdefault(name, policy)
        self.flat.trainable.setdefault(name, layer.trainable)
        if apart:
            return self._with_activation(layer, copy, activation, owner)
        self._copies[id(layer)] = copy
        self._pairs.append((layer, copy))
        return copy

    def _with_activation(self, layer, copy, activation, owner: str):
        """An activation that is a layer becomes a call of its own."""
        # carry_over walks both side by side: the activation isn't inside the copy any more.
        self._pairs.append((_Without(layer), copy))
        if id(activation) not in self._copies:
            name = self._name(f"{layer.name}_{activation.name}", owner)
            config = activation.get_config() | {"name": name}
            if "dtype" in config:
                config["dtype"] = "float32"
            self._copies[id(activation)] = _from_config(activation, config)
            self._pairs.append((activation, self._copies[id(activation)]))
            self.flat.policies.setdefault(name, layer.get_config().get("dtype"))
            self.flat.trainable.setdefault(name, layer.trainable)
        after = self._copies[id(activation)]

        def both(*args, **kwargs):
            return after(copy(*args, **kwargs))

        self._copies[id(layer)] = both
        return both

    # ---------------------------------------------------------------- opening

    def _in_parts(self, call: Call, args: tuple, kwargs: dict[str, Any]) -> Any:
        """One of Keras's own layers as the parts that it is made of."""
        layer = call.operation
        if id(layer) not in self._copies:
            parts = OPENERS[type(layer)](layer, call)
            if parts is None:
                raise _Closed("is used in a form that isn't known")
            _check_opened(layer, parts, args, kwargs)
            self._copies[id(layer)] = parts
        self.opened = True
        return self._copies[id(layer)](*args, **kwargs)

    def _opened(self, layer: keras.Layer, owner: str, args: tuple, kwargs: dict[str, Any]) -> Any:
        if id(layer) not in self._copies:
            copy = _from_config(layer, layer.get_config())
            try:
                copy(*args, **kwargs)  # builds it
                carry_over(layer, copy)
            except Exception as error:  # the user's own code may raise anything
                raise _Closed(f"doesn't come back from its configuration: {_line(error)}") from None
            for inner in layers_in(copy)[1:]:
                rename(inner, self._name(inner.name, layer.name))
            _check_opened(layer, partial(_call_opened, copy), args, kwargs)
            self._copies[id(layer)] = copy
        self.opened = True
        return _call_opened(self._copies[id(layer)], *args, **kwargs)


class _Without:
    """A layer as `carry_over` sees it, without the layers inside it."""

    def __init__(self, layer: keras.Layer):
        self._layer = layer

    def _flatten_layers(self) -> list:
        return [self._layer]


class _Closed(Exception):
    """A layer can't be opened; the text says why."""


def _keeps_the_batch(operation: keras.Operation, tensor: keras.KerasTensor) -> bool:
    """Whether an operation Reshape leaves the examples apart."""
    before, after = tensor.shape[1:], tuple(operation.newshape)
    if not after or after[0] not in (-1, None) or None in before:
        return False
    sizes = [size for size in after[1:] if size != -1]
    return len(sizes) == len(after) - 1 and math.prod(sizes) == math.prod(before)


def may_open(layer: keras.Layer) -> bool:
    """Whether a layer may be made of others: not one of Keras's or of a known kind, and without
    variables of its own."""
    if type(layer) in layer_kinds.KINDS or is_stock(layer):
        return False
    return not list(own_variables(layer))


def _call_opened(copy: keras.Layer, *args: Any, **kwargs: Any) -> Any:
    more = {key: value for key, value in kwargs.items() if key not in ("training", "mask")}
    if kwargs.get("training") is not None:
        more["training"] = kwargs["training"]
    return copy.call(*args, **more)


def _check_opened(layer: keras.Layer, parts: Callable, args: tuple, kwargs: dict) -> None:
    """Compares an opened copy with the layer on random numbers.

    Raises:
        _Closed: they differ, or the copy can't be run on symbolic tensors.
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
        raise _Closed(f"can't be run on symbolic tensors: {_line(error)}") from None
    rng = np.random.default_rng(0)
    values = [_example(one, rng) for one in tensors]
    real_args, real_kwargs = filled(values)
    expected = keras.tree.flatten(layer(*real_args, **real_kwargs))
    try:
        found = keras.tree.flatten(opened(values))
    except Exception as error:  # what was found out symbolically may not run
        raise _Closed(f"asks for sizes that are known only later: {_line(error)}") from None
    for a, b in zip(expected, found, strict=True):
        a, b = (np.asarray(keras.ops.convert_to_numpy(one), np.float64) for one in (a, b))
        tolerance = TOLERANCE.get(layer.compute_dtype, 1e-4) * max(1e-6, float(np.abs(a).max()))
        if a.shape != b.shape or not np.abs(a - b).max() <= tolerance:
            raise _Closed("computes something else when it is opened")


def _example(tensor: keras.KerasTensor, rng: np.random.Generator) -> Any:
    shape = [
        2 if size is None and axis == 0 else size or 8 for axis, size in enumerate(tensor.shape)
    ]
    if keras.backend.is_float_dtype(tensor.dtype):
        return keras.ops.cast(rng.normal(size=shape), tensor.dtype)
    return keras.ops.cast(rng.integers(0, 2, shape), tensor.dtype)


# ---------------------------------------------------------------- what can't be copied


def _from_config(layer: keras.Layer, config: dict[str, Any]) -> keras.Layer:
    try:
        return type(layer).from_config(config)
    except Exception as error:  # the user's own code may raise anything
        raise UserError(
            f"layer {layer.name} ({type(layer).__name__}) can't be made again from its own "
            f"get_config(): {_line(error)}; let get_config() return all arguments of __init__"
        ) from None


def _refuse(layer: keras.Layer) -> None:
    """Refuses what can't be pruned as it is, with the remedy.

    Raises:
        UserError: Lambda, LoRA or quantised layers.
    """
    if isinstance(layer, keras.layers.Lambda):
        raise UserError(
            f"layer {layer.name} is a Lambda, whose code can't be saved and read back safely: "
            "write it with keras.ops, or as a layer class registered by "
            "keras.saving.register_keras_serializable"
        )
    for inner in layers_in(layer):
        if getattr(inner, "lora_enabled", False):
            raise UserError(
                f"layer {inner.name} has LoRA enabled: merge it first (save and load the weights "
                "into the network without LoRA)"
            )
        if getattr(inner, "quantization_mode", None):
            raise UserError(
                f"layer {inner.name} is quantised ({inner.quantization_mode}): prune the network "
                "before you quantise it"
            )


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
