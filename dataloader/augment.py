"""Augmentation of whole batches, each image with its own random parameters.

Images are float32 [n, h, w, c] in grey levels 0..255. The order is contrast, saturation, flip,
reflect-padded crop (EKG, two-view fine-tuning); normalisation comes last, in batches.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import tensorflow as tf


@dataclass(frozen=True)
class Place:
    """Where images lie in the batch whose random numbers they take: first .. of `total`."""

    first: int
    total: int


def adjust_contrast(images: tf.Tensor, factors: tf.Tensor) -> tf.Tensor:
    """Scales each channel about its mean over the image, as tf.image.adjust_contrast.

    The result is clipped to 0..255, as tf.image does for uint8 images (without its rounding):
    saturation is undefined for negative colours.

    Args:
      images: float32 [n, h, w, c], 0..255. factors: float32 [n].
    """
    means = tf.reduce_mean(images, axis=[1, 2], keepdims=True)
    factors = factors[:, None, None, None]
    return tf.clip_by_value(means + factors * (images - means), 0.0, 255.0)


def adjust_saturation(images: tf.Tensor, factors: tf.Tensor) -> tf.Tensor:
    """Scales the HSV saturation, keeping hue and value, as tf.image.adjust_saturation.

    Grey images ([n, h, w, 1]) come back unchanged. No clipping is needed: a colour stays
    between 0 and its value.

    Args:
      images: float32 [n, h, w, 3], not negative. factors: float32 [n].
    """
    if images.shape[-1] == 1:
        return images
    channels = tf.split(images, 3, axis=-1)
    value = tf.maximum(tf.maximum(channels[0], channels[1]), channels[2])
    lowest = tf.minimum(tf.minimum(channels[0], channels[1]), channels[2])
    # Saturation S = (V - lowest) / V may reach 1 at most, so the factor 1 / S at most.
    # A grey pixel gets 0 here, which is right: all its channels equal V.
    largest_factor = tf.math.divide_no_nan(value, value - lowest)
    factors = tf.minimum(factors[:, None, None, None], largest_factor)
    return tf.concat([value - factors * (value - channel) for channel in channels], axis=-1)


def flip_and_crop(
    images: tf.Tensor, pad: int, tops: tf.Tensor, lefts: tf.Tensor, flips: tf.Tensor
) -> tf.Tensor:
    """Mirrors, pads by reflection and crops back to the same size, as one gather of pixels.

    Args:
      images: [n, h, w, c] of any dtype, h and w static.
      pad: pixels added on each side, below h and w (the edge pixel is not repeated).
      tops, lefts: int32 [n], the crop's corner in the padded image, 0..2*pad.
      flips: bool [n], mirror left-right before padding.

    Returns:
      [n, h, w, c], the dtype of images.
    """
    height, width, channels = images.shape[1:]
    rows = _reflect(tf.range(height)[None] + tops[:, None] - pad, height)
    columns = _reflect(tf.range(width)[None] + lefts[:, None] - pad, width)
    columns = tf.where(flips[:, None], width - 1 - columns, columns)
    pixels = rows[:, :, None] * width + columns[:, None, :]
    flat = tf.reshape(images, [-1, height * width, channels])
    return tf.gather(flat, pixels, batch_dims=1)


def random_view(
    images: tf.Tensor,
    seed: tf.Tensor,
    *,
    pad: int,
    flip: bool,
    jitter: float,
    along: Sequence[tf.Tensor] | None = None,
    place: Place | None = None,
) -> tf.Tensor | tuple[tf.Tensor, list[tf.Tensor]]:
    """One random view of every image; equal seeds give equal numbers on any machine.

    Args:
      images: float32 [n, h, w, c], 0..255.
      seed: integers [2].
      pad, flip, jitter: as in Dataset; jitter 0 leaves the colours alone.
      along: [n, h, w] or [n, h, w, c] of any dtype, flipped and cropped as the images are.
      place: of these images in a larger batch; None: they are the batch.

    Returns:
      float32 [n, h, w, c], 0..255; with `along` a pair, the second what became of these.
    """
    count = tf.shape(images)[0]
    # The generator is named because the automatic choice depends on the device.
    seeds = tf.random.split(seed, 5, alg="philox")

    def uniform(k: int, low, high, dtype=tf.float32) -> tf.Tensor:
        total = count if place is None else place.total
        drawn = tf.random.stateless_uniform([total], seeds[k], low, high, dtype, alg="philox")
        return drawn if place is None else drawn[place.first : place.first + count]

    if jitter:
        images = adjust_contrast(images, uniform(0, 1 - jitter, 1 + jitter))
        images = adjust_saturation(images, uniform(1, 1 - jitter, 1 + jitter))
    if not (pad or flip):
        return images if along is None else (images, list(along))
    flips = uniform(4, 0.0, 1.0) < 0.5 if flip else tf.zeros([count], tf.bool)
    tops = uniform(2, 0, 2 * pad + 1, tf.int32)
    lefts = uniform(3, 0, 2 * pad + 1, tf.int32)
    images = flip_and_crop(images, pad, tops, lefts, flips)
    if along is None:
        return images
    return images, [_moved(one, pad, tops, lefts, flips) for one in along]


def _moved(masks: tf.Tensor, pad: int, tops, lefts, flips) -> tf.Tensor:
    flat = masks.shape.rank == 3
    moved = flip_and_crop(masks[..., None] if flat else masks, pad, tops, lefts, flips)
    return moved[..., 0] if flat else moved


def _reflect(positions: tf.Tensor, size: int) -> tf.Tensor:
    # size 4: positions -2 -1 0 1 2 3 4 5 -> 2 1 0 1 2 3 2 1
    last = size - 1
    return last - tf.abs(last - tf.abs(positions))
