"""Images that stay in their files: decoding and the standard ImageNet crops, in tf.data.

Training: a random crop of 8 to 100 % of the area and of aspect 3/4 to 4/3, resized to 224, flip
(Inception crops, Szegedy et al. 2015). Test: the short side to 256, the centre 224.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import tensorflow as tf

from ..utils.errors import UserError, without_place
from ..utils.files import printable
from .augment import random_view
from .dataset import EVERY, Dataset, Tree, rows_at

AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)
UNREADABLE = "unreadable image: "  # how the message of a failed read begins, in TensorFlow's error


@dataclass(frozen=True, eq=False)
class FileSplit:
    """Row i is the example with the stable index i.

    names: of the files, relative to the data's folder; sizes: int64 [n], in bytes, of the files or
    of the records that hold them; targets: int32 [n].
    read: (int32 scalar index) -> the encoded image, a string tensor, inside a tf.data graph.
    folder: that the names are relative to, for messages.
    """

    names: list[str]
    sizes: np.ndarray
    targets: np.ndarray
    read: Callable[[tf.Tensor], tf.Tensor]
    folder: str = field(default="", kw_only=True)
    weights = None
    forms = ()

    def __len__(self) -> int:
        return len(self.targets)

    def check(self, index: int) -> None:
        """Raises UserError where something else than the image can't be read."""

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) of the examples' names, sizes in bytes and labels, in order."""
        digest = hashlib.sha256(os.fsencode("\n".join(self.names)))
        for array in (self.sizes, self.targets):
            digest.update(np.ascontiguousarray(array))
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class ImageFiles(Dataset):
    """A `Dataset` whose splits are `FileSplit`; it reads images when they are needed.

    side: of the crops, in pixels; short_side: to which an image is scaled for testing.
    """

    train: FileSplit
    test: FileSplit
    side: int = field(default=224, kw_only=True)
    short_side: int = field(default=256, kw_only=True)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return self.side, self.side, 3

    def plain(self, split: FileSplit, order: np.ndarray) -> tf.data.Dataset:
        """Scaled and centre-cropped images; see `Dataset.plain`."""

        def make(data: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
            return centre_crop(data, self.side, self.short_side)

        return _labelled(split, order, decoded(split, order, make, _pixels(self.image_shape)))

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
        """Random crops; see `Dataset.views`. The numbers depend on (seed, epoch, index) alone."""

        order = order[:, own]

        def make(data: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
            key = tf.random.fold_in(tf.constant([seed, epoch], tf.int64), index, alg="philox")
            keys = tf.random.split(key, views + 1, alg="philox")
            crops = [random_crop(data, keys[view], self.side) for view in range(views)]
            colours = self.jitter if jitter else 0.0
            return random_view(
                tf.stack(crops), keys[views], pad=self.pad, flip=self.flip, jitter=colours
            )

        crops = decoded(self.train, order, make, _pixels([views, *self.image_shape]))
        return _labelled(self.train, order, crops)


def _pixels(shape: Sequence[int]) -> tf.TensorSpec:
    return tf.TensorSpec(shape, tf.float32)


def _labelled(split: FileSplit, order: np.ndarray, images: tf.data.Dataset) -> tf.data.Dataset:
    """Batches of images with the targets of their rows of `order`."""

    def complete(images: tf.Tensor, index: tf.Tensor) -> dict[str, Tree]:
        return {"inputs": images, "targets": rows_at(split.targets, index)}

    batches = tf.data.Dataset.zip(images, tf.data.Dataset.from_tensor_slices(order))
    return batches.map(complete, tf.data.AUTOTUNE)


def random_crop(data: tf.Tensor, seed: tf.Tensor, side: int) -> tf.Tensor:
    """A random crop of the encoded image, resized: float32 [side, side, 3], 0..255.

    Args:
      data: string scalar. seed: integers [2].
    """
    box = tf.cond(
        tf.io.is_jpeg(data),
        lambda: _crop_jpeg(data, seed),
        lambda: _crop_other(data, seed),
    )
    return tf.ensure_shape(tf.image.resize(box, [side, side]), [side, side, 3])


def _crop_jpeg(data: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    # Only the box is decoded: several times faster on ImageNet's images.
    window = _random_window(tf.io.extract_jpeg_shape(data), seed)
    return tf.image.decode_and_crop_jpeg(data, window, channels=3)


def _crop_other(data: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    # ImageNet holds a PNG that is called .JPEG.
    image = tf.io.decode_image(data, channels=3, expand_animations=False)
    top, left, height, width = tf.unstack(_random_window(tf.shape(image), seed))
    return image[top : top + height, left : left + width]


def _random_window(shape: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """int32 [4]: top, left, height, width; the whole image where ten draws do not fit."""
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        shape,
        tf.zeros([1, 0, 4]),
        seed=seed,
        min_object_covered=0.0,
        aspect_ratio_range=ASPECT,
        area_range=AREA,
        max_attempts=10,
        use_image_if_no_bounding_boxes=True,
    )
    return tf.concat([begin[:2], size[:2]], 0)


def centre_crop(data: tf.Tensor, side: int, short_side: int) -> tf.Tensor:
    """The encoded image's short side scaled to short_side, the centre cut out.

    Args:
      data: string scalar.

    Returns:
      float32 [side, side, 3], 0..255.
    """
    image = tf.cond(
        tf.io.is_jpeg(data),
        lambda: tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE"),
        lambda: tf.io.decode_image(data, channels=3, expand_animations=False),
    )
    image = tf.ensure_shape(image, [None, None, 3])
    shape = tf.shape(image)[:2]
    scaled = shape * short_side // tf.reduce_min(shape)  # rounded down, as torchvision does
    image = tf.image.resize(image, scaled, antialias=True)
    top, left = tf.unstack((scaled - side) // 2)
    return tf.ensure_shape(image[top : top + side, left : left + side], [side, side, 3])


# ---------------------------------------------------------------- what cannot be read


def decoded(split: FileSplit, order: np.ndarray, make: Callable, like: Tree) -> tf.data.Dataset:
    """Batches of make(encoded image, index) for the rows of `order`, int32 [batches, size].

    TensorFlow does not say which image it could not decode: failed ones are dropped and then missed
    in the comparison with the indices that should have come.

    Args:
      like: a tree of tf.TensorSpec, of what `make` gives.
    """
    wanted = tf.data.Dataset.from_tensor_slices(order.ravel())

    def one(index: tf.Tensor) -> tuple[tf.Tensor, Tree]:
        return index, make(split.read(index), index)

    def fail(index: np.ndarray) -> np.ndarray:
        raise ValueError(f"{UNREADABLE}{_problem(split, int(index))}\n")

    def check(wanted: tf.Tensor, index: tf.Tensor, example: Tree) -> Tree:
        came = tf.equal(wanted, index)
        # Stateful, or TensorFlow would optimise it away: nobody uses its result.
        there = tf.cond(came, lambda: came, lambda: tf.numpy_function(fail, [wanted], tf.bool))
        with tf.control_dependencies([there]):
            return tf.nest.map_structure(tf.identity, example)

    examples = wanted.map(one, tf.data.AUTOTUNE).ignore_errors()
    nothing = tf.nest.map_structure(lambda spec: tf.zeros(spec.shape, spec.dtype), like)
    end = tf.data.Dataset.from_tensors((tf.constant(-1, tf.int32), nothing))
    pairs = tf.data.Dataset.zip(wanted, examples.concatenate(end))
    checked = pairs.map(lambda wanted, pair: check(wanted, *pair))
    return checked.batch(order.shape[1], drop_remainder=True)


def _problem(split: FileSplit, index: int) -> str:
    """What is wrong with an image that could not be read, in one line."""
    name = printable(os.path.join(split.folder, split.names[index]))
    try:
        image = tf.io.decode_image(split.read(tf.constant(index)), expand_animations=False)
        image = tf.image.resize(image, [8, 8])
    except Exception as error:  # TensorFlow's decoders, and PIL, which raises almost anything
        reason = without_place(str(getattr(error, "message", error)).splitlines()[0])
        return f"{name} cannot be decoded ({reason}): remove or replace it"
    try:
        split.check(index)
    except UserError as error:
        return str(error)
    return f"{name} of shape {image.shape} could not be cropped, perhaps for lack of memory"


@contextmanager
def unreadable_named() -> Iterator[None]:
    """Turns TensorFlow's error about an image of `ImageFiles` into a UserError that names it."""
    try:
        yield
    except tf.errors.OpError as error:
        found = re.search(f"{UNREADABLE}(.*)", error.message)
        if not found:
            raise
        raise UserError(found[1]) from None
