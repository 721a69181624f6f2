"""Weights of torchvision's and timm's networks from .safetensors files.

For the networks of `nets.zoo.imagenet`, whose layers carry torchvision's names: resnet18, resnet34,
resnet50 (timm uses the same names) and mobilenet_v2. PyTorch keeps kernels as [out, in, h, w], of
dense layers as [out, in]; here they are [h, w, in, out] and [in, out].
"""

from __future__ import annotations

import os
from pathlib import Path

import keras
import numpy as np

from ...utils.errors import UserError
from ...utils.extras import how_to_install

BATCH_NORM = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
COUNTER = ".num_batches_tracked"  # of batch norms; nothing here corresponds to it


def torch_name(layer: keras.layers.Layer, variable: keras.Variable) -> str:
    """The key of a layer's variable in a PyTorch file: layer1.0_conv1's kernel is
    layer1.0.conv1.weight."""
    if isinstance(layer, keras.layers.BatchNormalization):
        last = BATCH_NORM[variable.name]
    else:
        last = "bias" if variable.name == "bias" else "weight"
    return f"{layer.name.replace('_', '.')}.{last}"


def to_keras(array: np.ndarray, layer: keras.layers.Layer) -> np.ndarray:
    """A PyTorch array in Keras's order of axes."""
    if array.ndim == 4 and isinstance(layer, keras.layers.DepthwiseConv2D):
        return array.transpose(2, 3, 0, 1)  # [channels, 1, h, w] -> [h, w, channels, 1]
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    return array.T if array.ndim == 2 else array


def read_safetensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """All arrays of a .safetensors file.

    Raises:
        UserError: missing or damaged file, a type numpy lacks, or no safetensors package.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    except ImportError:
        raise UserError(
            f"{path}: reading it takes a package: {how_to_install('safetensors')}"
        ) from None
    if not Path(path).is_file():
        raise UserError(f"{path} does not exist")
    try:
        return load_file(path)
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise UserError(
            f"{path} is not a safetensors file of float16 or float32 arrays ({error})"
        ) from None


def load_torch(model: keras.Model, path: str | os.PathLike) -> None:
    """Sets all weights of a network of `nets.zoo.imagenet` from a .safetensors file.

    Raises:
        UserError: as `read_safetensors`; keys that are missing, left over or of another shape, with
            the model untouched.
    """
    arrays = {k: v for k, v in read_safetensors(path).items() if not k.endswith(COUNTER)}
    values, missing, differing = [], [], []
    for layer in model.layers:
        for variable in layer.weights:
            key = torch_name(layer, variable)
            if key not in arrays:
                missing.append(key)
                continue
            value = to_keras(arrays.pop(key), layer)
            values.append((variable, value))
            if value.shape != tuple(variable.shape):
                shapes = ("x".join(map(str, s)) for s in (value.shape, variable.shape))
                differing.append(f"{key} {' instead of '.join(shapes)}")
    problems = [
        f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for what, keys in (
            ("missing", missing),
            ("unexpected", list(arrays)),
            ("of another shape", differing),
        )
        if keys
    ]
    if problems:
        raise UserError(
            f"{path} does not hold torchvision's weights of {model.name} with "
            f"{model.output_shape[-1]} classes: {'; '.join(problems)}"
        )
    for variable, value in values:
        variable.assign(value.astype(np.float32))
