"""tf.data pipelines: a data set's examples, in memory or in files -> normalised float32 batches.

Every batch is a dict with "inputs", "targets" and "index" (the example's stable index), and with
"weights" where examples have some. A network with several inputs or outputs has tuples of these.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf

from ..utils.cluster import WHOLE, Part
from ..utils.errors import UserError
from .dataset import Dataset, Split, Tree, repeated, rows_at

READ_EXAMPLES = 64  # at a time, where they are to lie in memory
KEYS = ("inputs", "targets", "index", "weights")


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
    part: Part = WHOLE,
) -> tf.data.Dataset:
    """One shuffled epoch of training batches; the last, incomplete batch is dropped.

    The numbers depend on (seed, epoch) alone, not on threads: the order is drawn from them, and
    each batch's augmentation from them and the batch's number.

    Args:
      indices: integers [n], the training examples to use; None: all of them.
      batch_images: examples per batch. views: independently augmented views of each.
      augment: False leaves examples as they are, whatever `jitter` says.
      jitter: also scale contrast and saturation.
      rows: arrays [training examples, ...], in memory or memory-mapped; the rows of a batch's
        examples are added to it under the same key, as float32.
      part: (number, count): only this one of so many equal parts of every batch, example for
        example what the whole batch has there; only its examples are read.

    Returns:
      A finite dataset of dicts with static shapes: "inputs" float32 [batch, views, ...], "targets"
      int32 [batch] or as in `Split`, "index" int32 [batch], "weights" where there are any, each key
      of rows float32 [batch, ...]. With `data.moves_targets`, augmented or not, targets and weights
      are [batch, views, ...] as well.

    Raises:
      UserError: fewer examples than one batch.
      ValueError: an index out of range, rows of the wrong length or name, or a batch that can't be
        cut into so many parts.
    """
    number, parts = part
    if batch_images % parts:
        raise ValueError(f"a batch of {batch_images} can't be cut into {parts} parts")
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
    own = slice(number * batch_images // parts, (number + 1) * batch_images // parts)

    def views_of(leaf: tf.Tensor) -> tf.Tensor:
        return tf.repeat(leaf[:, None], views, axis=1)

    if augment:
        examples = data.views(order, views, seed=seed, epoch=epoch, jitter=jitter, own=own)
    else:
        examples = data.plain(data.train, order[:, own])
        if data.moves_targets:
            examples = examples.map(lambda batch: tf.nest.map_structure(views_of, batch))
        else:
            examples = examples.map(lambda batch: batch | {"inputs": repeated(batch, views)})

    def complete(example: dict[str, Tree], index: tf.Tensor) -> dict[str, Tree]:
        batch = _normalised(data, example) | {"index": index}
        # NumPy casts the bank's float16: oneDNN would print that it has no kernel for it.
        return batch | {key: rows_at(array, index, np.float32) for key, array in rows.items()}

    return _with_examples(examples, order[:, own], complete)


def eval_batches(
    data: Dataset,
    split: str,
    batch_images: int,
    *,
    indices: np.ndarray | None = None,
    shuffle_seed: int | None = 0,
    first_batch: int = 0,
    part: Part = WHOLE,
) -> tf.data.Dataset:
    """Every example exactly once, without augmentation, in batches of almost equal size.

    There are ceil(n / batch_images) batches whose sizes differ by one at most: a small last
    batch would spoil batch normalisation by batch statistics.

    Args:
      split: "train" or "test".
      indices: integers [n], the examples to use; None: all of them.
      shuffle_seed: permutes the order (sources may be sorted by class); None keeps it.
      first_batch: so many batches are left out at the beginning, without reading their images.
      part: (number, count): of every `count` batches from `first_batch` on only the one of this
        number, perhaps none in all; the images of the others aren't read.

    Returns:
      A finite dataset of dicts: "inputs" float32 [b, ...], "targets" int32 [b] or as in `Split`,
      "index" int32 [b], "weights" where there are any; b is static where all batches are equal.

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
    numbers = np.arange(first_batch + part[0], count, part[1])
    parts = [
        order[: small * size].reshape(small, size)[numbers[numbers < small]],
        order[small * size :].reshape(large, size + 1)[numbers[numbers >= small] - small],
    ]

    def complete(example: dict[str, Tree], index: tf.Tensor) -> dict[str, Tree]:
        return _normalised(data, example) | {"index": index}

    if first_batch >= count:
        raise ValueError(f"there are only {count} batches, none from number {first_batch} on")
    filled = [one for one in parts if len(one)] or [parts[0]]
    batches = [_with_examples(data.plain(source, one), one, complete) for one in filled]
    return functools.reduce(tf.data.Dataset.concatenate, batches)


def normalised_inputs(data: Dataset, indices: np.ndarray, split: str = "train") -> Split:
    """The given examples, all in memory: D_val.

    Args:
      indices: integers [n]. split: "train" or "test".

    Returns:
      Inputs float32 [n, ...], normalised, not augmented; targets and weights as those of the split;
      in the given order.
    """
    whole: dict[str, Tree] = {}
    done = 0
    batches = eval_batches(data, split, READ_EXAMPLES, indices=indices, shuffle_seed=None)
    for batch in batches.as_numpy_iterator():
        count = len(batch.pop("index"))
        if not whole:
            whole = tf.nest.map_structure(
                lambda leaf: np.empty((len(indices), *leaf.shape[1:]), leaf.dtype), batch
            )
        for rows, leaf in zip(*map(tf.nest.flatten, (whole, batch)), strict=True):
            rows[done : done + count] = leaf
        done += count
    return Split(whole["inputs"], whole["targets"], whole.get("weights"))


def examples_of(data: Dataset, count: int = 32) -> Tree:
    """Some training inputs as the network gets them, float32 [n, ...], drawn by seed 0."""
    order = np.random.default_rng(0).permutation(len(data.train))[:count]
    return normalised_inputs(data, order).inputs


def _normalised(data: Dataset, example: dict[str, Tree]) -> dict[str, Tree]:
    """Mean and std of the only input; several inputs are taken as they are."""
    inputs = example["inputs"]
    return example if data.several_inputs else example | {"inputs": (inputs - data.mean) / data.std}


def _with_examples(
    examples: tf.data.Dataset, order: np.ndarray, complete: Callable
) -> tf.data.Dataset:
    """complete(example, index) of every batch of examples and its row of `order`."""
    batches = tf.data.Dataset.zip(examples, tf.data.Dataset.from_tensor_slices(order))
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
        if key in KEYS:
            raise ValueError(f"rows may not be called {key!r}: every batch has that key")
        if len(array) != examples:
            raise ValueError(f"rows {key!r}: {len(array)} rows for {examples} training examples")
    return rows
