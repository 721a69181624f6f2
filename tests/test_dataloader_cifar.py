"""The official CIFAR files: every form gives the same data; damaged ones are named."""

from __future__ import annotations

import os
import pickle
import struct
import tarfile
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from ekg_tf.dataloader import NAMES, load
from ekg_tf.dataloader.sources import CIFAR10_CLASSES, CIFAR100_CLASSES
from ekg_tf.utils.errors import UserError

FOLDERS = {
    ("CIFAR10", "binary"): "cifar-10-batches-bin",
    ("CIFAR10", "python"): "cifar-10-batches-py",
    ("CIFAR100", "binary"): "cifar-100-binary",
    ("CIFAR100", "python"): "cifar-100-python",
}
PARTS = {
    "CIFAR10": [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"],
    "CIFAR100": ["train", "test"],
}


class Python2Pickler(pickle._Pickler):
    """Writes what Python 2 wrote: every string, and numpy's bytes, as a byte string."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def _save_string(self, value):
        value = value.encode("latin1") if isinstance(value, str) else value
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)

    dispatch[str] = dispatch[bytes] = _save_string


def _dump(content, path: Path) -> None:
    with path.open("wb") as file:
        Python2Pickler(file, protocol=2).dump(content)
    # the module's name when the official files were written
    path.write_bytes(path.read_bytes().replace(b"numpy._core.multi", b"numpy.core.multi"))


def _write(name: str, kind: str, parent: Path) -> Path:
    """Writes tiny official files; file k has k + 2 examples, equal for both kinds."""
    folder = parent / FOLDERS[name, kind]
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for k, part in enumerate(PARTS[name]):
        pixels = rng.integers(0, 256, (k + 2, 3072)).astype(np.uint8)
        labels = rng.integers(0, 10 if name == "CIFAR10" else 100, k + 2).astype(np.uint8)
        coarse = [labels // 5] if name == "CIFAR100" else []
        if kind == "binary":
            records = np.column_stack([*coarse, labels, pixels])
            (folder / f"{part}.bin").write_bytes(records.tobytes())
        else:
            key = "labels" if name == "CIFAR10" else "fine_labels"
            _dump({"data": pixels, key: labels.tolist()}, folder / part)
    return folder


def _archive(folder: Path, suffix: str) -> Path:
    path = folder.parent / f"archive.tar.{suffix}"
    with tarfile.open(path, f"w:{suffix}") as archive:
        archive.add(folder, folder.name)
    return path


def _same(first, second) -> bool:
    return first.fingerprint == second.fingerprint and all(
        np.array_equal(getattr(first.test, field), getattr(second.test, field))
        for field in ("inputs", "targets")
    )


# ---------------------------------------------------------------- official files


def test_binary_record_literal(tmp_path):
    folder = _write("CIFAR100", "binary", tmp_path)
    record = bytes([3, 42]) + bytes([10] * 1024) + bytes([20] * 1024) + bytes([30] * 1023 + [99])
    (folder / "test.bin").write_bytes(record)
    test = load("CIFAR100", folder).test
    assert test.inputs.shape == (1, 32, 32, 3) and test.inputs.dtype == np.uint8
    assert test.inputs[0, 0, 0].tolist() == [10, 20, 30]
    assert test.inputs[0, 31, 31].tolist() == [10, 20, 99]
    assert test.targets.tolist() == [42] and test.targets.dtype == np.int32


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100"])
def test_every_official_form_gives_the_same_data(name, tmp_path):
    binary = _write(name, "binary", tmp_path / "b")
    python = _write(name, "python", tmp_path / "p")
    expected = load(name, binary)
    assert len(expected.train) == (2 + 3 + 4 + 5 + 6 if name == "CIFAR10" else 2)
    assert len(expected.test) == (7 if name == "CIFAR10" else 3)
    others = [binary.parent, str(python), python.parent]
    others += [_archive(binary, "gz"), _archive(binary, "xz"), _archive(python, "gz")]
    for other in others:
        assert _same(load(name, other), expected), other


def test_settings_of_the_cifars(tmp_path):
    for name, classes in (("CIFAR10", 10), ("CIFAR100", 100)):
        data = load(name, _write(name, "binary", tmp_path))
        assert (data.name, data.num_classes, data.image_shape) == (name, classes, (32, 32, 3))
        assert (data.pad, data.flip, data.jitter) == (4, True, 0.2)
        assert (data.subset_per_class, data.val_per_class) == (256, 32)
        assert data.mean.dtype == data.std.dtype == np.float32
    np.testing.assert_allclose(data.mean, [112, 124, 129])


def test_class_names_are_unique_and_alphabetical():
    for text, count in ((CIFAR10_CLASSES, 10), (CIFAR100_CLASSES, 100)):
        names = text.split()
        assert len(set(names)) == count
        assert names == sorted(names)


def test_the_fingerprint_sees_pixels_labels_and_order(tmp_path):
    folder = _write("CIFAR100", "binary", tmp_path)
    before = load("CIFAR100", folder).fingerprint
    assert len(before) == 64
    records = (folder / "train.bin").read_bytes()
    changed_label = bytes([0, records[1] ^ 1]) + records[2:]
    changed_pixel = records[:-1] + bytes([records[-1] ^ 1])
    changed_order = records[3074:] + records[:3074]
    for changed in (changed_label, changed_pixel, changed_order):
        (folder / "train.bin").write_bytes(changed)
        assert load("CIFAR100", folder).fingerprint != before


# ---------------------------------------------------------------- damaged files


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), r"data_batch_3\.bin is truncated"),
        (lambda file: file.unlink(), r"data_batch_3\.bin is missing"),
        (lambda file: file.write_bytes(b""), r"data_batch_3\.bin holds no images"),
        (
            lambda file: file.write_bytes(b"\x0a" + file.read_bytes()[1:]),
            r"data_batch_3\.bin: label 10 of example 0 is outside 0\.\.9",
        ),
    ],
)
@pytest.mark.parametrize("archived", [False, True])
def test_damaged_binary_files(damage, message, archived, tmp_path):
    folder = _write("CIFAR10", "binary", tmp_path)
    damage(folder / "data_batch_3.bin")
    with pytest.raises(UserError, match=message):
        load("CIFAR10", _archive(folder, "gz") if archived else folder)


class _Foreign:
    def __reduce__(self):
        return os.mkdir, ("should_not_exist",)


PIXELS = np.zeros((2, 3072), np.uint8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"data": _Foreign(), "labels": [0, 1]}, r"test_batch: .*refused.*mkdir"),
        ({"data": PIXELS}, r"test_batch is not an official CIFAR file.*labels"),
        ([1, 2], "test_batch is not an official CIFAR file"),
        ({"data": PIXELS, "labels": ["a", "b"]}, r"test_batch: labels are \|S1 \[2\] instead of"),
        ({"data": PIXELS[:, :9], "labels": [0, 1]}, r"test_batch: data is uint8 \[2, 9\]"),
        ({"data": PIXELS, "labels": [0]}, "test_batch holds 2 images but 1 labels"),
        ({"data": PIXELS, "labels": [0, -1]}, "label -1 of example 1"),
        ({"data": PIXELS[:0], "labels": []}, "test_batch holds no images"),
    ],
)
def test_damaged_python_files(content, message, tmp_path, monkeypatch):
    folder = _write("CIFAR10", "python", tmp_path)
    _dump(content, folder / "test_batch")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        load("CIFAR10", folder)
    assert not Path("should_not_exist").exists()


def test_truncated_pickle_and_archives(tmp_path):
    folder = _write("CIFAR10", "python", tmp_path)
    for suffix in ("gz", "xz"):
        archive = _archive(folder, suffix)
        archive.write_bytes(archive.read_bytes()[:20_000])
        with pytest.raises(UserError, match=rf"archive\.tar\.{suffix} is not a complete tar"):
            load("CIFAR10", archive)
    (folder / "test_batch").write_bytes((folder / "test_batch").read_bytes()[:3000])
    with pytest.raises(UserError, match=r"test_batch: .*download it again"):
        load("CIFAR10", folder)


def test_what_is_not_there_or_of_another_kind(tmp_path):
    (tmp_path / "notes.txt").write_text("no archive")
    with pytest.raises(UserError, match=r"nowhere does not exist: CIFAR1.* comes as .*-py"):
        load("CIFAR10", tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"holds no CIFAR100: .*cifar-100-python\.tar\.gz"):
        load("CIFAR100", tmp_path)
    with pytest.raises(UserError, match="not a complete tar archive"):
        load("CIFAR10", tmp_path / "notes.txt")
    with pytest.raises(UserError, match="none of the official CIFAR100 files"):
        load("CIFAR100", _archive(_write("CIFAR10", "binary", tmp_path), "gz"))
    with pytest.raises(UserError, match=r"unknown dataset 'MNIST'.*CIFAR10, CIFAR100, DIGITS"):
        load("MNIST")
    assert NAMES == ("CIFAR10", "CIFAR100", "DIGITS", "ImageNet")
