"""Augmentation: typed-in values, tf.image as the reference, eagerly and inside tf.data."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from ekg_tf.dataloader.augment import adjust_contrast, adjust_saturation, flip_and_crop, random_view


def _eager(function, *args):
    return function(*map(tf.constant, args)).numpy()


def _in_tf_data(function, *args):
    return next(iter(tf.data.Dataset.from_tensors(args).map(function))).numpy()


@pytest.fixture(params=[_eager, _in_tf_data], ids=["eager", "tf.data"])
def call(request):
    return request.param


@pytest.fixture
def images():
    images = np.random.default_rng(0).uniform(0, 255, (6, 8, 10, 3)).astype(np.float32)
    images[0, 0, 0] = 0
    images[0, 0, 1] = 77
    images[0, 0, 2] = (255, 0, 0)
    return images


FACTORS = np.array([0.8, 0.9, 1.0, 1.1, 1.2, 2.5], np.float32)


def test_contrast_literal(call):
    images = np.array([0, 60, 100, 240], np.float32).reshape(1, 2, 2, 1)  # mean 100
    doubled = call(adjust_contrast, images, np.float32([2]))
    assert doubled.dtype == np.float32
    np.testing.assert_allclose(doubled.ravel(), [0, 20, 100, 255], atol=1e-4)
    halved = call(adjust_contrast, images, np.float32([0.5]))
    np.testing.assert_allclose(halved.ravel(), [50, 80, 100, 170], atol=1e-4)


def test_contrast_equals_tf_image(call, images):
    adjusted = call(adjust_contrast, images, FACTORS)
    for image, factor, ours in zip(images, FACTORS, adjusted, strict=True):
        expected = tf.clip_by_value(tf.image.adjust_contrast(image, factor), 0, 255)
        np.testing.assert_allclose(ours, expected, atol=1e-3)


def test_saturation_literal(call):
    images = np.array([100, 50, 75], np.float32).reshape(1, 1, 1, 3)  # S = 0.5
    half = call(adjust_saturation, images, np.float32([0.5]))
    np.testing.assert_allclose(half.ravel(), [100, 75, 87.5], atol=1e-4)
    # 3 x 0.5 is above the largest saturation, 1: twice as far from V, and no further
    full = call(adjust_saturation, images, np.float32([3]))
    np.testing.assert_allclose(full.ravel(), [100, 0, 50], atol=1e-4)


def test_saturation_equals_tf_image(call, images):
    adjusted = call(adjust_saturation, images, FACTORS)
    for image, factor, ours in zip(images, FACTORS, adjusted, strict=True):
        expected = tf.image.adjust_saturation(image / 255, factor)
        np.testing.assert_allclose(ours / 255, expected, atol=1e-5)


def test_saturation_leaves_grey_images(call):
    images = np.arange(8, dtype=np.float32).reshape(2, 2, 2, 1)
    np.testing.assert_array_equal(call(adjust_saturation, images, FACTORS[:2]), images)


def test_flip_and_crop_literal(call):
    images = np.arange(9, dtype=np.float32).reshape(1, 3, 3, 1)

    def view(images, top, left, flip):
        return flip_and_crop(images, 1, top, left, flip)

    moved = call(view, images, np.int32([0]), np.int32([2]), np.array([False]))
    np.testing.assert_array_equal(moved[0, ..., 0], [[4, 5, 4], [1, 2, 1], [4, 5, 4]])
    mirrored = call(view, images, np.int32([1]), np.int32([1]), np.array([True]))
    np.testing.assert_array_equal(mirrored[0, ..., 0], [[2, 1, 0], [5, 4, 3], [8, 7, 6]])


@pytest.mark.parametrize("pad", [0, 1, 4, 7])
def test_flip_and_crop_equals_pad_and_slice(call, images, pad):
    rng = np.random.default_rng(pad)
    tops, lefts = rng.integers(0, 2 * pad + 1, (2, len(images))).astype(np.int32)
    flips = rng.random(len(images)) < 0.5
    ours = call(lambda *args: flip_and_crop(args[0], pad, *args[1:]), images, tops, lefts, flips)
    for n, image in enumerate(images):
        mirrored = image[:, ::-1] if flips[n] else image
        padded = tf.pad(mirrored, [[pad, pad], [pad, pad], [0, 0]], "REFLECT").numpy()
        expected = padded[tops[n] : tops[n] + 8, lefts[n] : lefts[n] + 10]
        np.testing.assert_array_equal(ours[n], expected)


def test_random_view_draws_every_crop_and_flip(call):
    image = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
    padded = np.pad(image[0], [(1, 1), (1, 1), (0, 0)], mode="reflect")
    crops = [padded[y : y + 4, x : x + 4] for y in range(3) for x in range(3)]
    # mirroring the crop of a mirror-symmetric padding is cropping the mirrored image
    expected = {v.tobytes() for crop in crops for v in (crop, crop[:, ::-1])}
    views = call(
        lambda images, seed: random_view(images, seed, pad=1, flip=True, jitter=0.0),
        np.repeat(image, 500, axis=0),
        np.int64([1, 2]),
    )
    assert {view.tobytes() for view in views} == expected
    assert len(expected) == 18


def test_random_view_jitters_within_its_range(call):
    # on an image with mean 100 and no colour, only the contrast moves
    images = np.tile(np.float32([50, 150]).reshape(1, 1, 2, 1), (1000, 2, 1, 3))
    views = call(
        lambda images, seed: random_view(images, seed, pad=0, flip=False, jitter=0.2),
        images,
        np.int64([3, 4]),
    )
    factors = (views[:, 0, 1, 0] - 100) / 50
    assert 0.8 - 1e-5 <= factors.min() < 0.81
    assert 1.19 < factors.max() <= 1.2 + 1e-5
    assert abs(factors.mean() - 1) < 0.02


def test_random_view_depends_on_the_seed_alone(images):
    def view(seed):
        return random_view(images, tf.constant(seed), pad=2, flip=True, jitter=0.2).numpy()

    np.testing.assert_array_equal(view([5, 0]), view([5, 0]))
    assert (view([5, 0]) != view([5, 1])).any()
    in_tf_data = _in_tf_data(
        lambda i, s: random_view(i, s, pad=2, flip=True, jitter=0.2), images, np.int32([5, 0])
    )
    np.testing.assert_allclose(in_tf_data, view([5, 0]), atol=1e-4)


def test_random_view_without_settings_is_the_identity(images):
    view = random_view(images, tf.constant([0, 0]), pad=0, flip=False, jitter=0.0)
    np.testing.assert_array_equal(view, images)
