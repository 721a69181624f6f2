"""A folder of 32x32 images, {train,test}/<class>/*, read through tfds.ImageFolder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tensorflow as tf

from ..utils.errors import UserError
from .dataset import Split, make_split

SIDE = 32
SPLITS = ("train", "test")
READ_IMAGES = 500


def is_image_folder(path: Path) -> bool:
    """Whether path has the folders train and test."""
    return all((path / split).is_dir() for split in SPLITS)


def read(path: Path, num_classes: int) -> tuple[Split, Split, tuple[str, ...]]:
    """Reads every .jpg, .jpeg and .png as RGB.

    Classes are numbered in alphabetical order (for both CIFARs, the official one); examples
    are ordered by class, then by file name.

    Returns:
      (train, test, class names).

    Raises:
      UserError: another number of classes, an empty split, an image that cannot be decoded or
        is not 32x32; the file is named.
    """
    import tensorflow_datasets as tfds  # seconds to import, and needed by this source alone

    builder = tfds.ImageFolder(str(path))
    names = tuple(builder.info.features["label"].names)
    if len(names) != num_classes:
        raise UserError(
            f"{path}/{{{','.join(SPLITS)}}} hold {len(names)} class folders instead of "
            f"{num_classes}: is this the data set that was named?"
        )
    train, test = (_read_split(builder, path, split, num_classes) for split in SPLITS)
    return train, test, names


def _read_split(builder, path: Path, split: str, num_classes: int) -> Split:
    if split not in builder.info.splits or not builder.info.splits[split].num_examples:
        raise UserError(f"{path / split} holds no .jpg, .jpeg or .png images")

    def check(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        shape = tf.shape(example["image"])
        fits = tf.reduce_all(shape == [SIDE, SIDE, 3])
        blank = tf.zeros([SIDE, SIDE, 3], tf.uint8)
        image = tf.ensure_shape(tf.cond(fits, lambda: example["image"], lambda: blank), blank.shape)
        return example | {"image": image, "shape": shape}

    examples = builder.as_dataset(split=split, shuffle_files=False).map(check)
    try:
        read = list(examples.batch(READ_IMAGES).prefetch(1).as_numpy_iterator())
    except tf.errors.InvalidArgumentError as error:
        raise UserError(undecodable(path / split)) from error
    read = {key: np.concatenate([batch[key] for batch in read]) for key in read[0]}
    # tfds shuffles the files with a fixed seed; sorted names do not depend on its version.
    order = np.lexsort((read["image/filename"], read["label"]))
    read = {key: array[order] for key, array in read.items()}
    wrong = np.flatnonzero((read["shape"][:, :2] != SIDE).any(axis=1))
    if wrong.size:
        height, width = read["shape"][wrong[0], :2]
        raise UserError(
            f"{read['image/filename'][wrong[0]].decode()} is {height}x{width} pixels: "
            f"images must be {SIDE}x{SIDE} (CIFAR10 or CIFAR100)"
        )
    return make_split(read["image"], read["label"], num_classes, str(path / split))


def undecodable(folder: Path) -> str:
    """A message naming the first image in <class>/* that can't be decoded.

    It is looked for because parallel readers do not say which file failed.
    """
    for file in sorted(folder.glob("*/*")):
        if file.suffix.lower() in (".jpg", ".jpeg", ".png", ".bmp", ".gif"):
            try:
                tf.io.decode_image(file.read_bytes())
            except tf.errors.InvalidArgumentError:
                return f"{file} cannot be decoded: remove or replace it"
    return f"an image in {folder} cannot be decoded: remove or replace it"
