"""A folder of 32x32 images, {train,test}/<class>/*, such as CIFAR's as PNG or JPEG."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..utils.errors import UserError
from .dataset import Split, make_split
from .folders import class_folders, in_memory
from .image_files import SUFFIXES, Listing, opened
from .photos import files

SIDE = 32
SPLITS = ("train", "test")


def is_image_folder(path: Path) -> bool:
    """Whether path has the folders train and test."""
    return all((path / split).is_dir() for split in SPLITS)


def read(path: Path, num_classes: int) -> tuple[Split, Split, tuple[str, ...]]:
    """Reads every image as RGB.

    Classes are numbered in alphabetical order (for both CIFARs, the official one); examples
    are ordered by class, then by file name.

    Returns:
      (train, test, class names).

    Raises:
      UserError: another number of classes, an empty split, an image that cannot be decoded or
        is not 32x32; the file is named.
    """
    names = sorted({name for split in SPLITS for name in class_folders(path / split)})
    if len(names) != num_classes:
        raise UserError(
            f"{path}/{{{','.join(SPLITS)}}} hold {len(names)} class folders instead of "
            f"{num_classes}: is this the data set that was named?"
        )
    train, test = (_read_split(path / split, names) for split in SPLITS)
    return train, test, tuple(names)


def _read_split(folder: Path, names: list[str]) -> Split:
    listing = Listing(folder)
    for label, name in enumerate(names):
        listing.add(name, label)
    if not listing.names:
        raise UserError(f"{folder} holds no images ({', '.join(SUFFIXES)})")
    listing.say_skipped()
    odd = opened(folder, listing.names, decode=False, size=(SIDE, SIDE))
    labels = np.array(listing.labels, np.int32)
    split = in_memory(files(folder, listing.names, labels, (SIDE, SIDE, 3), odd))
    return make_split(split.inputs, split.targets, len(names), str(folder))
