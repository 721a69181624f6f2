"""The two records every source fills: a split, and a data set of two splits.

`Dataset` holds its images in memory; `dataloader.imagenet.ImageFiles` has the same methods and
reads them when they are needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import tensorflow as tf

from ..utils.errors import UserError
from ..utils.provenance import digest
from .augment import random_view


@dataclass(frozen=True, eq=False)
class Split:
    """Row i is the example with the stable index i.

    inputs: uint8 [n, height, width, channels], grey levels 0..255; from a function of the user's
    (`dataloader.own`) also float32, and of any shape [n, ...]. targets: int32 [n].
    """

    inputs: np.ndarray
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test split with what is needed to normalise and augment them.

    mean, std: float32 [channels], in grey levels 0..255.
    pad: reflected pixels on each side before a random crop; flip: mirror images at random;
    jitter: contrast and saturation are scaled by a factor from 1 - jitter to 1 + jitter.
    subset_per_class, val_per_class: default sizes of D_subset and D_val, images per class.
    """

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    mean: np.ndarray
    std: np.ndarray
    pad: int
    flip: bool
    jitter: float
    subset_per_class: int
    val_per_class: int

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(height, width, channels), or what else the network takes."""
        return self.train.inputs.shape[1:]

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) of the training images and labels, in order, with their shapes."""
        return digest((self.train.inputs, self.train.targets))

    def plain(self, split: Split, order: np.ndarray) -> tf.data.Dataset:
        """The images as they are, before normalisation.

        Args:
          split: train or test. order: int32 [batches, size], example indices.

        Returns:
          A dataset of `batches` tensors float32 [size, h, w, c], 0..255.
        """

        def make(index: tf.Tensor) -> tf.Tensor:
            return tf.cast(rows_at(split.inputs, index), tf.float32)

        return tf.data.Dataset.from_tensor_slices(order).map(make, tf.data.AUTOTUNE)

    def views(
        self, order: np.ndarray, views: int, *, seed: int, epoch: int, jitter: bool
    ) -> tf.data.Dataset:
        """Independently augmented views of training images, before normalisation.

        The numbers depend on (seed, epoch) and the place in `order` alone.

        Args:
          order: int32 [batches, size], indices of training examples. jitter: also the colours.

        Returns:
          A dataset of `batches` tensors float32 [size, views, h, w, c], 0..255.
        """
        settings = {"pad": self.pad, "flip": self.flip, "jitter": self.jitter if jitter else 0.0}

        def make(step: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
            images = tf.cast(rows_at(self.train.inputs, index), tf.float32)
            key = tf.random.fold_in(tf.constant([seed, epoch], tf.int64), step, alg="philox")
            images = random_view(tf.repeat(images, views, axis=0), key, **settings)
            return tf.reshape(images, [order.shape[1], views, *self.image_shape])

        steps = np.arange(len(order))
        return tf.data.Dataset.from_tensor_slices((steps, order)).map(make, tf.data.AUTOTUNE)


def rows_at(array: np.ndarray, index: tf.Tensor, dtype: type | None = None) -> tf.Tensor:
    """array[index] in a tf.data graph, as dtype or the array's; index integers [n]."""
    # NumPy reads the rows, not tf.gather: TensorFlow would first copy the whole array, in every
    # epoch, and could not map a file into memory.
    dtype = np.dtype(dtype or array.dtype)

    def read(index: np.ndarray) -> np.ndarray:
        return array[index].astype(dtype, copy=False)

    rows = tf.numpy_function(read, [index], dtype, stateful=False)
    return tf.ensure_shape(rows, [*index.shape, *array.shape[1:]])


def make_split(images: np.ndarray, labels: np.ndarray, num_classes: int, origin: str) -> Split:
    """Checks and wraps one split (or one file of it).

    Args:
      images: uint8 [n, h, w, c]. labels: integers [n]. origin: where they came from, for messages.

    Raises:
      UserError: no example, another number of labels than images, a label outside
        0..num_classes-1.
    """
    labels = np.asarray(labels)
    if not len(images):
        raise UserError(f"{origin} holds no images: download or unpack it again")
    if labels.shape != (len(images),):
        raise UserError(
            f"{origin} holds {len(images)} images but {labels.size} labels: download it again"
        )
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if wrong.size:
        raise UserError(
            f"{origin}: label {labels[wrong[0]]} of example {wrong[0]} is outside "
            f"0..{num_classes - 1}: is this the data set that was named?"
        )
    return Split(images, labels.astype(np.int32))
