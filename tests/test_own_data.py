"""The user's own data: image folders and functions, and what is said when they are wrong."""

import sys

import numpy as np
import pytest
import tensorflow as tf
from ekg_tf.dataloader import eval_batches, own, own_function, parts, train_batches
from ekg_tf.dataloader.fit import Fit
from ekg_tf.options.data import Data, Sampling
from ekg_tf.utils.errors import UserError
from PIL import Image

SHAPE = (6, 8, 3)


def images_of(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *SHAPE), np.uint8)


@pytest.fixture
def folder(tmp_path):
    """{train,val}/{ant,bee}/*.png with 3 and 2 images per class; returns (path, pixels)."""
    pixels = images_of(10)
    number = iter(range(10))
    for split, count in (("train", 3), ("val", 2)):
        for name in ("ant", "bee"):
            (tmp_path / split / name).mkdir(parents=True)
            for place in range(count):
                Image.fromarray(pixels[next(number)]).save(tmp_path / split / name / f"{place}.png")
    return tmp_path, pixels


def test_folder_in_order_and_untouched(folder):
    path, pixels = folder
    data = own.load(str(path), SHAPE)
    np.testing.assert_array_equal(data.train.inputs, pixels[:6])
    np.testing.assert_array_equal(data.test.inputs, pixels[6:])
    assert data.train.targets.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.test.targets.tolist() == [0, 0, 1, 1]
    assert data.class_names == ("ant", "bee") and data.name == own.NAME
    assert (data.val_per_class, data.subset_per_class) == (1, 2)
    assert (data.pad, data.flip, data.jitter) == (1, True, 0.2)  # max(1, 6 // 8)
    batch = next(iter(eval_batches(data, "test", 4, shuffle_seed=None)))
    np.testing.assert_array_equal(batch["inputs"], pixels[6:].astype(np.float32))


@pytest.mark.parametrize(
    ("given", "sizes"),
    [
        ({}, [4, 2]),
        ({"val_per_class": 2}, [2, 4]),
        ({"subset_per_class": 1}, [2, 2]),
        ({"val_per_class": 1, "subset_per_class": 2}, [4, 2]),
    ],
)
def test_a_size_that_isnt_given_is_what_the_other_leaves(folder, given, sizes):
    """Three examples of each of two classes."""
    drawn = parts(own.load(str(folder[0]), SHAPE), Sampling(**given))
    assert [len(one) for one in drawn] == sizes
    assert len(np.intersect1d(*drawn)) == 0


def test_images_are_resized_as_keras_does(folder):
    path, pixels = folder
    data = own.load(str(path), (3, 4, 3), Data((10.0,), (2.0, 4.0, 8.0), flip=False))
    expected = tf.image.resize(pixels[:6], (3, 4)).numpy()
    np.testing.assert_allclose(data.train.inputs, np.round(expected), atol=0)
    assert data.mean.tolist() == [10, 10, 10] and data.std.tolist() == [2, 4, 8]
    assert not data.flip
    assert [own.load(str(path), SHAPE, Data(crop=crop)).pad for crop in (None, 0, 5)] == [1, 0, 5]
    grey = own.load(str(path), (3, 4, 1))
    assert grey.train.inputs.shape == (6, 3, 4, 1) and grey.mean.tolist() == [0]


def test_a_folder_for_a_network_of_any_size_is_resized_to_what_it_was_built_on(folder):
    path, _ = folder
    fit = Fit(("input",), ((None, None, None),), built_on=(3, 4, 3))
    assert own.load(str(path), fit).image_shape == (3, 4, 3)


def test_folder_errors(folder, tmp_path):
    path, _ = folder

    def refused(source, **options) -> str:
        with pytest.raises(UserError) as error:
            own.load(str(source), SHAPE, Data(**options))
        return str(error.value)

    assert "does not exist: data is a folder" in refused(tmp_path / "no")
    assert "has no folder train" in refused(path / "train")
    assert "is a file" in refused(path / "val" / "ant" / "0.png")
    assert "the std of the data has 2 numbers: give one, or one per channel (3)" in refused(
        path, std=(1.0, 2.0)
    )
    assert "the std of the data holds 0" in refused(path, std=(0.0,))
    (path / "train" / "cat").mkdir()
    assert "differ in the class folders cat" in refused(path)
    (path / "val" / "cat").mkdir()
    Image.fromarray(images_of(1)[0]).save(path / "val" / "cat" / "0.png")
    assert "train/cat has no image: every class needs one" in refused(path)
    for place in range(2):
        (path / "train" / "cat" / f"{place}.png").write_bytes(b"no image")
    assert "cat/0.png cannot be decoded" in refused(path)
    single = tmp_path / "single"
    for split in ("train", "test"):
        (single / split).mkdir(parents=True)
        Image.fromarray(images_of(1)[0]).save(single / split / "0.png")
    assert "has no class folders" in refused(single)
    for shape in ((4,), (6, 8, 5)):
        with pytest.raises(UserError, match="holds images, but the network takes"):
            own.load(str(path), shape)


MODULE = """
import numpy as np
import tensorflow as tf

rng = np.random.default_rng(0)
images = rng.integers(0, 256, (20, 6, 8, 3), np.uint8)
labels = np.arange(20) % 4

def arrays():
    return (images[:12], labels[:12, None]), (images[12:], labels[12:])

def shuffled():
    train = tf.data.Dataset.from_tensor_slices((images[:12], labels[:12]))
    test = tf.data.Dataset.from_tensor_slices((images[12:] / 255, labels[12:]))
    return train.shuffle(12).map(lambda x, y: (tf.cast(x, tf.float32) / 255, y)).batch(5), test

def mixed():
    return arrays()[0], shuffled()[1]

def three():
    return arrays()[0], arrays()[1], 3

def single():
    return images, labels, None, None

def not_pairs():
    return images, labels

def several_labels():
    return (images, np.ones((len(labels), 4))), (images, labels)

def grey():
    return (images[..., 0], labels), (images[..., :1], labels)

def integers():
    return (images.astype(np.int32), labels), (images.astype(np.int32), labels)

def not_finite():
    return (images / 0.0, labels), (images, labels)

def forever():
    return tf.data.Dataset.from_tensor_slices((images, labels)).repeat(), (images, labels)

def elements():
    return tf.data.Dataset.from_tensor_slices(images), (images, labels)

def sizes():
    def make():
        yield np.zeros((6, 8, 3), np.uint8), 0
        yield np.zeros((5, 8, 3), np.uint8), 1
    types = tf.TensorSpec((None, None, 3), tf.uint8), tf.TensorSpec((), tf.int32)
    return tf.data.Dataset.from_generator(make, output_signature=types), (images, labels)

def vectors():
    rows = tf.data.Dataset.from_tensor_slices((rng.normal(size=(20, 5)), labels))
    return rows, rows.batch(3)

def series():
    x = rng.normal(size=(20, 6, 5))
    return (x, labels), tf.data.Dataset.from_tensor_slices((x, labels))

def volumes():
    x = rng.integers(0, 256, (20, 2, 4, 4, 3), np.uint8)
    return (x, labels), (x, labels)

def bands():
    x = rng.integers(0, 256, (20, 1, 8, 5), np.uint8)
    return (x, labels), (x, labels)

def fewer_labels():
    return (images, labels[:5]), (images, labels)

def negative():
    return (images, labels - 1), (images, labels)

def raises():
    return 1 / 0

def asks(split):
    return split

constant = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The name of a module of the user's in the current folder."""
    (tmp_path / "my_data_module.py").write_text(MODULE)
    (tmp_path / "broken_module.py").write_text("import no_such_package")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield "my_data_module"
    for name in ("my_data_module", "broken_module"):
        sys.modules.pop(name, None)


def test_function_that_returns_arrays(module):
    data = own.load(f"{module}:arrays", SHAPE)
    assert data.train.inputs.dtype == np.uint8 and data.train.inputs.shape == (12, *SHAPE)
    assert data.train.targets.tolist() == [0, 1, 2, 3] * 3  # the order is kept
    assert data.class_names == ("0", "1", "2", "3") and data.jitter == 0.2


def test_whole_numbers_are_taken_as_floats(module):
    """Of another type than uint8 they are of an unknown range, so nothing is clipped."""
    data = own.load(f"{module}:integers", SHAPE)
    same = own.load(f"{module}:arrays", SHAPE)
    assert data.train.inputs.dtype == np.float32 and data.jitter == 0.0
    assert data.train.inputs.max() > 200 and same.jitter == 0.2


def test_shuffled_datasets_come_in_one_order(module):
    first, second = (own.load(f"{module}:shuffled", SHAPE) for _ in range(2))
    np.testing.assert_array_equal(first.train.inputs, second.train.inputs)
    assert first.fingerprint == second.fingerprint
    assert first.train.inputs.dtype == np.float32 and first.train.inputs.max() <= 1
    assert first.jitter == 0.0  # clipping to grey levels would be wrong for floats
    arrays = own.load(f"{module}:arrays", SHAPE).train
    place = [
        np.abs(first.train.inputs - one / 255).max((1, 2, 3)).argmin() for one in arrays.inputs
    ]
    np.testing.assert_array_equal(first.train.targets[place], arrays.targets)
    batches = train_batches(first, None, 4, seed=0, epoch=0, views=2, augment=True, jitter=True)
    batch = next(iter(batches))
    assert batch["inputs"].shape == (4, 2, *SHAPE)
    assert set(np.unique(batch["inputs"])) <= set(np.unique(first.train.inputs))  # flip and crop


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("mixed", "both splits must be alike"),
        ("three", r"returned a tuple of 3: a pair \(train, test\)"),
        ("single", "returned a tuple of 4"),
        ("not_pairs", "the train split of .* is a ndarray: a tf.data.Dataset or a pair"),
        ("several_labels", "float64 labels of shape .*rows of zeros with a single one"),
        ("grey", r"images of shape \(6, 8\): the network takes \(6, 8, 3\)$"),
        ("not_finite", "NaN or infinite"),
        ("forever", "never ends: leave out its .repeat"),
        ("elements", r"\(image, label\) is expected"),
        ("sizes", "all images must be of the network's size"),
        ("fewer_labels", "20 images but 5 labels"),
        ("negative", "label -1 of example 0"),
        ("raises", "ZeroDivisionError: division by zero .*my_data_module.py, line"),
        ("asks", "asks for arguments"),
        ("constant", "has no function 'constant'"),
        ("nothing", "has no function 'nothing'"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
def test_function_errors(module, function, message):
    with pytest.raises(UserError, match=message):
        own.load(f"{module}:{function}", SHAPE)


def test_grey_images_without_channels(module):
    assert own.load(f"{module}:grey", (6, 8, 1)).image_shape == (6, 8, 1)


@pytest.mark.parametrize(
    ("function", "shape"),
    [("vectors", (5,)), ("series", (6, 5)), ("volumes", (2, 4, 4, 3)), ("bands", (1, 8, 5))],
)
def test_functions_return_what_the_network_takes(module, function, shape):
    data = own.load(f"{module}:{function}", shape, Data(mean=(1.0,) * shape[-1]))
    assert data.image_shape == shape and len(data.train) == len(data.test) == 20
    assert (data.pad, data.jitter, data.flip) == (0, 0.0, shape[2:] == (3,))
    batches = train_batches(data, None, 4, seed=0, epoch=0, views=2, augment=True, jitter=True)
    batch = next(iter(batches))
    assert batch["inputs"].shape == (4, 2, *shape)
    expected = data.train.inputs[batch["index"].numpy()].astype(np.float32) - 1
    views = batch["inputs"].numpy()
    if data.flip:
        mirrored = (views == expected[:, None, :, ::-1]).all((2, 3, 4))
        assert (mirrored | (views == expected[:, None]).all((2, 3, 4))).all()
    else:
        np.testing.assert_array_equal(views, np.stack([expected, expected], 1))


def test_module_errors(module):
    with pytest.raises(UserError, match="no folder and no Python module no_module"):
        own.load("no_module:load", SHAPE)
    with pytest.raises(UserError, match="broken_module can't be imported: ModuleNotFoundError"):
        own.load("broken_module:load", SHAPE)


def test_one_hot_labels_are_the_classes_that_they_name():
    labels = np.array([2, 0, 1, 2])
    images = np.zeros((4, 6, 8, 3), np.uint8)
    split = (images, np.eye(3, dtype="float32")[labels])
    train, _, names = own_function.checked((split, split), (6, 8, 3), "the test")
    np.testing.assert_array_equal(train.targets, labels)
    assert names == ("0", "1", "2")
