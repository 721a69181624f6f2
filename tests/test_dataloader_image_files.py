"""Images of all kinds in files: which are read, how, and which are named."""

import os

import numpy as np
import pytest
import tensorflow as tf
from ekg_tf.dataloader.folders import in_memory
from ekg_tf.dataloader.image_files import Listing, opened, reader
from ekg_tf.dataloader.photos import files
from ekg_tf.utils import limits
from ekg_tf.utils.errors import UserError
from PIL import Image

SIDE = 16


@pytest.fixture
def smooth() -> Image.Image:
    """Colours that a JPEG keeps."""
    ramp = np.linspace(0, 255, SIDE).astype(np.uint8)
    planes = [*np.meshgrid(ramp, ramp[::-1]), np.full((SIDE, SIDE), 90, np.uint8)]
    return Image.fromarray(np.stack(planes, -1))


KINDS = {
    "grey.png": ("L", {}),
    "colour.png": ("RGB", {}),
    "palette.png": ("P", {}),
    "palette.bmp": ("P", {}),
    "bits.bmp": ("1", {}),
    "colour.bmp": ("RGB", {}),
    "still.gif": ("P", {}),
    "lossless.webp": ("RGB", {"lossless": True}),
    "alpha.webp": ("RGBA", {"lossless": True}),
    "printed.jpg": ("CMYK", {"quality": 95}),
    "colour.jpg": ("RGB", {"quality": 95}),
    "misnamed.jpg": ("RGB", {"format": "PNG"}),
    "tiff.jpg": ("RGB", {"format": "TIFF"}),
}


@pytest.mark.parametrize("channels", [3, 1])
def test_images_are_read_as_pillow_reads_them(smooth, channels, tmp_path):
    for name, (mode, options) in KINDS.items():
        smooth.convert(mode).save(tmp_path / name, **options)
    names = sorted(KINDS)
    odd = opened(tmp_path, names)
    plain = [name for name, one in zip(names, odd, strict=True) if not one]
    assert plain == ["colour.jpg", "colour.png", "grey.png", "misnamed.jpg", "palette.png"]
    labels = np.zeros(len(names), np.int32)
    split = files(tmp_path, names, labels, (SIDE, SIDE, channels), odd)
    order = np.arange(len(names), dtype=np.int32)[None]
    (batch,) = split.batches(order).as_numpy_iterator()
    for name, found in zip(names, batch["inputs"], strict=True):
        with Image.open(tmp_path / name) as image:
            mode = "RGB" if channels == 3 else "L"
            expected = np.asarray(image.convert("RGB").convert(mode)).reshape(found.shape)
        assert np.abs(found - expected).max() <= (8 if name.endswith(".jpg") else 1), name


def test_what_is_no_image_is_left_out_with_a_count(smooth, tmp_path, capsys):
    place = tmp_path / "class"
    (place / "deep").mkdir(parents=True)
    for name in ("b.PNG", "a.webp", "deep/c.jpg"):
        smooth.save(place / name)
    for name in ("._b.PNG", "Thumbs.db", "notes.txt"):
        (place / name).write_bytes(b"no image")
    listing = Listing(tmp_path)
    assert listing.add("class", 7) == 2 and listing.labels == [7, 7]
    assert listing.names == ["class/a.webp", "class/b.PNG"]
    listing.say_skipped()
    assert "4 files are left out" in capsys.readouterr().out
    deep = Listing(tmp_path)
    assert deep.add("class", 0, deep=True) == 3 and deep.names[-1] == "class/deep/c.jpg"
    assert len(deep.skipped) == 3


def test_the_last_of_many_is_named_before_any_work(smooth, tmp_path):
    for number in range(20):
        smooth.resize((64, 64)).save(tmp_path / f"{number}.jpg")
    path = tmp_path / "19.jpg"
    path.write_bytes(path.read_bytes()[:-60])
    names = [f"{number}.jpg" for number in range(20)]
    with pytest.raises(UserError, match=r"19\.jpg cannot be decoded .*truncated"):
        opened(tmp_path, names)
    assert not opened(tmp_path, names, decode=False).any()


@pytest.mark.parametrize("name", ["a.webp", "a.gif", "a.png", "a.jpg"])
def test_one_that_only_its_pixels_betray_is_named_when_it_is_read(smooth, name, tmp_path):
    """As in a split that is read into memory, of which only the headers are looked at before."""
    smooth.resize((64, 64)).save(tmp_path / name)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) * 9 // 10])
    with pytest.raises(UserError, match=rf"{tmp_path}/{name} cannot be decoded \(.*\): remove"):
        odd = opened(tmp_path, [name], decode=False)  # of a WebP it is seen here
        in_memory(files(tmp_path, [name], np.zeros(1, np.int32), (SIDE, SIDE, 3), odd))


def test_an_image_may_be_as_large_as_is_said(smooth, tmp_path, monkeypatch):
    smooth.save(tmp_path / "a.png")
    monkeypatch.setenv(limits.UNPACKED, str(8 * 12 * SIDE * SIDE / 2**30))
    opened(tmp_path, ["a.png"])
    monkeypatch.setenv(limits.UNPACKED, str(8 * 11 * SIDE * SIDE / 2**30))
    with pytest.raises(UserError, match="is 16x16 pixels, which take"):
        opened(tmp_path, ["a.png"])


def test_names_that_are_no_utf8(smooth, tmp_path):
    name = os.fsdecode(b"\xff\xfe.png")
    smooth.save(tmp_path / name, format="PNG")
    data = reader(tmp_path, [name], opened(tmp_path, [name]))(tf.constant(0))
    assert data.numpy() == (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=r"\\xff\\xfe\.png cannot be decoded"):
        opened(tmp_path, [name])
