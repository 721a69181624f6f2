"""Data from a function of the user's, "module:function" on the command line."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import sys
import traceback
from types import ModuleType
from typing import Any

import numpy as np
import tensorflow as tf

from ..utils.errors import UserError
from .dataset import Split, make_split


def call(spec: str, shape: tuple[int, ...]) -> tuple[Split, Split, tuple[str, ...]]:
    """Calls a function of the user's, without arguments, for the two splits.

    The function is found as Python finds modules, the current folder first. It returns
    `(train, test)`; each is either

    * a pair of numpy arrays: images [n, *shape], labels [n], [n, 1] or one-hot [n, classes], or
    * a finite `tf.data.Dataset` of (image, label), single or in batches.

    Images, or whatever the network takes, are uint8 (grey levels 0..255) or floating (they become
    float32); labels are integers from 0. Arrays keep their order. The examples of a
    `tf.data.Dataset` are sorted by a hash of their content, so that its shuffling does not matter;
    otherwise the same examples must come at every call, because the memory bank belongs to them.

    Args:
      shape: of what the network takes, without the batch: (height, width, channels).

    Returns:
      As `checked`.

    Raises:
      UserError: no such module or function, an exception in it, or another result than described.
    """
    return checked(_called(spec), shape, spec)


def checked(splits: Any, shape: tuple[int, ...], spec: str) -> tuple[Split, Split, tuple[str, ...]]:
    """The two splits that `call` describes.

    Args:
      shape: of what the network takes, without the batch. spec: for messages.

    Returns:
      (train, test, class names "0", "1", ...), as many classes as the largest label says.

    Raises:
      UserError: anything else than `call` describes.
    """
    if not isinstance(splits, tuple | list) or len(splits) != 2:
        raise UserError(f"{spec} returned {_kind(splits)}: a pair (train, test) is expected")
    arrays = []
    for name, one in zip(("train", "test"), splits, strict=True):
        origin = f"the {name} split of {spec}"
        images, labels = (
            _from_dataset(one, len(shape), origin) if _is_dataset(one) else _pair(one, origin)
        )
        arrays.append(_checked(np.asarray(images), np.asarray(labels), shape, origin))
    (train_images, train_labels), (test_images, test_labels) = arrays
    if train_images.dtype != test_images.dtype:
        raise UserError(
            f"{spec}: train images are {train_images.dtype}, test images {test_images.dtype}: both "
            "splits must be alike"
        )
    classes = 1 + int(max(train_labels.max(), test_labels.max()))
    train = make_split(train_images, train_labels, classes, f"the train split of {spec}")
    test = make_split(test_images, test_labels, classes, f"the test split of {spec}")
    return train, test, tuple(map(str, range(classes)))


def _called(spec: str):
    module_name, _, function_name = spec.partition(":")
    module = import_module(
        module_name, f"folder and no Python module {module_name} for the data {spec}"
    )
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UserError(f"{module.__file__} has no function {function_name!r} for the data {spec}")
    try:
        inspect.signature(function).bind()
    except TypeError:
        raise UserError(f"{spec} asks for arguments: it is called without any") from None
    try:
        return function()
    except Exception as error:  # the user's code may raise anything
        raise UserError(f"{spec} failed: {_where(error)}") from error


def import_module(name: str, missing: str = "") -> ModuleType:
    """Imports a module of the user's as Python finds it, the current folder first.

    Args:
      missing: what there isn't then, in words.

    Raises:
      UserError: there is none, or importing it fails.
    """
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name in (name, name.split(".")[0]):
            raise UserError(
                f"there is no {missing or f'Python module {name}'}: work in the folder where the "
                "module is, or give that folder by PYTHONPATH"
            ) from None
        raise UserError(f"{name} can't be imported: {_where(error)}") from error
    except Exception as error:  # the user's code may raise anything
        raise UserError(f"{name} can't be imported: {_where(error)}") from error


def _where(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({frame.filename}, line {frame.lineno})"


def _kind(value) -> str:
    length = f" of {len(value)}" if isinstance(value, tuple | list) else ""
    return f"a {type(value).__name__}{length}"


def _is_dataset(value) -> bool:
    return isinstance(value, tf.data.Dataset)


def _pair(value, origin: str):
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise UserError(
            f"{origin} is {_kind(value)}: a tf.data.Dataset or a pair (images, labels) of arrays "
            "is expected"
        )
    return value


def _from_dataset(
    dataset: tf.data.Dataset, rank: int, origin: str
) -> tuple[np.ndarray, np.ndarray]:
    """All examples of a data set of single examples of this rank, or of batches of these."""
    spec = dataset.element_spec
    if not isinstance(spec, tuple) or len(spec) != 2:
        raise UserError(f"{origin} has elements {spec}: (image, label) is expected")
    if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise UserError(f"{origin} never ends: leave out its .repeat()")
    if spec[0].shape.rank == rank + 1:
        dataset = dataset.unbatch()
    examples = list(dataset.as_numpy_iterator())
    shapes = {image.shape for image, _ in examples}
    if len(shapes) != 1:
        found = f"sizes {sorted(shapes)[:3]}" if shapes else "no image at all"
        raise UserError(f"{origin} has {found}: all images must be of the network's size")
    examples.sort(key=_content_hash)
    return tuple(np.stack(column) for column in zip(*examples, strict=True))


def _content_hash(example: tuple[np.ndarray, np.ndarray]) -> bytes:
    image, label = example
    return hashlib.blake2b(image.tobytes() + label.tobytes(), digest_size=16).digest()


def _checked(
    images: np.ndarray, labels: np.ndarray, shape: tuple[int, ...], origin: str
) -> tuple[np.ndarray, np.ndarray]:
    if images.shape[1:] != shape:
        grey = " (images[..., None])" if (*images.shape[1:], 1) == shape else ""
        raise UserError(
            f"{origin} has images of shape {images.shape[1:]}: the network takes {shape}{grey}"
        )
    if images.dtype != np.uint8:
        if not np.issubdtype(images.dtype, np.floating):
            raise UserError(f"{origin} has {images.dtype} images: uint8 or floats are expected")
        images = images.astype(np.float32)
        if not np.isfinite(images).all():
            raise UserError(f"{origin} has images with NaN or infinite values: clean the data")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]  # as keras.datasets gives them
    elif _one_hot(labels):
        labels = labels.argmax(1)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"{origin} has {labels.dtype} labels of shape {labels.shape}: integers [n], or rows of "
            "zeros with a single one, are expected"
        )
    if not len(labels):
        raise UserError(f"{origin} is empty")
    return images, labels


def _one_hot(labels: np.ndarray) -> bool:
    """Whether labels [n, classes] are rows of zeros with a single one."""
    plain = labels.ndim == 2 and labels.dtype.kind in "biuf"
    return plain and bool(np.isin(labels, (0, 1)).all() and (labels.sum(1) == 1).all())
