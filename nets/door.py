"""Before a network is read: what can't be is refused, and a subclassed one is called on what it
takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from ..utils.errors import UserError, line_of
from ..utils.trees import parts_of, tree_of
from .keras_graph import built_on, default_training, has_graph

VARIANCES = ("moving_variance", "variance")  # of BatchNormalization and Normalization


def check_weights(model: keras.Model) -> None:
    """Refuses weights that no training leaves: NaN, infinite, negative variances, of size zero.

    Raises:
        UserError: names the first of them.
    """
    for variable in model.weights:
        shape = tuple(variable.shape)
        if 0 in shape:
            raise _unfit(model, variable, f"is of shape {shape} and holds no number")
        array = np.asarray(variable)
        if array.dtype.kind not in "fV":  # V: bfloat16
            continue
        array = array.astype(np.float32)
        if not np.isfinite(array).all():
            kind = "NaN" if np.isnan(array).any() else "infinite numbers"
            count = int((~np.isfinite(array)).sum())
            raise _unfit(model, variable, f"holds {kind} ({count} of {array.size})")
        if variable.name in VARIANCES and array.min() < 0:
            raise _unfit(model, variable, f"holds the negative variance {array.min():g}")


def _unfit(model: keras.Model, variable: keras.Variable, problem: str) -> UserError:
    return UserError(f"{model.name}: its weight {variable.path} {problem}: train or save it again")


def networks_in(model: keras.Model) -> str:
    """What to do about a model that only holds others, such as one with a train_step of its own, in
    words; "" for all others."""
    names = [
        name
        for name, value in vars(model).items()
        if isinstance(value, keras.Model) and value.weights and not name.startswith("_")
    ]
    if has_graph(model) or not names:
        return ""
    inner = " or ".join(names)
    return f"; to prune a network that it holds, give that alone (its {inner}) and put it back then"


def called_on(model: keras.Model, examples: Any) -> keras.Model:
    """The model, or a functional one around a subclassed one.

    Args:
        examples: as of `Given.read`; None: such as it was built on.

    Raises:
        UserError: a subclassed one, and nobody knows what it takes, or it doesn't take that.
    """
    if has_graph(model):
        return model
    if type(model).call is keras.Model.call:
        raise UserError(f"{model.name} has no call(): there is nothing that can be pruned")
    built = built_on(model)
    if examples is None and built is None:
        raise UserError(
            f"{model.name} is no functional Keras model: its graph can't be read without the shape "
            "of what it takes (input_shape), or rewrite it with keras.Input and "
            "keras.Model(inputs, outputs)"
        )
    like_built = built is not None and (
        examples is None or len(keras.tree.flatten(built)) == len(parts_of(examples))
    )
    structure = built if like_built else examples
    leaves = keras.tree.flatten(built) if examples is None else parts_of(examples)
    names = keys_of(structure) or [None] * len(leaves)
    fresh = [
        keras.Input(tuple(one.shape[1:]), dtype="float32", name=name)
        for one, name in zip(leaves, names, strict=True)
    ]
    inputs = keras.tree.pack_sequence_as(structure, fresh)
    try:
        outputs = model(inputs)
        used = model(inputs, training=False) if default_training(model) else outputs
    except Exception as error:  # the user's own code may raise anything
        line = line_of(error)
        shapes = keras.tree.map_structure(lambda one: one.shape, inputs)
        raise UserError(f"{model.name} can't be called on {shapes}: {line}") from None
    if len(keras.tree.flatten(used)) != len(keras.tree.flatten(outputs)):
        raise UserError(
            f"{model.name} gives other outputs in training, the default of its call, than it is "
            "used for: give keras.Model(x, model(x, training=False))"
        )
    return keras.Model(inputs, outputs, name=model.name)


def zeros(shapes: Sequence[Sequence[int]]) -> Any:
    """Examples for `called_on`: one of zeros, a tuple where there are several; None without any.

    Args:
        shapes: of every input without the batch.
    """
    return tree_of(np.zeros((1, *one), np.float32) for one in shapes) if shapes else None


def keys_of(structure: Any) -> list[str]:
    """The keys of a dict's tensors in the order in which they are flattened; none of others."""
    if not isinstance(structure, dict):
        return []
    return [path[0] for path, _ in keras.tree.flatten_with_path(structure)]
