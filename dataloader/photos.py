"""Photographs of the user's that stay in their files, alone or in pairs with masks.

Resized as `keras.utils.image_dataset_from_directory` does: bilinear, the aspect ratio not kept;
grey levels are rounded to whole numbers, as where they are held in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image

from ..options.kinds import CLASSES
from ..utils.errors import UserError
from .dataset import Tree, rows_at
from .fit import Output
from .image_files import reader
from .imagenet import FileSplit, decoded

WHITE = 255  # of a mask that is black and white
INDEXED = ("1", "L", "P", "I", "I;16")  # PIL's modes of one number per pixel


class Masks:
    """Masks in PNG files, read as from an array [n, h, w] of classes or [n, h, w, 1] of 0 and 1."""

    def __init__(self, paths: Sequence[Path], size: tuple[int, int], output: Output):
        """
        Args:
            size: height and width that they are brought to, by the nearest pixel.
            output: of the network, classes or one sigmoid.
        """
        self._paths, self._size, self._output = paths, size, output
        classes = output.kind == CLASSES
        self.dtype = np.dtype(np.int32 if classes else np.float32)
        self.shape = (len(paths), *size) if classes else (len(paths), *size, 1)
        self.ndim = len(self.shape)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: Any) -> np.ndarray:
        """The masks of integers [n] or of a slice, in memory."""
        places = np.arange(len(self))[index]
        rows = np.empty((places.size, *self.shape[1:]), self.dtype)
        for row, place in enumerate(places.ravel()):
            rows[row] = self.one(int(place))
        return rows.reshape(*places.shape, *self.shape[1:])

    def one(self, index: int) -> np.ndarray:
        """One mask.

        Raises:
          UserError: a file that is no mask, or numbers that the network has no class for.
        """
        path, output = self._paths[index], self._output
        try:
            with Image.open(path) as image:
                mode, pixels = image.mode, np.asarray(image)
        except Exception as error:  # PIL's readers of damaged files raise almost anything
            raise UserError(f"{path} cannot be decoded: remove or replace it") from error
        if mode not in INDEXED:
            if pixels.ndim != 3 or (pixels[..., :1] != pixels[..., :3]).any():
                raise UserError(f"{path} is a colour picture: a mask has one number per pixel")
            pixels = pixels[..., 0]
        (height, width), (h, w) = pixels.shape, self._size
        rows = ((np.arange(h) + 0.5) * height / h).astype(int)
        columns = ((np.arange(w) + 0.5) * width / w).astype(int)
        mask = pixels[rows[:, None], columns].astype(np.int32)
        count = output.classes if output.kind == CLASSES else 2
        if count == 2 and output.ignored != WHITE and np.isin(mask, (0, WHITE)).all():
            mask //= WHITE
        counting = mask if output.ignored is None else mask[mask != output.ignored]
        most = counting.max(initial=0)
        if counting.min(initial=0) < 0 or (count is not None and most >= count):
            raise UserError(
                f"{path} holds the number {most}: the network tells {count} classes apart, "
                f"numbered from 0{' (or black and white)' if count == 2 else ''}"
            )
        return mask if output.kind == CLASSES else mask[..., None].astype(np.float32)


@dataclass(frozen=True, eq=False)
class Photos(FileSplit):
    """Images of any size, brought to one when they are read.

    targets: int32 [n], or the `Masks`. shape: (height, width, channels) of the network's.
    """

    shape: tuple[int, int, int] = field(kw_only=True)

    @property
    def input_shapes(self) -> tuple[int, ...]:
        """(height, width, channels)."""
        return self.shape

    def check(self, index: int) -> None:
        """Raises UserError where it is the mask that can't be read."""
        if isinstance(self.targets, Masks):
            self.targets.one(index)

    def batches(self, order: np.ndarray) -> tf.data.Dataset:
        """See `Split.batches`."""
        masks = self.targets if isinstance(self.targets, Masks) else None
        like: dict[str, tf.TensorSpec] = {"inputs": tf.TensorSpec(self.shape, tf.float32)}
        if masks is not None:
            like["targets"] = tf.TensorSpec(masks.shape[1:], masks.dtype)

        def make(data: tf.Tensor, index: tf.Tensor) -> dict[str, tf.Tensor]:
            example = {"inputs": resized(data, self.shape)}
            if masks is not None:
                example["targets"] = rows_at(masks, index)
            return example

        batches = decoded(self, order, make, like)
        if masks is not None:
            return batches

        def complete(example: dict[str, Tree], index: tf.Tensor) -> dict[str, Tree]:
            return example | {"targets": rows_at(self.targets, index)}

        numbered = tf.data.Dataset.zip(batches, tf.data.Dataset.from_tensor_slices(order))
        return numbered.map(complete, tf.data.AUTOTUNE)


def files(
    folder: Path,
    names: Sequence[str],
    targets: np.ndarray | Masks,
    shape: tuple[int, int, int],
    odd: np.ndarray,
) -> Photos:
    """The images of these names in a folder; `odd` as of `image_files.opened`."""
    return Photos(
        names=list(names),
        sizes=np.array([(folder / name).stat().st_size for name in names], np.int64),
        targets=targets,
        read=reader(folder, names, odd),
        folder=str(folder),
        shape=shape,
    )


def resized(data: tf.Tensor, shape: tuple[int, int, int]) -> tf.Tensor:
    """The encoded image as float32 `shape`, whole grey levels 0..255."""
    image = tf.io.decode_image(data, channels=shape[-1], expand_animations=False)
    image = tf.image.resize(tf.ensure_shape(image, [None, None, shape[-1]]), shape[:2])
    return tf.ensure_shape(tf.clip_by_value(tf.round(image), 0.0, 255.0), shape)
