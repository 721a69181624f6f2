"""The network as its user gave it, read once at the door.

    given = Given.read(model, examples)
    graph = ChannelGraph(given.core)          # the search works on the core
    small = given.finished(graph.pruned(mask))  # and this is what the user gets

The losses take logits, the search takes a flat float32 graph; a user's network has probabilities,
models inside models, half precision, frozen layers, inputs by name. The core is the first,
`finished` gives back the second.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ..utils.errors import UserError
from .flatten import Flat, flatten
from .keras_graph import Call, calls_of, ends, has_graph, inference_only, is_op, packed
from .rebuild import carry_over, like, rebuilt, replay, with_config

L = keras.layers
LOGITS, SOFTMAX, PROBABILITIES = "logits", "softmax", "probabilities"
# Losses of classifiers of exclusive classes, by Keras's name or class.
CLASS_LOSSES = (
    *("sparse_categorical_crossentropy", "categorical_crossentropy"),
    *("SparseCategoricalCrossentropy", "CategoricalCrossentropy"),
)
# What only passes on the values of its input behind a softmax.
PASSING = (L.Identity, L.Flatten, L.Reshape, L.Dropout)
# Whose outputs are plain numbers, so that they can't be probabilities.
PLAIN = ("linear", "log_softmax")
SMALLEST = 1e-7  # of a probability whose logarithm is taken
SUM = 1e-3  # how far the sum of probabilities may be from 1


@dataclass(frozen=True)
class Given:
    """A network as given, and what is made of it.

    Attributes:
        model: as given; it is never changed.
        core: flat, of layers of its own, float32 [n, ...] -> logits float32 [n, classes]. All its
            layers are trainable but for batch norms that the user has frozen or calls with
            training=False.
        kind: what `model` gives: "logits", "softmax" (its last operation but for reshapes) or
            "probabilities" (made otherwise; the core then ends in their logarithm).
        closed: {layer name: why it stays whole}.
    """

    model: keras.Model
    core: keras.Model
    kind: str
    closed: dict[str, str]
    _flat: Flat = field(repr=False)
    _softmax: str | None = field(default=None, repr=False)
    _fixed: frozenset[str] = field(default=frozenset(), repr=False)

    @classmethod
    def read(
        cls,
        model: keras.Model,
        examples: np.ndarray | None = None,
        *,
        kind: str | None = None,
    ) -> Given:
        """Reads a network.

        Args:
            model: functional, Sequential, or (with examples) subclassed; one input, one output
                [n, classes].
            examples: some inputs, float32 or uint8 [n, ...]; where the graph doesn't say what the
                output means, its values on them do.
            kind: what the output means, where it is known.

        Raises:
            UserError: no graph, several inputs or outputs, a loss or an output that isn't that of
                a classifier, or as `flatten`.
        """
        check_loss(model)
        flat = flatten(_with_graph(model, examples))
        inputs, outputs = (keras.tree.flatten(one) for one in ends(flat.model))
        if len(inputs) != 1 or len(outputs) != 1:
            raise UserError(
                f"{model.name} has {len(inputs)} inputs and {len(outputs)} outputs: the search "
                "takes networks with one of each"
            )
        if len(outputs[0].shape) != 2:
            raise UserError(
                f"{model.name} gives outputs of shape {tuple(outputs[0].shape)}: a classifier "
                "gives (None, classes)"
            )
        body = keras.Model(inputs[0], outputs[0], name=model.name)
        softmax = _softmax_of(body)
        if softmax is not None:
            core, kind = _without(body, softmax), SOFTMAX
        else:
            kind = kind or _meaning(model, body, examples)
            core = _logarithm(body) if kind == PROBABILITIES else body
        fixed = inference_only(calls_of(core))
        core = rebuilt(core, without_training=fixed) if fixed else core
        for layer in core.layers:
            norm = isinstance(layer, L.BatchNormalization)
            layer.trainable = not norm or (layer.trainable and layer.name not in fixed)
        name = softmax.operation.name if softmax is not None else None
        return cls(model, core, kind, flat.closed, flat, name, fixed)

    def read_again(self, model: keras.Model) -> Given:
        """A network that came of `finished`, from its file."""
        return Given.read(model, kind=self.kind)

    def finished(self, core: keras.Model) -> keras.Model:
        """A network as the given one: its ends, dtype policies and trainable flags.

        Args:
            core: what became of `self.core`: the same layers by name, of any widths. Layers that
                aren't the given network's keep what they have.

        Returns:
            A functional network of layers of its own; compiled as the given one, if that is.
        """
        policies, frozen = self._flat.policies, self._flat.trainable

        def make(layer: keras.Operation) -> keras.Operation:
            changes = {}
            if policies.get(layer.name) is not None:
                changes["dtype"] = policies[layer.name]
            if layer.name == self._softmax:
                return self._restored_softmax(layer, changes)
            return with_config(layer, **changes)

        def carry(old: keras.Layer, new: keras.Operation) -> None:
            _carry_where_alike(old, new)
            if isinstance(new, keras.Layer):
                new.trainable = frozen.get(new.name, new.trainable)

        whole = rebuilt(core, make, carry=carry)
        _, outputs = ends(self._flat.model)
        inputs = keras.tree.map_structure(like, ends(self._flat.model)[0])
        values = {id(whole.inputs[0]): keras.tree.flatten(inputs)[0]}
        calls = calls_of(whole)
        if self.kind == PROBABILITIES:
            calls = calls[:-2]

        def operation_of(call: Call) -> Callable:
            # As the user called it: `base(x, training=False)`.
            fixed = call.operation.name in self._fixed
            return partial(call.operation, training=False) if fixed else call.operation

        replay(calls, values, operation_of)
        end = values[id(calls[-1].outputs[0])]
        finished = keras.Model(
            inputs, keras.tree.pack_sequence_as(outputs, [end]), name=self.model.name
        )
        _compile_like(self.model, finished)
        return finished

    def _restored_softmax(self, layer: keras.Layer, changes: dict[str, Any]) -> keras.Operation:
        """The layer that the core has in place of the one with the softmax."""
        original = next(
            call.operation
            for call in calls_of(self._flat.model)
            if call.operation.name == self._softmax
        )
        if is_op(original):
            return with_config(original)
        if getattr(original, "weights", ()):
            return with_config(layer, activation="softmax", **changes)
        return with_config(original, **changes)

    def as_logits(self) -> AsLogits:
        """The network as given, run as it is, its outputs as logits."""
        return AsLogits(self)


class AsLogits:
    """A given network that gives logits float32 [n, classes]; runs by moving statistics alone."""

    def __init__(self, given: Given):
        self._given = given
        self.name, self.variables = given.model.name, given.model.variables
        self.output_shape = given.core.output_shape

    def count_params(self) -> int:
        """Parameters of the given network."""
        return self._given.model.count_params()

    def __call__(self, inputs: Any, training: bool = False) -> tf.Tensor:
        model = self._given.model
        given = packed(model, inputs) if has_graph(model) else inputs
        output = tf.cast(keras.tree.flatten(model(given, training=training))[0], tf.float32)
        if self._given.kind == LOGITS:
            return output
        return tf.math.log(tf.maximum(output, SMALLEST))


def check_loss(model: keras.Model) -> None:
    """Refuses networks that are compiled with another loss than that of a classifier.

    Raises:
        UserError: so it is.
    """
    loss = getattr(model, "loss", None) if getattr(model, "compiled", False) else None
    for one in keras.tree.flatten(loss):
        name = one if isinstance(one, str) else getattr(one, "__name__", type(one).__name__)
        if one is not None and name not in CLASS_LOSSES:
            raise UserError(
                f"{model.name} is compiled with the loss {name}: only classifiers of exclusive "
                "classes can be pruned, with categorical cross-entropy"
            )


def _with_graph(model: keras.Model, examples: np.ndarray | None) -> keras.Model:
    """The model, or a functional one around a subclassed one."""
    if has_graph(model) or examples is None:
        return model
    inputs = keras.Input(examples.shape[1:], dtype="float32", name="input")
    try:
        return keras.Model(inputs, model(inputs), name=model.name)
    except Exception as error:  # the user's own code may raise anything
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{model.name} can't be called on {inputs.shape}: {line}") from None


# ---------------------------------------------------------------- what the output means


def _activation(layer: keras.Operation) -> str:
    if not isinstance(layer, keras.Layer):  # keras.ops
        name = type(layer).__name__.lower()
        return name if name in ("softmax", "sigmoid") else ""
    if isinstance(layer, L.Softmax):
        return "softmax" if layer.axis in (-1, 1) else "softmax over another axis"
    if isinstance(layer, L.ReLU | L.LeakyReLU | L.ELU | L.PReLU):
        return type(layer).__name__
    if not hasattr(layer, "activation"):
        return ""
    activation = layer.activation
    return "linear" if activation is None else getattr(activation, "__name__", str(activation))


def _softmax_of(model: keras.Model) -> Call | None:
    """The call with the softmax that the model's output is, perhaps reshaped; None without one.

    Raises:
        UserError: the model ends in another activation, such as sigmoid.
    """
    calls = calls_of(model)
    makers = {id(tensor): call for call in calls for tensor in call.outputs}
    call = makers.get(id(model.outputs[0]))
    while call is not None:
        layer = call.operation
        name = _activation(layer)
        if name == "softmax":
            return call
        if name and name not in PLAIN:
            raise UserError(
                f"{model.name} ends in {name} (layer {layer.name}): the losses need a network that "
                "gives logits or softmax probabilities"
            )
        if not _passes(layer):
            return None
        call = makers.get(id(call.inputs[0]))
    return None


def _passes(layer: keras.Operation) -> bool:
    """Whether an operation only passes on values, perhaps in another shape."""
    if isinstance(layer, L.Activation):
        return _activation(layer) == "linear"
    return isinstance(layer, PASSING) or type(layer).__name__ in ("Reshape", "Squeeze")


def _without(model: keras.Model, softmax: Call) -> keras.Model:
    """The model with a linear activation in place of its softmax."""
    name = softmax.operation.name

    def make(layer: keras.Operation) -> keras.Operation:
        return with_config(layer, **({"activation": "linear"} if layer.name == name else {}))

    if getattr(softmax.operation, "weights", ()):
        return rebuilt(model, make)
    inputs = like(model.inputs[0])
    values = {id(model.inputs[0]): inputs}

    def operation_of(call: Call) -> keras.Operation:
        if call.operation.name == name:
            return lambda x, *args, **kwargs: L.Activation("linear", name=name)(x)
        return call.operation

    replay(calls_of(model), values, operation_of)
    return rebuilt(keras.Model(inputs, values[id(model.outputs[0])], name=model.name))


def _carry_where_alike(old: keras.Layer, new: keras.Operation) -> None:
    if type(old) is type(new):
        carry_over(old, new)


def _logarithm(model: keras.Model) -> keras.Model:
    """The model, which gives probabilities, with their logarithms as logits."""
    output = keras.ops.log(keras.ops.maximum(model.outputs[0], SMALLEST))
    return rebuilt(keras.Model(model.inputs[0], output, name=model.name))


def _meaning(model: keras.Model, body: keras.Model, examples: np.ndarray | None) -> str:
    """ "logits" or "probabilities", of an output that isn't plainly a softmax."""
    makers = {id(tensor): call for call in calls_of(body) for tensor in call.outputs}
    call = makers[id(body.outputs[0])]
    while _passes(call.operation) and id(call.inputs[0]) in makers:
        call = makers[id(call.inputs[0])]
    last = call.operation
    if getattr(last, "weights", ()) and _activation(last) in PLAIN:
        return LOGITS
    if examples is None:
        raise UserError(
            f"{model.name} ends in {type(last).__name__} ({last.name}): whether that gives logits "
            "or probabilities shows on data alone"
        )
    values = np.asarray(body(tf.constant(examples[:64], tf.float32), training=False))
    whole = (values >= 0).all() and np.abs(values.sum(-1) - 1).max() <= SUM
    return PROBABILITIES if whole else LOGITS


def _compile_like(given: keras.Model, model: keras.Model) -> None:
    if not getattr(given, "compiled", False):
        return
    config = given.get_compile_config()
    if config:
        model.compile_from_config(config)
