"""Bad inputs and the line that each is answered by.

A case makes its input in a folder and returns the words of an `ekg-tf` command, or a function that
calls the package. The answer is `error: <line>` and exit code 2, or a UserError; nothing may be
left in the folder `run`. Cases that end well have no line.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from ekg_tf.utils.keras_files import save_keras
from PIL import Image

import ekg_tf as ekg
from tests.torture.base import CLASSES, SHAPE, Base, arrays, network, pixels, write_photos

L = keras.layers
Run = list[str] | Callable[[], Any]


@dataclass(frozen=True)
class Case:
    """line: a regular expression of the answer; "" where the input is fine.

    quick: also in the suite that everybody runs.
    """

    make: Callable[[Base, Path], Run]
    line: str
    quick: bool = False


CASES: dict[str, Case] = {}


def case(line: str, *, quick: bool = False, name: str = "") -> Callable:
    def add(make: Callable[[Base, Path], Run]) -> Callable[[Base, Path], Run]:
        key = name or make.__name__
        assert key not in CASES, key
        CASES[key] = Case(make, line, quick)
        return make

    return add


def pruned(folder: Path, train: Any = None, test: Any = None, model: Any = None, **more) -> Run:
    """A call of ekg_tf.prune on a small network."""
    train = arrays() if train is None else train
    test = arrays(count=8) if test is None else test
    more = {"log": False, "budget": 0.7, "method": ekg.Uniform(), "bank": None} | more
    more = {"finetune": ekg.Plain(), "training": ekg.Training(epochs=1, batch_size=8)} | more
    return lambda: ekg.prune(model or network(), train, test, folder / "run", **more)


# ---------------------------------------------------------------- JSON in a folder

WRONG_JSON = {"list": b"[]", "null": b"null", "empty_dict": b"{}", "number": b"3", "cut": b'{"a"'}
DEEP = b"[" * 100_000


def _json_cases() -> None:
    for kind, content in (WRONG_JSON | {"deep": DEEP}).items():
        for name in ("args.json", "search.json", "files.json"):

            def tune(base: Base, folder: Path, name=name, content=content) -> Run:
                run = base.copied_search(folder, name, content)
                words = (
                    "--finetune_method plain --train_epoch 1 --gpu_id cpu --batch_size 8".split()
                )
                return [
                    "finetune",
                    "--search_path",
                    str(run),
                    "--train_path",
                    f"{folder}/run",
                ] + words

            case(rf"{name}", name=f"finetune_{name}_{kind}")(tune)
        for name in ("search.json", "result.json"):

            def report(base: Base, folder: Path, name=name, content=content) -> Run:
                place = folder / "reported"
                place.mkdir()
                (place / name).write_bytes(content)
                return ["report", str(place)]

            case(rf"{name}", name=f"report_{name}_{kind}")(report)
        if kind not in ("list", "empty_dict"):  # test_fuzz has the others
            continue
        for name in ("args.json", "files.json", "versions.json"):

            def again(base: Base, folder: Path, name=name, content=content) -> Run:
                run = base.copied_search(folder, name, content)
                run.rename(folder / "again")
                words = base.prune(folder)
                words[words.index("--train_path") + 1] = str(folder / "again")
                return words

            case(name if name != "versions.json" else "again", name=f"again_{name}_{kind}")(again)


_json_cases()

# ---------------------------------------------------------------- seeds

for _flag, _value in (("seed", "-1"), ("seed", str(2**32)), ("search_seed", "-1")):

    def _with_seed(base: Base, folder: Path, flag=_flag, value=_value) -> Run:
        return base.prune(folder, f"--{flag}", value)

    case(rf"--{_flag}: .*{_value}", name=f"flag_{_flag}_{_value}", quick=True)(_with_seed)

for _value in (-1, 2**32, 1.5, "0", None):

    def _seed_given(base: Base, folder: Path, value=_value) -> Run:
        return pruned(folder, seed=value)

    case("seed", name=f"python_seed_{_value}", quick=True)(_seed_given)


@case("seed")
def python_sampling_seed(base: Base, folder: Path) -> Run:
    return lambda: pruned(folder, sampling=ekg.Sampling(seed=-1))()


# ---------------------------------------------------------------- arrays

LABELS = {
    "huge": (np.arange(24) * 10**9, "label 23000000000 of example 23 is no class"),
    "wrapped_uint32": (np.array([-1] * 24).astype(np.uint32), "label"),
    "wrapped_uint64": (np.array([-1] * 24).astype(np.uint64), "label"),
    "negative": (np.full(24, -1), "label -1"),
    "float_huge": (np.full(24, 1e30), "float64 labels|expected"),
    "fractions": (np.full(24, 0.5), "expected"),
    "nan": (np.full(24, np.nan), "expected"),
    "strings": (np.array(["cat", "dog"] * 12), "expected"),
    "objects": (np.array([None] * 24), "expected"),
    "dates": (np.array(["2020-01-01"] * 24, "datetime64[D]"), "expected"),
    "too_few": (np.zeros(3, int), "3 labels"),
    "empty": (np.zeros(0, int), "0 labels|empty"),
    "complex": (np.zeros(24, complex), "expected"),
}
for _name, (_labels, _line) in LABELS.items():

    def _labels_given(base: Base, folder: Path, labels=_labels) -> Run:
        return pruned(folder, arrays(labels))

    case(_line, name=f"labels_{_name}", quick=_name in ("huge", "wrapped_uint32"))(_labels_given)


@case("label")
def labels_of_an_unknown_number_of_classes(base: Base, folder: Path) -> Run:
    """A subclassed network doesn't tell how many classes there are before it is called."""

    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = L.Conv2D(4, 3), L.Dense(CLASSES)

        def call(self, x):
            return self.fc(keras.ops.mean(self.conv(x), axis=(1, 2)))

    model = Own()
    model(np.zeros((1, *SHAPE), np.float32))
    return pruned(folder, arrays(np.array([-1] * 24).astype(np.uint32)), model=model)


IMAGES = {
    "ragged_list": [np.zeros((k + 1, k + 1, 3)) for k in range(24)],
    "ragged_tensor": tf.ragged.constant([[1.0], [1.0, 2.0]] * 12),
    "strings": np.array([["a"] * 3] * 24),
    "string_tensor": tf.constant(["a"] * 24),
    "objects": np.array([{}] * 24),
    "nan": np.full((24, *SHAPE), np.nan),
    "infinite": np.full((24, *SHAPE), np.inf),
    "int64": np.zeros((24, *SHAPE), np.int64),
    "complex": np.zeros((24, *SHAPE), complex),
    "no_axis": np.float32(1),
    "none": None,
    "text": "images.npy",
    "dict": {"a": np.zeros((24, *SHAPE))},
    "channels_first": np.zeros((24, 3, 8, 8)),
    "sparse": tf.sparse.from_dense(tf.ones((24, 8))),
}
for _name, _images in IMAGES.items():

    def _images_given(base: Base, folder: Path, images=_images) -> Run:
        return pruned(folder, (images, arrays()[1]))

    case("train split of prune", name=f"images_{_name}", quick=_name == "ragged_list")(
        _images_given
    )


@case("train split of prune is|expected")
def data_none(base: Base, folder: Path) -> Run:
    return lambda: ekg.prune(network(), None, arrays(), folder / "run")


@case("train split of prune")
def data_nested_tuples(base: Base, folder: Path) -> Run:
    return pruned(folder, ((arrays(), arrays()), arrays()))


# ---------------------------------------------------------------- streams and what is read by index


def _dataset(generator, signature=None) -> tf.data.Dataset:
    signature = signature or (tf.TensorSpec(SHAPE, tf.uint8), tf.TensorSpec([], tf.int64))
    return tf.data.Dataset.from_generator(generator, output_signature=signature)


@case("fails")
def stream_that_fails(base: Base, folder: Path) -> Run:
    def examples():
        yield pixels(0), 0
        raise RuntimeError("the disk is gone")

    return pruned(folder, _dataset(examples).batch(1))


@case("fails")
def stream_that_fails_in_map(base: Base, folder: Path) -> Run:
    def bad(x, y):
        return tf.io.decode_png(tf.strings.as_string(y)), y

    data = tf.data.Dataset.from_tensor_slices(arrays()).map(bad)
    return pruned(folder, data.map(lambda x, y: (tf.ensure_shape(x, SHAPE), y)))


@case("train split of prune")
def stream_of_streams(base: Base, folder: Path) -> Run:
    return pruned(folder, tf.data.Dataset.from_tensor_slices(arrays()).window(4))


@case("train split of prune")
def stream_of_dicts(base: Base, folder: Path) -> Run:
    return pruned(folder, tf.data.Dataset.from_tensor_slices({"x": arrays()[0], "y": arrays()[1]}))


@case("train split of prune")
def stream_of_ragged(base: Base, folder: Path) -> Run:
    ragged = tf.ragged.constant([[[1, 2]], [[1], [2]]] * 12)
    return pruned(folder, tf.data.Dataset.from_tensor_slices((ragged, arrays()[1])))


@case("train split of prune")
def stream_of_strings(base: Base, folder: Path) -> Run:
    return pruned(folder, tf.data.Dataset.from_tensor_slices((["a"] * 24, arrays()[1])).batch(4))


@case("never ends")
def stream_without_end(base: Base, folder: Path) -> Run:
    return pruned(folder, tf.data.Dataset.from_tensor_slices(arrays()).repeat())


@case("no image|is empty|has no")
def stream_without_examples(base: Base, folder: Path) -> Run:
    return pruned(folder, tf.data.Dataset.from_tensor_slices(arrays()).take(0))


@case("train split of prune")
def stream_of_nested_tuples(base: Base, folder: Path) -> Run:
    x, y = arrays()
    return pruned(folder, tf.data.Dataset.from_tensor_slices(((x, (x, x)), y)).batch(4))


@case("train split of prune")
def stream_of_ragged_batches(base: Base, folder: Path) -> Run:
    def examples():
        for k in range(8):
            yield np.zeros((k + 1, k + 1, 3), np.uint8), 0

    spec = tf.TensorSpec([None, None, 3], tf.uint8), tf.TensorSpec([], tf.int64)
    return pruned(folder, _dataset(examples, spec))


class ByIndex:
    """Examples by index, of which one fails in some way."""

    def __init__(self, fail: Callable[[], Any]):
        self.fail = fail

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> Any:
        return self.fail() if index == 7 else (pixels(index), index % CLASSES)


def _leave() -> Any:
    sys.exit(3)


def _leave_quietly() -> Any:
    sys.exit()


for _name, _fail in {
    "raises": lambda: [][0],
    "exits": _leave,
    "none": lambda: None,
    "other_size": lambda: (pixels(0, 9), 0),
    "text": lambda: ("a", "b"),
}.items():

    def _by_index(base: Base, folder: Path, fail=_fail) -> Run:
        return pruned(folder, ByIndex(fail))

    case("train split of prune", name=f"by_index_{_name}")(_by_index)


class Batches(keras.utils.PyDataset):
    """Batches, of which one fails in some way."""

    def __init__(self, fail: Callable[[], Any]):
        super().__init__()
        self.fail = fail

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Any:
        return self.fail() if index == 1 else arrays(count=8)


for _name, _fail in {"raises": lambda: [][0], "exits": _leave, "none": lambda: None}.items():

    def _batches(base: Base, folder: Path, fail=_fail) -> Run:
        return pruned(folder, Batches(fail))

    case("train split of prune", name=f"pydataset_{_name}")(_batches)


@case("SystemExit")
def stream_that_exits(base: Base, folder: Path) -> Run:
    def examples():
        yield pixels(0), 0
        sys.exit(3)

    return pruned(folder, _dataset(examples))


@case("augment= ")
def augment_that_exits(base: Base, folder: Path) -> Run:
    return pruned(folder, data=ekg.Data(augment=lambda x, y: sys.exit(3)))


# ---------------------------------------------------------------- a function of the user's

OWN = {
    "exits": "import sys\ndef data():\n    sys.exit(3)\n",
    "exits_quietly": "import sys\ndef data():\n    sys.exit()\n",
    "exits_at_import": "import sys\nsys.exit(0)\n",
    "raises": "def data():\n    raise RuntimeError('no')\n",
    "interrupts_itself": "def data():\n    raise SystemExit('bye')\n",
    "syntax": "def data(:\n",
    "returns_none": "def data():\n    return None\n",
    "asks": "def data(x):\n    return x\n",
    "is_none": "data = None\n",
    "bytes": "\x00",
}
for _name, _source in OWN.items():

    def _own(base: Base, folder: Path, name=_name, source=_source) -> Run:
        (folder / f"own_{name}.py").write_text(source)
        sys.path.insert(0, str(folder))
        return base.prune(folder, data=f"own_{name}:data")

    case(f"own_{_name}", name=f"function_{_name}", quick=_name == "exits")(_own)


@case("exit")
def loss_that_exits(base: Base, folder: Path) -> Run:
    numbers = (arrays()[0], np.zeros((24, CLASSES), np.float32))
    test = numbers[0][:8], numbers[1][:8]
    return pruned(folder, numbers, test, loss=lambda target, output: sys.exit(4))


# ---------------------------------------------------------------- files of images


def _photos(name: str, line: str, quick: bool = False) -> Callable:
    """A case whose function spoils a folder of images; for the user's own data."""

    def add(spoil: Callable[[Path], Any]) -> Callable[[Path], Any]:
        def make(base: Base, folder: Path) -> Run:
            photos = base.copied_photos(folder)
            spoil(photos)
            if not line:
                return partial(read_photos, photos)
            return base.prune(folder, data=photos)

        case(line, name=f"photos_{name}", quick=quick)(make)
        return spoil

    return add


def read_photos(photos: Path, count: int = 24) -> None:
    """Both splits of the user's own data, as a search reads them."""
    from ekg_tf.dataloader import own

    data = own.load(str(photos), SHAPE)
    assert (len(data.train), len(data.test)) == (count, 8), len(data.train)


def _one(folder: Path, split: str = "train") -> Path:
    return folder / split / "class0" / "3.png"


@_photos("dangling_link", r"3\.png")
def _(folder: Path) -> None:
    _one(folder).unlink()
    _one(folder).symlink_to("/no/such/file.png")


@_photos("looping_link", r"3\.png")
def _(folder: Path) -> None:
    _one(folder).unlink()
    _one(folder).symlink_to(_one(folder))


@_photos("looping_folder", "")
def _(folder: Path) -> None:
    (folder / "train" / "class0" / "again").symlink_to(folder / "train")


@_photos("fifo", r"3\.png", quick=True)
def _(folder: Path) -> None:
    _one(folder).unlink()
    os.mkfifo(_one(folder))


@_photos("folder_called_jpg", "")
def _(folder: Path) -> None:
    (folder / "train" / "class0" / "x.jpg").mkdir()


@_photos("device", r"3\.png")
def _(folder: Path) -> None:
    _one(folder).unlink()
    _one(folder).symlink_to("/dev/zero")


@_photos("empty", r"3\.png")
def _(folder: Path) -> None:
    _one(folder).write_bytes(b"")


@_photos("half", r"3\.png", quick=True)
def _(folder: Path) -> None:
    _one(folder).write_bytes(_one(folder).read_bytes()[:100])


@_photos("half_of_test", r"test/class0/3\.png")
def _(folder: Path) -> None:
    _one(folder, "test").write_bytes(_one(folder, "test").read_bytes()[:100])


@_photos("text", r"3\.png")
def _(folder: Path) -> None:
    _one(folder).write_text("no image")


@_photos("name_not_utf8", "")
def _(folder: Path) -> None:
    name = os.fsencode(folder / "train" / "class0") + b"/\xff\xfe.png"
    os.rename(_one(folder), os.fsdecode(name))


@_photos("class_not_utf8", "")
def _(folder: Path) -> None:
    for split in ("train", "test"):
        os.rename(
            folder / split / "class0", os.fsdecode(os.fsencode(folder / split) + b"/\xff\xfe")
        )


@_photos("half_with_a_name_not_utf8", "cannot be decoded")
def _(folder: Path) -> None:
    name = os.fsdecode(os.fsencode(folder / "train" / "class0") + b"/\xff\xfe.png")
    Path(name).write_bytes(_one(folder).read_bytes()[:100])


@_photos("webp", "")
def _(folder: Path) -> None:
    Image.fromarray(pixels(5)).save(_one(folder).with_suffix(".webp"), lossless=True)
    _one(folder).unlink()


@_photos("cmyk", "")
def _(folder: Path) -> None:
    Image.fromarray(pixels(5)).convert("CMYK").save(_one(folder).with_suffix(".jpg"))
    _one(folder).unlink()


@_photos("gif_and_bmp", "")
def _(folder: Path) -> None:
    for number, suffix in enumerate((".gif", ".bmp")):
        path = folder / "train" / "class1" / f"{number}.png"
        Image.open(path).save(path.with_suffix(suffix))
        path.unlink()


@_photos("apple_double", "")
def _(folder: Path) -> None:
    for label in range(CLASSES):
        (folder / "train" / f"class{label}" / "._3.png").write_bytes(b"\x00\x05\x16\x07" * 20)


@_photos("other_files", "")
def _(folder: Path) -> None:
    (folder / "train" / "class0" / "Thumbs.db").write_bytes(b"no image")
    (folder / "train" / "class0" / "notes.txt").write_text("no image")


@_photos("sixteen_bits", "")
def _(folder: Path) -> None:
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(_one(folder))


@_photos("palette_with_alpha", "")
def _(folder: Path) -> None:
    Image.fromarray(np.dstack([pixels(3), pixels(4)[..., :1]])).save(_one(folder))


def png_of(side: int) -> bytes:
    """A black RGB PNG of side x side pixels, a thousandth of its pixels' bytes."""
    row = zlib.compressobj(9)
    data = b"".join(row.compress(bytes(3 * side + 1)) for _ in range(side)) + row.flush()

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", head), chunk(b"IDAT", data), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def png_bomb() -> bytes:
    """A PNG of a few bytes that says that it is 100,000 pixels wide and high."""
    content = png_of(16)
    body = b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return content[:12] + body + struct.pack(">I", zlib.crc32(body)) + content[33:]


@_photos("bomb", r"3\.png.*100000", quick=True)
def _(folder: Path) -> None:
    content = png_of(16)
    head = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    body = b"IHDR" + head
    _one(folder).write_bytes(
        content[:12] + body + struct.pack(">I", zlib.crc32(body)) + content[33:]
    )


@_photos("bomb_of_test", r"test/class0/3\.png.*100000")
def _(folder: Path) -> None:
    _one(folder, "test").write_bytes(png_bomb())


# the same for ImageNet's layout and for CIFAR's folder of images

SPOILT = {
    "dangling_link": lambda p: (p.unlink(), p.symlink_to("/no/such.png")),
    "looping_link": lambda p: (p.unlink(), p.symlink_to(p)),
    "fifo": lambda p: (p.unlink(), os.mkfifo(p)),
    "half": lambda p: p.write_bytes(p.read_bytes()[:100]),
    "bomb": lambda p: p.write_bytes(png_bomb()),
}
FINE = {
    "folder": lambda p: p.with_name("x.png").mkdir(),
    "name_not_utf8": lambda p: p.rename(os.fsdecode(os.fsencode(p.parent) + b"/\xff\xfe.png")),
    "webp": lambda p: (
        Image.open(p).save(p.with_suffix(".webp"), lossless=True),
        p.unlink(),
    ),
    "cmyk": lambda p: (Image.open(p).convert("CMYK").save(p.with_suffix(".jpg")), p.unlink()),
    "gif": lambda p: Image.open(p).save(p.with_suffix(".gif")),
    "bmp": lambda p: Image.open(p).save(p.with_suffix(".bmp")),
    "apple_double": lambda p: p.with_name("._3.png").write_bytes(b"\x00\x05\x16\x07" * 20),
}


def read_named(name: str, photos: Path) -> None:
    """Every example of both splits of data that is known by name."""
    from ekg_tf.dataloader import eval_batches, load

    data = load(name, photos)
    for split in ("train", "test"):
        batches = eval_batches(data, split, 4)
        found = sum(len(batch["index"]) for batch in batches.as_numpy_iterator())
        assert found == len(getattr(data, split))


def imagenet_words(base: Base, folder: Path, photos: Path) -> Run:
    model = folder / "large.keras"
    keras.utils.set_random_seed(0)
    image = keras.Input((224, 224, 3))
    x = L.Conv2D(3, 8, 16, activation="relu")(image)
    x = L.GlobalAveragePooling2D()(L.Conv2D(4, 3, activation="relu")(x))
    save_keras(model, keras.Model(image, L.Dense(CLASSES)(x)))
    words = ["search", "--model", model, "--dataset", "ImageNet", "--data_path", photos]
    more = "--method uniform --search_target_rate 0.7 --bank none --do_log off --gpu_id cpu".split()
    more += "--val_per_class 2 --subset_per_class 2".split()
    return [*map(str, words), "--train_path", f"{folder}/run", *more]


def _imagenet_cases() -> None:
    for split in ("train", "val"):
        for name, spoil in (SPOILT | FINE).items():

            def make(base: Base, folder: Path, name=name, split=split, spoil=spoil) -> Run:
                photos = write_photos(folder / "photos", {"train": 5, "val": 4}, side=40)
                spoil(photos / split / "class0" / "3.png")
                if name in FINE:
                    return partial(read_named, "ImageNet", photos)
                return imagenet_words(base, folder, photos)

            line = rf"{split}/class0/3\.png" if name in SPOILT else ""
            case(line, name=f"imagenet_{split}_{name}")(make)


_imagenet_cases()


def _cifar_folder_cases() -> None:
    for name, spoil in (SPOILT | FINE).items():

        def make(base: Base, folder: Path, name=name, spoil=spoil) -> Run:
            photos = folder / "photos"
            for split, count in (("train", 2), ("test", 2)):
                for label in range(10):
                    place = photos / split / f"class{label}"
                    place.mkdir(parents=True)
                    for number in range(3, 3 + count):
                        Image.fromarray(pixels(number, 32)).save(place / f"{number}.png")
            spoil(photos / "train" / "class0" / "3.png")
            if name in FINE:
                return partial(read_named, "CIFAR10", photos)
            return cifar_words(folder, photos)

        case(r"3\.png" if name in SPOILT else "", name=f"cifar_folder_{name}")(make)


def cifar_words(folder: Path, data: Path) -> Run:
    from ekg_tf.nets.zoo.builders import build

    save_keras(folder / "res20.keras", build("ResNet-20", 10, (32, 32, 3)))
    words = ["search", "--trained_param", folder / "res20.keras", "--arch", "ResNet-20"]
    words += ["--dataset", "CIFAR10", "--data_path", data, "--train_path", folder / "run"]
    more = "--method uniform --search_target_rate 0.7 --bank none --do_log off --gpu_id cpu".split()
    return [*map(str, words), *more, *"--val_per_class 1 --subset_per_class 1".split()]


_cifar_folder_cases()

# ---------------------------------------------------------------- CIFAR's own files


def _cifar_pickles(folder: Path, labels: Any, name: str = "data_batch_3") -> Path:
    place = folder / "cifar-10-batches-py"
    place.mkdir()
    for file in (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"):
        given = labels if file == name else [k % 10 for k in range(20)]
        content = {b"data": np.zeros((20, 3072), np.uint8), b"labels": given}
        (place / file).write_bytes(pickle.dumps(content, protocol=2))
    return place


for _name, _labels in {
    "fractions": [0.5] * 20,
    "nan": [float("nan")] * 20,
    "huge": [10**30] * 20,
    "wrapped": [2**64 - 1] * 20,
    "text": ["cat"] * 20,
    "none": None,
    "nested": [[1, 2]] * 20,
    "ragged": [[1], [1, 2]] * 10,
    "negative": [-1] * 20,
    "whole_floats": [float("inf")] * 20,
}.items():

    def _cifar_labels(base: Base, folder: Path, labels=_labels) -> Run:
        return cifar_words(folder, _cifar_pickles(folder, labels))

    case("data_batch_3", name=f"cifar_labels_{_name}")(_cifar_labels)


@case(r"bomb\.tar\.gz.*GiB")
def cifar_archive_bomb(base: Base, folder: Path) -> Run:
    """A member of 40 GiB of zeros, in an archive of a few bytes: its directory says so."""
    path = folder / "bomb.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        info = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
        info.size = 40 * 2**30
        archive.addfile(tarfile.TarInfo("cifar-10-batches-bin/batches.meta.txt"))
        archive.fileobj.write(info.tobuf())
        archive.fileobj.write(bytes(1 << 20))
    return cifar_words(folder, path)


# ---------------------------------------------------------------- networks


def _spoilt_network(name: str, layer: str, weight: int, value: Any, line: str, quick=False) -> None:
    def spoilt() -> keras.Model:
        model = network()
        variable = model.get_layer(layer).weights[weight]
        array = np.array(variable)
        array.flat[0] = value
        variable.assign(array)
        return model

    def on_the_line(base: Base, folder: Path) -> Run:
        path = folder / "spoilt.keras"
        save_keras(path, spoilt())
        return base.prune(folder, model=path)

    def inspected(base: Base, folder: Path) -> Run:
        path = folder / "spoilt.keras"
        save_keras(path, spoilt())
        return ["inspect", str(path)]

    case(line, name=f"network_{name}", quick=quick)(on_the_line)
    case(line, name=f"inspect_{name}")(inspected)
    case(line, name=f"python_network_{name}")(lambda base, folder: pruned(folder, model=spoilt()))
    case(line, name=f"python_inspect_{name}")(lambda base, folder: lambda: ekg.inspect(spoilt()))


_spoilt_network("nan", "conv1", 0, np.nan, "conv1/kernel.*NaN", quick=True)
_spoilt_network("infinite", "fc", 1, np.inf, "fc/bias.*infinite")
_spoilt_network("negative_variance", "bn0", 3, -1.0, "bn0/moving_variance.*negative")
_spoilt_network("nan_variance", "bn1", 3, np.nan, "bn1/moving_variance.*NaN")


@case(r"fc/kernel.*NaN")
def pkl_nan(base: Base, folder: Path) -> Run:
    from ekg_tf.nets.zoo.builders import build
    from ekg_tf.nets.zoo.pkl_weights import save_pkl, to_pkl

    arrays = to_pkl(build("ResNet-20", 10, (8, 8, 1)))
    arrays["fc/kernel:0"][0, 0] = np.nan
    save_pkl(folder / "nan.pkl", arrays)
    words = ["search", "--trained_param", folder / "nan.pkl", "--train_path", folder / "run"]
    return [*map(str, words), "--gpu_id", "cpu"]


@case(r"conv/kernel:0 .*holds no number")
def pkl_empty_kernel(base: Base, folder: Path) -> Run:
    from ekg_tf.nets.zoo.builders import build
    from ekg_tf.nets.zoo.pkl_weights import save_pkl, to_pkl

    arrays = to_pkl(build("ResNet-20", 10, (8, 8, 1)))
    arrays["conv/kernel:0"] = np.zeros((3, 3, 1, 0), np.float32)
    save_pkl(folder / "none.pkl", arrays)
    words = ["search", "--trained_param", folder / "none.pkl", "--train_path", folder / "run"]
    return [*map(str, words), "--gpu_id", "cpu"]


def _edited(base: Base, folder: Path, edit: Callable[[dict], None]) -> Path:
    """The small network with another config.json."""
    path = folder / "edited.keras"
    with zipfile.ZipFile(base.model) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "config.json":
                config = json.loads(content)
                edit(config)
                content = json.dumps(config).encode()
            new.writestr(name, content)
    return path


def _layer(config: dict, name: str) -> dict:
    return next(
        one["config"] for one in config["config"]["layers"] if one["config"]["name"] == name
    )


def _bomb(layer: str, **settings: Any) -> tuple[Callable[[dict], None], str]:
    return lambda config: _layer(config, layer).update(settings), r"edited\.keras.*GiB"


def _wrong(layer: str, **settings: Any) -> tuple[Callable[[dict], None], str]:
    return lambda config: _layer(config, layer).update(settings), "edited.keras"


EDITS = {
    "units_bomb": _bomb("fc", units=400_000_000),
    "filters_bomb": _bomb("conv1", filters=60_000_000),
    "kernel_bomb": _bomb("conv1", kernel_size=[40_000, 40_000]),
    "kernel_size_zero": _wrong("conv1", kernel_size=[0, 0]),
    "filters_zero": _wrong("conv1", filters=0),
    "filters_negative": _wrong("conv1", filters=-3),
    "filters_text": _wrong("conv1", filters="many"),
    "units_zero": _wrong("fc", units=0),
    "config_is_list": (lambda config: config.update(config=[]), "edited.keras"),
    "no_class": (lambda config: config.pop("class_name"), "edited.keras"),
}
for _name, (_edit, _line) in EDITS.items():

    def _edited_config(base: Base, folder: Path, edit=_edit) -> Run:
        return base.prune(folder, model=_edited(base, folder, edit))

    def _edited_inspected(base: Base, folder: Path, edit=_edit) -> Run:
        return ["inspect", str(_edited(base, folder, edit))]

    case(_line, name=f"config_{_name}", quick=_name == "units_bomb")(_edited_config)
    case(_line if _name != "input_bomb" else "", name=f"inspect_config_{_name}")(_edited_inspected)


@case(r"bomb\.keras.*GiB", quick=True)
def keras_zip_bomb(base: Base, folder: Path) -> Run:
    """A config.json of 40 GiB, as the archive's directory says."""
    path = folder / "bomb.keras"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new,
        zipfile.ZipFile(base.model) as old,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    _claim(path, b"config.json", 2**32 - 2)
    return base.prune(folder, model=path)


@case(r"bomb\.keras")
def keras_zip_that_lies(base: Base, folder: Path) -> Run:
    """A config.json of 64 MiB of spaces whose directory claims a hundred bytes."""
    path = folder / "bomb.keras"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new,
        zipfile.ZipFile(base.model) as old,
    ):
        for name in old.namelist():
            if name != "config.json":
                new.writestr(name, old.read(name))
        with new.open("config.json", "w", force_zip64=True) as entry:
            for _ in range(64):
                entry.write(b" " * 2**20)
    _claim(path, b"config.json", 100)
    return base.prune(folder, model=path)


def _claim(path: Path, name: bytes, size: int) -> None:
    """Writes another uncompressed size of an entry into a zip's directory."""
    data = bytearray(path.read_bytes())
    place = data.rindex(b"PK\x01\x02", 0, data.rindex(name))
    struct.pack_into("<I", data, place + 24, size)
    path.write_bytes(data)


def _endless(path: Path) -> None:
    """Puts an array of 40 GB, none of it written, in place of the first one of an HDF5 file."""
    import h5py

    with h5py.File(path, "r+") as file:
        found: list[str] = []
        file.visititems(lambda name, one: found.append(name) if hasattr(one, "shape") else None)
        del file[found[0]]
        file.create_dataset(found[0], (10**10,), "f4", chunks=(2**20,), compression="gzip")


@case(r"bomb\.keras.*GiB")
def keras_weights_bomb(base: Base, folder: Path) -> Run:
    path, weights = folder / "bomb.keras", folder / "bomb.h5"
    with zipfile.ZipFile(base.model) as old, zipfile.ZipFile(path, "w") as new:
        weights.write_bytes(old.read("model.weights.h5"))
        _endless(weights)
        for name in old.namelist():
            content = weights.read_bytes() if name == "model.weights.h5" else old.read(name)
            new.writestr(name, content)
    return base.prune(folder, model=path)


@case(r"bomb\.weights\.h5.*GiB")
def weights_h5_bomb(base: Base, folder: Path) -> Run:
    from ekg_tf.nets.zoo.builders import build

    path = folder / "bomb.weights.h5"
    build("ResNet-20", 10, (8, 8, 1)).save_weights(path)
    _endless(path)
    words = ["search", "--trained_param", path, "--train_path", folder / "run", "--gpu_id", "cpu"]
    return list(map(str, words))


@case(r"links\.weights\.h5.*link")
def weights_h5_out_of_the_file(base: Base, folder: Path) -> Run:
    import h5py
    from ekg_tf.nets.zoo.builders import build

    path = folder / "links.weights.h5"
    build("ResNet-20", 10, (8, 8, 1)).save_weights(path)
    with h5py.File(path, "r+") as file:
        file["more"] = h5py.ExternalLink("/tmp/other.h5", "/secret")
    words = ["search", "--trained_param", path, "--train_path", folder / "run", "--gpu_id", "cpu"]
    return list(map(str, words))


@case(r"\.npz|state")
def npz_bomb(base: Base, folder: Path) -> Run:
    """A checkpoint whose array is 40 GB of zeros."""
    from ekg_tf.utils.arrays import load_state

    path = folder / "finetune_state.npz"
    header = {"descr": "<f4", "fortran_order": False, "shape": (10**10,)}
    packed = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED)
    with packed as archive, archive.open("a.npy", "w", force_zip64=True) as entry:
        np.lib.format.write_array_header_1_0(entry, header)
        entry.write(bytes(1000))
    return lambda: load_state(path)


@case("")
def float64_network(base: Base, folder: Path) -> Run:
    return pruned(folder, model=network(dtype="float64"))


@case("")
def float64_file(base: Base, folder: Path) -> Run:
    save_keras(folder / "wide.keras", network(dtype="float64"))
    return base.prune(folder, model=folder / "wide.keras")


@case("")
def integer_input(base: Base, folder: Path) -> Run:
    return pruned(folder, model=_integers())


def _integers() -> keras.Model:
    image = keras.Input(SHAPE, dtype="uint8")
    x = L.Rescaling(1 / 255)(image)
    x = L.Conv2D(4, 3, activation="relu")(x)
    x = L.GlobalAveragePooling2D()(L.Conv2D(6, 3, activation="relu")(x))
    return keras.Model(image, L.Dense(CLASSES)(x))


@case("")
def integer_input_file(base: Base, folder: Path) -> Run:
    save_keras(folder / "integers.keras", _integers())
    return base.prune(folder, model=folder / "integers.keras")


@case("")
def integer_tokens(base: Base, folder: Path) -> Run:
    words = keras.Input((6,), dtype="int32")
    x = L.GlobalAveragePooling1D()(L.Embedding(20, 8)(words))
    model = keras.Model(words, L.Dense(CLASSES)(L.Dense(8, activation="relu")(x)))
    rng = np.random.default_rng(0)
    train, test = ((rng.integers(0, 20, (n, 6)), np.arange(n) % CLASSES) for n in (24, 8))
    return pruned(folder, train, test, model=model)


@case("the model is a str")
def inspect_no_network(base: Base, folder: Path) -> Run:
    return lambda: ekg.inspect("small.keras")


@case("the model is a str")
def prune_no_network(base: Base, folder: Path) -> Run:
    return pruned(folder, model="small.keras")


# ---------------------------------------------------------------- paths


@case("")
def home_in_paths(base: Base, folder: Path) -> Run:
    """HOME is the case's folder; see `answer`."""
    base.copied_photos(folder)
    (folder / "small.keras").write_bytes(base.model.read_bytes())
    words = base.prune(folder, data=Path("~/photos"), model=Path("~/small.keras"))
    words[words.index("--train_path") + 1] = "~/run"
    return words


@case("")
def home_in_inspect(base: Base, folder: Path) -> Run:
    (folder / "small.keras").write_bytes(base.model.read_bytes())
    return ["inspect", "~/small.keras", "--json", "~/small.json"]


@case("no_such")
def home_without_file(base: Base, folder: Path) -> Run:
    return ["inspect", "~/no_such.keras"]


@case("")
def home_in_python(base: Base, folder: Path) -> Run:
    def call() -> None:
        pruned(folder)  # the same arguments
        more = {"log": False, "budget": 0.7, "method": ekg.Uniform()}
        ekg.run_search(network(), arrays(), arrays(count=8), "~/run", **more)
        assert (folder / "run" / "search.json").exists()

    return call


@case("cannot write|too long")
def name_too_long(base: Base, folder: Path) -> Run:
    words = base.prune(folder)
    words[words.index("--train_path") + 1] = f"{folder}/{'x' * 300}"
    return words


@case("does not exist")
def name_with_null(base: Base, folder: Path) -> Run:
    return ["inspect", "a\0b.keras"]


@case("null|path|cannot")
def folder_with_null(base: Base, folder: Path) -> Run:
    words = base.prune(folder)
    words[words.index("--train_path") + 1] = f"{folder}/a\0b"
    return words
