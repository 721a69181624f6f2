"""JSON and images that hypothesis makes up: read, or refused by a UserError, nothing else."""

from __future__ import annotations

import io
import json
import tempfile
from pathlib import Path

import pytest
from ekg_tf.cli import inputs
from ekg_tf.cli.manners import Parser
from ekg_tf.dataloader import own
from ekg_tf.finetune import parser
from ekg_tf.utils.errors import UserError
from ekg_tf.utils.runfiles import read_manifest
from ekg_tf.utils.runfolder import RunFolder
from PIL import Image

from ekg_tf.commands import report
from tests.torture.base import SHAPE, pixels
from tests.torture.record import note

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.slow

EXAMPLES, IMAGES = 100, 30
PLACE = "/dev/shm" if Path("/dev/shm").is_dir() else None  # runs sync what they write
KEYS = "dataset data data_path flops parameters before after front test search steps val_loss files"
KEYS = [*KEYS.split(), "format", "wanted", "seconds", "teachers", "top1", "batch_top1", "widths"]
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=4), inner, max_size=5)
    ),
    max_leaves=12,
)
CALMLY = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}
QUIETLY = settings(max_examples=EXAMPLES, **CALMLY)


def answered(read, *arguments) -> None:
    """A call that ends, or raises a UserError of one line."""
    try:
        read(*arguments)
    except UserError as error:
        assert str(error).strip()


@QUIETLY
@given(name=st.sampled_from(["search.json", "result.json"]), value=VALUES)
def any_json_as_figures(name, value):
    with tempfile.TemporaryDirectory(dir=PLACE) as folder:
        Path(folder, name).write_text(json.dumps(value))
        answered(report.main, [folder])


@QUIETLY
@given(value=VALUES)
def any_json_as_arguments(value):
    assert issubclass(type(parser()), Parser)
    with tempfile.TemporaryDirectory(dir=PLACE) as folder:
        Path(folder, "args.json").write_text(json.dumps(value))
        args = parser().parse_args(["--train_path", folder])
        args.dataset = args.loss = args.metrics = None
        answered(inputs.inherit_data, args, Path(folder))


@QUIETLY
@given(name=st.sampled_from(["files.json", "args.json", "versions.json"]), value=VALUES)
def any_json_as_a_mark_of_a_run(name, value):
    with tempfile.TemporaryDirectory(dir=PLACE) as folder:
        RunFolder.open(folder, {"seed": 0}).close()
        Path(folder, name).write_text(json.dumps(value))
        answered(read_manifest, Path(folder))
        answered(lambda: RunFolder.open(folder, {"seed": 0}).close())
        answered(lambda: RunFolder.open(folder, {"seed": 0}, overwrite=True).close())


@QUIETLY
@given(data=st.binary(max_size=400))
def any_bytes_as_json(data):
    with tempfile.TemporaryDirectory(dir=PLACE) as folder:
        Path(folder, "search.json").write_bytes(data)
        answered(report.main, [folder])


FORMATS = {"png": "PNG", "jpg": "JPEG", "gif": "GIF", "bmp": "BMP", "webp": "WEBP"}


def encoded(suffix: str) -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels(0)).save(data, FORMATS[suffix])
    return data.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of two images in both splits."""
    folder = tmp_path_factory.mktemp("images")
    for split in ("train", "test"):
        for label in "ab":
            place = folder / split / label
            place.mkdir(parents=True)
            for number in range(2):
                Image.fromarray(pixels(number)).save(place / f"{number}.png")
    return folder


@settings(
    max_examples=IMAGES, deadline=None, suppress_health_check=list(HealthCheck), database=None
)
@given(
    suffix=st.sampled_from(sorted(FORMATS)),
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=6),
    cut=st.floats(0, 1),
)
def any_change_of_an_image(folder, suffix, changes, cut):
    data = bytearray(encoded(suffix))
    for place, value in changes:
        data[place % len(data)] = value
    data = data[: max(1, int(len(data) * (1 - cut / 2)))] if cut > 0.5 else data
    path = folder / "test" / "a" / f"changed.{suffix}"
    path.write_bytes(bytes(data))
    try:
        answered(own.load, str(folder), SHAPE)
    finally:
        path.unlink()


@pytest.mark.parametrize(
    ("fuzz", "tried"),
    [
        (any_json_as_figures, EXAMPLES),
        (any_json_as_arguments, EXAMPLES),
        (any_json_as_a_mark_of_a_run, EXAMPLES),
        (any_bytes_as_json, EXAMPLES),
    ],
)
def test_json(fuzz, tried, request):
    fuzz()
    note(request.config, "fuzz", fuzz.__name__.replace("_", " "), {"tried": tried, "wrong": 0})


def test_images(folder, request):
    any_change_of_an_image(folder)
    note(request.config, "fuzz", "any change of an image", {"tried": IMAGES, "wrong": 0})
