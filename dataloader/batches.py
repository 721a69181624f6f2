"""tf.data pipelines: a data set's images, in memory or in files -> normalised float32 batches.

Every batch is a dict with "inputs", "targets" and "index" (the example's stable index).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf

from ..utils.errors import UserError
from .dataset import Dataset, Split, rows_at

READ_IMAGES = 64  # at a time, where they are to lie in memory


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
      A finite dataset of dicts with static shapes: "inputs" float32 [batch, views, h, w, c],
      "targets" int32 [batch], "index" int32 [batch], each key of rows float32 [batch, ...].

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
    if augment:
        images = data.views(order, views, seed=seed, epoch=epoch, jitter=jitter)
    else:
        images = data.plain(data.train, order)
        images = images.map(lambda batch: tf.repeat(batch[:, None], views, axis=1))

    def complete(images: tf.Tensor, index: tf.Tensor) -> dict[str, tf.Tensor]:
        labels = rows_at(data.train.targets, index)
        batch = {"inputs": (images - data.mean) / data.std, "targets": labels, "index": index}
        # NumPy casts the bank's float16: oneDNN would print that it has no kernel for it.
        return batch | {key: rows_at(array, index, np.float32) for key, array in rows.items()}

    return _with_images(images, order, complete)


def eval_batches(
    data: Dataset,
    split: str,
    batch_images: int,
    *,
    indices: np.ndarray | None = None,
    shuffle_seed: int | None = 0,
    first_batch: int = 0,
) -> tf.data.Dataset:
    """Every example exactly once, without augmentation, in batches of almost equal size.

    There are ceil(n / batch_images) batches whose sizes differ by one at most: a small last
    batch would spoil batch normalisation by batch statistics.

    Args:
      split: "train" or "test".
      indices: integers [n], the examples to use; None: all of them.
      shuffle_seed: permutes the order (sources may be sorted by class); None keeps it.
      first_batch: so many batches are left out at the beginning, without reading their images.

    Returns:
      A finite dataset of dicts: "inputs" float32 [b, h, w, c], "targets" int32 [b],
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
    small, large = count - len(order) % count, len(order) % count
    size = len(order) // count
    # 11 examples in batches of at most 4 -> sizes 3, 4, 4
    parts = [
        order[: small * size].reshape(small, size)[first_batch:],
        order[small * size :].reshape(large, size + 1)[max(0, first_batch - small) :],
    ]

    def complete(images: tf.Tensor, index: tf.Tensor) -> dict[str, tf.Tensor]:
        labels = rows_at(source.targets, index)
        return {"inputs": (images - data.mean) / data.std, "targets": labels, "index": index}

    batches = [
        _with_images(data.plain(source, part), part, complete) for part in parts if len(part)
    ]
    if not batches:
        raise ValueError(f"there are only {count} batches, none from number {first_batch} on")
    return functools.reduce(tf.data.Dataset.concatenate, batches)


def normalised_images(data: Dataset, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The given training examples, all in memory: D_val.

    Args:
      indices: integers [n].

    Returns:
      (float32 [n, h, w, c], normalised, not augmented; labels int32 [n]), in the given order.
    """
    images = np.empty((len(indices), *data.image_shape), np.float32)
    done = 0
    for batch in eval_batches(data, "train", READ_IMAGES, indices=indices, shuffle_seed=None):
        images[done : done + len(batch["index"])] = batch["inputs"]
        done += len(batch["index"])
    return images, data.train.targets[indices]


def examples_of(data: Dataset, count: int = 32) -> np.ndarray:
    """Some training examples as the network gets them, float32 [n, ...], drawn by seed 0."""
    order = np.random.default_rng(0).permutation(len(data.train))[:count]
    return normalised_images(data, order)[0]


def _with_images(images: tf.data.Dataset, order: np.ndarray, complete: Callable) -> tf.data.Dataset:
    """complete(images, index) of every batch of images and its row of `order`."""
    batches = tf.data.Dataset.zip(images, tf.data.Dataset.from_tensor_slices(order))
    return batches.map(complete, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


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
        if key in ("inputs", "targets", "index"):
            raise ValueError(f"rows may not be called {key!r}: every batch has that key")
        if len(array) != examples:
            raise ValueError(f"rows {key!r}: {len(array)} rows for {examples} training examples")
    return rows
