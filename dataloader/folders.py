"""Folders of the user's: {train,test}/<class>/* of images, or {train,test}/{images,masks}/*.

What fits into memory is read at once, what doesn't stays in its files.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..options.data import Data
from ..options.kinds import CLASSES, NUMBERS
from ..utils import progress
from ..utils.errors import UserError
from .dataset import Split, make_split
from .fit import Fit, Output
from .image_files import SUFFIXES, Listing, opened
from .imagenet import unreadable_named
from .indexed import in_threads, threads
from .photos import Masks, Photos, files
from .store import Memory

TEST_FOLDERS = ("test", "val")
CHANNELS = (1, 3)  # grey or RGB
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
    shape = fit.built_on or fit.input_shapes[0]
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
    train_names, test_names = (class_folders(folder) for folder in folders)
    for folder, found in zip(folders, (train_names, test_names), strict=True):
        if not found:
            raise UserError(f"{folder} has no class folders: {LAYOUT}")
    if differing := sorted(set(train_names) ^ set(test_names)):
        raise UserError(
            f"{folders[0]} and {folders[1]} differ in the class folders "
            f"{', '.join(differing[:3])}: both need every class"
        )
    train, test = (_read_split(folder, shape, train_names, memory) for folder in folders)
    empty = np.flatnonzero(np.bincount(train.targets, minlength=len(train_names)) == 0)
    if len(empty):
        raise UserError(f"{folders[0] / train_names[empty[0]]} has no image: every class needs one")
    return train, test, tuple(train_names)


def class_folders(folder: Path) -> list[str]:
    """Names of the folders in a folder, without hidden ones, in alphabetical order."""
    return sorted(
        entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "."
    )


def _read_split(
    folder: Path, shape: tuple[int, int, int], names: list[str], memory: Memory
) -> Split | Photos:
    listing = Listing(folder)
    for label, name in enumerate(names):
        listing.add(name, label, deep=True)
    if not listing.names:
        raise UserError(f"{folder} holds no images ({', '.join(SUFFIXES)})")
    listing.say_skipped()
    count, labels = len(listing.names), np.array(listing.labels, np.int32)
    streamed = not memory.take(count * int(np.prod(shape)))
    odd = opened(folder, listing.names, decode=streamed)
    split = files(folder, listing.names, labels, shape, odd)
    if streamed:
        _say_streamed(folder, count)
        return split
    whole = in_memory(split)
    return make_split(whole.inputs, whole.targets, len(names), str(folder))


def in_memory(split: Photos) -> Split:
    """All images of a split, uint8, and its targets.

    Raises:
      UserError: one that can't be decoded.
    """
    images = np.empty((len(split), *split.shape), np.uint8)
    targets = np.empty(split.targets.shape, split.targets.dtype)
    whole = len(split) // BATCH * BATCH
    order = np.arange(len(split), dtype=np.int32)
    for part in (order[:whole].reshape(-1, BATCH), order[None, whole:]):
        if not part.size:
            continue
        with unreadable_named():
            for rows, batch in zip(part, split.batches(part).as_numpy_iterator(), strict=True):
                images[rows], targets[rows] = batch["inputs"], batch["targets"]
    return Split(images, targets)


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
    per_mask = int(np.prod(column.shape[1:])) * column.dtype.itemsize
    streamed = not memory.take(len(stems) * (int(np.prod(shape)) + per_mask))
    names = [f"images/{images[stem].name}" for stem in stems]
    odd = opened(folder, names, decode=streamed)
    opened(folder, [f"masks/{masks[stem].name}" for stem in stems], decode=False)
    split = files(folder, names, column, shape, odd)
    if not streamed:
        return in_memory(split)
    for _ in in_threads(column.one, range(len(stems)), threads(None)):
        pass  # each mask is read once, so that a wrong one is named now
    _say_streamed(folder, len(stems))
    return split


def _by_stem(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise UserError(
            f"{folder} is no folder: for segmentation, data is {{train,test}}/images/* and "
            "{train,test}/masks/* of equal names, or module:function"
        )
    listing = Listing(folder.parent)
    listing.add(folder.name, 0)
    listing.say_skipped()
    return {Path(name).stem: folder.parent / name for name in listing.names}
