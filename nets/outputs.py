"""What a network's outputs mean, and what its core gives in their place.

The core gives logits where the network ends in a softmax or in sigmoids, else what the network
gives. Losses and knowledge are computed on the core's outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ..options.kinds import CLASSES, NUMBERS, SIGMOIDS
from ..utils.trees import tree_of
from .keras_graph import Call, calls_of, is_op
from .rebuild import like, rebuilt, replay, with_config

L = keras.layers
ACTIVATIONS = {CLASSES: "softmax", SIGMOIDS: "sigmoid"}
# What only passes on the values of its input behind an activation.
PASSING = (L.Identity, L.Flatten, L.Reshape, L.Dropout)
# Whose outputs are plain numbers, so that they can't be probabilities.
PLAIN = ("linear", "log_softmax")
SMALLEST = 1e-7  # of a probability whose logarithm is taken
SUM = 1e-3  # how far the sum of probabilities may be from 1
# Losses of exclusive classes and of independent sigmoids, by Keras's name or class.
SPARSE_LOSSES = ("sparse_categorical_crossentropy", "SparseCategoricalCrossentropy")
CLASS_LOSSES = (
    *SPARSE_LOSSES,
    *("categorical_crossentropy", "crossentropy", "ce", "CategoricalCrossentropy"),
    *("categorical_focal_crossentropy", "CategoricalFocalCrossentropy"),
)
SIGMOID_LOSSES = (
    *("binary_crossentropy", "BinaryCrossentropy"),
    *("binary_focal_crossentropy", "BinaryFocalCrossentropy"),
)
UNEQUAL = ("ctc", "circle")  # losses of Keras's whose targets have a shape of their own


@dataclass(frozen=True)
class Output:
    """One output of a network.

    Attributes:
        name: what Keras calls it: the name of its layer.
        kind: "classes" (a softmax over the last axis), "sigmoids" (independent ones), "numbers".
        applied: the network gives probabilities, its core logits.
        operation: the operation that has lost its softmax or sigmoid in the core; None where the
            core ends in the logarithm of the probabilities instead.
        certain: False where only values on examples could tell whether they are probabilities.
        single: the network gives one number for each example, [n]; its core gives [n, 1].
    """

    name: str
    kind: str
    applied: bool = False
    operation: str | None = None
    certain: bool = True
    single: bool = False

    def given(self, core: Any) -> Any:
        """What the network gives where its core gives `core`, float32 [n, ...]."""
        core = tf.squeeze(core, -1) if self.single else core
        if not self.applied:
            return core
        return tf.nn.softmax(core) if self.kind == CLASSES else tf.sigmoid(core)

    def logits(self, given: Any) -> Any:
        """The other way round; classes as logarithms of probabilities."""
        given = given[..., None] if self.single else given
        if not self.applied:
            return given
        if self.kind == CLASSES:
            return tf.math.log(tf.maximum(given, SMALLEST))
        clipped = tf.clip_by_value(given, SMALLEST, 1 - SMALLEST)
        return tf.math.log(clipped) - tf.math.log(1 - clipped)


def loss_name(loss: Any) -> str | None:
    """Keras's name of a loss that is given as a string, a function or an object; None for none."""
    if loss is None or isinstance(loss, str):
        return loss
    return getattr(loss, "__name__", type(loss).__name__)


def is_own(loss: Any) -> bool:
    """Whether a loss, which is there, is none of Keras's."""
    return not any(loss is one or type(loss) is one for one in vars(keras.losses).values())


def ignored_class(loss: Any) -> int | None:
    """The label that a loss of Keras's leaves out of everything; None where it has none."""
    found = getattr(loss, "ignore_class", None)
    return found if isinstance(found, int) else None


def takes_any_targets(loss: Any) -> bool:
    """Whether a loss may take targets of another shape than the output's; not where it isn't
    known.

    Args:
        loss: as Keras takes it; None: there is none.
    """
    try:
        found = keras.losses.get(loss)
    except (ValueError, TypeError):  # `training.heads` says what is wrong with it
        return False
    name = (loss_name(loss) or "").lower()
    return callable(found) and (is_own(found) or name in UNEQUAL)


def takes_labels(loss: Any) -> bool | None:
    """Whether a loss takes the numbers of classes, or a row for each; None for other losses."""
    name = loss_name(loss)
    return name in SPARSE_LOSSES if name in CLASS_LOSSES else None


def read_outputs(
    model: keras.Model,
    names: Sequence[str],
    losses: Sequence[Any],
    examples: Any = None,
) -> tuple[Output, ...]:
    """What the outputs of a flat functional model mean.

    Args:
        names: of the outputs.
        losses: one for each output; None where it isn't known or, beside others that are, for an
            output without one.
        examples: inputs float32 [n, ...], a tuple of them where there are several: where neither
            graph nor loss say it, the outputs' values on them do.
    """
    found = []
    values: list[np.ndarray] | None = None
    for number, (name, loss) in enumerate(zip(names, losses, strict=True)):
        call, activation = _end_of(model, number)
        kinds = {activation: kind for kind, activation in ACTIVATIONS.items()}
        if activation in kinds:
            alone = _is_alone(model, call, number)
            own = call.operation.name if alone else None
            found.append(Output(name, kinds[activation], True, own))
            continue
        kind = kind_of_loss(loss, model.outputs[number].shape)
        if loss is None and (activation or any(one is not None for one in losses)):
            kind = NUMBERS
        if kind == NUMBERS or getattr(loss, "from_logits", False) or _is_plain(model, number):
            found.append(Output(name, kind))
            continue
        if values is None and examples is not None:
            values = _values(model, examples)
        applied = values is not None and _are_probabilities(values[number], kind)
        found.append(Output(name, kind, applied, certain=values is not None))
    return tuple(found)


def with_logits(model: keras.Model, outputs: Sequence[Output]) -> keras.Model:
    """A flat model, or a copy of it, that gives logits where `outputs` say probabilities, and an
    axis of one where they are single numbers."""
    names = {one.operation for one in outputs if one.operation}
    if names:
        model = _without_activations(model, names)
    logged = {n for n, one in enumerate(outputs) if one.applied and one.operation is None}
    if not logged and not any(one.single for one in outputs):
        return model
    ends = [
        _logarithm(tensor, outputs[number].kind) if number in logged else tensor
        for number, tensor in enumerate(model.outputs)
    ]
    ends = [
        keras.ops.expand_dims(tensor, -1) if one.single else tensor
        for one, tensor in zip(outputs, ends, strict=True)
    ]
    return rebuilt(keras.Model(tree_of(model.inputs), tree_of(ends), name=model.name))


def before_logarithms(model: keras.Model, outputs: Sequence[Output]) -> list[keras.KerasTensor]:
    """The tensors of a network out of `with_logits` that are the given network's outputs but for
    softmaxes and sigmoids taken off."""
    makers = {id(tensor): call for call in calls_of(model) for tensor in call.outputs}
    found = []
    for one, tensor in zip(outputs, model.outputs, strict=True):
        tensor = makers[id(tensor)].inputs[0] if one.single else tensor
        if one.applied and one.operation is None:
            for _ in range(_LOGARITHM_CALLS[one.kind]):
                tensor = makers[id(tensor)].inputs[0]
        found.append(tensor)
    return found


_LOGARITHM_CALLS = {CLASSES: 2, SIGMOIDS: 3}  # of `_logarithm`, along the first inputs


def _logarithm(tensor: keras.KerasTensor, kind: str) -> keras.KerasTensor:
    ops = keras.ops
    if kind == CLASSES:
        return ops.log(ops.maximum(tensor, SMALLEST))
    clipped = ops.clip(tensor, SMALLEST, 1 - SMALLEST)
    return ops.subtract(ops.log(clipped), ops.log(ops.subtract(1.0, clipped)))


def kind_of_loss(loss: Any, shape: Sequence[int | None] | None = None) -> str:
    """The kind of an output without an activation that would say it.

    Args:
        loss: None: unknown. shape: of the output, the batch counted; None: unknown.
    """
    name = loss_name(loss)
    if name in CLASS_LOSSES:
        return CLASSES
    if name in SIGMOID_LOSSES:
        return SIGMOIDS
    several = shape is None or (len(shape) == 2 and (shape[-1] or 0) > 1)
    return CLASSES if name is None and several else NUMBERS


def _activation(layer: keras.Operation) -> str:
    if not isinstance(layer, keras.Layer):  # keras.ops
        name = type(layer).__name__.lower()
        return name if name in ("softmax", "sigmoid") else ""
    if isinstance(layer, L.Softmax):
        return "softmax"
    if isinstance(layer, L.ReLU | L.LeakyReLU | L.ELU | L.PReLU):
        return type(layer).__name__
    if not hasattr(layer, "activation"):
        return ""
    activation = layer.activation
    return "linear" if activation is None else getattr(activation, "__name__", str(activation))


def _end_of(model: keras.Model, number: int) -> tuple[Call | None, str]:
    """The call that an output's values come of, perhaps reshaped, and its activation ("": none)."""
    makers = {id(tensor): call for call in calls_of(model) for tensor in call.outputs}
    call = makers.get(id(model.outputs[number]))
    while call is not None:
        name = _activation(call.operation)
        if name and name not in PLAIN:
            made, end = call.outputs[0].shape, model.outputs[number].shape
            along_last = getattr(call.operation, "axis", -1) in (-1, len(made) - 1)
            if name == "softmax" and not (along_last and made[-1] == end[-1]):
                return call, "softmax over another axis"
            return call, name
        if not _passes(call.operation):
            return call, ""
        call = makers.get(id(call.inputs[0]))
    return None, ""


def _is_alone(model: keras.Model, call: Call, number: int) -> bool:
    """Whether nothing but this output needs what the call gives."""
    calls = calls_of(model)
    if sum(one.operation is call.operation for one in calls) > 1:
        return False
    readers: dict[int, int] = {}
    for one in calls:
        for tensor in one.inputs:
            readers[id(tensor)] = readers.get(id(tensor), 0) + 1
    for tensor in model.outputs:
        readers[id(tensor)] = readers.get(id(tensor), 0) + 1
    makers = {id(tensor): one for one in calls for tensor in one.outputs}
    tensor = model.outputs[number]
    while True:
        if readers[id(tensor)] > 1:
            return False
        maker = makers[id(tensor)]
        if maker.operation is call.operation:
            return True
        tensor = maker.inputs[0]


def _passes(layer: keras.Operation) -> bool:
    """Whether an operation only passes on values, perhaps in another shape."""
    if isinstance(layer, L.Activation):
        return _activation(layer) == "linear"
    return isinstance(layer, PASSING) or type(layer).__name__ in ("Reshape", "Squeeze")


def _is_plain(model: keras.Model, number: int) -> bool:
    """Whether an output is a layer's weights times something, so that it can't be probabilities."""
    call, _ = _end_of(model, number)
    if call is None:
        return True
    last = call.operation
    return bool(getattr(last, "weights", ())) and _activation(last) in PLAIN


def _values(model: keras.Model, examples: Any) -> list[np.ndarray]:
    some = keras.tree.map_structure(lambda x: tf.constant(x[:64], tf.float32), examples)
    return [np.asarray(one) for one in keras.tree.flatten(model(some, training=False))]


def _are_probabilities(values: np.ndarray, kind: str) -> bool:
    if kind == SIGMOIDS:
        return bool(((values >= 0) & (values <= 1)).all())
    return bool((values >= 0).all() and np.abs(values.sum(-1) - 1).max() <= SUM)


def _without_activations(model: keras.Model, names: set[str]) -> keras.Model:
    """The model with linear activations in place of the softmax or sigmoid of some operations."""

    def make(layer: keras.Operation) -> keras.Operation:
        return with_config(layer, **({"activation": "linear"} if layer.name in names else {}))

    bare = {
        call.operation.name
        for call in calls_of(model)
        if call.operation.name in names and not getattr(call.operation, "weights", ())
    }
    if bare:
        values: dict[int, Any] = {id(tensor): like(tensor) for tensor in model.inputs}
        inputs = tree_of([values[id(tensor)] for tensor in model.inputs])

        def operation_of(call: Call) -> Any:
            if call.operation.name in bare:
                return lambda x, *_, **__: L.Activation("linear", name=call.operation.name)(x)
            return call.operation

        replay(calls_of(model), values, operation_of)
        ends = tree_of([values[id(tensor)] for tensor in model.outputs])
        model = keras.Model(inputs, ends, name=model.name)
    return rebuilt(model, make)


def restored(original: keras.Operation, layer: keras.Layer, kind: str, **changes: Any) -> Any:
    """The layer that the core has in place of one with a softmax or sigmoid, with it again.

    Args:
        original: as in the given network. layer: of the core. changes: of its configuration.
    """
    if is_op(original):
        return with_config(original)
    if getattr(original, "weights", ()):
        return with_config(layer, activation=ACTIVATIONS[kind], **changes)
    return with_config(original, **changes)
