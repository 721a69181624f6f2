"""Weights of our own architectures by name, in the layout of the paper's released networks.

A dict of float32 arrays keyed `<layer name, "/" for "_">/<variable>:0`. A layer
`BasicBlock0.0_conv1` gives `BasicBlock0.0/conv1/kernel:0` (HWIO); batch norms give gamma, beta,
moving_mean and moving_variance of shape [1, 1, 1, C]; a bias is called `biases`, [1, N] for a dense
layer and [1, 1, 1, C] for a convolution.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np

from ...utils.arrays import Arrays, restricted_load
from ...utils.errors import UserError
from ...utils.files import atomic_write

_PKL_NAMES = {
    "kernel": "kernel",
    "bias": "biases",
    "biases": "biases",
    "gamma": "gamma",
    "beta": "beta",
    "moving_mean": "moving_mean",
    "moving_variance": "moving_variance",
}


def save_pkl(path: str | os.PathLike, arrays: Arrays) -> None:
    """Writes named arrays as a pickle (protocol 4), atomically."""
    data = pickle.dumps({key: np.asarray(value) for key, value in arrays.items()}, protocol=4)
    atomic_write(path, lambda temporary: temporary.write_bytes(data))


def load_pkl(path: str | os.PathLike) -> Arrays:
    """The float32 arrays of a .pkl of weights by name; keys that are not arrays are dropped.

    Raises UserError when the file is missing, damaged, refused, holds no dict of arrays or an
    array that is not float32.
    """
    loaded = restricted_load(path)
    arrays = {}
    if isinstance(loaded, dict):
        arrays = {str(k): v for k, v in loaded.items() if isinstance(v, np.ndarray)}
    if not arrays:
        raise UserError(f"{path} holds no arrays: expected a dict of named weights")
    for key, array in arrays.items():
        if array.dtype != np.float32:
            raise UserError(f"{path}: {key} is {array.dtype}, expected float32 weights")
        if not array.size:
            raise UserError(f"{path}: {key} is of shape {array.shape} and holds no number")
    return arrays


def _leaf_layers(layer: Any) -> Iterator[Any]:
    children = getattr(layer, "layers", None)
    if children is None:
        yield layer
        return
    for child in children:
        yield from _leaf_layers(child)


def _named_variables(model: Any) -> dict[str, tuple[Any, tuple[int, ...]]]:
    """Every weight of the model as {key in the file: (variable, shape in the file)}."""
    named = {}
    for layer in _leaf_layers(model):
        for variable in layer.weights:
            name = _PKL_NAMES.get(variable.name)
            if name is None:
                if variable.trainable:
                    raise UserError(
                        f"layer {layer.name} ({type(layer).__name__}) has a weight "
                        f"{variable.name!r} that the .pkl layout lacks: use a .keras file"
                    )
                continue  # gates and random states are not weights
            key = f"{layer.name.replace('_', '/')}/{name}:0"
            if key in named:
                raise UserError(f"two weights of the network are called {key}: use a .keras file")
            shape = tuple(variable.shape)
            if len(shape) == 1:
                dense = name == "biases" and len(layer.kernel.shape) == 2
                shape = (1, *shape) if dense else (1, 1, 1, *shape)
            named[key] = (variable, shape)
    return named


def to_pkl(model: Any) -> Arrays:
    """The weights of a built Keras model as float32 arrays in the .pkl layout.

    Raises UserError for a trainable weight that the layout has no name for.
    """
    return {
        key: np.asarray(variable, np.float32).reshape(shape)
        for key, (variable, shape) in _named_variables(model).items()
    }


def from_pkl(model: Any, arrays: Arrays, path: str | os.PathLike) -> None:
    """Sets all weights of a built Keras model from arrays in the .pkl layout.

    `path` is only named in messages. Raises UserError, with the model untouched, when a key is
    missing or left over or a shape differs; a vector may carry any number of leading ones.
    """
    named = _named_variables(model)
    missing = [key for key in named if key not in arrays]
    unexpected = [key for key in arrays if key not in named]
    differing = [
        f"{key} {_shape(arrays[key].shape)} instead of {_shape(shape)}"
        for key, (_, shape) in named.items()
        if key in arrays and _core(arrays[key].shape, shape) != _core(shape, shape)
    ]
    problems = [
        f"{len(found)} {what} ({', '.join(found[:3])}{', ...' if len(found) > 3 else ''})"
        for what, found in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", differing),
        )
        if found
    ]
    if problems:
        raise UserError(
            f"{path}: these are weights of another arch or another number of classes: "
            + "; ".join(problems)
        )
    for key, (variable, _) in named.items():
        variable.assign(arrays[key].reshape(variable.shape))


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _core(shape: tuple[int, ...], expected: tuple[int, ...]) -> tuple[int, ...]:
    """The shape, without its leading ones where the expected one is that of a vector."""
    if all(size == 1 for size in expected[:-1]) and all(size == 1 for size in shape[:-1]):
        return shape[-1:]
    return shape
