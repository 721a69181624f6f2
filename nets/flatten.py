"""A network as a graph of its smallest parts, on layers of its own, in float32.

Models inside the network are inlined. A layer of the user's that is made of other layers or of
`keras.ops` is *opened*: its `call` runs on symbolic tensors (`nets.traced`), and what it calls
becomes part of the graph. It is compared with the layer itself; where it differs, or can't be run
so, the layer stays closed, with the reason. A variable that it holds itself becomes the weight of
an Embedding, the stock layer that gives its weights as they are. A layer without weights becomes
one layer per call, since its calls may come to have different widths.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import keras

from ..utils.errors import UserError, line_of
from .blocks import with_blocks
from .copies import Copies
from .held import HeldTensors, policy_of
from .keras_graph import (
    Call,
    as_stock,
    as_written,
    calls_of,
    calls_to,
    drop_masks,
    ends,
    functional,
    hand_on_masks,
    has_graph,
    is_op,
    is_stock,
    layers_in,
    mask_of,
    plain_products,
    set_mask,
    takes_training,
    with_masks,
    without_masks,
)
from .kernels import with_biases
from .layer_kinds import KINDS
from .opened import check_opened, check_trace
from .openers import OPENERS, dropout_like, stock_norm_like
from .products import over_turned
from .rebuild import like, replay
from .repeats import without_repeats
from .trace import Closed, Trace, stands_for_open, tensors_in
from .traced import traced

L = keras.layers
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
        places: {layer name: "outer/inner", where the layer was inside a model or layer}.
        opened: whether layers of it were opened.
        output_names: as they were.
        unused: {layer name: names of what it holds and its call doesn't need}.
        constants: names of layers whose kernels are no weights of the network's: they stay as they
            are.
    """

    model: keras.Model
    policies: dict[str, Any] = field(default_factory=dict)
    trainable: dict[str, bool] = field(default_factory=dict)
    closed: dict[str, str] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    opened: bool = False
    output_names: tuple[str, ...] = ()
    unused: dict[str, tuple[str, ...]] = field(default_factory=dict)
    constants: set[str] = field(default_factory=set)


def flatten(model: keras.Model) -> Flat:
    """Opens a functional (or Sequential) model; it isn't changed.

    Raises:
        UserError: no graph to read, a layer that doesn't come back from its own configuration,
            quantised, LoRA or stateful layers.
    """
    flat = Flat(model, output_names=tuple(functional(model).output_names))
    for _ in range(DEEPEST):
        step = _Pass(flat)
        flat.model = step.model
        if not step.opened:
            return flat
        flat.opened = True
    raise UserError(f"{model.name} holds layers within layers more than {DEEPEST} deep")


class _Pass:
    """One copy of the whole network, its models inlined and its composite layers opened once."""

    def __init__(self, flat: Flat):
        self.flat, self.opened = flat, False
        self._copies = Copies(flat)
        self._whole = set(flat.closed)
        self._given_up: dict[int, keras.Layer] = {}
        self._stock: dict[int, tuple[keras.Layer, keras.Layer | None]] = {}
        outer = functional(flat.model)
        inputs, outputs = ends(outer)
        fresh = keras.tree.map_structure(like, inputs)
        self._held = HeldTensors(flat, keras.tree.flatten(fresh)[0], self._copies.name)
        values: dict[int, Any] = {}
        results = self._replay(outer, keras.tree.flatten(fresh), {}, values)
        if flat.opened:  # the parts of a layer don't hand on masks as the layer did
            for old, new in zip(keras.tree.flatten(outputs), results, strict=True):
                if (mask := mask_of(old)) is not None:
                    replay(_missing(mask, values), values, lambda call: call.operation)
                    set_mask(new, values[id(mask)])
        results = keras.tree.pack_sequence_as(outputs, results)
        self.model = keras.Model(fresh, results, name=flat.model.name)
        self._copies.carry_over()

    def _replay(
        self,
        model: keras.Model,
        inputs: list,
        context: dict[str, Any],
        values: dict[int, Any] | None = None,
    ) -> list:
        """Calls the copies of a model's layers on `inputs`; its outputs, flat.

        Args:
            values: {id of KerasTensor: tensor}, which grows; None: it isn't needed.
        """
        owner, model = model.name, functional(model)
        tensors = keras.tree.flatten(model.inputs)
        values = {} if values is None else values
        values |= {id(t): value for t, value in zip(tensors, inputs, strict=True)}
        with plain_products():
            outputs = keras.tree.flatten(model.outputs)
            calls = without_repeats(with_blocks(calls_of(model), outputs), outputs)
            self._follow(calls, values, owner, context)
        return [values[id(tensor)] for tensor in keras.tree.flatten(model.outputs)]

    def _follow(
        self, calls: Iterable[Call], values: dict[int, Any], owner: str, context: dict[str, Any]
    ) -> None:
        """Makes the calls on copies; `values` {id of KerasTensor: tensor} grows."""
        makers: dict[int, Call] = {}
        for call in calls:
            makers |= dict.fromkeys(map(id, call.outputs), call)
            call = over_turned(call, makers)
            args, kwargs = as_written(call, values)
            operation = call.operation
            if isinstance(operation, keras.Model) and has_graph(operation):
                training = kwargs.pop("training", None)
                inner = {} if training is None else {"training": training}
                if isinstance(args[0], dict) != isinstance(ends(operation)[0], dict):
                    raise UserError(
                        f"{operation.name} is called with inputs by name but was not made "
                        "with inputs by name, or the other way round: use the same form"
                    )
                given = keras.tree.flatten(args)
                if kwargs.get("mask") is not None:
                    for one, mask in zip(given, keras.tree.flatten(kwargs["mask"]), strict=True):
                        set_mask(one, mask)
                with self._copies.inside(operation.name):
                    results = self._replay(operation, given, context | inner)
            else:
                if takes_training(operation):
                    kwargs |= context
                if not is_op(operation):
                    kwargs = with_masks(operation, args, kwargs)
                made = self._called(call, owner, args, kwargs)
                if not is_op(operation):
                    hand_on_masks(operation, args, kwargs, made)
                    drop_masks(operation, args, kwargs)
                results = keras.tree.flatten(made)
            values |= {id(t): value for t, value in zip(call.outputs, results, strict=True)}

    def _called(self, call: Call, owner: str, args: tuple, kwargs: dict[str, Any]) -> Any:
        operation = call.operation
        if is_op(operation):
            if (made := self._held.by_kernel(call, owner, args, kwargs)) is not None:
                return made
            return self._copies.of_operation(call, owner)(*args, **kwargs)
        _refuse(operation)
        reason = None
        if operation.name not in self._whole and id(operation) not in self._given_up:
            try:
                if type(operation) in OPENERS:
                    return self._in_parts(call, owner, args, kwargs)
                if may_open(operation):
                    return self._opened(call, owner, args, kwargs)
            except Closed as problem:
                reason = str(problem)
                if isinstance(operation, L.Lambda):
                    raise _unsafe(operation, reason) from None
                self._given_up[id(operation)] = operation
        try:
            copy = self._copies.of_layer(call, owner)
        except UserError as problem:
            if reason is None:
                raise
            kind = type(operation).__name__
            raise UserError(
                f"layer {operation.name} ({kind}) {reason}, so it has to stay whole, and {problem}"
            ) from None
        if reason is not None:
            self.flat.closed[getattr(copy, "name", operation.name)] = reason
        again = f"layer {operation.name} ({type(operation).__name__}), made again from its own "
        try:
            made = copy(*args, **kwargs)
        except Exception as error:  # the user's own code may raise anything
            if is_stock(operation):
                raise
            raise UserError(
                f"{again}get_config(), can't be called as before: {line_of(error)}"
            ) from None
        if len(keras.tree.flatten(made)) != len(call.outputs):
            raise UserError(
                f"{again}get_config(), has another number of outputs: let get_config() return all "
                f"arguments of __init__{f' ({reason})' if reason else ''}"
            )
        return made

    def _in_parts(self, call: Call, owner: str, args: tuple, kwargs: dict[str, Any]) -> Any:
        """One of Keras's own layers as the parts that it is made of."""
        layer = call.operation
        if id(layer) not in self._copies.made:
            name = self._copies.free_name(layer.name, owner)
            parts = OPENERS[type(layer)](layer, call, name)
            if parts is None:
                raise Closed("is used in a form that isn't known")
            check_opened(layer, parts, args, kwargs)
            self._copies.put(layer, parts, name)
        self.opened = True
        with without_masks(args, kwargs):  # those that the parts need are arguments
            return self._copies.made[id(layer)](*args, **kwargs)

    def _opened(self, call: Call, owner: str, args: tuple, kwargs: dict[str, Any]) -> Any:
        layer = call.operation
        if id(layer) in self._copies.made:
            return self._copies.made[id(layer)](*args, **kwargs)
        name = self._copies.free_name(layer.name, owner)
        if (parts := stock_norm_like(layer, call, name)) is not None:
            check_opened(layer, parts, args, kwargs)
            self.opened = True
            self._copies.put(layer, parts, name)
            return parts(*args, **kwargs)
        # The tensors of the outer trace say how large a batch is, those of the network don't.
        sized = _sized(call, args, kwargs)
        outer_args, outer_kwargs = call.arguments.fill_in(sized)
        training = kwargs.get("training")
        outer_kwargs = with_masks(layer, outer_args, outer_kwargs)
        outer_kwargs = {key: one for key, one in outer_kwargs.items() if one is not None}
        outer_kwargs.pop("training", None)
        context = {} if training is None else {"training": training}
        outer_kwargs |= context
        try:
            trace = self._traced(layer, outer_args, outer_kwargs)
        except Closed:
            if (dropout := dropout_like(layer, call, name)) is None:
                raise
            self.opened = True
            self._copies.put(layer, dropout, name)
            self.flat.policies.setdefault(name, policy_of(layer))
            return dropout(args[0], **context)
        if trace.unused:
            self.flat.unused[layer.name] = trace.unused
        pairs = zip(_flat(outer_args, outer_kwargs), _flat(args, kwargs), strict=True)
        network = {id(a): b for a, b in pairs}
        given = tensors_in(outer_args, outer_kwargs)
        values = {id(a): network[id(b)] for a, b in zip(trace.inputs, given, strict=True)}
        calls, biases = with_biases(trace, layer)
        values |= {
            key: held if held.kernel or key in biases else self._held.tensor(held)
            for key, held in trace.held.items()
        }
        with self._copies.inside(layer.name):
            self._follow(calls, values, layer.name, context)
        return keras.tree.map_structure(
            lambda one: values[id(one)] if isinstance(one, keras.KerasTensor) else one,
            trace.outputs,
        )

    def _traced(self, layer: keras.Layer, args: tuple, kwargs: dict[str, Any]) -> Trace:
        """A trace that is compared with its layer.

        Raises:
            Closed: there is none.
        """
        if id(layer) not in self._stock:
            mro = type(layer).__mro__
            base = next((one for known in (KINDS, OPENERS) for one in mro if one in known), None)
            self._stock[id(layer)] = layer, as_stock(layer, base) if base else None
        if (part := self._stock[id(layer)][1]) is not None:
            # Else it does more with its weights than the layer of Keras's.
            with suppress(Closed):
                return _checked(layer, args, kwargs, part)
        return _checked(layer, args, kwargs)


def _sized(call: Call, args: tuple, kwargs: dict[str, Any]) -> dict[int, keras.KerasTensor]:
    """{id of an input of a call: the input}, with the sizes of its copy in `args` or `kwargs` where
    that knows more: of what a layer that was opened gives, or which sizes are open in truth."""
    own = call.arguments.fill_in({id(one): one for one in call.inputs})
    copies = dict(zip(map(id, _flat(*own)), _flat(args, kwargs), strict=False))
    found = {}
    for one in call.inputs:
        found[id(one)], copy = one, copies.get(id(one))
        if not isinstance(copy, keras.KerasTensor):
            continue
        pairs = zip(one.shape[1:], copy.shape[1:], strict=True)
        sizes = (b if a is None or (b is None and stands_for_open(a)) else a for a, b in pairs)
        shape = (*one.shape[:1], *sizes)
        if shape != tuple(one.shape):
            found[id(one)] = keras.KerasTensor(shape, one.dtype)
            set_mask(found[id(one)], mask_of(one))
    return found


def _missing(tensor: keras.KerasTensor, values: dict[int, Any]) -> list[Call]:
    """The calls that a tensor comes of and whose outputs aren't known."""
    calls = calls_to([tensor])
    return [one for one in calls if not all(id(output) in values for output in one.outputs)]


def _checked(layer: keras.Layer, args: tuple, kwargs: dict[str, Any], *part: keras.Layer) -> Trace:
    trace = traced(layer, args, kwargs, *part)
    try:
        check_trace(layer, trace, args, kwargs)
    except Closed as problem:
        try:  # a layer inside it may have been called on a constant, such as a state of zeros
            trace = traced(layer, args, kwargs, *part, direct=True)
            check_trace(layer, trace, args, kwargs)
        except Closed:
            raise problem from None
    return trace


def may_open(layer: keras.Layer) -> bool:
    """Whether a layer may be made of others: not one of Keras's, but for Lambda, or of a known
    kind."""
    known = type(layer) in KINDS or is_stock(layer)
    return not known or isinstance(layer, L.Lambda)


def _flat(args: tuple, kwargs: dict[str, Any]) -> list:
    return keras.tree.flatten((args, {k: v for k, v in kwargs.items() if v is not None}))


def _unsafe(layer: keras.Layer, reason: str) -> UserError:
    return UserError(
        f"layer {layer.name} is a Lambda, whose code can't be saved and read back safely, and it "
        f"{reason}: write it with keras.ops, or as a layer class registered by "
        "keras.saving.register_keras_serializable"
    )


def _refuse(layer: keras.Layer) -> None:
    """Refuses what can't be pruned as it is, with the remedy.

    Raises:
        UserError: LoRA, quantised or stateful layers.
    """
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
        if isinstance(inner, L.RNN) and inner.stateful:
            raise UserError(
                f"layer {inner.name} keeps its states between batches: build the network with "
                "stateful=False, give it the same weights, and prune that"
            )
