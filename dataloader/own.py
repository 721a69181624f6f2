"""The user's own data: a folder of images, a function that returns both splits, or what Python has.

No normalisation unless asked for: a .keras network mostly has its own, as a layer.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from ..options.data import Data
from ..options.recipes import OWN
from ..utils import progress
from ..utils.errors import UserError
from . import folders
from .augmenting import Augment
from .dataset import Dataset, Split
from .fit import Fit, Shape
from .own_function import call
from .photos import Photos

NAME = OWN
DEFAULT = Data()
CHANNELS = (1, 3)  # of images that have colours: grey or RGB
RGB = 3
VALIDATION, SUBSET = 32, 256  # images per class at most, as for CIFAR
FEW_CLASSES = 160  # images for validation in all at most, where that is more
SHARE = 5  # one of so many images of a class is for validation
NAMED = 3  # classes in a message
AUGMENTED = 8  # examples that an augmentation is tried on


def load(source: str, fit: Fit | Shape, options: Data = DEFAULT) -> Dataset:
    """Loads both splits of a data set of the user's.

    Args:
      source: a folder, see `folders.read`, or "module:function", see `own_function.call`.
      fit: what the network takes and gives; a shape (height, width, channels) alone means a
        classifier of such inputs.
      options: as of `dataset`.

    Raises:
      UserError: as `folders.read`, `own_function.call` and `dataset`.
    """
    fit = fit if isinstance(fit, Fit) else Fit.of_images(tuple(fit))
    if Path(source).expanduser().exists() or ":" not in source:
        splits = folders.read(Path(source).expanduser(), fit, options)
    else:
        splits = call(source, fit, options)
    return dataset(*splits, options)


def dataset(
    train: Split,
    test: Split,
    names: tuple[str, ...],
    options: Data = DEFAULT,
) -> Dataset:
    """The data set of two splits of the user's.

    Args:
      names: of the classes; () unless the only output tells classes apart.
      options: mean and std per channel or one for all, the network gets (image - mean) / std;
        flip: mirror images at random in training; crop: pixels that crops in training are padded
        by, None for an eighth of the shorter side; augment: takes the place of both.

    Returns:
      A Dataset named "own". Where every example is of one class, D_val gets a fifth of the class
      of the middle size from each, at most 32 images or what makes 160 in all, D_subset the rest,
      at most eight times as many; else, and where most classes have a single image, examples are
      drawn at random. Unless asked for, images of one class each are augmented alone. Contrast
      and saturation are jittered for uint8 images of 1 or 3 channels, since floats have no known
      black and white.

    Raises:
      UserError: mean or std of a wrong length, a std that is not above 0, a crop that is not
        smaller than the image, flip, crop, mean or std for inputs that don't have them, fewer than
        2 training examples, or as `Augment.checked`.
    """
    several = isinstance(train.input_shapes, tuple) and isinstance(
        next(iter(train.input_shapes), None), tuple
    )
    mean, std = _normalisation(train, options, several)
    pictures = not several and len(train.input_shapes) == 3
    blank = Dataset(NAME, train, test, names, mean, std, 0, False, 0.0, None, None)
    exclusive = blank.labels is not None
    if (options.flip or options.crop) and several:
        raise UserError("flip and crop are for networks with one input: give augment= instead")
    if options.flip and not pictures:
        raise UserError(f"flip is for images, the network takes {train.input_shapes}: leave it out")
    automatic = pictures and exclusive and options.augment is None
    crop = options.crop if automatic or options.crop else 0
    # Grey images are often digits, text or spectrograms, which mean something else in a mirror.
    photos = automatic and train.input_shapes[-1] == RGB
    flip = photos if options.flip is None else options.flip
    found = replace(
        blank,
        pad=0 if several else _padding(train.input_shapes, crop),
        flip=bool(flip),
        **(_class_sizes(blank) if exclusive else {}),
    )
    if len(train) < 2:
        raise UserError("there is 1 training example: at least 2 are needed, one to choose by")
    if options.augment is not None:
        batch = np.arange(min(len(train), AUGMENTED), dtype=np.int32)[None]
        augment = Augment(options.augment).checked(found.plain(train, batch))
        return replace(found, augment=augment)
    if found.pad or found.flip:
        _check_targets_move(found)
    masks = found.moves_targets and train_targets_are_masks(found)
    coloured = pictures and _dtype(train) == np.uint8 and train.input_shapes[-1] in CHANNELS
    return replace(found, jitter=0.2 if coloured and (exclusive or masks) else 0.0)


def train_targets_are_masks(data: Dataset) -> bool:
    """Whether every target lies on the image's pixels."""
    return all(_on_pixels(one, data) for one in tf.nest.flatten(data.train.targets))


def _on_pixels(target: Any, data: Dataset) -> bool:
    return len(target.shape) in (3, 4) and tuple(target.shape[1:3]) == data.image_shape[:2]


def _check_targets_move(data: Dataset) -> None:
    for target in tf.nest.flatten(data.train.targets):
        if len(target.shape) > 2 and not _on_pixels(target, data):
            raise UserError(
                f"flip and crop would move images {data.image_shape}, but not their targets "
                f"{tuple(target.shape[1:])}: give augment= instead"
            )


def _dtype(split: Split) -> np.dtype:
    return np.dtype(np.uint8) if isinstance(split, Photos) else split.inputs.dtype


def _normalisation(train: Split, options: Data, several: bool) -> tuple[np.ndarray, np.ndarray]:
    """Mean and std, float32 [channels]."""
    if several:
        if (options.mean, options.std) != (DEFAULT.mean, DEFAULT.std):
            raise UserError(
                "mean and std are for networks with one input: put a Normalization layer into the "
                "network instead"
            )
        return np.zeros(1, np.float32), np.ones(1, np.float32)
    channels = train.input_shapes[-1] if train.input_shapes else 1
    for name, values in (("mean", options.mean), ("std", options.std)):
        if len(values) not in (1, channels):
            raise UserError(
                f"the {name} of the data has {len(values)} numbers: give one, or one per channel "
                f"({channels})"
            )
    if min(options.std) <= 0:
        raise UserError(
            f"the std of the data holds {min(options.std):g}: pixels are divided by it, so above 0"
        )
    shape = [channels] if train.input_shapes else []
    mean, std = (
        np.broadcast_to(np.array(values, np.float32).reshape([-1] if shape else []), shape).copy()
        for values in (options.mean, options.std)
    )
    return mean, std


def _class_sizes(data: Dataset) -> dict[str, int]:
    """Sizes of D_subset and D_val for each class, by the class of the middle size; {} where that
    is a single image."""
    names, sizes = data.class_names, np.bincount(data.labels, minlength=len(data.class_names))
    there = sizes[sizes > 0]
    if len(there) < len(sizes):
        absent = [names[k] for k in np.flatnonzero(sizes == 0)]
        progress.warn(
            f"{len(absent)} of the {len(names)} classes have no training images: "
            f"{', '.join(absent[:NAMED])}{', ...' if len(absent) > NAMED else ''}"
        )
    middle = int(np.median(there))
    if middle < 2:
        return {}
    most = max(VALIDATION, FEW_CLASSES // len(there))
    validation = max(1, min(most, middle // SHARE))
    return {
        "subset_per_class": min(most * SUBSET // VALIDATION, middle - validation),
        "val_per_class": validation,
    }


def _padding(shape: tuple[int, ...], crop: int | None) -> int:
    most = min(shape[:2]) - 1 if len(shape) == 3 else 0
    if crop is None:
        return min(most, max(1, (most + 1) // 8))
    if crop > most:
        raise UserError(f"a crop of {crop} is too much for inputs {shape}: at most {most}")
    return crop
