"""Augmentation of the user's: the same numbers after a kill, on images, masks and trees."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from ekg_tf.dataloader import own, train_batches
from ekg_tf.dataloader.fit import Fit, Output
from ekg_tf.dataloader.given_data import read
from ekg_tf.options.data import Data
from ekg_tf.utils.errors import UserError

SHAPE, COUNT = (8, 6, 3), 24
IMAGES = np.random.default_rng(0).integers(0, 256, (COUNT, *SHAPE), np.uint8)
LABELS = np.arange(COUNT) % 3
CLASSIFIER = Fit(("image",), (SHAPE,), (Output("label", "classes", (3,)),))
MASKS = (IMAGES[..., 0] > 128).astype(np.int32)
DENSE = Fit(("image",), (SHAPE,), (Output("mask", "classes", (8, 6, 2)),))
L = keras.layers


def dataset(augment=None, fit=CLASSIFIER, targets=LABELS, **options):
    options = Data(augment=augment, **options)
    split = (IMAGES, targets)
    return own.dataset(*read(split, split, fit, options), options)


def epoch(data, number=0, seed=3, views=2, jitter=True):
    settings = {"seed": seed, "epoch": number, "views": views, "augment": True, "jitter": jitter}
    return list(train_batches(data, None, 8, **settings).as_numpy_iterator())


def inputs(data, *arguments, **settings):
    return np.concatenate([batch["inputs"] for batch in epoch(data, *arguments, **settings)])


def noise(images, targets):
    return images + tf.random.uniform(tf.shape(images)), targets


def flipped(images, masks):
    """By a branch on a tensor, for every image."""

    def one(pair):
        if tf.random.uniform([]) < 0.5:
            pair = tuple(part[:, ::-1] for part in pair)
        return pair

    return tf.map_fn(one, (images, masks), parallel_iterations=1)


AUGMENTS = {
    "layer": lambda: L.RandomFlip("horizontal"),
    "layers": lambda: [L.RandomFlip(seed=3), L.RandomTranslation(0.2, 0.2), L.Rescaling(0.5)],
    "sequential": lambda: keras.Sequential([L.RandomFlip(), L.RandomContrast(0.4)]),
    "function": lambda: noise,
    "dropout": lambda: L.Dropout(0.3),
}


@pytest.mark.parametrize("name", AUGMENTS)
def test_an_epoch_is_the_same_in_a_process_that_has_seen_no_other(name):
    data = dataset(AUGMENTS[name]())
    assert data.augments and data.moves and not data.moves_targets
    assert (data.pad, data.flip, data.jitter) == (0, False, 0.0)
    whole = [inputs(data, number) for number in range(3)]
    tf.random.set_seed(99)
    keras.utils.set_random_seed(99)
    resumed = dataset(AUGMENTS[name]())
    np.testing.assert_array_equal(inputs(resumed, 2), whole[2])
    np.testing.assert_array_equal(inputs(data, 1), whole[1])
    for other in (whole[0], whole[1], inputs(data, 2, seed=4)):
        assert (other != whole[2]).any()
    assert (whole[0][:, 0] != whole[0][:, 1]).any(axis=(1, 2, 3)).sum() > COUNT // 4


def test_layers_are_what_they_are_alone():
    views = inputs(dataset(L.RandomFlip("horizontal")), jitter=False).reshape(-1, *SHAPE)
    known = {image.tobytes() for image in IMAGES.astype(np.float32)}
    mirrored = {image[:, ::-1].tobytes() for image in IMAGES.astype(np.float32)}
    kinds = [view.tobytes() in known for view in views]
    assert all(view.tobytes() in known | mirrored for view in views) and 0 < sum(kinds) < len(kinds)
    norm = L.Normalization()
    norm.adapt(IMAGES.astype(np.float32))
    assert abs(inputs(dataset(norm)).mean()) < 0.05


def test_the_global_seed_and_the_layers_are_left_alone():
    layer = L.RandomFlip(seed=5)
    data = dataset(layer)
    state = layer.generator.state.numpy().copy()
    tf.random.set_seed(7)
    expected = tf.random.uniform([3]).numpy()
    tf.random.set_seed(7)
    inputs(data)
    np.testing.assert_array_equal(tf.random.uniform([3]), expected)
    np.testing.assert_array_equal(layer.generator.state.numpy(), state)


def test_a_function_moves_masks_with_their_images():
    data = dataset(flipped, DENSE, MASKS)
    assert data.moves_targets and data.labels is None and data.num_classes == 2
    batch = epoch(data)[0]
    assert batch["targets"].shape == (8, 2, 8, 6) and batch["targets"].dtype == np.int32
    np.testing.assert_array_equal(batch["inputs"][..., 0] > 128, batch["targets"])
    assert (batch["targets"][:, 0] != batch["targets"][:, 1]).any()
    np.testing.assert_array_equal(inputs(dataset(flipped, DENSE, MASKS), 1), inputs(data, 1))
    plain = train_batches(data, None, 8, seed=0, epoch=0, views=2, augment=False, jitter=False)
    batch = next(plain.as_numpy_iterator())
    np.testing.assert_array_equal(batch["targets"][:, 1], MASKS[batch["index"]])


def test_soft_labels_of_a_function():
    def mixed(images, labels):
        rows = tf.one_hot(labels, 3)
        return (images + images[::-1]) / 2, (rows + rows[::-1]) / 2

    batch = epoch(dataset(mixed))[0]
    assert batch["targets"].shape == (8, 2, 3) and batch["targets"].dtype == np.float32


def test_trees_of_a_function():
    fit = Fit(("a", "b"), (SHAPE, (2,)), (Output("y", "classes", (3,)),))
    rows = np.zeros((COUNT, 2), np.float32)

    def shaken(pair, labels):
        return (pair[0], pair[1] + tf.random.normal(tf.shape(pair[1]))), labels

    options = Data(augment=shaken)
    split = ([IMAGES, rows], LABELS)
    data = own.dataset(*read(split, split, fit, options), options)
    batch = epoch(data)[0]
    assert batch["inputs"][1].shape == (8, 2, 2) and len(np.unique(batch["inputs"][1])) == 32
    with pytest.raises(UserError, match="a Keras layer, but the network has several inputs"):
        own.dataset(*read(split, split, fit), Data(augment=L.RandomFlip()))


generator = np.random.default_rng(0)
own_generator = tf.random.Generator.from_seed(1)
stateful = L.RandomFlip()


@tf.function
def cached(images):
    return images + tf.random.uniform([])


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        (lambda x, y: (x + own_generator.uniform([]), y), "other numbers for the same seed"),
        (lambda x, y: (stateful(x, training=True), y), "other numbers for the same seed"),
        (
            lambda x, y: (x + tf.numpy_function(lambda: generator.random(), [], tf.float64), y),
            "augment= fails on the first batch",
        ),
        (lambda x, y: (cached(x), y), "calls a tf.function that draws random numbers"),
        (
            lambda x, y: (tf.map_fn(lambda one: one + tf.random.uniform([]), x), y),
            "draws random numbers in a loop whose steps run at the same time",
        ),
        (lambda x, y: x, r"\(inputs, targets\) expected"),
        (lambda x, y: (x[:, :4], y), r"made inputs \(4, 6, 3\) of \(8, 6, 3\)"),
        (lambda x, y: (x / 0.0, y), "NaN or infinite"),
        (lambda x, y: (x, (y, y)), "other targets than it got"),
        (lambda x: x, "fails on the first batch"),
    ],
)
def test_what_can_not_be_repeated_is_refused(augment, message):
    with pytest.raises(UserError, match=message):
        dataset(augment)


def test_a_decorated_function_is_traced_anew():
    data = dataset(tf.function(noise))
    assert (inputs(data, 0) != inputs(data, 1)).all(axis=(1, 2, 3, 4)).all()


def test_augment_excludes_flip_and_crop_and_wants_something_callable():
    for wrong in ("flip", 3, [], [L.RandomFlip(), 3]):
        with pytest.raises(UserError, match=r"Data\(augment=.*: give a function"):
            Data(augment=wrong)
    for more in ({"flip": True}, {"crop": 2}):
        with pytest.raises(UserError, match="takes the place of flip and crop"):
            Data(augment=noise, **more)
    with pytest.raises(UserError, match="other things than Keras layers"):
        dataset([noise, noise])


def test_a_run_folder_tells_augmentations_apart():
    def kept(augment):
        return Data(augment=augment).flags()["data_augment"]

    assert "data_augment" not in Data().flags()
    assert kept(L.RandomFlip(seed=1)) == kept([L.RandomFlip(seed=1)])
    assert kept(L.RandomFlip(seed=1)) != kept(L.RandomFlip("vertical", seed=1))
    assert kept(noise) == kept(noise) != kept(flipped)
    assert kept(lambda x, y: (x + 1.0, y)) != kept(lambda x, y: (x + 2.0, y))


# ---------------------------------------------------------------- flip and crop


def test_flip_and_crop_are_off_unless_each_example_is_of_one_class():
    numbers = Fit(("image",), (SHAPE,), (Output("y", "numbers", (1,)),))
    for fit, targets in ((DENSE, MASKS), (numbers, LABELS)):
        data = dataset(fit=fit, targets=targets)
        assert (data.pad, data.flip, data.jitter) == (0, False, 0.0)
        assert not data.augments and not data.moves
    assert dataset(flip=False, crop=0).jitter == 0.2  # as it always was
    asked = dataset(fit=numbers, targets=LABELS, flip=True, crop=2)
    assert (asked.pad, asked.flip, asked.jitter) == (2, True, 0.0) and not asked.moves_targets


@pytest.mark.parametrize("channel", [False, True])
def test_masks_are_flipped_and_cropped_as_their_images(channel):
    fit, masks = DENSE, MASKS
    if channel:
        fit = Fit(("image",), (SHAPE,), (Output("mask", "sigmoids", (8, 6, 1)),))
        masks = MASKS[..., None].astype(np.float32)
    data = dataset(fit=fit, targets=masks, flip=True, crop=2)
    assert data.moves_targets and data.moves and data.jitter == 0.2
    batches = epoch(data, jitter=False)
    for batch in batches:
        expected = batch["inputs"][..., :1] > 128
        found = batch["targets"] if channel else batch["targets"][..., None]
        np.testing.assert_array_equal(expected, found)
    coloured = epoch(data, jitter=True)[0]
    np.testing.assert_array_equal(coloured["targets"], batches[0]["targets"])
    assert (coloured["inputs"] != batches[0]["inputs"]).any()


def test_weights_of_pixels_move_along():
    options = Data(flip=True)
    split = (IMAGES, MASKS, MASKS + 1.0)
    data = own.dataset(*read(split, split, DENSE, options), options)
    batch = epoch(data)[0]
    np.testing.assert_array_equal(batch["weights"], batch["targets"] + 1)


def test_targets_that_could_not_move_are_refused():
    half = Fit(("image",), (SHAPE,), (Output("mask", "classes", (4, 3, 2)),))
    with pytest.raises(UserError, match="but not their targets"):
        dataset(fit=half, targets=MASKS[:, ::2, ::2], flip=True)
