"""The door for Python's data: every kind of source, and what is said when it doesn't fit."""

from __future__ import annotations

import shutil
import threading
import time
from collections import namedtuple
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from ekg_tf.dataloader import (
    eval_batches,
    examples_of,
    indexed,
    normalised_inputs,
    own,
    parts,
    streams,
    train_batches,
    unreadable_named,
)
from ekg_tf.dataloader.fit import Fit, Output
from ekg_tf.dataloader.given_data import read
from ekg_tf.dataloader.indexed import Indexed
from ekg_tf.dataloader.store import FileRows, Memory, Store, machine_bytes
from ekg_tf.options import recipes
from ekg_tf.options.data import Data, Sampling
from ekg_tf.utils.errors import UserError

SHAPE, COUNT = (8, 6, 3), 40
NO_MEMORY = Data(memory=1e-9)
PLAIN = {"seed": 0, "epoch": 0, "views": 2, "augment": False, "jitter": False}

IMAGES = np.random.default_rng(0).integers(0, 256, (COUNT, *SHAPE), np.uint8)
LABELS = np.arange(COUNT) % 4
CLASSIFIER = Fit(("image",), (SHAPE,), (Output("label", "classes", (4,)),))
ROWS = np.random.default_rng(1).normal(size=(COUNT, 5))
TOKENS = np.random.default_rng(2).integers(0, 1000, (COUNT, 7))
TWO = Fit(
    ("row", "tokens"),
    ((5,), (7,)),
    (Output("kind", "classes", (4,)), Output("size", "numbers", (1,))),
)


class Torch:
    """Of the shape of a torch.utils.data.Dataset."""

    def __init__(self, images=IMAGES, labels=LABELS, **more):
        self.images, self.labels = images, labels
        self.threads: set[int] = set()
        self.reads = 0
        self.__dict__ |= more

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        self.threads.add(threading.get_ident())
        self.reads += 1
        return self.images[index], self.labels[index]


class Batches(keras.utils.PyDataset):
    """A PyDataset of batches of 7."""

    def __init__(self, noise=0.0):
        super().__init__()
        self.noise = noise

    def __len__(self):
        return -(-COUNT // 7)

    def __getitem__(self, number):
        rows = slice(7 * number, 7 * number + 7)
        images = IMAGES[rows] + np.float32(self.noise * np.random.default_rng().random())
        return images if self.noise else IMAGES[rows], LABELS[rows]


def tf_data():
    return tf.data.Dataset.from_tensor_slices((IMAGES, LABELS))


SOURCES = {
    "arrays": lambda: (IMAGES, LABELS),
    "dicts": lambda: ({"image": IMAGES}, {"label": LABELS}),
    "lists": lambda: ([IMAGES], [LABELS]),
    "one-hot": lambda: (IMAGES, np.eye(4)[LABELS]),
    "tensors": lambda: (tf.constant(IMAGES), tf.constant(LABELS)),
    "examples": lambda: tf_data().shuffle(COUNT),
    "batches": lambda: tf_data().shuffle(COUNT, reshuffle_each_iteration=True).batch(7),
    "named": lambda: tf_data().map(lambda x, y: ({"image": x}, {"label": y})),
    "pydataset": Batches,
    "torch": Torch,
}


def dataset(train, fit=CLASSIFIER, options=Data(), test=None):  # noqa: B008
    return own.dataset(*read(train, train if test is None else test, fit, options), options)


# ---------------------------------------------------------------- the same examples from anywhere


@pytest.mark.parametrize("options", [Data(), NO_MEMORY], ids=["memory", "no memory"])
@pytest.mark.parametrize("source", SOURCES)
def test_every_source_gives_the_same_examples(source, options):
    data = dataset(SOURCES[source](), options=options)
    assert data.class_names == tuple("0123") and data.image_shape == SHAPE
    assert (data.pad, data.flip, data.jitter) == (1, True, 0.2)
    assert (data.subset_per_class, data.val_per_class) == (8, 2)
    known = {image.tobytes(): label for image, label in zip(IMAGES, LABELS, strict=True)}
    seen = set()
    for batch in train_batches(data, None, 8, **PLAIN).as_numpy_iterator():
        assert batch["inputs"].shape == (8, 2, *SHAPE) and batch["targets"].dtype == np.int32
        np.testing.assert_array_equal(data.labels[batch["index"]], batch["targets"])
        for image, label in zip(batch["inputs"][:, 1], batch["targets"], strict=True):
            assert known[image.astype(np.uint8).tobytes()] == label
            seen.add(image.tobytes())
    assert len(seen) == COUNT
    part = normalised_inputs(data, np.array([3, 1]))
    again = dataset(SOURCES[source](), options=options)
    np.testing.assert_array_equal(part.inputs, normalised_inputs(again, np.array([3, 1])).inputs)
    assert data.fingerprint == again.fingerprint


@pytest.mark.parametrize("source", ["arrays", "torch"])
def test_arrays_and_indices_keep_their_order(source):
    for options in (Data(), NO_MEMORY):
        data = dataset(SOURCES[source](), options=options)
        part = normalised_inputs(data, np.arange(COUNT))
        np.testing.assert_array_equal(part.inputs, IMAGES)
        np.testing.assert_array_equal(part.targets, LABELS)


def test_arrays_are_not_copied():
    floats = IMAGES.astype(np.float32)
    for images in (IMAGES, floats):
        train, test, _ = read((images, LABELS), (images[:9], LABELS[:9]), CLASSIFIER)
        assert np.shares_memory(train.inputs, images) and np.shares_memory(test.inputs, images)
        assert train.inputs.dtype == images.dtype


@pytest.mark.parametrize("size", [6, None])
@pytest.mark.parametrize(("has", "takes"), [((8, 6), (1,)), ((8, 6, 1), ()), ((8, 6), ())])
def test_a_last_axis_of_one_may_be_missing_or_too_many(has, takes, size):
    """As where Keras calls a functional network on them."""
    wanted = (8, size, *takes)
    fit = Fit(("image",), (wanted,), CLASSIFIER.outputs)
    grey = IMAGES[..., :1].reshape(COUNT, *has)
    data = tf.data.Dataset.from_tensor_slices((grey, LABELS))
    unknown = tf.data.Dataset.from_generator(
        lambda: iter(data.batch(7)),
        output_signature=(tf.TensorSpec((None, *has), tf.uint8), tf.TensorSpec((None,), tf.int64)),
    )
    shape, expected = (8, 6, *takes), sorted(image.tobytes() for image in grey)
    shapeless = data.batch(7).map(
        lambda *pair: tf.numpy_function(lambda *pair: pair, pair, (tf.uint8, tf.int64))
    )
    given = ((grey, LABELS), data, data.batch(7), data.batch(8), unknown, shapeless, Torch(grey))
    for one in given:
        train, _, _ = read(one, one, fit)
        assert train.inputs.shape == (COUNT, *shape) and train.inputs.dtype == np.uint8
        assert sorted(image.tobytes() for image in train.inputs) == expected


def test_a_classifier_of_a_shape_alone_counts_its_classes():
    fit = Fit.of_images(SHAPE)
    assert read((IMAGES, LABELS), (IMAGES, LABELS), fit)[2] == tuple("0123")
    column = LABELS[:, None]
    assert read((IMAGES, column), (IMAGES, column), fit)[0].targets.shape == (COUNT,)


# ---------------------------------------------------------------- trees


def two(kind=dict, weights=None):
    sides = [("row", ROWS), ("tokens", TOKENS)], [("kind", LABELS), ("size", ROWS[:, 0])]
    made = [kind(side) if kind is dict else kind(array for _, array in side) for side in sides]
    return tuple(made) if weights is None else (*made, weights)


@pytest.mark.parametrize("kind", [dict, list, tuple])
def test_several_inputs_and_outputs(kind):
    data = dataset(two(kind), TWO)
    assert data.image_shape == ((5,), (7,)) and data.labels is None and data.num_classes is None
    assert not (data.augments or data.moves or data.moves_targets)
    batch = next(train_batches(data, None, 8, **PLAIN | {"augment": True}).as_numpy_iterator())
    rows, tokens = batch["inputs"]
    assert rows.shape == (8, 2, 5) and tokens.shape == (8, 2, 7) and tokens.dtype == np.float32
    np.testing.assert_array_equal(tokens[:, 1], TOKENS[batch["index"]])
    labels, sizes = batch["targets"]
    np.testing.assert_array_equal(labels, LABELS[batch["index"]])
    assert sizes.shape == (8, 1) and sizes.dtype == np.float32 and "weights" not in batch
    np.testing.assert_allclose(sizes[:, 0], ROWS[batch["index"], 0], rtol=1e-6)
    assert [leaf.shape for leaf in examples_of(data, 3)] == [(3, 5), (3, 7)]


def test_sample_weights_for_one_output_or_all():
    weights = np.arange(COUNT) / 10
    data = dataset(two(weights={"size": weights}), TWO)
    batch = next(eval_batches(data, "train", 8).as_numpy_iterator())
    np.testing.assert_array_equal(batch["weights"][0], np.ones(8))
    np.testing.assert_allclose(batch["weights"][1], weights[batch["index"]], rtol=1e-6)
    same = dataset(two(weights=weights), TWO).train.weights
    np.testing.assert_array_equal(same[0], same[1])
    single = dataset((IMAGES, LABELS, weights[:, None]))
    batch = next(train_batches(single, None, 8, **PLAIN).as_numpy_iterator())
    np.testing.assert_allclose(batch["weights"], weights[batch["index"]], rtol=1e-6)
    streamed = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS, weights))
    for options in (Data(), NO_MEMORY):
        part = normalised_inputs(dataset(streamed, options=options), np.arange(COUNT))
        assert sorted(part.weights) == pytest.approx(list(weights))
    assert dataset((IMAGES, LABELS, weights)).fingerprint != dataset((IMAGES, LABELS)).fingerprint


@pytest.mark.parametrize("kind", ["stream", "index"])
@pytest.mark.parametrize("options", [Data(), NO_MEMORY], ids=["memory", "no memory"])
def test_trees_from_streams_and_indices(kind, options):
    inputs, targets = two()

    class Examples:
        def __len__(self):
            return COUNT

        def __getitem__(self, index):
            take = lambda side: {name: array[index] for name, array in side.items()}  # noqa: E731
            return take(inputs), take(targets)

    stream = tf.data.Dataset.from_tensor_slices((inputs, targets)).batch(9)
    data = dataset(stream if kind == "stream" else Examples(), TWO, options)
    part = normalised_inputs(data, np.arange(COUNT))
    order = np.argsort(part.inputs[1] @ np.arange(1, 8))
    expected = np.argsort(TOKENS @ np.arange(1, 8))
    np.testing.assert_array_equal(part.inputs[1][order], TOKENS[expected])
    np.testing.assert_array_equal(part.targets[0][order], LABELS[expected])
    np.testing.assert_allclose(part.targets[1][order, 0], ROWS[expected, 0], rtol=1e-6)


def test_targets_of_every_kind():
    def target(array, kind, shape):
        fit = Fit(("row",), ((5,),), (Output("y", kind, shape),))
        return dataset((ROWS, array), fit).train.targets

    several = (ROWS > 0)[:, :3]
    assert target(several, "sigmoids", (3,)).dtype == np.float32
    assert target(LABELS % 2, "sigmoids", (1,)).shape == (COUNT, 1)
    np.testing.assert_array_equal(target(ROWS, "numbers", (5,)), ROWS.astype(np.float32))
    assert target(LABELS.astype(float), "classes", (4,)).dtype == np.int32
    soft = np.full((COUNT, 4), 0.25)
    assert target(soft, "classes", (4,)).dtype == np.float32
    pixels = np.broadcast_to(LABELS[:, None, None], (COUNT, 2, 3))
    for array in (pixels, pixels[..., None], np.eye(4)[pixels], pixels.astype(np.float32)):
        found = target(array, "classes", (2, 3, 4))
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, pixels)


@pytest.mark.parametrize("labels", [True, False])
def test_labels_of_pixels_for_a_network_that_was_never_built(labels):
    pixels = np.broadcast_to(LABELS[:, None, None], (COUNT, 2, 3))
    fit = Fit(("row",), ((5,),), (Output("y", "classes", None, labels=labels),))
    written = (pixels, pixels[..., None]) if labels else (np.eye(4)[pixels],)
    for array in written:
        found = dataset((ROWS, array), fit).train.targets
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, pixels)
    with pytest.raises(UserError, match="integers \\[n, \\.\\.\\.\\]"):
        dataset((ROWS, pixels + 0.5), fit)


# ---------------------------------------------------------------- what doesn't fit into memory


def test_a_large_stream_is_kept_in_files_and_costs_no_memory(capsys):
    data = dataset(tf_data().shuffle(COUNT), options=NO_MEMORY)
    assert isinstance(data.train.inputs, FileRows) and isinstance(data.train.targets, np.ndarray)
    assert "the train split of the data doesn't fit into memory" in capsys.readouterr().out
    held = dataset(tf_data().batch(9))
    np.testing.assert_array_equal(data.train.inputs[np.arange(COUNT)], held.train.inputs)
    np.testing.assert_array_equal(data.train.inputs[3:5], held.train.inputs[3:5])
    assert data.fingerprint == held.fingerprint


def test_the_limit_is_for_both_splits_together():
    enough = Data(memory=1.5 * IMAGES.nbytes / 2**30)
    train, test, _ = read(tf_data(), tf_data(), CLASSIFIER, enough)
    assert isinstance(train.inputs, np.ndarray) and isinstance(test.inputs, FileRows)
    assert Memory(2).left == 2**31 and Memory().left == machine_bytes() / 4


def test_a_full_disk_is_one_clear_line(monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**28 + 100))
    with pytest.raises(UserError, match=r"fits neither into memory nor into .*TMPDIR"):
        read(tf_data(), tf_data(), CLASSIFIER, NO_MEMORY)


def test_rows_come_back_in_the_order_that_is_asked_for():
    order = np.array([2, 0, 3, 1])
    for memory in (Memory(1), Memory(1e-9), Memory(300 / 2**30)):  # the last spills half-way
        store = Store(memory, "rows")
        rows = np.arange(80.0).reshape(4, 20)
        store.append([rows[:2], np.arange(2)])
        store.append([rows[2:], np.arange(2, 4)])
        assert len(store) == 4
        large, small = store.columns(order)
        np.testing.assert_array_equal(large[np.arange(4)], rows[order])
        np.testing.assert_array_equal(small, order)


def test_examples_by_index_are_read_by_threads_when_they_are_needed():
    source = Torch(targets=list(LABELS))
    data = dataset(source, options=Data(memory=1e-9, workers=3))
    assert isinstance(data.train, Indexed)
    assert source.reads < 400 and len(data.train.targets) == COUNT  # labels come from `targets`
    source.threads.clear()
    source.reads = 0
    list(train_batches(data, None, 8, **PLAIN))
    assert source.reads >= COUNT and len(source.threads) > 1
    liar = Torch(targets=list(LABELS[::-1]))
    np.testing.assert_array_equal(dataset(liar, options=NO_MEMORY).labels, LABELS)


def test_tensorflow_in_a_users_source_runs_on_the_cpu(monkeypatch):
    """Seen here by its second device: on a GPU, what threads compute may be damaged."""
    devices = set()

    def seen(item):
        devices.add((tf.constant(1.0) + 1.0).device[-5:])
        return item

    class Computing(Torch):
        def __getitem__(self, index):
            return seen(super().__getitem__(index))

    class ComputingBatches(Batches):
        def __getitem__(self, number):
            return seen(super().__getitem__(number))

    for module in (indexed, streams):
        monkeypatch.setattr(module, "DEVICE", "CPU:1")
    for source in (Computing(), ComputingBatches()):
        devices.clear()
        assert len(dataset(source).train) == COUNT
        assert devices == {"CPU:1"}


def test_slow_examples_are_waited_for_together():
    class Slow(Torch):
        def __getitem__(self, index):
            time.sleep(0.02)
            return super().__getitem__(index)

    data = dataset(Slow(targets=list(LABELS)), options=Data(memory=1e-9, workers=20))
    start = time.perf_counter()
    list(train_batches(data, None, 8, **PLAIN))
    assert time.perf_counter() - start < 0.02 * COUNT  # one after the other


def test_an_example_that_fails_later_is_named():
    source = Torch(targets=list(LABELS))
    data = dataset(source, options=NO_MEMORY)
    source.images = [None] * COUNT
    with pytest.raises(UserError, match="the train split of the data"), unreadable_named():
        list(train_batches(data, None, 8, **PLAIN))


def test_fingerprints_of_examples_by_index(monkeypatch):
    from ekg_tf.dataloader import indexed

    def of(images):
        source = Torch(images, targets=list(LABELS))
        return dataset(source, options=NO_MEMORY).fingerprint

    changed = IMAGES.copy()
    changed[17, 0, 0, 0] ^= 1
    assert of(IMAGES) == of(IMAGES.copy()) != of(changed)
    monkeypatch.setattr(indexed, "WHOLE", 10)
    monkeypatch.setattr(indexed, "SAMPLE", 5)
    assert of(IMAGES) == of(changed)  # 17 is none of the five
    assert of(IMAGES) != dataset((IMAGES, LABELS)).fingerprint


# ---------------------------------------------------------------- what is refused

RANDOM = "gives other examples the second time: .*Data\\(augment=...\\)"


def shaken(image, label):
    draw = tf.numpy_function(np.random.default_rng().random, [], tf.float64)
    return tf.cast(image, tf.float32) + tf.cast(tf.ensure_shape(draw, []), tf.float32), label


class Noisy(Torch):
    def __getitem__(self, index):
        return self.images[index] + np.float32(np.random.default_rng().random()), 0


@pytest.mark.parametrize(
    "source",
    [
        lambda: tf_data().map(shaken),
        lambda: tf_data().shuffle(COUNT).map(shaken).batch(7),
        lambda: Batches(noise=1.0),
        Noisy,
    ],
    ids=["tf.data", "shuffled", "pydataset", "index"],
)
@pytest.mark.parametrize("options", [Data(), NO_MEMORY], ids=["memory", "no memory"])
def test_what_is_random_is_noticed(source, options):
    with pytest.raises(UserError, match=RANDOM):
        read(source(), source(), CLASSIFIER, options)


class Bad:
    def __init__(self, element):
        self.element = element

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if isinstance(self.element, Exception):
            raise self.element
        return self.element


class Endless(keras.utils.PyDataset):
    def __getitem__(self, number):
        return IMAGES[:4], LABELS[:4]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda: ({"picture": IMAGES}, LABELS), "no input 'image': the network's inputs are image"),
        (lambda: ({"image": IMAGES, "more": 1}, LABELS), "an unknown input 'more'"),
        (lambda: (IMAGES, {"lable": LABELS}), "no output 'label'"),
        (lambda: (IMAGES, LABELS, LABELS - 1.0), "negative, NaN or infinite"),
        (lambda: (IMAGES, LABELS, LABELS[:, None, None]), "sample weights of shape"),
        (
            lambda: (IMAGES, LABELS + 1),
            r"label 4 of example 3 is outside 0\.\.3: the",
        ),
        (lambda: (IMAGES, LABELS - 1), "label -1 of example 0"),
        (lambda: (IMAGES, LABELS + 0.5), "float64 labels of shape .*: integers"),
        (lambda: (IMAGES, LABELS[:5]), "40 images but 5 labels"),
        (lambda: (IMAGES[:0], LABELS[:0]), "is empty"),
        (lambda: (IMAGES.transpose(0, 3, 1, 2), LABELS), "channels come last: array.transpose"),
        (lambda: (IMAGES.astype(str), LABELS), "has text: call the layers that read it"),
        (lambda: (IMAGES + 1j, LABELS), "complex128 images: real numbers are expected"),
        (lambda: ([IMAGES, IMAGES[:, :2]], LABELS), "is no array"),
        (lambda: 5, "is a int: a tf.data.Dataset or a pair"),
        (lambda: SimpleNamespace(dataset=Bad(1)), r"SimpleNamespace: give its \.dataset"),
        (lambda: {"x": IMAGES}, "is a dict: a tf.data.Dataset or a pair"),
        (lambda: Bad(b"record"), r"elements b'record': \(image, label\) is expected"),
        (lambda: Bad((IMAGES[0, :5], 1)), "the network takes"),
        (lambda: Bad((IMAGES, LABELS)), r"one example each; a keras\.utils\.PyDataset gives"),
        (lambda: Bad((IMAGES[0], 7)), "label 7 of example 0 is outside"),
        (lambda: Bad(KeyError("gone")), "example 0 can't be read .KeyError: 'gone'"),
        (Endless, "never ends"),
        (lambda: Torch(IMAGES[:0]), "is empty"),
        (lambda: tf_data().take(0), "no image at all"),
    ],
)
def test_refusals(given, message):
    with pytest.raises(UserError, match=message):
        read(given(), (IMAGES, LABELS), CLASSIFIER)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda: (ROWS, two()[1]), "ndarray for 2 inputs: the network's inputs are row, tokens"),
        (lambda: ([ROWS, TOKENS, ROWS], two()[1]), "a list of 3 for 2 inputs"),
        (lambda: ([ROWS, TOKENS * 2**20], two()[1]), "above 16777216, which float32 can't hold"),
        (lambda: ([ROWS, TOKENS[:7]], two()[1]), "holds 40 inputs but 7 examples of another array"),
        (lambda: ([ROWS * np.inf, TOKENS], two()[1]), "NaN or infinite"),
        (lambda: (two()[0], [LABELS, ROWS]), r"targets of shape \(5,\): the network gives \(1,\)"),
        (lambda: (*two(), {"sise": LABELS}), "unknown output 'sise'"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_refusals_of_trees(given, message):
    with pytest.raises(UserError, match=message):
        read(given(), two(), TWO)


def test_sigmoids_are_between_0_and_1():
    fit = Fit(("row",), ((5,),), (Output("y", "sigmoids", (1,)),))
    with pytest.raises(UserError, match="targets such as 3 for output y"):
        read((ROWS, LABELS), (ROWS, LABELS), fit)


UNNAMED = [name for name in SOURCES if name not in ("dicts", "named")]


@pytest.mark.parametrize("source", [*UNNAMED, "one-hot examples", "equal batches"])
@pytest.mark.parametrize("shape", [None, (None, None, None)], ids=["never built", "built"])
def test_a_network_without_a_graph_takes_every_source(source, shape):
    fit = Fit(("input",), (shape,))
    more = {
        "one-hot examples": tf_data().map(lambda x, y: (x, tf.one_hot(y, 4))),
        "equal batches": tf_data().batch(8, drop_remainder=True),
    }
    given = more[source] if source in more else SOURCES[source]()
    split, _, names = read(given, given, fit)
    assert split.inputs.shape == (COUNT, *SHAPE) and names == tuple("0123")
    known = {image.tobytes(): label for image, label in zip(IMAGES, LABELS, strict=True)}
    for image, label in zip(split.inputs, split.targets, strict=True):
        assert known.pop(image.tobytes()) == label
    assert not known


def test_several_inputs_of_a_network_that_was_never_called():
    inputs, targets = {"row": ROWS, "tokens": TOKENS}, LABELS
    for given in (inputs, list(inputs.values())):
        for data in ((given, targets), tf_data_of(given, targets)):
            with pytest.raises(UserError, match="2 inputs for a network that was never called"):
                read(data, data, Fit(("input",), (None,)))
    listed = list(IMAGES), list(LABELS)
    assert read(listed, listed, Fit(("input",), (None,)))[0].inputs.shape == IMAGES.shape


def tf_data_of(inputs, targets):
    inputs = inputs if isinstance(inputs, dict) else tuple(inputs)
    return tf.data.Dataset.from_tensor_slices((inputs, targets)).batch(8)


def test_normalisation_flip_and_crop_are_for_one_input():
    splits = read(two(), two(), TWO)
    for options in (Data(mean=(1.0,)), Data(std=(2.0,))):
        with pytest.raises(UserError, match="mean and std are for networks with one input"):
            own.dataset(*splits, options)
    for options in (Data(flip=True), Data(crop=1)):
        with pytest.raises(UserError, match="flip and crop are for networks with one input"):
            own.dataset(*splits, options)
    rows = Fit(("row",), ((5,),), (Output("y", "numbers", (5,)),))
    with pytest.raises(UserError, match="flip is for images"):
        dataset((ROWS, ROWS), rows, Data(flip=True))


# ---------------------------------------------------------------- D_subset and D_val


def test_sizes_without_classes_are_in_examples():
    fit = Fit(("row",), ((5,),), (Output("y", "numbers", (5,)),))
    data = dataset((ROWS, ROWS), fit)
    assert (data.subset_per_class, data.val_per_class) == (None, None)
    sampling = recipes.sampling(Sampling(), data)
    assert (sampling.subset, sampling.val) == (32, 8)  # a fifth, and the rest
    subset, val = parts(data, sampling)
    assert len(set(subset)) == 32 and len(set(val)) == 8 and not set(subset) & set(val)
    np.testing.assert_array_equal(val, parts(data, Sampling())[1])
    assert (val != parts(data, Sampling(seed=1))[1]).any()
    assert [len(part) for part in parts(data, Sampling(subset=5, val=3))] == [5, 3]
    with pytest.raises(UserError, match="val_per_class is for examples of one class each"):
        parts(data, recipes.sampling(Sampling(val_per_class=2), data))
    with pytest.raises(UserError, match=r"30 \+ 20 training examples .* there are 40"):
        parts(data, Sampling(subset=30, val=20))
    large = Fit(("row",), ((5,),), (Output("y", "numbers", (5,)),))
    many = dataset((np.zeros((9000, 5)), np.zeros((9000, 5))), large)
    assert (many.subset_examples, many.val_examples) == (2560, 320)


def test_sizes_in_examples_for_classes():
    data = dataset((IMAGES, LABELS))
    as_before = parts(data, recipes.sampling(Sampling(), data))
    assert [len(part) for part in as_before] == [32, 8]
    subset, val = parts(data, recipes.sampling(Sampling(subset=11), data))
    np.testing.assert_array_equal(np.bincount(LABELS[val]), [2] * 4)
    assert len(subset) == 11 and not set(subset) & set(val)
    with pytest.raises(UserError, match="val_examples and val_per_class are both given"):
        recipes.sampling(Sampling(val=3, val_per_class=3), data)


def test_a_class_too_small_for_the_defaults_gives_what_it_has(capsys):
    from dataclasses import replace

    sizes = {"subset_per_class": 9, "val_per_class": 3}
    subset, val = parts(replace(dataset((IMAGES, LABELS)), **sizes), Sampling())
    assert "images" not in capsys.readouterr().out  # D_val has what it asked for
    np.testing.assert_array_equal(np.bincount(LABELS[subset]), [7] * 4)
    np.testing.assert_array_equal(np.bincount(LABELS[val]), [3] * 4)
    data = replace(dataset((IMAGES, LABELS)), subset_per_class=9, val_per_class=6)
    subset, val = parts(data, recipes.sampling(Sampling(), data))
    assert "class 0 has 10 training images, but 9 + 6 per class" in capsys.readouterr().out
    np.testing.assert_array_equal(np.bincount(LABELS[subset]), [5] * 4)
    np.testing.assert_array_equal(np.bincount(LABELS[val]), [5] * 4)
    with pytest.raises(UserError, match="lower subset_per_class or val_per_class"):
        parts(data, recipes.sampling(Sampling(subset_per_class=11), data))
    rare = np.where(np.arange(COUNT) == 5, 3, LABELS % 3)
    data = dataset((IMAGES, rare))
    subset, val = parts(data, recipes.sampling(Sampling(), data))
    assert 5 in subset and 5 not in val and "class 3 has 1" in capsys.readouterr().out


def test_labels_of_pixels_that_the_loss_leaves_out():
    from dataclasses import replace

    output = Output("label", "classes", (*SHAPE[:2], 4))
    labels = np.random.default_rng(0).integers(0, 4, (COUNT, *SHAPE[:2]))
    labels[:, 0] = 255
    with pytest.raises(UserError, match=r"label 255 .* give a loss with ignore_class$"):
        dataset((IMAGES, labels), Fit(("image",), (SHAPE,), (output,)))
    fit = Fit(("image",), (SHAPE,), (replace(output, ignored=255),))
    np.testing.assert_array_equal(dataset((IMAGES, labels), fit).train.targets, labels)
    with pytest.raises(UserError, match="all labels are 255, which the loss leaves out"):
        dataset((IMAGES, np.full_like(labels, 255)), fit)


def test_classes_of_unequal_sizes(capsys):
    """D_val is as large as the middle class allows; the rare one gives what it has."""
    sizes = (100, 60, 10, 0, 50)
    labels = np.repeat(np.arange(5), sizes)
    images = np.zeros((len(labels), 8, 8, 1), np.uint8)
    data = dataset(
        (images, labels), Fit(("image",), ((8, 8, 1),), (Output("label", "classes", (5,)),))
    )
    said = capsys.readouterr().out
    assert "1 of the 5 classes have no training images: 3\n" in said
    assert (data.subset_per_class, data.val_per_class) == (44, 11)
    subset, val = parts(data, recipes.sampling(Sampling(), data))
    assert "class 2 has 10 training images, but 44 + 11 per class" in capsys.readouterr().out
    np.testing.assert_array_equal(np.bincount(labels[subset], minlength=5), [44, 44, 5, 0, 39])
    np.testing.assert_array_equal(np.bincount(labels[val], minlength=5), [11, 11, 5, 0, 11])
    singles = dataset(
        (images[:20], np.arange(20)),
        Fit(("image",), ((8, 8, 1),), (Output("label", "classes", (20,)),)),
    )
    subset, val = parts(singles, recipes.sampling(Sampling(), singles))
    assert (len(subset), len(val)) == (16, 4) and len(np.intersect1d(subset, val)) == 0


# ---------------------------------------------------------------- on several devices


@pytest.mark.parametrize("kind", ["trees", "index", "files", "augment"])
def test_batches_are_shared_by_two_replicas(kind):
    if len(tf.config.list_logical_devices("CPU")) < 2:
        pytest.skip("needs two logical CPU devices")
    sources = {"trees": two, "index": Torch, "files": tf_data, "augment": lambda: (IMAGES, LABELS)}
    fit = TWO if kind == "trees" else CLASSIFIER
    layer = keras.layers.RandomFlip() if kind == "augment" else None
    options = Data(memory=None if kind in ("trees", "augment") else 1e-9, augment=layer)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():  # as a caller of ours may have it open
        data = dataset(sources[kind](), fit, options)
        batches = train_batches(data, None, 8, **PLAIN | {"augment": True})
    whole = list(batches.as_numpy_iterator())
    shared = list(strategy.experimental_distribute_dataset(batches))
    for one, other in zip(whole, shared, strict=True):
        for key in ("inputs", "targets", "index"):
            halves = [
                strategy.experimental_local_results(leaf) for leaf in tf.nest.flatten(other[key])
            ]
            for leaf, parts_of in zip(tf.nest.flatten(one[key]), halves, strict=True):
                assert [len(part) for part in parts_of] == [4, 4]
                np.testing.assert_array_equal(leaf, np.concatenate(parts_of))
