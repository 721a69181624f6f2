"""TFDS's own imagenet2012 builder, fed with archives of three classes, and random access to it."""

import io
import tarfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from ekg_tf.dataloader import eval_batches, load
from ekg_tf.utils.errors import UserError
from PIL import Image

WNIDS = {"n01440764": 0, "n01496331": 5, "n01518878": 9}


def jpeg(number: int) -> bytes:
    """A picture whose red tells its number."""
    file = io.BytesIO()
    Image.new("RGB", (60 + number, 50), (20 * number, 90, 200)).save(file, "JPEG", quality=95)
    return file.getvalue()


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def tfds_folder(tmp_path, monkeypatch) -> Path:
    """TFDS's data folder, with the archives that a user has to download by hand."""
    import tensorflow_datasets as tfds

    monkeypatch.setattr(tfds, "builder", partial(tfds.builder, data_dir=tmp_path))
    manual = tmp_path / "downloads" / "manual"
    manual.mkdir(parents=True)
    with tarfile.open(manual / "ILSVRC2012_img_train.tar", "w") as outer:
        for place, wnid in enumerate(WNIDS):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as tar:
                for k in (2, 1, 0):
                    add(tar, f"{wnid}_{k}.JPEG", jpeg(3 * place + k))
            add(outer, f"{wnid}.tar", inner.getvalue())
    with tarfile.open(manual / "ILSVRC2012_img_val.tar", "w") as tar:
        for k in (1, 2, 3):
            add(tar, f"ILSVRC2012_val_{k:08d}.JPEG", jpeg(k))
    return tmp_path


def test_prepared_from_archives_and_read_at_random(tfds_folder):
    data = load("ImageNet")
    assert data.num_classes == 1000 and data.class_names[5] == "n01496331"
    assert data.train.names == [f"{wnid}_{k}.JPEG" for wnid in WNIDS for k in range(3)]
    assert data.train.targets.tolist() == [label for label in WNIDS.values() for _ in range(3)]
    # The official labels of the first three validation images.
    assert dict(zip(data.test.names, data.test.targets.tolist(), strict=True)) == {
        "ILSVRC2012_val_00000001.JPEG": 65,
        "ILSVRC2012_val_00000002.JPEG": 970,
        "ILSVRC2012_val_00000003.JPEG": 230,
    }
    for index in (7, 0, 4):
        assert data.train.read(tf.constant(index)).numpy() == jpeg(index)
    for batch in eval_batches(data, "train", 4):
        red = (batch["inputs"] * data.std + data.mean)[..., 0].numpy().mean((1, 2))
        np.testing.assert_allclose(red, 20 * batch["index"].numpy(), atol=4)
    # The second time the places are read from the index, not from the records.
    (index,) = tfds_folder.glob("imagenet2012/*/ekg_index_train.npz")
    written = index.stat().st_mtime_ns
    assert load("ImageNet").fingerprint == data.fingerprint
    assert index.stat().st_mtime_ns == written
    index.write_bytes(index.read_bytes()[:50])
    with pytest.raises(UserError, match=r"ekg_index_train.npz is damaged"):
        load("ImageNet")


def test_without_the_archives(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    monkeypatch.setattr(tfds, "builder", partial(tfds.builder, data_dir=tmp_path))
    with pytest.raises(UserError, match=r"could not provide imagenet2012 .*downloads/manual, or"):
        load("ImageNet")
    with pytest.raises(UserError, match="belong to a folder: give data_path"):
        load("ImageNet", hold_out=0.1)
