"""The end of a classifier: a final softmax taken off for the losses, and put back.

Our losses take logits. A network of a user's own often ends in probabilities, as a layer with
`activation="softmax"`, an `Activation("softmax")`, a `Softmax` layer or `keras.ops.softmax`. Models
within the network are looked into.
"""

import os

import keras

from ..utils.errors import UserError
from ..utils.keras_files import load_keras
from .keras_graph import without_nesting
from .rebuild import copied, with_activation

L = keras.layers
# Of what a final activation makes, the losses take logits, or their logarithms of probabilities,
# which have the same softmax.
LOGITS = ("linear", "log_softmax")


def _last(model: keras.Model):
    return model.outputs[0]._keras_history.operation


def _before_last(model: keras.Model):
    """The tensor that the last layer gets."""
    layer, node, _ = model.outputs[0]._keras_history
    return layer._inbound_nodes[node].input_tensors[0]


def _activation(layer) -> str:
    if not isinstance(layer, keras.Layer):  # keras.ops
        name = type(layer).__name__.lower()
        return name if name in ("softmax", "sigmoid") else "linear"
    if isinstance(layer, L.Softmax):
        return "softmax" if layer.axis in (-1, 1) else "softmax over another axis"
    if isinstance(layer, L.ReLU | L.LeakyReLU | L.ELU | L.PReLU):
        return type(layer).__name__
    activation = getattr(layer, "activation", None)
    return "linear" if activation is None else getattr(activation, "__name__", str(activation))


def _is_softmax_alone(layer) -> bool:
    return not hasattr(layer, "kernel")


def ends_in_softmax(model: keras.Model) -> bool:
    """Whether a functional model with one output [batch, classes] gives softmax probabilities.

    Raises:
        UserError: it ends in another activation, such as sigmoid: no classifier of exclusive
            classes.
    """
    layer = _last(without_nesting(model))
    name = _activation(layer)
    if name == "softmax":
        return True
    if name not in LOGITS:
        raise UserError(
            f"{model.name} ends in {name} (layer {layer.name}): the losses need a network that "
            "gives logits or softmax probabilities"
        )
    return False


def without_softmax(model: keras.Model) -> keras.Model:
    """The network that gives logits: `model` itself, or a copy without its final softmax.

    Layers keep their names and weights. Raises UserError as `ends_in_softmax`.
    """
    if not ends_in_softmax(model):
        return model
    model = without_nesting(model)
    layer = _last(model)
    if _is_softmax_alone(layer):
        # Cloned, since a layer that two models share would be pruned or trained in both.
        return copied(keras.Model(model.inputs[0], _before_last(model), name=model.name))
    return with_activation(model, layer.name, "linear")


def ending_as(given: keras.Model, model: keras.Model) -> keras.Model:
    """`model`, which gives logits, with the final softmax of `given`, if that has one.

    Args:
        given: the network that `without_softmax` was called with. model: its pruned successor,
            whose last layers have the same names.
    """
    if not ends_in_softmax(given):
        return model
    layer = _last(without_nesting(given))
    if _is_softmax_alone(layer):
        softmax = type(layer).from_config(layer.get_config())
        return keras.Model(model.inputs[0], softmax(model.outputs[0]), name=model.name)
    return with_activation(model, layer.name, "softmax")


def load_logits(path: str | os.PathLike) -> keras.Model:
    """The network of a .keras file without its final softmax; raises as `load_keras`."""
    return without_softmax(load_keras(path))
