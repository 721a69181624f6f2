"""The two records every source fills: a split, and a data set of two splits.

A tree is one array (or tensor) or a tuple of them: what a network with one or several inputs takes,
what one or several outputs are compared with. `Split` holds arrays; `dataloader.indexed.Indexed`
and `dataloader.imagenet.FileSplit` read examples when they are needed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import tensorflow as tf

from ..utils.errors import UserError
from ..utils.provenance import digest
from .augment import Place, random_view
from .augmenting import Augment, in_views

Tree = Any  # an array or a tensor, or a tuple of them
LARGEST_VALIDATION, LARGEST_SUBSET = 320, 2560  # examples, where they aren't drawn per class
BLOCK_BYTES = 2**26  # that a pass over an array reads at once
EVERY = slice(None)


@dataclass(frozen=True, eq=False)
class Split:
    """Row i is the example with the stable index i.

    inputs: uint8 or float32 [n, ...]; images are uint8 [n, height, width, channels], grey levels
    0..255, or floats. targets: int32 [n] or [n, h, w] where they are classes, else float32
    [n, ...]. weights: float32 [n] or as the targets' leading axes; None: all 1. Each is a tree.
    forms: how each output's targets were given, as `checks.form_of` says; (): unknown.
    """

    inputs: Tree
    targets: Tree
    weights: Tree = None
    forms: tuple[str, ...] = field(default=(), kw_only=True)

    def __len__(self) -> int:
        return len(tf.nest.flatten(self.targets)[0])

    @property
    def input_shapes(self) -> Tree:
        """Shapes of one example's inputs, without the batch."""
        return shapes_of(self.inputs)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) of inputs, targets and weights, in order, with their shapes."""
        return fingerprint(self.columns)

    @property
    def columns(self) -> list[Any]:
        """All arrays: of the inputs, the targets and the weights."""
        trees = [self.inputs, self.targets, *([] if self.weights is None else [self.weights])]
        return [array for tree in trees for array in tf.nest.flatten(tree)]

    def batches(self, order: np.ndarray) -> tf.data.Dataset:
        """The examples as they are, before normalisation.

        Args:
          order: int32 [batches, size], example indices.

        Returns:
          A dataset of `batches` dicts: "inputs", a tree float32 [size, ...], "targets" and, where
          there are any, "weights".
        """

        def make(index: tf.Tensor) -> dict[str, Tree]:
            def rows(tree: Tree) -> Tree:
                return tf.nest.map_structure(lambda array: rows_at(array, index), tree)

            weights = None if self.weights is None else rows(self.weights)
            return as_example(rows(self.inputs), rows(self.targets), weights)

        return tf.data.Dataset.from_tensor_slices(order).map(make, tf.data.AUTOTUNE)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test split with what is needed to normalise and augment them.

    class_names: of the only output's classes, () where there are none.
    mean, std: float32 [channels], in grey levels 0..255; for networks with one input.
    pad: reflected pixels on each side before a random crop; flip: mirror images at random;
    jitter: contrast and saturation are scaled by a factor from 1 - jitter to 1 + jitter.
    subset_per_class, val_per_class: default sizes of D_subset and D_val, examples per class; None
    where they aren't drawn per class.
    augment: of the user's, in place of pad, flip and jitter.
    held_out: int64, indices of the training examples that no training uses; None: there are none.
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
    subset_per_class: int | None
    val_per_class: int | None
    augment: Augment | None = None
    held_out: np.ndarray | None = None

    @property
    def trained_on(self) -> np.ndarray:
        """int64, indices of the training examples that a training uses, rising."""
        every = np.arange(len(self.train))
        return every if self.held_out is None else np.setdiff1d(every, self.held_out)

    @property
    def num_classes(self) -> int | None:
        """Of the only output; None where it doesn't tell classes apart."""
        return len(self.class_names) or None

    @property
    def labels(self) -> np.ndarray | None:
        """int32 [n], the training examples' classes; None where an example hasn't just one."""
        targets = self.train.targets
        one_each = isinstance(targets, np.ndarray) and targets.ndim == 1
        return targets if one_each and self.num_classes and targets.dtype.kind == "i" else None

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(height, width, channels), or what else the only input takes; of several, a tuple."""
        return self.train.input_shapes

    @property
    def several_inputs(self) -> bool:
        """Whether "inputs" are a tuple."""
        shape = self.image_shape
        return bool(shape) and isinstance(shape[0], tuple)

    @property
    def augments(self) -> bool:
        """Whether views of an example differ at all."""
        return bool(self.pad or self.flip or self.jitter or self.augment)

    @property
    def moves(self) -> bool:
        """Whether views differ in where things are; an augmentation of the user's may do that."""
        return bool(self.pad or self.flip or self.augment)

    @property
    def moves_targets(self) -> bool:
        """Whether views of an example have targets of their own.

        "targets" and "weights" of training batches are [batch, views, ...] then.
        """
        if self.augment:
            return self.augment.changes_targets
        return bool(self.pad or self.flip) and any(self._along())

    @property
    def val_examples(self) -> int:
        """Default size of D_val where it isn't drawn per class: a fifth, at most 320."""
        return max(1, min(LARGEST_VALIDATION, len(self.train) // 5))

    @property
    def subset_examples(self) -> int:
        """Default size of D_subset where it isn't drawn per class: the rest, at most 2560."""
        return max(1, min(LARGEST_SUBSET, len(self.train) - self.val_examples))

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of the training examples, in order."""
        return self.train.fingerprint

    def plain(self, split: Split, order: np.ndarray) -> tf.data.Dataset:
        """The examples as they are, before normalisation; see `Split.batches`.

        Args:
          split: train or test. order: int32 [batches, size], example indices.
        """
        return split.batches(order)

    def views(
        self,
        order: np.ndarray,
        views: int,
        *,
        seed: int,
        epoch: int,
        jitter: bool,
        own: slice = EVERY,
    ) -> tf.data.Dataset:
        """Independently augmented views of training examples, before normalisation.

        The numbers depend on (seed, epoch) and the place in `order` alone.

        Args:
          order: int32 [batches, size], indices of training examples. jitter: also the colours.
          own: the columns of `order` whose examples are wanted: with the numbers that they have in
            the whole batch.

        Returns:
          A dataset of `batches` dicts as of `plain`, inputs float32 [size, views, ...]; with
          `moves_targets` the targets and weights have the axis of the views as well.
        """
        if self.augment:  # what it draws for an example depends on the batch
            whole = self.augment.views(self.plain(self.train, order), views, seed, epoch)
            return whole.map(lambda batch: tf.nest.map_structure(lambda leaf: leaf[own], batch))
        examples = self.plain(self.train, order[:, own])
        if self.several_inputs:
            return examples.map(lambda example: example | {"inputs": repeated(example, views)})
        settings = {"pad": self.pad, "flip": self.flip, "jitter": self.jitter if jitter else 0.0}
        along = self._along() if self.moves_targets else None
        first, _, _ = own.indices(order.shape[1])
        place = Place(first * views, order.shape[1] * views)

        def make(step: tf.Tensor, example: dict[str, Tree]) -> dict[str, Tree]:
            key = tf.random.fold_in(tf.constant([seed, epoch], tf.int64), step, alg="philox")
            images = tf.repeat(example["inputs"], views, axis=0)
            if along is None:
                images = random_view(images, key, place=place, **settings)
                return example | {"inputs": in_views(images, views)}
            rest = {name: tree for name, tree in example.items() if name != "inputs"}
            leaves = [tf.repeat(leaf, views, axis=0) for leaf in tf.nest.flatten(rest)]
            moving = [leaf for leaf, moved in zip(leaves, along, strict=True) if moved]
            images, moving = random_view(images, key, along=moving, place=place, **settings)
            moved = iter(moving)
            leaves = [next(moved) if one else leaf for leaf, one in zip(leaves, along, strict=True)]
            example = {"inputs": images} | tf.nest.pack_sequence_as(rest, leaves)
            return tf.nest.map_structure(lambda leaf: in_views(leaf, views), example)

        steps = tf.data.Dataset.range(len(order))
        return tf.data.Dataset.zip(steps, examples).map(make, tf.data.AUTOTUNE)

    def _along(self) -> list[bool]:
        """Which of the targets and weights lie on the image's pixels, in the order of a batch."""
        size = self.image_shape[:2]
        weights = self.train.weights
        trees = [self.train.targets, *([] if weights is None else [weights])]
        columns = [one for tree in trees for one in tf.nest.flatten(tree)]
        return [len(one.shape) in (3, 4) and tuple(one.shape[1:3]) == size for one in columns]


def as_example(inputs: Tree, targets: Tree, weights: Tree = None) -> dict[str, Tree]:
    """A batch's dict, inputs cast to float32; no "weights" for None."""
    inputs = tf.nest.map_structure(lambda leaf: tf.cast(leaf, tf.float32), inputs)
    example = {"inputs": inputs, "targets": targets}
    return example if weights is None else example | {"weights": weights}


def repeated(example: dict[str, Tree], views: int) -> Tree:
    """The inputs of a batch [n, ...] as equal views [n, views, ...]."""
    return tf.nest.map_structure(
        lambda leaf: tf.repeat(leaf[:, None], views, axis=1), example["inputs"]
    )


def rows_at(array: np.ndarray, index: tf.Tensor, dtype: type | None = None) -> tf.Tensor:
    """array[index] in a tf.data graph, as dtype or the array's; index integers [n]."""
    # NumPy reads the rows, not tf.gather: TensorFlow would first copy the whole array, in every
    # epoch, and could not map a file into memory.
    dtype = np.dtype(dtype or array.dtype)

    def read(index: np.ndarray) -> np.ndarray:
        return array[index].astype(dtype, copy=False)

    rows = tf.numpy_function(read, [index], dtype, stateful=False)
    return tf.ensure_shape(rows, [*index.shape, *array.shape[1:]])


def shapes_of(tree: Tree) -> Tree:
    """Shapes of one row of every array."""
    if isinstance(tree, tuple):
        return tuple(tuple(array.shape[1:]) for array in tree)
    return tuple(tree.shape[1:])


def fingerprint(columns: list[Any]) -> str:
    """`provenance.digest` of arrays and of what is read like one, block by block."""
    if all(isinstance(one, np.ndarray) for one in columns):
        return digest(columns)
    return _read(columns)


def blocks(array: Any, function: Callable[[np.ndarray], Any]) -> list[Any]:
    """function(rows) of all rows in order, at most 64 MB of them at once."""
    row = max(1, int(np.prod(array.shape[1:])) * array.dtype.itemsize)
    step = max(1, BLOCK_BYTES // row)
    return [function(array[start : start + step]) for start in range(0, len(array), step)]


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


def _read(columns: list[Any]) -> str:
    found = hashlib.sha256()
    for column in columns:
        found.update(f"{column.dtype.str}{tuple(column.shape)}".encode())
        blocks(column, lambda rows: found.update(np.ascontiguousarray(rows)))
    return found.hexdigest()
