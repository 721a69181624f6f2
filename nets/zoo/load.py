"""Networks from files: weights of an architecture that we build, or .keras of any network."""

import os
from collections.abc import Sequence

import keras

from ...utils.errors import UserError, line_of
from ...utils.files import is_file
from ...utils.keras_files import NETWORKS, check_weights_file, is_on_hub, load_keras
from ..keras_graph import calls_of, functional, has_graph
from ..rebuild import resized
from .applications import PREFIX, application
from .builders import build
from .pkl_weights import from_pkl, load_pkl
from .torch_weights import load_torch

Shape = tuple[int | None, ...]

WEIGHTS = (".pkl", ".keras", ".weights.h5", ".safetensors", f"{PREFIX}NAME")


def load_network(
    path: str | os.PathLike, arch: str, num_classes: int, input_shape: tuple[int, ...]
) -> keras.Model:
    """Reads a network of stock layers with its weights.

    Args:
        path: `.keras`; `.pkl` in the layout of `nets.zoo.pkl_weights` whose filter counts may be
            smaller than the architecture's (a pruned network); Keras's `.weights.h5`;
            `.safetensors` of torchvision or timm; or `keras.applications:ResNet50` and the like.
        arch: name of the architecture; `.keras` and keras.applications need none.
        num_classes, input_shape: of the data that the network is for.

    Raises:
        UserError: missing or corrupt file, weights of another architecture, number of classes or
            image shape, or a network without a graph.
    """
    path = os.fspath(path)
    suffix = os.path.splitext(path)[1]
    if path.startswith(PREFIX):
        model = application(path.removeprefix(PREFIX), input_shape)
    elif suffix == ".keras":
        model = load_keras(path)
    elif suffix == ".pkl":
        model = _from_pkl(path, arch, num_classes, input_shape)
    elif suffix == ".safetensors":
        model = build(arch, num_classes, input_shape)
        load_torch(model, path)
    elif path.endswith(".weights.h5"):
        model = _from_h5(path, arch, num_classes, input_shape)
    else:
        raise UserError(
            f"{path}: weights come as {', '.join(WEIGHTS)}, not {suffix or 'without a suffix'}"
        )
    whole = functional(model)
    ends = ([tuple(one.shape[1:]) for one in side] for side in (whole.inputs, whole.outputs))
    check_fits(path, *ends, num_classes, input_shape)
    return model


def load_own(path: str | os.PathLike) -> keras.Model:
    """Reads a network of the user's own: a file as of `load_keras`, or hf://USER/NAME.

    Raises:
        UserError: missing or corrupt file, another suffix, or as `check_own`.
    """
    if not is_on_hub(path) and os.path.splitext(path)[1] not in NETWORKS:
        raise UserError(
            f"{path}: a network of your own comes as {' or '.join(NETWORKS[:2])}: save it by "
            "model.save()"
        )
    model = load_keras(path)
    check_own(model, str(path))
    return model


def check_own(model: keras.Model, path: str) -> None:
    """Refuses what can't be searched.

    Raises:
        UserError: a network that was never built, with `path` in the message, or a graph that can't
            be read.
    """
    if not model.built:
        raise UserError(
            f"{path} was never built and has no weights: call it on a batch, model(x[:1]), and "
            "train it (and save it) then"
        )
    if has_graph(model):
        calls_of(model)


def check_fits(
    path: str | os.PathLike,
    inputs: Sequence[Shape | None],
    outputs: Sequence[Shape | None],
    num_classes: int,
    input_shape: tuple[int, ...],
) -> None:
    """Raises UserError unless the network of `path` has these classes and takes such examples.

    Args:
        inputs, outputs: the shapes of all of its inputs and outputs, without the batch; None in one
            is any size, None for one isn't known.
    """
    if len(inputs) > 1 or len(outputs) > 1:
        raise UserError(
            f"{path} has {len(inputs)} inputs and {len(outputs)} outputs, the data has images and "
            "labels alone: give the network's own data"
        )
    if outputs[0] is not None and outputs[0] != (num_classes,):
        raise UserError(
            f"{path} gives outputs of shape {outputs[0]}, the data has {num_classes} classes"
        )
    if inputs[0] is not None:
        pairs = zip(inputs[0], input_shape, strict=False)
        if len(inputs[0]) != len(input_shape) or any(a not in (None, b) for a, b in pairs):
            raise UserError(f"{path} takes inputs of shape {inputs[0]}, the data has {input_shape}")


def _from_pkl(path, arch: str, num_classes: int, input_shape) -> keras.Model:
    arrays = load_pkl(path)
    model = build(arch, num_classes, input_shape)
    widths = {
        layer.name: arrays[key].shape[-1]
        for layer in model.layers
        if (key := f"{layer.name.replace('_', '/')}/kernel:0") in arrays and arrays[key].ndim
    }
    try:
        resized_model = resized(model, widths)
    except ValueError as error:
        raise UserError(
            f"{path} holds filter counts that do not fit {arch}: {line_of(error)}"
        ) from None
    from_pkl(resized_model, arrays, path)
    return resized_model


def _from_h5(path: str, arch: str, num_classes: int, input_shape) -> keras.Model:
    model = build(arch, num_classes, input_shape)
    if not is_file(path):
        raise UserError(f"{path} does not exist")
    check_weights_file(path)
    try:
        model.load_weights(path)
    except Exception as error:  # h5py and keras each raise their own
        raise UserError(
            f"{path} holds no weights of {arch} with {num_classes} classes: {line_of(error)}"
        ) from error
    return model
