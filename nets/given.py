"""The network as its user gave it, read once at the door.

    given = Given.read(model, examples)
    graph = ChannelGraph(given.core)          # the search works on the core
    small = given.finished(graph.pruned(mask))  # and this is what the user gets

The losses take logits, the search takes a flat float32 graph; a user's network has probabilities,
models inside models, half precision, frozen layers, inputs by name. The core is the first,
`finished` gives back the second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import keras
import tensorflow as tf

from ..options.kinds import NUMBERS
from ..utils.errors import UserError
from ..utils.trees import parts_of, tree_of
from .compiling import compile_like
from .constants import WithConstant
from .door import called_on, keys_of, networks_in
from .flatten import Flat, flatten
from .keras_graph import (
    Call,
    calls_of,
    calls_to,
    compiled_with,
    ends,
    has_graph,
    inference_only,
    is_registered,
    layers_in,
    mask_of,
    origin_of,
    packed,
)
from .outputs import Output, before_logarithms, read_outputs, restored, with_logits
from .parts import Parts
from .rebuild import (
    Shapes,
    at_shapes,
    carry_over,
    has_open_inputs,
    like,
    rebuilt,
    replay,
    with_config,
)
from .reductions import OverChannels
from .shuffles import Shuffled

L = keras.layers


@dataclass(frozen=True)
class Given:
    """A network as given, and what is made of it.

    Attributes:
        model: as given; it is never changed.
        core: flat, of layers of its own, for inputs of the examples' size; float32 [n, ...] (a
            tuple where there are several inputs) -> float32 [n, ...] (likewise), logits where
            `outputs` say probabilities. All its layers are trainable but for batch norms that the
            user has frozen or calls with training=False, and for kernels that are constants.
        outputs: what each output means, in the order of `core.outputs`.
        closed: {layer name: why it stays whole}.
    """

    model: keras.Model
    core: keras.Model
    outputs: tuple[Output, ...]
    closed: dict[str, str]
    _flat: Flat = field(repr=False)
    _fixed: frozenset[str] = field(default=frozenset(), repr=False)
    _loss: Any = field(default=None, repr=False)

    @classmethod
    def read(
        cls,
        model: keras.Model,
        examples: Any = None,
        *,
        loss: Any = None,
        outputs: tuple[Output, ...] | None = None,
        plain: bool = False,
        shapes: Shapes | None = None,
        constants: Iterable[str] = (),
    ) -> Given:
        """Reads a network.

        Args:
            model: functional, Sequential, or (with examples) subclassed.
            examples: some inputs, float32 or uint8 [n, ...], a tuple of them where there are
                several; where neither graph nor loss say what an output means, its values on them
                do.
            loss: as Keras takes it, for one output or several; None: what the model was compiled
                with.
            outputs: what they mean, where it is known.
            plain: take them all as numbers that mean nothing to us.
            shapes: of the inputs without the batch, where the network leaves them open; None:
                those of the examples.
            constants: names of layers whose kernels no training changes.

        Raises:
            UserError: no graph, losses for other outputs than there are, sizes that it can't take,
                a trainer around networks, or as `flatten`.
        """
        inner = networks_in(model)
        if isinstance(model, keras.distillation.Distiller):
            raise UserError(f"{model.name} only trains its student{inner}")
        try:
            flat = flatten(called_on(model, examples))
        except UserError as error:
            raise UserError(f"{error}{inner}") from None
        flat.constants.update(constants)
        if plain:
            outputs = tuple(Output(name, NUMBERS) for name in flat.output_names)
        return _read(model, flat, examples, loss, outputs, shapes)

    @property
    def places(self) -> dict[str, str]:
        """{layer of the core: "outer/inner"} of those inside a model or layer of the network."""
        return self._flat.places

    @property
    def unused(self) -> dict[str, tuple[str, ...]]:
        """{layer name: names of what it holds and its call doesn't need}: `finished` is without."""
        return self._flat.unused

    def count_params(self) -> int:
        """Parameters of the network, without those of what is `unused`."""
        return (self.core if self.unused else self.model).count_params()

    def with_examples(self, examples: Any) -> Given:
        """The same network, once there are examples that say what an output means, and which size
        inputs have that the network leaves open.

        Args:
            examples: as of `read`.
        """
        if not has_graph(self.model):
            sizes = zip(self.core.inputs, parts_of(examples), strict=True)
            if any(tuple(a.shape[1:]) != tuple(b.shape[1:]) for a, b in sizes):
                return Given.read(self.model, examples, loss=self._loss)
        certain = all(one.certain for one in self.outputs)
        if certain and not has_open_inputs(self.core):
            return self
        outputs = self.outputs if certain else None
        return _read(self.model, self._flat, examples, self._loss, outputs, None)

    @property
    def structure(self) -> Any:
        """The outputs' structure, of names: one, or a list or dict of them."""
        names = [one.name for one in self.outputs]
        return keras.tree.pack_sequence_as(ends(self._flat.model)[1], names)

    @property
    def keys(self) -> tuple[list[str], list[str]]:
        """What inputs and outputs are called where they come as a dict, in the core's order."""
        inputs, outputs = ends(self._flat.model)
        names = [one.name for one in keras.tree.flatten(inputs)]
        return keys_of(inputs) or names, keys_of(outputs) or [one.name for one in self.outputs]

    @property
    def losses(self) -> list[Any]:
        """What it was read with, or compiled with, for each output; None where there is no loss."""
        return _losses(self.model, self._flat, self._loss)

    def by_output(self, spec: Any, what: str) -> list[Any]:
        """A setting that Keras takes for each output, such as the loss, as one value per output.

        Raises:
            UserError: as `by_output`.
        """
        return by_output(spec, self._flat, what)

    def read_again(self, model: keras.Model, examples: Any = None) -> Given:
        """A network that came of `finished`, or the given one, from its file.

        Args:
            examples: as of `read`; needed where the given network is subclassed.
        """
        shapes = None if has_open_inputs(self.core) else [one.shape[1:] for one in self.core.inputs]
        constants = self._flat.constants
        return Given.read(model, examples, outputs=self.outputs, shapes=shapes, constants=constants)

    def thaw(self, core: keras.Model) -> None:
        """Makes all layers of what became of `self.core` trainable but for constant kernels."""
        for layer in core.layers:
            layer.trainable = layer.name not in self._flat.constants

    def finished(self, core: keras.Model) -> keras.Model:
        """A network as the given one: its ends, dtype policies and trainable flags.

        Args:
            core: what became of `self.core`: the same layers by name, of any widths. Layers that
                aren't the given network's keep what they have.

        Returns:
            A functional network of layers of its own; compiled as the given one, if that is.
        """
        policies, frozen = self._flat.policies, self._flat.trainable
        without = {one.operation: one.kind for one in self.outputs if one.operation}
        originals = {
            call.operation.name: call.operation
            for call in calls_of(self._flat.model)
            if call.operation.name in without
        }

        ranks = {call.operation.name: len(call.inputs[0].shape) for call in calls_of(core)}

        def make(layer: keras.Operation) -> keras.Operation:
            if isinstance(layer, OverChannels | Parts | Shuffled | WithConstant):
                return layer.operation(ranks[layer.name])
            changes = {}
            if policies.get(layer.name) is not None:
                changes["dtype"] = policies[layer.name]
            if layer.name in without:
                kind = without[layer.name]
                return restored(originals[layer.name], layer, kind, **changes)
            return with_config(layer, **changes)

        def carry(old: keras.Layer, new: keras.Operation) -> None:
            _carry_where_alike(old, new)
            if isinstance(new, keras.Layer):
                new.trainable = frozen.get(new.name, new.trainable)

        whole = rebuilt(core, make, carry=carry)
        inputs, outputs = ends(self._flat.model)
        inputs = keras.tree.map_structure(like, inputs)
        pairs = zip(whole.inputs, keras.tree.flatten(inputs), strict=True)
        values: dict[int, Any] = {id(tensor): one for tensor, one in pairs}
        tensors = before_logarithms(whole, self.outputs)
        calls = _needed(calls_of(whole), tensors)

        def operation_of(call: Call) -> Callable:
            # As the user called it: `base(x, training=False)`.
            fixed = call.operation.name in self._fixed
            return partial(call.operation, training=False) if fixed else call.operation

        replay(calls, values, operation_of)
        made = [values[id(one)] for one in tensors]
        taken = {call.operation.name for call in calls}
        if self.masked:
            made = [self._masked(*pair, inputs, taken) for pair in enumerate(made)]
        made = self._named(made, taken) if has_graph(self.model) else made
        results = keras.tree.pack_sequence_as(outputs, made)
        finished = keras.Model(inputs, results, name=self.model.name)
        compile_like(self.model, finished)
        return finished

    def _named(self, tensors: list, taken: set[str]) -> list:
        """Outputs by their names: an opened layer's last part has another one.

        Args:
            taken: names that layers have.
        """
        found, taken = [], set(taken)
        for tensor, name in zip(tensors, self._flat.output_names, strict=True):
            last = origin_of(tensor)
            known = last is None or last.operation.name == name or name in taken
            found.append(tensor if known else L.Identity(name=name)(tensor))
            taken.add(name)  # a layer may give several
        return found

    @property
    def masked(self) -> tuple[int, ...]:
        """Numbers of the outputs with a step axis that a mask goes with: Keras leaves the steps
        that it excludes, such as padded words, out of their losses and metrics."""
        found = enumerate(keras.tree.flatten(ends(self._flat.model)[1]))
        return tuple(n for n, one in found if len(one.shape) > 2 and mask_of(one) is not None)

    def _masked(
        self, number: int, tensor: keras.KerasTensor, inputs: Any, taken: set[str]
    ) -> keras.KerasTensor:
        """An output of `finished` with the mask that the given network's has.

        Layers hand masks on, the parts of opened ones don't. Of Keras's layers this one takes a
        mask and changes nothing.

        Args:
            taken: names that layers have.
        """
        if number not in self.masked or not self._flat.opened:
            return tensor
        name = self.outputs[number].name
        first, last = ends(self._flat.model)
        mask = mask_of(keras.tree.flatten(last)[number])
        if any(getattr(call.operation, "weights", ()) for call in calls_to([mask])):
            raise UserError(
                f"{self.model.name} can't be pruned: the mask of its output {name} comes of more "
                "than its inputs; let the Embedding make no mask (mask_zero=False) and give sample "
                "weights of 0 for what is padded"
            )
        made = rebuilt(keras.Model(first, mask, name=f"{name}_mask"))
        steps = L.TimeDistributed(L.Identity(), name=f"{name}_masked" if name in taken else name)
        return steps(tensor, mask=made(inputs))

    def at_shapes(self, shapes: Shapes) -> keras.Model:
        """The given network as a functional one that takes inputs of one size.

        Args:
            shapes: of the inputs without the batch.
        """
        if not has_graph(self.model):
            return at_shapes(self.finished(self.core), shapes)
        return at_shapes(self.to_write() if has_open_inputs(self.model) else self.model, shapes)

    def to_write(self) -> keras.Model:
        """What goes into a file for the given network: itself, or the same in its parts where Keras
        wouldn't read it back: Lambda layers, whose code no file may run, and classes that aren't
        registered."""
        kinds = {type(layer) for layer in layers_in(self.model)}
        whole = all(kind is not L.Lambda and is_registered(kind) for kind in kinds)
        return self.model if whole else self.finished(self.core)

    def as_core(self, model: keras.Model | None = None) -> AsCore:
        """The network as given, run as it is, its outputs as its core's.

        Args:
            model: another one with the same ends, such as that of its file; it isn't read, which
                takes long, but only run.
        """
        return AsCore(self, self.model if model is None else model)


def _read(
    model: keras.Model,
    flat: Flat,
    examples: Any,
    loss: Any,
    outputs: tuple[Output, ...] | None,
    shapes: Shapes | None,
) -> Given:
    flat_ends = (tree_of(keras.tree.flatten(one)) for one in ends(flat.model))
    body = keras.Model(*flat_ends, name=model.name)
    if shapes is None and examples is not None:
        shapes = [one.shape[1:] for one in parts_of(examples)]
    if shapes is not None:
        body = at_shapes(body, shapes)
    if outputs is None:
        losses = _losses(model, flat, loss)
        outputs = read_outputs(body, flat.output_names, losses, examples)
    outputs = tuple(
        replace(one, single=len(tensor.shape) == 1)
        for one, tensor in zip(outputs, body.outputs, strict=True)
    )
    core = with_logits(body, outputs)
    fixed = inference_only(calls_of(core))
    core = rebuilt(core, without_training=fixed) if fixed else core
    for layer in core.layers:
        norm = isinstance(layer, L.BatchNormalization)
        layer.trainable = not norm or (layer.trainable and layer.name not in fixed)
        layer.trainable &= layer.name not in flat.constants
    return Given(model, core, outputs, flat.closed, flat, fixed, loss)


def _losses(model: keras.Model, flat: Flat, loss: Any) -> list[Any]:
    """The loss, or the one that the model was compiled with, for each output."""
    return by_output(compiled_with(model).loss if loss is None else loss, flat, "loss")


class AsCore:
    """A network whose outputs are as a given one's core's; runs by moving statistics alone."""

    def __init__(self, given: Given, model: keras.Model):
        self._model, self._outputs = model, given.outputs
        self.variables, self.output_shape = model.variables, given.core.output_shape

    def __call__(self, inputs: Any, training: bool = False) -> Any:
        model = self._model
        results = keras.tree.flatten(model(packed(model, inputs), training=training))
        pairs = zip(self._outputs, results, strict=True)
        return tree_of([one.logits(tf.cast(value, tf.float32)) for one, value in pairs])


def by_output(spec: Any, flat: Flat, what: str) -> list[Any]:
    """A setting that Keras takes for each output, such as the loss, as one value per output.

    Args:
        spec: one for all outputs, a list or a dict by output; None where nothing was said.
        flat: the model. what: of the setting, for messages.

    Raises:
        UserError: other outputs than the model's.
    """
    structure, names, model = ends(flat.model)[1], list(flat.output_names), flat.model
    if isinstance(spec, dict):
        keys = keys_of(structure) or names
        keys = keys if set(spec) <= set(keys) else names
        if unknown := sorted(set(spec) - set(keys)):
            raise UserError(
                f"{what} for {', '.join(unknown)}: {model.name} has the outputs {', '.join(keys)}"
            )
        return [spec.get(key) for key in keys]
    if isinstance(spec, list | tuple):
        if len(spec) != len(names):
            raise UserError(f"{len(spec)} x {what} for {len(names)} outputs of {model.name}")
        return list(spec)
    return [spec] * len(names)


def _needed(calls: list[Call], tensors: list) -> list[Call]:
    """The calls without those that none of the tensors needs."""
    wanted, found = {id(tensor) for tensor in tensors}, []
    for call in reversed(calls):
        if wanted & {id(one) for one in call.outputs}:
            wanted |= {id(one) for one in call.inputs}
            found.append(call)
    return found[::-1]


def _carry_where_alike(old: keras.Layer, new: keras.Operation) -> None:
    if type(old) is type(new):
        carry_over(old, new)
