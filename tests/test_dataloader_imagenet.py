"""Photographs in folders: layouts, labels, crops, batches, and everything that may be wrong."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from ekg_tf.dataloader import eval_batches, load, normalised_inputs, train_batches, unreadable_named
from ekg_tf.dataloader.imagenet import centre_crop, random_crop
from ekg_tf.utils.errors import UserError
from PIL import Image

CLASSES = ("n01440764", "n01443537", "n02084071")
SIDE, SHORT = 24, 28


def photo(path: Path, number: int, size=(60, 40), **options) -> None:
    """A smooth picture that differs from the others, saved by the suffix of `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    pixels = np.stack([x, y, (number % 10) / 9 * np.ones_like(x)], -1) * 255
    Image.fromarray(pixels.astype(np.uint8)).save(path, **options)


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """train/<class>/ with 4 pictures each, val/<class>/ with 2."""
    folder = tmp_path_factory.mktemp("imagenet")
    for label, name in enumerate(CLASSES):
        for k in range(4):
            photo(folder / "train" / name / f"{name}_{k}.JPEG", 4 * label + k, (40 + 9 * k, 50))
        for k in range(2):
            photo(folder / "val" / name / f"ILSVRC2012_val_{2 * label + k}.JPEG", label)
    return folder


@pytest.fixture
def copied(tree, tmp_path) -> Path:
    return shutil.copytree(tree, tmp_path / "data")


def small(data):
    return replace(data, side=SIDE, short_side=SHORT)


# ---------------------------------------------------------------- layouts


def test_folders_of_both_splits(tree):
    data = load("ImageNet", tree)
    assert (data.num_classes, data.class_names) == (3, CLASSES)
    assert data.image_shape == (224, 224, 3)
    assert data.train.targets.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert data.test.targets.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.train.names[5] == "train/n01443537/n01443537_1.JPEG"
    assert (data.subset_per_class, data.val_per_class) == (16, 4)


@pytest.mark.parametrize("form", ["class", "file class", "file number"])
def test_flat_val_with_a_label_file(form, copied, tmp_path):
    lines = []
    for label, name in enumerate(CLASSES):
        for path in sorted((copied / "val" / name).iterdir()):
            path.rename(copied / "val" / path.name)
            word = {"class": name, "file class": f"{path.name} {name}"}
            lines.append(word.get(form, f"{path.name} {label}"))
        (copied / "val" / name).rmdir()
    with pytest.raises(UserError, match=r"val has no folder per class.*by val_labels"):
        load("ImageNet", copied)
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(lines if form == "class" else lines[::-1]) + "\n")
    test = load("ImageNet", copied, val_labels=labels).test
    assert test.targets.tolist() == [0, 0, 1, 1, 2, 2]
    assert test.names == [f"val/ILSVRC2012_val_{k}.JPEG" for k in range(6)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n01440764\n" * 5, "has 5 labels for the 6 images in val"),
        ("1\n" * 6, "several numberings of ImageNet: give the WordNet ids"),
        ("n01440764\n" * 5 + "n99999999\n", "line 6: 'n99999999' is no class"),
        ("a.JPEG 1\n" * 6, "line 1: 'a.JPEG 1' does not name an image in val"),
        ("0.JPEG 1\n" * 6, "line 2: '0.JPEG 1' does not name .* or names it again"),
        ("".join(f"{k}.JPEG 3\n" for k in range(6)), "line 1: '3' is no class"),
    ],
)
def test_label_files_that_do_not_fit(text, message, copied, tmp_path):
    shutil.rmtree(copied / "val")
    for k in range(6):
        photo(copied / "val" / f"{k}.JPEG", k)
    labels = tmp_path / "labels.txt"
    labels.write_text(text)
    with pytest.raises(UserError, match=message):
        load("ImageNet", copied, val_labels=labels)


def test_a_single_folder_is_split_only_when_asked(tree):
    with pytest.raises(UserError, match=r"has no folder train.*say by hold_out"):
        load("ImageNet", tree / "train")
    data = load("ImageNet", tree / "train", hold_out=0.25)
    assert (len(data.train), len(data.test)) == (9, 3)
    assert not set(data.train.names) & set(data.test.names)
    again = load("ImageNet", tree / "train", hold_out=0.25)
    assert again.test.names == data.test.names and again.fingerprint == data.fingerprint
    assert load("ImageNet", tree / "train", hold_out=0.5).fingerprint != data.fingerprint
    with pytest.raises(UserError, match=r"hold_out 0.01 of 12 images leaves one part empty"):
        load("ImageNet", tree / "train", hold_out=0.01)


def test_folders_of_another_layout(copied):
    with pytest.raises(UserError, match=r"no/such does not exist.*ImageNet comes as a folder with"):
        load("ImageNet", "/no/such")
    with pytest.raises(UserError, match="leave hold_out out"):
        load("ImageNet", copied, hold_out=0.1)
    with pytest.raises(UserError, match="leave val_labels out"):
        load("ImageNet", copied, val_labels="labels.txt")
    (copied / "val" / CLASSES[0]).rename(copied / "val" / "n00000001")
    with pytest.raises(
        UserError, match=r"1 only in train \(n01440764\); 1 only in val \(n00000001\)"
    ):
        load("ImageNet", copied)
    shutil.rmtree(copied / "val")
    with pytest.raises(UserError, match="has a folder train, but none called val"):
        load("ImageNet", copied)
    for path in (copied / "train" / CLASSES[2]).iterdir():
        path.unlink()
    (copied / "val").mkdir()
    with pytest.raises(UserError, match=f"{CLASSES[2]} holds no images"):
        load("ImageNet", copied)


# ---------------------------------------------------------------- crops


def test_centre_crop_is_pillows(tree, tmp_path):
    photo(tmp_path / "one.png", 3, (90, 61))
    for path in (tmp_path / "one.png", tree / "train" / CLASSES[0] / "n01440764_3.JPEG"):
        image = Image.open(path).convert("RGB")
        scale = SHORT / min(image.size)
        size = [int(side * scale) for side in image.size]
        left, top = ((side - SIDE) // 2 for side in size)
        box = left, top, left + SIDE, top + SIDE
        expected = np.asarray(image.resize(size, Image.Resampling.BILINEAR).crop(box), np.float32)
        crop = centre_crop(tf.io.read_file(str(path)), SIDE, SHORT).numpy()
        assert np.abs(crop - expected).max() < 2.5


def test_random_crops_show_boxes_of_the_stated_sizes(tmp_path):
    # Red grows to the right, green downwards: a crop's corner colours tell its box.
    areas, aspects = [], []
    for name, options in (("a.png", {}), ("a.jpg", {"quality": 98})):
        photo(tmp_path / name, 5, (256, 256), **options)
        data = tf.io.read_file(str(tmp_path / name))
        for seed in range(40):
            crop = random_crop(data, tf.constant([seed, 1]), 32).numpy() / 255
            assert crop.shape == (32, 32, 3)
            # 31 of 32 steps lie between the outermost pixels' centres.
            width = (crop[:, -1, 0] - crop[:, 0, 0]).mean() * 32 / 31
            height = (crop[-1, :, 1] - crop[0, :, 1]).mean() * 32 / 31
            areas.append(width * height)
            aspects.append(width / height)
    assert 0.06 < min(areas) < 0.2 and 0.6 < max(areas) < 1.05
    assert 0.7 < min(aspects) < 0.9 and 1.1 < max(aspects) < 1.45


def test_grey_and_cmyk_pictures_and_a_png_called_jpeg(copied):
    paths = sorted((copied / "train" / CLASSES[0]).iterdir())
    Image.open(paths[0]).convert("L").save(paths[0])
    Image.open(paths[1]).convert("CMYK").save(paths[1])
    Image.open(paths[2]).save(paths[2], "PNG")
    data = small(load("ImageNet", copied))
    part = normalised_inputs(data, np.arange(4))
    images, labels = part.inputs, part.targets
    assert labels.tolist() == [0] * 4 and np.isfinite(images).all()
    colours = images * data.std + data.mean
    assert np.ptp(colours[0], axis=-1).max() < 3 and np.ptp(colours[2], axis=-1).max() > 30
    epoch = train_batches(
        data, np.arange(4), 4, seed=0, epoch=0, views=1, augment=True, jitter=True
    )
    assert np.isfinite(next(iter(epoch))["inputs"]).all()


# ---------------------------------------------------------------- batches


def epoch_of(data, batch_images=5, **changes) -> list[dict]:
    settings = dict(seed=3, epoch=0, views=2, augment=True, jitter=True) | changes
    return list(train_batches(data, None, batch_images, **settings).as_numpy_iterator())


def test_training_batches(tree):
    data = small(load("ImageNet", tree))
    bank = np.arange(12.0)
    first, again = (epoch_of(data, rows={"bank": bank}) for _ in range(2))
    assert [batch["inputs"].shape for batch in first] == [(5, 2, SIDE, SIDE, 3)] * 2
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one["inputs"], other["inputs"])
        np.testing.assert_array_equal(one["bank"], one["index"])
        np.testing.assert_array_equal(one["targets"], data.train.targets[one["index"]])
        assert (one["inputs"][:, 0] != one["inputs"][:, 1]).any(axis=(1, 2, 3)).all()
    assert len({index for batch in first for index in batch["index"].tolist()}) == 10
    other = epoch_of(data, epoch=1)
    assert any((a["index"] != b["index"]).any() for a, b in zip(first, other, strict=True))


def test_plain_views_are_the_evaluated_images(tree):
    data = small(load("ImageNet", tree))
    (batch,) = eval_batches(data, "train", 100, shuffle_seed=None).as_numpy_iterator()
    assert batch["index"].tolist() == list(range(12))
    for one in epoch_of(data, augment=False):
        for view in range(2):
            np.testing.assert_array_equal(one["inputs"][:, view], batch["inputs"][one["index"]])
    blue = (batch["inputs"] * data.std + data.mean)[..., 2].mean((1, 2))
    np.testing.assert_allclose(blue, np.arange(12) % 10 / 9 * 255, atol=5)
    later = eval_batches(data, "train", 5, first_batch=1).as_numpy_iterator()
    whole = list(eval_batches(data, "train", 5).as_numpy_iterator())
    assert [len(b["index"]) for b in whole] == [4, 4, 4]
    for one, other in zip(later, whole[1:], strict=True):
        np.testing.assert_array_equal(one["inputs"], other["inputs"])


@pytest.mark.parametrize("content", [b"nonsense", b"", "truncated", "missing"])
def test_an_unreadable_image_is_named(content, copied):
    data = small(load("ImageNet", copied))
    path = copied / "train" / CLASSES[1] / f"{CLASSES[1]}_2.JPEG"
    if content == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:200] if content == "truncated" else content)

    @unreadable_named()
    def training():
        epoch_of(data, batch_images=4)

    with pytest.raises(UserError, match=f"train/{CLASSES[1]}/{path.name} cannot be decoded"):
        training()
    with pytest.raises(UserError, match=f"{path.name} cannot be decoded"), unreadable_named():
        normalised_inputs(data, np.array([6]))
    with pytest.raises(tf.errors.InvalidArgumentError, match="other"), unreadable_named():
        raise tf.errors.InvalidArgumentError(None, None, "an other error")


def test_the_fingerprint_sees_a_replaced_image(copied):
    before = load("ImageNet", copied).fingerprint
    assert load("ImageNet", copied).fingerprint == before
    path = copied / "train" / CLASSES[1] / f"{CLASSES[1]}_2.JPEG"
    path.write_bytes(path.read_bytes() + b"\0")
    assert load("ImageNet", copied).fingerprint != before
