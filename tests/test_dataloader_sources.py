"""Image folders, TFDS, DIGITS and the real data."""

from __future__ import annotations

import io
import os
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from ekg_tf.dataloader import load
from ekg_tf.dataloader.sources import CIFAR10_CLASSES
from ekg_tf.utils.errors import UserError
from PIL import Image

# ---------------------------------------------------------------- image folders


@pytest.fixture
def image_folder(tmp_path) -> Path:
    """Two grey-level images per class and split; the level encodes split, class and file."""
    for s, split in enumerate(("train", "test")):
        for c, name in enumerate(CIFAR10_CLASSES.split()):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for k in (1, 0):
                level = np.full((32, 32, 3), 100 * s + 10 * c + k, np.uint8)
                Image.fromarray(level).save(folder / f"{k}.png")
    return tmp_path


def test_image_folder_is_read_by_class_and_file_name(image_folder):
    data = load("CIFAR10", image_folder)
    levels = [10 * c + k for c in range(10) for k in (0, 1)]
    assert data.train.inputs[:, 5, 6, 1].tolist() == levels
    assert data.test.inputs[:, 0, 0, 0].tolist() == [100 + level for level in levels]
    assert data.train.targets.tolist() == np.repeat(np.arange(10), 2).tolist()
    assert data.train.targets.dtype == np.int32
    assert data.class_names == tuple(CIFAR10_CLASSES.split())
    assert data.fingerprint == load("CIFAR10", image_folder).fingerprint


def test_damaged_image_folders(image_folder):
    with pytest.raises(UserError, match="10 class folders instead of 100"):
        load("CIFAR100", image_folder)
    image = image_folder / "train" / "cat" / "1.png"
    good = image.read_bytes()
    Image.new("RGB", (33, 31)).save(image)
    with pytest.raises(UserError, match=r"train/cat/1\.png is 31x33 pixels: .*32x32"):
        load("CIFAR10", image_folder)
    image.write_bytes(good[:-30])
    with pytest.raises(UserError, match=r"train/cat/1\.png cannot be decoded"):
        load("CIFAR10", image_folder)
    image.write_bytes(good)
    for file in image_folder.glob("test/*/*.png"):
        file.unlink()
    with pytest.raises(UserError, match=r"test holds no images"):
        load("CIFAR10", image_folder)


# ---------------------------------------------------------------- TFDS and DIGITS


class _FakeBuilder:
    """Stands for a TFDS builder; its examples are stored out of order, as TFDS does."""

    def __init__(self, name: str, prepared: bool):
        self.name, self.prepared = name, prepared

    def is_prepared(self) -> bool:
        return self.prepared

    def download_and_prepare(self) -> None:
        self.prepared = True

    def as_dataset(self, split, batch_size):
        assert self.prepared and (self.name, batch_size) == ("cifar10", -1)
        images = np.tile(np.uint8([0, 1, 2]).reshape(3, 1, 1, 1), (1, 32, 32, 3))
        ids = [[f"{part}_{k:05d}" for k in (2, 0, 1)] for part in split]
        examples = [{"image": images, "label": [7, 8, 9], "id": some} for some in ids]
        return [{k: tf.constant(v) for k, v in part.items()} for part in examples]


@pytest.mark.parametrize("prepared", [True, False])
def test_tfds_examples_get_their_official_place(prepared, monkeypatch):
    import tensorflow_datasets as tfds

    monkeypatch.setattr(tfds, "builder", lambda name: _FakeBuilder(name, prepared))
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: io.BytesIO())
    data = load("CIFAR10")
    assert data.train.inputs[:, 0, 0, 0].tolist() == [1, 2, 0]
    assert data.test.targets.tolist() == [8, 9, 7]


def test_tfds_without_a_network_names_data_path(monkeypatch, tmp_path):
    def fail(url, timeout):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", fail)
    with pytest.raises(
        UserError, match=r"CIFAR100 .*no route to host.*CIFAR100 comes as cifar-100-binary"
    ):
        load("CIFAR100")


def test_digits():
    data = load("DIGITS")
    assert (len(data.train), len(data.test)) == (1442, 355)
    assert data.image_shape == (8, 8, 1) and data.num_classes == 10
    assert data.train.inputs.dtype == np.uint8 and data.train.inputs.max() == 255
    assert data.train.targets[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert np.bincount(data.test.targets).tolist() == [35, 36, 35, 36, 36, 36, 36, 35, 34, 36]
    np.testing.assert_allclose(data.mean, data.train.inputs.mean(), atol=0.5)
    np.testing.assert_allclose(data.std, data.train.inputs.std(), atol=0.5)
    assert (data.pad, data.flip) == (1, False)
    assert (data.subset_per_class, data.val_per_class) == (64, 24)
    assert np.bincount(data.train.targets).min() >= 64 + 24
    assert data.fingerprint == load("DIGITS").fingerprint
    with pytest.raises(UserError, match="leave data_path out"):
        load("DIGITS", "somewhere")


# ---------------------------------------------------------------- real data


@pytest.fixture(scope="session")
def real_archives() -> Path:
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("EKG_DATA", default))
    if not (folder / "cifar10_raw_subset.tar.xz").is_file():
        pytest.skip(f"no real data in {folder}: set EKG_DATA to the folder of its archives")
    return folder


def test_real_cifar10_matches_the_constants(real_archives):
    data = load("CIFAR10", real_archives / "cifar10_raw_subset.tar.xz")
    assert (len(data.train), len(data.test)) == (1102 + 4 * 1017, 500)
    assert data.train.targets[:5].tolist() == [6, 9, 9, 4, 1]  # frog truck truck deer automobile
    pixels = data.train.inputs.reshape(-1, 3)
    # the constants stand in the order blue, green, red: see sources.py
    np.testing.assert_allclose(data.mean[::-1], pixels.mean(axis=0), atol=1.5)
    np.testing.assert_allclose(data.std[::-1], pixels.std(axis=0), atol=1.5)


def test_real_cifar100_matches_the_constants(real_archives):
    data = load("CIFAR100", real_archives / "cifar100_raw_subset.tar.xz")
    assert (len(data.train), len(data.test)) == (486, 916)
    assert [data.class_names[label] for label in data.train.targets[:3]] == [
        "cattle",
        "dinosaur",
        "apple",
    ]
    pixels = data.test.inputs.reshape(-1, 3)
    np.testing.assert_allclose(data.mean[::-1], pixels.mean(axis=0), atol=4)
    np.testing.assert_allclose(data.std[::-1], pixels.std(axis=0), atol=4)
