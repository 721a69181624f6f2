"""Folders of the user's: streamed by class as they are read into memory, images with masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from ekg_tf.dataloader import (
    Split,
    eval_batches,
    normalised_inputs,
    own,
    parts,
    train_batches,
    unreadable_named,
)
from ekg_tf.dataloader.fit import Fit, Output
from ekg_tf.dataloader.photos import Masks, Photos
from ekg_tf.options import recipes
from ekg_tf.options.data import Data, Sampling
from ekg_tf.utils.errors import UserError
from PIL import Image

SHAPE = (12, 16, 3)
STREAMED = Data(memory=1e-9)
DENSE = Fit(("image",), (SHAPE,), (Output("mask", "classes", (12, 16, 3)),))


def picture(number: int, size=(20, 15)) -> Image.Image:
    """A smooth picture that differs from the others."""
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    pixels = np.stack([x, y, (number % 10) / 9 * np.ones_like(x)], -1) * 255
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.fixture
def folder(tmp_path) -> Path:
    """{train,val}/{ant,bee}/ of several kinds of files and sizes, some in a folder below."""
    for split, count in (("train", 6), ("val", 2)):
        for label, name in enumerate(("ant", "bee")):
            (tmp_path / split / name / "more").mkdir(parents=True)
            for k in range(count):
                where = tmp_path / split / name / ("more" if k == 1 else ".")
                suffix = (".png", ".jpg", ".JPEG")[k % 3]
                picture(6 * label + k, (17 + k, 15 + 2 * k)).save(where / f"{k}{suffix}")
    return tmp_path


def epoch(data, number=0, batch=4, **more):
    settings = {"seed": 3, "epoch": number, "views": 2, "augment": True, "jitter": True} | more
    return list(train_batches(data, None, batch, **settings).as_numpy_iterator())


# ---------------------------------------------------------------- by class


@pytest.mark.parametrize("channels", [3, 1])
def test_streamed_images_are_those_in_memory(folder, channels, capsys):
    shape = (*SHAPE[:2], channels)
    held, streamed = (own.load(str(folder), shape, one) for one in (Data(), STREAMED))
    assert isinstance(held.train, Split) and isinstance(streamed.train, Photos)
    assert "12 images are more than the limit of memory" in capsys.readouterr().out
    assert streamed.class_names == held.class_names == ("ant", "bee")
    np.testing.assert_array_equal(streamed.labels, held.labels)
    assert (streamed.pad, streamed.flip, streamed.jitter) == (1, channels == 3, 0.2)
    assert (streamed.subset_per_class, streamed.val_per_class) == (5, 1)
    assert streamed.image_shape == shape
    for split, count in (("train", 12), ("test", 4)):
        one, other = (normalised_inputs(d, np.arange(count), split) for d in (held, streamed))
        np.testing.assert_array_equal(one.inputs, other.inputs)
        np.testing.assert_array_equal(one.targets, other.targets)
    for one, other in zip(epoch(held, 2), epoch(streamed, 2), strict=True):
        for key in ("inputs", "targets", "index"):
            np.testing.assert_array_equal(one[key], other[key])
    drawn = [parts(d, recipes.sampling(Sampling(), d)) for d in (held, streamed)]
    np.testing.assert_array_equal(drawn[0][1], drawn[1][1])


def test_a_streamed_folder_is_known_by_its_files(folder):
    first, again = (own.load(str(folder), SHAPE, STREAMED).fingerprint for _ in range(2))
    path = folder / "train" / "bee" / "3.png"
    path.write_bytes(path.read_bytes() + b"\0")
    assert first == again != own.load(str(folder), SHAPE, STREAMED).fingerprint


def test_a_damaged_streamed_image_is_named(folder):
    data = own.load(str(folder), SHAPE, STREAMED)
    (folder / "train" / "bee" / "more" / "1.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"bee/more/1.jpg cannot be decoded"), unreadable_named():
        epoch(data)


def test_an_augmentation_of_streamed_images(folder):
    options = Data(memory=1e-9, augment=lambda x, y: (tf.image.flip_left_right(x), y))
    data = own.load(str(folder), SHAPE, options)
    plain = normalised_inputs(data, np.arange(12)).inputs
    for batch in epoch(data):
        np.testing.assert_array_equal(batch["inputs"][:, 1], plain[batch["index"]][:, :, ::-1])


def test_classes_by_folder_are_for_classifiers(folder):
    several = (Output("a", "classes", (2,)), Output("b", "numbers", (1,)))
    for outputs, message in (
        ((Output("y", "numbers", (1,)),), "holds images by class, but the network gives numbers"),
        (several, "one target per image, the network 2 outputs"),
    ):
        with pytest.raises(UserError, match=message):
            own.load(str(folder), Fit(("image",), (SHAPE,), outputs))
    with pytest.raises(UserError, match="of any size: give a network with a fixed input size"):
        own.load(str(folder), (None, None, 3))


# ---------------------------------------------------------------- images and masks


def mask_of(number: int) -> np.ndarray:
    """Classes 0..2, uint8 [15, 20]."""
    return np.add.outer(np.arange(15) // 5, np.arange(20) // 7 + number).astype(np.uint8) % 3


@pytest.fixture
def pairs(tmp_path) -> Path:
    """{train,test}/{images,masks} of 6 and 3 pairs."""
    for split, count in (("train", 6), ("test", 3)):
        for name in ("images", "masks"):
            (tmp_path / split / name).mkdir(parents=True)
        for k in range(count):
            picture(k).save(tmp_path / split / "images" / f"{k}.jpg")
            Image.fromarray(mask_of(k)).save(tmp_path / split / "masks" / f"{k}.png")
    return tmp_path


@pytest.mark.parametrize("options", [Data(), STREAMED], ids=["memory", "streamed"])
def test_pairs_of_images_and_masks(pairs, options):
    data = own.load(str(pairs), DENSE, options)
    assert isinstance(data.train, Photos if options is STREAMED else Split)
    assert data.num_classes == 3 and data.labels is None and not data.augments
    part = normalised_inputs(data, np.arange(6))
    assert part.inputs.shape == (6, *SHAPE) and part.targets.shape == (6, 12, 16)
    assert part.targets.dtype == np.int32
    for k, mask in enumerate(part.targets):
        nearest = tf.image.resize(mask_of(k)[..., None], SHAPE[:2], "nearest")[..., 0]
        np.testing.assert_array_equal(mask, nearest)
    assert [len(drawn) for drawn in parts(data, Sampling())] == [5, 1]
    assert len(list(eval_batches(data, "test", 2))) == 2


def test_streamed_masks_move_with_their_images(pairs):
    held, streamed = (
        own.load(str(pairs), DENSE, Data(memory=memory, flip=True, crop=2))
        for memory in (None, 1e-9)
    )
    assert streamed.moves_targets
    for one, other in zip(epoch(held), epoch(streamed), strict=True):
        assert other["targets"].shape == (4, 2, 12, 16)
        for key in ("inputs", "targets", "index"):
            np.testing.assert_array_equal(one[key], other[key])


def test_black_and_white_masks_and_palettes(tmp_path):
    path = tmp_path / "mask.png"
    bits = mask_of(0) % 2
    sigmoid, classes = (
        Output("mask", kind, (15, 20, count)) for kind, count in (("sigmoids", 1), ("classes", 2))
    )
    palette = Image.fromarray(bits, "P")
    palette.putpalette([9, 9, 9, 200, 0, 0])
    grey = Image.fromarray(np.repeat(255 * bits[..., None], 3, -1))
    for image in (Image.fromarray(255 * bits), palette, grey, Image.fromarray(bits > 0)):
        image.save(path)
        found = Masks([path], (15, 20), sigmoid)[:1]
        assert found.dtype == np.float32 and found.shape == (1, 15, 20, 1)
        np.testing.assert_array_equal(found[0, ..., 0], bits)
        np.testing.assert_array_equal(Masks([path], (15, 20), classes).one(0), bits)


def test_a_number_that_the_loss_leaves_out(tmp_path):
    path, kind = tmp_path / "mask.png", ("mask", "classes", (15, 20, 3))
    border = np.where(np.eye(15, 20) > 0, 255, mask_of(0)).astype(np.uint8)
    Image.fromarray(border).save(path)
    found = Masks([path], (15, 20), Output(*kind, ignored=255)).one(0)
    np.testing.assert_array_equal(found, border)
    with pytest.raises(UserError, match="holds the number 255: the network tells 3 classes"):
        Masks([path], (15, 20), Output(*kind)).one(0)


def test_masks_that_do_not_fit(pairs):
    def refused(fit=DENSE, options=Data()):  # noqa: B008
        with pytest.raises(UserError) as error, unreadable_named():
            epoch(own.load(str(pairs), fit, options))
        return str(error.value)

    numbers = Fit(("image",), (SHAPE,), (Output("depth", "numbers", (12, 16, 1)),))
    assert "masks are for a network that gives classes or one probability" in refused(numbers)
    path = pairs / "train" / "masks" / "2.png"
    good = path.read_bytes()
    Image.fromarray(mask_of(2) * 100).save(path)
    for options in (Data(), STREAMED):
        assert "2.png holds the number 200: the network tells 3 classes apart" in refused(
            options=options
        )
    picture(1).save(path)
    assert "is a colour picture: a mask has one number per pixel" in refused()
    path.write_bytes(b"no image")
    assert "masks/2.png cannot be decoded" in refused(options=STREAMED)
    path.unlink()
    assert "images/2.jpg has no mask of the same name" in refused()
    path.with_name("9.png").write_bytes(good)
    (pairs / "train" / "images" / "2.jpg").unlink()
    assert "masks/9.png has no image of the same name" in refused()
    (pairs / "test" / "masks").rename(pairs / "test" / "labels")
    path.with_name("9.png").unlink()
    assert "test/masks is no folder" in refused()
