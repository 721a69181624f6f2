"""The user's own data: a folder of images, or a function of the user's that returns both splits.

No normalisation unless asked for: a .keras network mostly has its own, as a layer.
"""

from __future__ import annotations

import os
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from ..options.data import Data
from ..options.recipes import OWN
from ..utils.errors import UserError
from .dataset import Dataset, Split, make_split
from .image_folder import undecodable
from .own_function import call

NAME = OWN
DEFAULT = Data()
TEST_FOLDERS = ("test", "val")
CHANNELS = (1, 3)  # of images that have colours: grey or RGB
LARGEST_VALIDATION, LARGEST_SUBSET = 32, 256  # images per class, as for CIFAR
MEMORY_SHARE = 0.5  # of the machine's memory that the images may take


def load(source: str, shape: tuple[int, ...], options: Data = DEFAULT) -> Dataset:
    """Loads both splits into memory.

    Args:
      source: a folder, see `read_folder`, or "module:function", see `call`.
      shape: of what the network takes, without the batch: (height, width, channels), or anything
        that a function returns.
      options: as of `dataset`.

    Raises:
      UserError: as `read_folder`, `call` and `dataset`.
    """
    if Path(source).expanduser().exists() or ":" not in source:
        splits = read_folder(Path(source).expanduser(), shape)
    else:
        splits = call(source, shape)
    return dataset(*splits, options)


def dataset(
    train: Split,
    test: Split,
    names: tuple[str, ...],
    options: Data = DEFAULT,
) -> Dataset:
    """The data set of two splits of the user's.

    Args:
      names: of the classes.
      options: mean and std per channel or one for all, the network gets (image - mean) / std;
        flip: mirror images at random in training; crop: pixels that crops in training are padded
        by, None for an eighth of the shorter side.

    Returns:
      A Dataset named "own". D_val gets a fifth of the smallest class, at most 32 images of each,
      D_subset the rest, at most 256. Images alone are augmented; contrast and saturation are
      jittered for uint8 images of 1 or 3 channels, since floats have no known black and white.

    Raises:
      UserError: mean or std of a wrong length, a std that is not above 0, a crop that is not
        smaller than the image, a class with fewer than 2 training images.
    """
    shape = train.inputs.shape[1:]
    channels = shape[-1]
    mean, std = options.mean, options.std
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, channels):
            raise UserError(
                f"the {name} of the data has {len(values)} numbers: give one, or one per channel "
                f"({channels})"
            )
    if min(std) <= 0:
        raise UserError(
            f"the std of the data holds {min(std):g}: pixels are divided by it, so above 0"
        )
    sizes = np.bincount(train.targets, minlength=len(names))
    smallest = int(sizes.argmin())
    if sizes[smallest] < 2:
        raise UserError(
            f"class {names[smallest]} has {sizes[smallest]} training images: at least 2 are "
            "needed, one to adapt on and one to choose by"
        )
    validation = max(1, min(LARGEST_VALIDATION, int(sizes[smallest]) // 5))
    pictures = len(shape) == 3
    coloured = pictures and train.inputs.dtype == np.uint8 and channels in CHANNELS
    return Dataset(
        name=NAME,
        train=train,
        test=test,
        class_names=names,
        mean=np.broadcast_to(np.array(mean, np.float32), [channels]).copy(),
        std=np.broadcast_to(np.array(std, np.float32), [channels]).copy(),
        pad=_padding(shape, options.crop),
        flip=options.flip and pictures,
        jitter=0.2 if coloured else 0.0,
        subset_per_class=min(LARGEST_SUBSET, int(sizes[smallest]) - validation),
        val_per_class=validation,
    )


def _padding(shape: tuple[int, ...], crop: int | None) -> int:
    most = min(shape[:2]) - 1 if len(shape) == 3 else 0
    if crop is None:
        return min(most, max(1, (most + 1) // 8))
    if crop > most:
        raise UserError(f"a crop of {crop} is too much for inputs {shape}: at most {most}")
    return crop


def read_folder(path: Path, shape: tuple[int, ...]) -> tuple[Split, Split, tuple[str, ...]]:
    """Reads {train,test}/<class>/* (or val for test), images resized as Keras does by default.

    That is `keras.utils.image_dataset_from_directory`: bilinear, the aspect ratio not kept; grey
    levels are rounded to uint8. Classes are numbered in alphabetical order, examples are ordered by
    class, then by file name.

    Returns:
      (train, test, class names).

    Raises:
      UserError: no such folder, a split or its class folders missing, class folders that differ
        between the splits, an image that can't be decoded, more images than fit in memory, or a
        shape that is not (height, width, 1 or 3).
    """
    layout = "data is a folder {train,test}/<class>/* (or val), or module:function"
    if not path.is_dir():
        raise UserError(f"{path} {'is a file' if path.exists() else 'does not exist'}: {layout}")
    if len(shape) != 3 or shape[-1] not in CHANNELS:
        raise UserError(
            f"{path} holds images, but the network takes {shape}: give its data as module:function"
        )
    tests = [path / name for name in TEST_FOLDERS if (path / name).is_dir()]
    if not (path / "train").is_dir() or not tests:
        missing = "test (or val)" if (path / "train").is_dir() else "train"
        raise UserError(f"{path} has no folder {missing}: {layout}")
    names = {folder: _class_folders(folder) for folder in (path / "train", tests[0])}
    for folder, found in names.items():
        if not found:
            raise UserError(f"{folder} has no class folders: {layout}")
    train_names, test_names = names.values()
    if differing := sorted(set(train_names) ^ set(test_names)):
        raise UserError(
            f"{path / 'train'} and {tests[0]} differ in the class folders "
            f"{', '.join(differing[:3])}: both need every class"
        )
    train, test = (_read_split(folder, shape, train_names) for folder in names)
    return train, test, tuple(train_names)


def _class_folders(folder: Path) -> list[str]:
    return sorted(
        entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "."
    )


def _read_split(folder: Path, shape: tuple[int, int, int], names: list[str]) -> Split:
    try:
        batches = keras.utils.image_dataset_from_directory(
            folder,
            labels="inferred",
            label_mode="int",
            class_names=names,
            color_mode="grayscale" if shape[-1] == 1 else "rgb",
            image_size=shape[:2],
            batch_size=256,
            shuffle=False,
            verbose=False,
        )
    except ValueError as error:
        raise UserError(f"{folder} can't be read: {str(error).splitlines()[0]}") from error
    count = len(batches.file_paths)
    _check_memory(count, shape, folder)
    images = np.empty((count, *shape), np.uint8)
    labels = np.empty(count, np.int32)
    start = 0
    try:
        for batch, batch_labels in batches:
            end = start + len(batch_labels)
            images[start:end] = np.clip(np.round(batch.numpy()), 0, 255)
            labels[start:end] = batch_labels
            start = end
    except tf.errors.InvalidArgumentError as error:
        raise UserError(undecodable(folder)) from error
    return make_split(images, labels, len(names), str(folder))


def _check_memory(count: int, shape: tuple[int, int, int], folder: Path) -> None:
    needed = count * int(np.prod(shape))
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > MEMORY_SHARE * there:
        raise UserError(
            f"{folder} needs {needed / 2**30:.1f} GiB for {count} images of {shape}, more than "
            "half of this machine's memory: use a network with smaller images or fewer images"
        )
