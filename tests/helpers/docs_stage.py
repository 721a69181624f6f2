"""What the examples of the documentation find when they begin: small networks and data."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers as L

import ekg_tf as ekg

FENCE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[str]:
    """The Python of a page, block by block, with trainings of one epoch."""
    found = FENCE.findall(page.read_text(encoding="utf-8"))
    return [re.sub(r"\bepochs=\d+", "epochs=1", block) for block in found]


def classifier(filters: int) -> keras.Model:
    """Logits of three classes of 8 x 8 grey images, compiled."""
    image = keras.Input((8, 8, 1))
    x = L.BatchNormalization()(L.Conv2D(filters, 3, use_bias=False)(image))
    x = L.GlobalAveragePooling2D()(L.Conv2D(filters, 3, activation="relu")(L.ReLU()(x)))
    model = keras.Model(image, L.Dense(3, activation="softmax")(x))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def segmenter() -> keras.Model:
    """A sigmoid per pixel of 8 x 8 grey images, compiled."""
    image = keras.Input((8, 8, 1))
    x = L.Conv2D(4, 3, padding="same", activation="relu")(image)
    model = keras.Model(image, L.Conv2D(1, 1, activation="sigmoid")(x))
    model.compile("adam", "binary_crossentropy")
    return model


def two_ends() -> keras.Model:
    """Two inputs, "image" and "extra", and two outputs, "kind" and "size", compiled."""
    image, extra = keras.Input((8, 8, 1), name="image"), keras.Input((4,), name="extra")
    x = L.GlobalAveragePooling2D()(L.Conv2D(8, 3, activation="relu")(image))
    x = L.Dense(8, activation="relu")(L.Concatenate()([x, extra]))
    ends = L.Dense(3, activation="softmax", name="kind")(x), L.Dense(1, name="size")(x)
    model = keras.Model([image, extra], {"kind": ends[0], "size": ends[1]})
    model.compile("adam", {"kind": "sparse_categorical_crossentropy", "size": "mse"})
    return model


def stage(folder: Path, filters: int = 4) -> dict[str, Any]:
    """The names that the examples use; my.keras and photos/ lie in the folder."""
    rng = np.random.default_rng(0)
    images = rng.random((96, 8, 8, 1)).astype("float32")
    labels = np.arange(96) % 3
    model = classifier(filters)
    model.save(folder / "my.keras")
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            (folder / "photos" / split / label).mkdir(parents=True)
            for number in range(2):
                pixels = rng.integers(0, 255, (8, 8, 3)).astype("float32")
                path = folder / "photos" / split / label / f"{number}.png"
                keras.utils.save_img(path, pixels)
    sizes = images.mean((1, 2, 3))
    return {
        **{"keras": keras, "np": np, "ekg": ekg, "model": model},
        **{"x_train": images, "y_train": labels, "x_test": images[:30], "y_test": labels[:30]},
        **{"unet": segmenter(), "photos": images, "masks": (images > 0.5).astype("float32")},
        **{"two_ends": two_ends(), "x": images, "z": rng.random((96, 4)).astype("float32")},
        **{"kinds": labels, "sizes": sizes[:, None]},
    }


def run(code: str, names: dict[str, Any], place: str) -> None:
    """Runs a block of a page; what it prints is kept back."""
    with redirect_stdout(io.StringIO()):
        exec(compile(code, place, "exec", dont_inherit=True), names)
