"""What bad inputs are made of: a small network, its data as files and as arrays, a finished search.

Everything is made when it is first asked for, in one folder.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from functools import cached_property
from pathlib import Path

import keras
import numpy as np
from ekg_tf.utils.keras_files import save_keras
from ekg_tf.utils.runfiles import checksum
from PIL import Image

from ekg_tf.__main__ import main

L = keras.layers
SIDE, CLASSES = 8, 2
SHAPE = (SIDE, SIDE, 3)
SPLITS = {"train": 12, "test": 4}  # images of every class
SEARCH = "--method uniform --search_target_rate 0.7 --bank none --do_log off --gpu_id cpu".split()


def network(
    shape: tuple[int, ...] = SHAPE,
    classes: int = CLASSES,
    *,
    filters: tuple[int, ...] = (4, 6),
    dtype: str = "float32",
) -> keras.Model:
    """Convolutions with batch norms, and a classifier."""
    x = image = keras.Input(shape)
    for number, width in enumerate(filters):
        x = L.Conv2D(width, 3, padding="same", name=f"conv{number}", dtype=dtype)(x)
        x = L.ReLU(dtype=dtype)(L.BatchNormalization(name=f"bn{number}", dtype=dtype)(x))
    x = L.GlobalAveragePooling2D(dtype=dtype)(x)
    return keras.Model(image, L.Dense(classes, name="fc", dtype=dtype)(x), name="small")


def pixels(seed: int, side: int = SIDE) -> np.ndarray:
    """A random image, uint8 [side, side, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


def write_photos(folder: Path, splits: dict[str, int] = SPLITS, side: int = SIDE) -> Path:
    """folder/<split>/<class>/<number>.png."""
    for split, count in splits.items():
        for label in range(CLASSES):
            place = folder / split / f"class{label}"
            place.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(pixels(1000 * label + number, side)).save(place / f"{number}.png")
    return folder


class Base:
    """The good things that are then spoilt, each made once.

    Args:
        folder: an empty one.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    @cached_property
    def model(self) -> Path:
        """A .keras file."""
        keras.utils.set_random_seed(0)
        save_keras(self.folder / "small.keras", network())
        return self.folder / "small.keras"

    @cached_property
    def photos(self) -> Path:
        """{train,test}/<class>/*.png."""
        return write_photos(self.folder / "photos")

    @cached_property
    def searched(self) -> Path:
        """The folder of a finished search without a bank."""
        run = self.folder / "searched"
        argv = ["search", "--model", self.model, "--data", self.photos, "--train_path", run]
        with contextlib.redirect_stdout(io.StringIO()):
            main([*map(str, argv), *SEARCH])
        return run

    def copied_photos(self, folder: Path) -> Path:
        """A copy of the photos that may be spoilt."""
        return Path(shutil.copytree(self.photos, folder / "photos"))

    def copied_search(self, folder: Path, name: str = "", content: bytes = b"") -> Path:
        """A copy of the search, one of its files replaced and sealed anew."""
        copy = Path(shutil.copytree(self.searched, folder / "searched"))
        if name:
            (copy / name).write_bytes(content)
        manifest = json.loads((copy / "files.json").read_bytes()) if name != "files.json" else {}
        if manifest and manifest["files"].get(name):
            manifest["files"][name] = checksum(copy / name)
            (copy / "files.json").write_text(json.dumps(manifest))
        return copy

    def prune(self, folder: Path, *more, model: Path | None = None, data: Path | None = None):
        """Words of a search of a network on a folder of images."""
        argv = ["search", "--model", model or self.model, "--data", data or self.photos]
        return [*map(str, (*argv, "--train_path", folder / "run")), *SEARCH, *map(str, more)]


def arrays(labels: np.ndarray | None = None, count: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [count, 8, 8, 3], and labels in turn or as given."""
    images = np.stack([pixels(number) for number in range(count)])
    return images, np.arange(count) % CLASSES if labels is None else labels
