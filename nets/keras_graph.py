"""Keras's private API, all of it: the calls of a functional model, and what is asked of operations.

Keras has no public view of a functional graph. Everything that reads one goes through here.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from keras.src.applications.convnext import LayerScale, StochasticDepth
from keras.src.applications.inception_resnet_v2 import CustomScaleLayer
from keras.src.backend.common.masking import get_keras_mask, set_keras_mask
from keras.src.ops.nn import DepthToSpace, SpaceToDepth
from keras.src.ops.numpy import Einsum, ExpandDims, Multiply, Split, Take

from ..utils.errors import UserError

__all__ = [
    "CustomScaleLayer",
    "DepthToSpace",
    "Einsum",
    "ExpandDims",
    "LayerScale",
    "SpaceToDepth",
    "Split",
    "StochasticDepth",
    "Take",
]


@contextmanager
def plain_products() -> Iterator[None]:
    """Inside, numbers and arrays go with symbolic tensors as with others.

    Keras calls the product of a symbolic tensor and a number sparse, and layers without a rule for
    such tensors fail on it; numpy takes array * tensor for an array of products.
    """
    with (
        _set(Multiply, "compute_output_spec", _dense_product),
        _set(keras.KerasTensor, "__array_ufunc__", None),
    ):
        yield


_product_spec = Multiply.compute_output_spec


def _dense_product(self: Multiply, x1: Any, x2: Any) -> keras.KerasTensor:
    made = _product_spec(self, x1, x2)
    sparse = any(isinstance(one, keras.KerasTensor) and one.sparse for one in (x1, x2))
    return made if sparse else keras.KerasTensor(made.shape, made.dtype)


@contextmanager
def _set(owner: type, name: str, value: Any) -> Iterator[None]:
    """Gives a class an attribute for a while."""
    there, before = name in vars(owner), getattr(owner, name, None)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if there:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


@dataclass(frozen=True)
class Arguments:
    """The arguments of a call that is written anew."""

    args: tuple
    kwargs: dict[str, Any] = field(default_factory=dict)

    def fill_in(self, values: dict[int, Any]) -> tuple[tuple, dict[str, Any]]:
        """The arguments with `values` {id of a KerasTensor: value} in place."""
        return keras.tree.map_structure(
            lambda one: values[id(one)] if isinstance(one, keras.KerasTensor) else one,
            (self.args, self.kwargs),
        )


@dataclass(frozen=True)
class Call:
    """One call of one operation; tensors are named by the `id` of their KerasTensor."""

    operation: keras.Operation
    arguments: Any  # has fill_in(values) -> args, kwargs
    inputs: tuple
    outputs: tuple

    @property
    def constants(self) -> list:
        """Arguments that are numbers or arrays, not tensors of the network."""
        flat = keras.tree.flatten((self.arguments.args, self.arguments.kwargs))
        return [
            one
            for one in flat
            if not isinstance(one, keras.KerasTensor)
            and (isinstance(one, (int, float, np.ndarray)) or hasattr(one, "shape"))
        ]

    @property
    def values(self) -> list:
        """The arguments as they were written, positional ones first."""
        return [*self.arguments.args, *self.arguments.kwargs.values()]

    @property
    def mask(self) -> keras.KerasTensor | None:
        """The mask of Keras's that goes with the first input, such as that of padded words."""
        return self.arguments.kwargs.get("mask")

    @property
    def training(self) -> bool | None:
        """The `training` that the call was written with, None where it was left open."""
        value = self.arguments.kwargs.get("training")
        return None if value is None else bool(value)


def _call(node: Any) -> Call:
    return Call(node.operation, node.arguments, tuple(node.input_tensors), tuple(node.outputs))


def _node_of(tensor: Any) -> Any:
    """The node that a KerasTensor came of; None of an input or of anything else."""
    history = getattr(tensor, "_keras_history", None)
    if history is None or history.operation is None:
        return None
    node = history.operation._inbound_nodes[history.node_index]
    return None if node.is_input else node


def functional(model: keras.Model) -> keras.Model:
    """The functional model itself, or that of a Sequential.

    Raises:
        UserError: neither of them, or not built.
    """
    inner = model._functional if isinstance(model, keras.Sequential) else model
    if is_functional(inner):
        return inner
    if isinstance(model, keras.Sequential) and not model.built:
        raise UserError(
            f"{model.name} was never built and has no weights: call it on a batch, model(x[:1]), "
            "and train it then"
        )
    raise UserError(
        f"{model.name} is no functional Keras model: its graph can't be read; rewrite it with "
        "keras.Input and keras.Model(inputs, outputs)"
    )


def is_functional(model: Any) -> bool:
    """Whether a graph of calls can be read off the model; not of a Sequential."""
    return hasattr(model, "_nodes_by_depth")


def has_graph(model: Any) -> bool:
    """Whether the model is functional, or a Sequential."""
    return isinstance(model, keras.Sequential) or is_functional(model)


def calls_of(model: keras.Model) -> list[Call]:
    """The calls of a functional model in an order in which they can be run.

    Raises:
        UserError: not a functional (or built Sequential) model.
    """
    nodes = functional(model)._nodes_by_depth
    return [
        _call(node)
        for depth in sorted(nodes, reverse=True)
        for node in nodes[depth]
        if not node.is_input
    ]


def live_tensors(calls: Sequence[Call], model: keras.Model) -> list[tuple[keras.KerasTensor, ...]]:
    """Before every call of a flat functional model: the tensors that are there and that it, a later
    one or the end needs."""
    last_use = {id(tensor): len(calls) for tensor in model.outputs}
    for number, call in enumerate(calls):
        for tensor in call.inputs:
            last_use[id(tensor)] = max(number, last_use.get(id(tensor), 0))
    live = {id(tensor): tensor for tensor in model.inputs}
    found = []
    for number, call in enumerate(calls):
        live = {key: one for key, one in live.items() if last_use.get(key, -1) >= number}
        found.append(tuple(live.values()))
        live.update({id(tensor): tensor for tensor in call.outputs})
    return found


def sums_across(calls: Sequence[Call], model: keras.Model, place: int) -> bool:
    """Whether a gradient with three or more terms has some of them on either side of a call.

    In two parts its terms would be added in another order, which rounds in another way; two terms
    have but one.
    """
    reads: dict[int, list[int]] = {}
    for number, call in enumerate(calls):
        for tensor in call.inputs:
            reads.setdefault(id(tensor), []).append(number)
    for tensor in model.outputs:
        reads.setdefault(id(tensor), []).append(len(calls))
    several = (places for places in reads.values() if len(places) > 2)
    return any(places[0] < place <= places[-1] for places in several)


def mask_of(tensor: Any) -> Any:
    """The mask of Keras's that goes with a tensor, as behind an Embedding of padded words: bool, of
    the tensor's leading axes; None: none."""
    return get_keras_mask(tensor)


def set_mask(tensor: Any, mask: Any) -> None:
    """Lets a mask go with a tensor."""
    set_keras_mask(tensor, mask)


def with_masks(layer: keras.Layer, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of a call, with the masks that Keras takes from the tensors unseen.

    Keras notes them in a graph only where a layer is called on one tensor and nothing else.
    """
    try:
        bound = inspect.signature(layer.call).bind(*args, **kwargs)
    except TypeError:  # the call itself says what is wrong
        return kwargs
    bound.apply_defaults()
    given = bound.arguments
    tensors = {name: value for name, value in given.items() if _are_tensors(value)}
    found = {}
    for name, value in tensors.items():
        key = "mask" if len(tensors) == 1 else f"{name}_mask"
        if key in given and given[key] is None:
            masks = keras.tree.map_structure(get_keras_mask, value)
            if any(one is not None for one in keras.tree.flatten(masks)):
                found[key] = masks
    return kwargs | found


def _are_tensors(value: Any) -> bool:
    flat = keras.tree.flatten(value)
    return bool(flat) and all(isinstance(one, keras.KerasTensor) for one in flat)


def hand_on_masks(layer: keras.Layer, args: tuple, kwargs: dict[str, Any], outputs: Any) -> None:
    """Gives what stands for a layer's outputs the masks that the layer would give them."""
    first = next(iter((*args, *kwargs.values())), None)
    if not layer.supports_masking or not _are_tensors(first):
        return
    known = kwargs.get("mask")
    masks = keras.tree.map_structure(get_keras_mask, first) if known is None else known
    if isinstance(layer, keras.layers.Concatenate) and layer.axis in (-1, len(first[0].shape) - 1):
        masks = _of_any(masks)
    else:
        masks = layer.compute_mask(first, masks)
    pairs = zip(keras.tree.flatten(outputs), keras.tree.flatten(masks), strict=False)
    for output, mask in pairs:
        if mask is not None:
            set_keras_mask(output, mask)


def _of_any(masks: Sequence[Any]) -> Any:
    """The mask of tensors put side by side, which counts a step that counts in any of them: what
    Keras computes on all channels, without these."""
    if any(one is None for one in masks):
        return None
    return functools.reduce(keras.ops.logical_or, masks)


def drop_masks(layer: keras.Layer, args: tuple, kwargs: dict[str, Any]) -> None:
    """Takes the masks off what MultiHeadAttention was called on, as it does when it runs.

    So the sum of its input and its output has no mask, though Keras's symbolic tensors have.
    """
    if isinstance(layer, keras.layers.MultiHeadAttention):
        for one in keras.tree.flatten(
            (args, [kwargs.get(key) for key in ("query", "value", "key")])
        ):
            if isinstance(one, keras.KerasTensor):
                set_keras_mask(one, None)


@contextmanager
def without_masks(*trees: Any) -> Iterator[None]:
    """Takes the masks off KerasTensors for a while."""
    flat = keras.tree.flatten(trees)
    masks = [(one, get_keras_mask(one)) for one in flat if isinstance(one, keras.KerasTensor)]
    masks = [(one, mask) for one, mask in masks if mask is not None]
    for one, _ in masks:
        set_keras_mask(one, None)
    try:
        yield
    finally:
        for one, mask in masks:
            set_keras_mask(one, mask)


def tell_query_mask(args: tuple, kwargs: dict[str, Any]) -> None:
    """Ties the argument `query_mask` of a call to the query, where Keras's attention looks for it
    whatever the argument says."""
    if kwargs.get("query_mask") is not None:
        set_keras_mask(args[0] if args else kwargs["query"], kwargs["query_mask"])


def calls_to(outputs: Iterable) -> list[Call]:
    """The calls that KerasTensors came of, in an order in which they can be run.

    Args:
        outputs: KerasTensors; anything else among them is passed over.
    """
    waiting = [(one, False) for one in outputs if isinstance(one, keras.KerasTensor)]
    seen: set[int] = set()
    nodes = []
    while waiting:
        one, done = waiting.pop()
        if done:
            nodes.append(one)
            continue
        node = _node_of(one)
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        waiting.append((node, True))
        waiting += [(tensor, False) for tensor in node.input_tensors]
    return [_call(node) for node in nodes]


def origin_of(tensor: Any) -> Call | None:
    """The call that a KerasTensor came of; None of an input or of anything else."""
    node = _node_of(tensor)
    return None if node is None else _call(node)


def forget(calls: Iterable[Call]) -> None:
    """Takes calls out of what their operations remember of being called."""
    for call in calls:
        made = {id(tensor) for tensor in call.outputs}
        makers = [getattr(tensor, "_keras_history", None) for tensor in call.inputs]
        lists = [call.operation._inbound_nodes]
        lists += [one.operation._outbound_nodes for one in makers if one and one.operation]
        for nodes in lists:
            nodes[:] = [node for node in nodes if not made & {id(one) for one in node.outputs}]


def inference_only(calls: Sequence[Call]) -> frozenset[str]:
    """Names of the layers that are called with `training=False` throughout."""
    written: dict[str, bool] = {}
    for call in calls:
        name = call.operation.name
        written[name] = written.get(name, True) and call.training is False
    return frozenset(name for name, always in written.items() if always)


def ends(model: keras.Model) -> tuple[Any, Any]:
    """The KerasTensors of a functional model's inputs and outputs, in its own structure."""
    outer = functional(model)
    return outer.input, outer.output


def built_on(model: keras.Model) -> Any:
    """What a model without a graph was built on: KerasTensors [n, ...] in the structure of its
    inputs; None where that isn't known."""
    shapes = (model.get_build_config() or {}).get("input_shape")
    if shapes is None:
        return None
    return keras.tree.map_shape_structure(
        lambda shape: keras.KerasTensor((None, *shape[1:]), "float32"), shapes
    )


def packed(model: keras.Model, inputs: Any) -> Any:
    """Input tensors, one or a tuple of them, in the structure that a model takes, and in its types
    where it has a graph."""
    parts = keras.tree.flatten(inputs)
    if has_graph(model):
        structure = ends(model)[0]
        wanted = zip(parts, keras.tree.flatten(structure), strict=True)
        parts = [keras.ops.cast(one, like.dtype) for one, like in wanted]
    else:
        structure = built_on(model)
        if structure is None or len(keras.tree.flatten(structure)) != len(parts):
            return inputs
    return keras.tree.pack_sequence_as(structure, parts)


@dataclass(frozen=True)
class Compiled:
    """What a model was compiled with, as its user wrote it; None: nothing."""

    loss: Any = None
    loss_weights: Any = None
    metrics: Any = None
    weighted_metrics: Any = None
    optimizer: Any = None


def compiled_with(model: keras.Model) -> Compiled:
    """What a model was compiled with; nothing at all where it wasn't."""
    if not getattr(model, "compiled", False):
        return Compiled()
    losses, metrics = model._compile_loss, model._compile_metrics
    return Compiled(
        getattr(losses, "_user_loss", None),
        getattr(losses, "_user_loss_weights", None),
        getattr(metrics, "_user_metrics", None),
        getattr(metrics, "_user_weighted_metrics", None),
        model.optimizer,
    )


def larger_is_better(metric: keras.metrics.Metric) -> bool | None:
    """Whether larger values of a metric are better; None where Keras doesn't say."""
    return {"up": True, "down": False}.get(getattr(metric, "_direction", None))


def is_op(operation: keras.Operation) -> bool:
    """Whether this is an operation, such as those of `keras.ops`, not a layer."""
    return not isinstance(operation, keras.Layer)


def is_stock(layer: keras.Layer) -> bool:
    """Whether the layer's class is one of Keras's own."""
    return type(layer).__module__.startswith("keras.src.")


def is_registered(kind: type[keras.Layer]) -> bool:
    """Whether Keras finds a class of layers again that a file names: its own ones, and those that
    are registered."""
    known = keras.saving.get_registered_object(keras.saving.get_registered_name(kind))
    return kind.__module__.startswith("keras.src.") or known is kind


def regroups(call: Call) -> bool:
    """Whether an operation may give an example another number of rows of the batch than it had."""
    operation = call.operation
    first = [0, *(-len(one.shape) for one in (*call.inputs, *call.outputs))]
    return is_op(operation) and (
        type(operation).__name__ in ("Reshape", "Tile", "Transpose", "Swapaxes", "Moveaxis")
        or getattr(operation, "axis", None) in first
    )


def takes_training(operation: keras.Operation) -> bool:
    """Whether a call takes the argument `training`."""
    return bool(getattr(operation, "_call_has_training_arg", False))


def takes_mask(operation: keras.Operation) -> bool:
    """Whether a call takes the argument `mask`."""
    return bool(getattr(operation, "_call_has_mask_arg", False))


def default_training(operation: keras.Operation) -> bool | None:
    """The `training` of a call that says nothing of it, which Keras then notes as if it did."""
    option = inspect.signature(operation.call).parameters.get("training")
    return None if option is None or option.default is option.empty else option.default


def as_written(call: Call, values: dict[int, Any]) -> tuple[tuple, dict[str, Any]]:
    """A call's arguments with `values` in place, without the `training` that Keras has noted where
    none was written."""
    args, kwargs = call.arguments.fill_in(values)
    option = inspect.signature(call.operation.call).parameters.get("training")
    if option is not None and kwargs.get("training", option.empty) is option.default:
        kwargs.pop("training", None)
    return args, kwargs


def draws_random(operation: keras.Operation) -> bool:
    """Whether the layer draws random numbers in training."""
    return bool(getattr(operation, "_seed_generators", ()))


def layers_in(layer: keras.Layer) -> list[keras.Layer]:
    """The layer itself and all layers inside it, outer ones before inner ones."""
    return layer._flatten_layers()


def shell_of(layer: keras.Layer, kind: type[keras.Layer]) -> keras.Layer:
    """A layer's attributes in another shell, of another class; what is set there stays there."""
    shell = object.__new__(kind)
    shell.__dict__.update(layer.__dict__)
    return shell


def as_stock(layer: keras.Layer, stock: type[keras.Layer]) -> keras.Layer | None:
    """A built layer as one of Keras's own, with the same variables; None where it has others.

    Args:
        stock: a class that the layer's is derived from.
    """
    try:
        found = stock.from_config(stock.get_config(layer))
        found.build_from_config(layer.get_build_config())
    except Exception:  # the user's own class may be made in any way
        return None
    if [tuple(v.shape) for v in found.weights] != [tuple(v.shape) for v in layer.weights]:
        return None
    own = ("_inbound_nodes", "_outbound_nodes")  # and how its call is written
    for key, value in layer.__dict__.items():
        if key in found.__dict__ and key not in own and not key.startswith("_call"):
            found.__dict__[key] = value
    return found


def own_variables(layer: keras.Layer) -> Iterator[keras.Variable]:
    """Variables that a layer holds itself, not by a layer inside it."""
    yield from layer._trainable_variables
    yield from layer._non_trainable_variables


@contextmanager
def values_of(pairs: Iterable[tuple[keras.Variable, Any]]) -> Iterator[None]:
    """Inside, variables have these values, which may be of other shapes; nothing is assigned."""
    with keras.StatelessScope() as scope:
        for pair in pairs:
            scope.add_update(pair)
        yield
