"""Folders of the user's: {train,test}/<class>/* of images, or {train,test}/{images,masks}/*.

What fits into memory is read at once, what doesn't stays in its files.
"""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from ..options.data import Data
from ..options.kinds import CLASSES, NUMBERS
from ..utils import progress
from ..utils.errors import UserError
from .dataset import Split, make_split
from .fit import Fit, Output
from .image_folder import undecodable
from .imagenet import unreadable_named
from .photos import Masks, Photos, files
from .store import Memory

TEST_FOLDERS = ("test", "val")
CHANNELS = (1, 3)  # grey or RGB
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png")
BATCH = 64
LAYOUT = "data is a folder {train,test}/<class>/* (or val), or module:function"

Splits = tuple[Split | Photos, Split | Photos, tuple[str, ...]]


def read(path: Path, fit: Fit, options: Data) -> Splits:
    """Reads {train,test}/<class>/* (or val for test) or, for a dense output, images and masks.

    Images are resized as `keras.utils.image_dataset_from_directory` does, bilinear, the aspect
    ratio not kept, and rounded to uint8. Classes are numbered in alphabetical order, examples are
    ordered by class, then by file name. Masks are brought to the output's size by the nearest
    pixel.

    Args:
      options: `memory`, above which images stay in their files.

    Returns:
      (train, test, class names).

    Raises:
      UserError: no such folder, a split or its class folders missing, class folders that differ
        between the splits, an image without a mask, an image that can't be decoded, or a network
        that doesn't take images or doesn't give what the folder holds.
    """
    if not path.is_dir():
        raise UserError(f"{path} {'is a file' if path.exists() else 'does not exist'}: {LAYOUT}")
    shape = _image_shape(path, fit)
    tests = [path / name for name in TEST_FOLDERS if (path / name).is_dir()]
    if not (path / "train").is_dir() or not tests:
        missing = "test (or val)" if (path / "train").is_dir() else "train"
        raise UserError(f"{path} has no folder {missing}: {LAYOUT}")
    folders = (path / "train", tests[0])
    output, memory = fit.outputs[0], Memory(options.memory)
    if len(fit.outputs) > 1:
        raise UserError(f"{path} has one target per image, the network {len(fit.outputs)} outputs")
    if output.dense:
        return _pairs(folders, shape, output, memory)
    if output.kind != CLASSES:
        raise UserError(
            f"{path} holds images by class, but the network gives {output.kind}: give its data as "
            "module:function"
        )
    return _by_class(path, folders, shape, memory)


def _image_shape(path: Path, fit: Fit) -> tuple[int, int, int]:
    shape = fit.input_shapes[0]
    if len(fit.input_shapes) > 1 or shape is None or len(shape) != 3 or shape[-1] not in CHANNELS:
        takes = shape if len(fit.input_shapes) == 1 else fit.input_shapes
        raise UserError(
            f"{path} holds images, but the network takes {takes}: give its data as module:function"
        )
    if None in shape:
        raise UserError(
            f"{path} holds images, and the network takes {shape}, of any size: give a network with "
            "a fixed input size"
        )
    return shape


# ---------------------------------------------------------------- a folder per class


def _by_class(
    path: Path, folders: tuple[Path, Path], shape: tuple[int, int, int], memory: Memory
) -> Splits:
    train_names, test_names = (_class_folders(folder) for folder in folders)
    for folder, found in zip(folders, (train_names, test_names), strict=True):
        if not found:
            raise UserError(f"{folder} has no class folders: {LAYOUT}")
    if differing := sorted(set(train_names) ^ set(test_names)):
        raise UserError(
            f"{folders[0]} and {folders[1]} differ in the class folders "
            f"{', '.join(differing[:3])}: both need every class"
        )
    train, test = (_read_split(folder, shape, train_names, memory) for folder in folders)
    return train, test, tuple(train_names)


def _class_folders(folder: Path) -> list[str]:
    return sorted(
        entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "."
    )


def _read_split(
    folder: Path, shape: tuple[int, int, int], names: list[str], memory: Memory
) -> Split | Photos:
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
    if not memory.take(count * int(np.prod(shape))):
        _say_streamed(folder, count)
        inside = [str(Path(file).relative_to(folder)) for file in batches.file_paths]
        number = {name: label for label, name in enumerate(names)}
        labels = np.array([number[Path(name).parts[0]] for name in inside], np.int32)
        return files(folder, inside, labels, shape)
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


def _say_streamed(folder: Path, count: int) -> None:
    progress.say(
        f"{folder}: {count} images are more than the limit of memory (data_memory): each is read "
        "from its file when it is needed"
    )


# ---------------------------------------------------------------- images and masks


def _pairs(
    folders: tuple[Path, Path], shape: tuple[int, int, int], output: Output, memory: Memory
) -> Splits:
    if output.kind == NUMBERS or (output.kind != CLASSES and output.shape[-1] != 1):
        raise UserError(
            f"{folders[0]}: masks are for a network that gives classes or one probability per "
            f"pixel, this one gives {output.shape} {output.kind}: give its data as module:function"
        )
    if len(output.shape) != 3:
        raise UserError(f"{folders[0]}: masks are for outputs (h, w, c), not {output.shape}")
    train, test = (_read_pairs(folder, shape, output, memory) for folder in folders)
    classes = output.classes or 0
    return train, test, tuple(map(str, range(classes)))


def _read_pairs(
    folder: Path, shape: tuple[int, int, int], output: Output, memory: Memory
) -> Split | Photos:
    images, masks = (_by_stem(folder / name) for name in ("images", "masks"))
    for name, other in ((images, masks), (masks, images)):
        if alone := sorted(set(name) - set(other)):
            side = "mask" if name is images else "image"
            raise UserError(
                f"{name[alone[0]]} has no {side} of the same name: every image needs one "
                f"({len(alone)} such file(s))"
            )
    stems = sorted(images)
    if not stems:
        raise UserError(f"{folder / 'images'} holds no images ({', '.join(SUFFIXES)})")
    size = tuple(given or own for given, own in zip(output.shape[:2], shape[:2], strict=True))
    column = Masks([masks[stem] for stem in stems], size, output)
    split = files(folder, [f"images/{images[stem].name}" for stem in stems], column, shape)
    per_mask = int(np.prod(column.shape[1:])) * column.dtype.itemsize
    if not memory.take(len(stems) * (int(np.prod(shape)) + per_mask)):
        _say_streamed(folder, len(stems))
        return split
    whole = np.empty((len(stems), *shape), np.uint8)
    targets = np.empty(column.shape, column.dtype)
    for start in range(0, len(stems), BATCH):
        order = np.arange(start, min(start + BATCH, len(stems)), dtype=np.int32)
        with unreadable_named():
            batch = next(split.batches(order[None]).as_numpy_iterator())
        whole[order], targets[order] = batch["inputs"], batch["targets"]
    return Split(whole, targets)


def _by_stem(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise UserError(
            f"{folder} is no folder: for segmentation, data is {{train,test}}/images/* and "
            "{train,test}/masks/* of equal names, or module:function"
        )
    found = sorted(folder.iterdir())
    return {one.stem: one for one in found if one.suffix.lower() in SUFFIXES}
