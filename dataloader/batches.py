"""tf.data pipelines: a split's uint8 images in memory -> normalised float32 batches.

Every batch is a dict with "image", "label" and "index" (the example's stable index).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf

from dataloader.augment import random_view
from dataloader.dataset import Dataset, Split
from utils.cli import UserError


def train_batches(
    data: Dataset,
    indices: np.ndarray | None,
    batch_images: int,
    *,
    seed: int,
    epoch: int,
    views: int,
    augment: bool,
    jitter: bool,
    rows: Mapping[str, np.ndarray] | None = None,
) -> tf.data.Dataset:
    """One shuffled epoch of training batches; the last, incomplete batch is dropped.

    The numbers depend on (seed, epoch) alone, not on threads: the order is drawn from them, and
    each batch's augmentation from them and the batch's number.

    Args:
      indices: integers [n], the training examples to use; None: all of them.
      batch_images: examples per batch. views: independently augmented views of each.
      augment: False leaves images as they are, whatever `jitter` says.
      jitter: also scale contrast and saturation.
      rows: arrays [training examples, ...], in memory or memory-mapped; the rows of a batch's
        examples are added to it under the same key, as float32.

    Returns:
      A finite dataset of dicts with static shapes: "image" float32 [batch, views, h, w, c],
      "label" int32 [batch], "index" int32 [batch], each key of rows float32 [batch, ...].

    Raises:
      UserError: fewer examples than one batch.
      ValueError: an index out of range, or rows of the wrong length or name.
    """
    indices = _checked_indices(data.train, indices)
    rows = _checked_rows(rows or {}, len(data.train))
    steps = len(indices) // batch_images
    if not steps:
        raise UserError(
            f"a batch of {batch_images} images needs at least as many training images, but only "
            f"{len(indices)} are used: choose a smaller batch or more images per class"
        )
    order = np.random.default_rng([seed, epoch]).permutation(indices)
    order = order[: steps * batch_images].reshape(steps, batch_images)
    normalise = _normaliser(data)
    settings = {"pad": data.pad, "flip": data.flip, "jitter": data.jitter if jitter else 0.0}

    def make(step: tf.Tensor, index: tf.Tensor) -> dict[str, tf.Tensor]:
        images = tf.cast(_rows_at(data.train.images, index), tf.float32)
        images = tf.repeat(images, views, axis=0)
        if augment:
            key = tf.random.fold_in(tf.constant([seed, epoch], tf.int64), step, alg="philox")
            images = random_view(images, key, **settings)
        images = tf.reshape(normalise(images), [batch_images, views, *data.image_shape])
        batch = {"image": images, "label": _rows_at(data.train.labels, index), "index": index}
        gathered = {key: _rows_at(array, index) for key, array in rows.items()}
        return batch | {key: tf.cast(value, tf.float32) for key, value in gathered.items()}

    batches = tf.data.Dataset.from_tensor_slices((np.arange(steps), order))
    return batches.map(make, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def eval_batches(
    data: Dataset,
    split: str,
    batch_images: int,
    *,
    indices: np.ndarray | None = None,
    shuffle_seed: int | None = 0,
) -> tf.data.Dataset:
    """Every example exactly once, without augmentation, in batches of almost equal size.

    There are ceil(n / batch_images) batches whose sizes differ by one at most: a small last
    batch would spoil batch normalisation by batch statistics.

    Args:
      split: "train" or "test".
      indices: integers [n], the examples to use; None: all of them.
      shuffle_seed: permutes the order (sources may be sorted by class); None keeps it.

    Returns:
      A finite dataset of dicts: "image" float32 [b, h, w, c], "label" int32 [b],
      "index" int32 [b]; b is static where all batches are equal.

    Raises:
      ValueError: an unknown split, an index out of range, or no example.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split {split!r} is neither 'train' nor 'test'")
    source: Split = getattr(data, split)
    order = _checked_indices(source, indices)
    if shuffle_seed is not None:
        order = np.random.default_rng(shuffle_seed).permutation(order)
    count = -(-len(order) // batch_images)
    # 10 examples in batches of at most 4 -> bounds 0, 3, 6, 10
    bounds = np.arange(count + 1) * len(order) // count
    static_size = len(order) // count if len(order) % count == 0 else None
    normalise = _normaliser(data)

    def make(start: tf.Tensor, end: tf.Tensor) -> dict[str, tf.Tensor]:
        index = tf.ensure_shape(_rows_at(order, tf.range(start, end)), [static_size])
        images = tf.cast(_rows_at(source.images, index), tf.float32)
        labels = _rows_at(source.labels, index)
        return {"image": normalise(images), "label": labels, "index": index}

    batches = tf.data.Dataset.from_tensor_slices((bounds[:-1], bounds[1:]))
    return batches.map(make, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def _checked_indices(split: Split, indices: np.ndarray | None) -> np.ndarray:
    if indices is None:
        return np.arange(len(split), dtype=np.int32)
    indices = np.asarray(indices)
    if not indices.size:
        raise ValueError("indices are empty")
    if indices.min() < 0 or indices.max() >= len(split):
        raise ValueError(f"an index lies outside 0..{len(split) - 1}")
    return indices.astype(np.int32)


def _checked_rows(rows: Mapping[str, np.ndarray], examples: int) -> Mapping[str, np.ndarray]:
    for key, array in rows.items():
        if key in ("image", "label", "index"):
            raise ValueError(f"rows may not be called {key!r}: every batch has that key")
        if len(array) != examples:
            raise ValueError(f"rows {key!r}: {len(array)} rows for {examples} training examples")
    return rows


def _normaliser(data: Dataset) -> Callable[[tf.Tensor], tf.Tensor]:
    return lambda images: (images - data.mean) / data.std


def _rows_at(array: np.ndarray, index: tf.Tensor) -> tf.Tensor:
    # NumPy reads the rows, not tf.gather: TensorFlow would first copy the whole array, in every
    # epoch, and could not map a file into memory.
    rows = tf.numpy_function(lambda index: array[index], [index], array.dtype, stateful=False)
    return tf.ensure_shape(rows, [*index.shape, *array.shape[1:]])
