"""The networks of docs/tasks.md and their data, made from CIFAR-10's photos or, for series, drawn.

None of them is a classifier of one class per example; each has a metric of its own, larger is
better.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from ..dataloader import load

L = keras.layers
SIDE, STEPS, TONES = 32, 128, 6
ANIMALS = (2, 3, 4, 5, 6, 7)  # among the classes of CIFAR-10
TRAIN, TEST = 4000, 2000  # examples
EPOCHS, BATCH = 25, 64  # of training before pruning

Part = tuple[Any, Any]  # inputs and targets, as Keras takes them


@dataclass(frozen=True)
class TaskNetwork:
    """A network for a task.

    Attributes:
        title: in words.
        build: gives the network, compiled.
        data: (training, test) from the photos uint8 [n, 32, 32, 3] and labels int32 [n] of both.
        metrics: {name that Keras gives a metric: (words, share)}: with `share` the metric is a mean
            absolute error, and what counts is which share it explains of the targets' mean absolute
            deviation.
    """

    title: str
    build: Callable[[], keras.Model]
    data: Callable[[list[tuple[np.ndarray, np.ndarray]], int], list[Part]]
    metrics: dict[str, tuple[str, bool]]


def photos(path: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Photos and labels of CIFAR-10, for training and for testing, TRAIN and TEST of them."""
    data = load("CIFAR10", path)
    parts = []
    for split, count in ((data.train, TRAIN), (data.test, TEST)):
        chosen = np.random.default_rng(0).permutation(len(split))[:count]
        parts.append((split.inputs[chosen], split.targets[chosen]))
    return parts


def _conv(x, filters, strides=1, layer=L.Conv2D, size=3):
    x = layer(filters, size, strides, "same", use_bias=False)(x)
    return L.ReLU()(L.BatchNormalization(momentum=0.9)(x))


def _image() -> tuple:
    i = keras.Input((SIDE, SIDE, 3), name="photo")
    return i, L.Rescaling(1 / 127.5, offset=-1)(i)


def _compiled(model: keras.Model, loss: Any, metrics: Any) -> keras.Model:
    model.compile(adam(EPOCHS), loss, metrics=metrics, jit_compile=False)
    return model


def adam(epochs: int) -> keras.optimizers.Optimizer:
    """The optimizer of all trainings here, for so many epochs: its rate falls to zero."""
    steps = epochs * -(-TRAIN // BATCH)  # as Keras counts them
    return keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(2e-3, steps))


# ---------------------------------------------------------------- masks of photos


def _u_net() -> keras.Model:
    i, x = _image()
    a = _conv(_conv(x, 12), 12)
    b = _conv(_conv(a, 16, 2), 16)
    c = _conv(_conv(b, 24, 2), 24)
    x = L.Concatenate()([L.UpSampling2D()(c), b])
    x = _conv(_conv(x, 16), 16)
    x = L.Concatenate()([L.UpSampling2D()(x), a])
    x = _conv(x, 12)
    model = keras.Model(i, L.Conv2D(1, 1, activation="sigmoid", name="mask")(x))
    overlap = keras.metrics.BinaryIoU(target_class_ids=[1], name="iou")
    return _compiled(model, "binary_crossentropy", [overlap])


def _masks(parts, seed: int) -> list[Part]:
    """Which places of a photo are brighter than the photo is on average."""
    return [(images, _bright(images)) for images, _ in parts]


def _bright(images: np.ndarray) -> np.ndarray:
    """float32 [n, 32, 32, 1]; places are seen through a window of five by five pixels."""
    grey = np.pad(images.mean(-1), ((0, 0), (2, 2), (2, 2)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(grey, (5, 5), axis=(1, 2))
    places = windows.mean((-1, -2))
    return (places > places.mean((1, 2), keepdims=True))[..., None].astype(np.float32)


# ---------------------------------------------------------------- a class and a number


def _body(x):
    x = _conv(_conv(x, 12), 12)
    x = _conv(_conv(x, 24, 2), 24)
    x = _conv(_conv(x, 32, 2), 32)
    return L.GlobalAveragePooling2D()(x)


def _two_ends() -> keras.Model:
    i, x = _image()
    x = _body(x)
    kind = L.Dense(2, activation="softmax", name="kind")(x)
    gamma = L.Dense(1, name="gamma")(x)
    return _compiled(
        keras.Model(i, {"kind": kind, "gamma": gamma}),
        {"kind": "sparse_categorical_crossentropy", "gamma": "mse"},
        {"kind": "accuracy", "gamma": "mae"},
    )


def _kinds_and_gammas(parts, seed: int) -> list[Part]:
    result = []
    for number, (images, labels) in enumerate(parts):
        changed, gammas = _exposed(images, number)
        kinds = np.isin(labels, ANIMALS).astype(np.int32)
        result.append((changed, {"kind": kinds, "gamma": gammas}))
    return result


def _exposed(images: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Photos with another gamma each, and its logarithm, float32 [n, 1]."""
    logs = np.random.default_rng(seed).uniform(-1, 1, len(images)).astype(np.float32)
    powers = np.exp(logs)[:, None, None, None]
    changed = 255 * (images.astype(np.float32) / 255) ** powers
    return np.round(changed).astype(np.uint8), logs[:, None]


# ---------------------------------------------------------------- a number


def _regression() -> keras.Model:
    i, x = _image()
    model = keras.Model(i, L.Dense(1, name="gamma")(_body(x)))
    return _compiled(model, "huber", ["mae"])


def _gammas(parts, seed: int) -> list[Part]:
    return [_exposed(images, number) for number, (images, _) in enumerate(parts)]


# ---------------------------------------------------------------- series


def _series() -> keras.Model:
    i = keras.Input((STEPS, 2), name="signal")
    x = _conv(i, 16, layer=L.Conv1D, size=7)
    x = _conv(x, 24, 2, L.Conv1D, 5)
    x = _conv(x, 32, 2, L.Conv1D, 5)
    x = _conv(x, 32, 2, L.Conv1D, 5)
    x = L.GlobalAveragePooling1D()(x)
    model = keras.Model(i, L.Dense(TONES, activation="sigmoid", name="tones")(x))
    area = keras.metrics.AUC(multi_label=True, num_labels=TONES, name="auc")
    return _compiled(model, "binary_crossentropy", [area])


def _signals(parts, seed: int) -> list[Part]:
    """Which of six tones sound in two noisy channels, one or several of them."""
    result = []
    for number, count in enumerate((TRAIN, TEST)):
        rng = np.random.default_rng([number, 7])
        present = (rng.random((count, TONES)) < 0.4).astype(np.float32)
        frequency = np.array([3, 5, 8, 11, 15, 20]) * rng.normal(1, 0.03, (count, TONES))
        time = np.arange(STEPS) / STEPS
        phase = rng.uniform(0, 2 * np.pi, (count, TONES, 2))
        waves = np.sin(2 * np.pi * frequency[:, :, None, None] * time[:, None] + phase[:, :, None])
        strength = present[..., None, None] * rng.uniform(0.3, 1, (count, TONES, 1, 1))
        noise = rng.normal(0, 1.2, (count, STEPS, 2))
        result.append((((strength * waves).sum(1) + noise).astype(np.float32), present))
    return result


TASKS = {
    "masks": TaskNetwork(
        "a U-Net: masks of photos", _u_net, _masks, {"iou": ("overlap (IoU)", False)}
    ),
    "two_ends": TaskNetwork(
        "two outputs: animal or vehicle, and gamma of a photo",
        _two_ends,
        _kinds_and_gammas,
        {"kind_accuracy": ("accuracy of the class", False), "gamma_mae": ("gamma explained", True)},
    ),
    "regression": TaskNetwork(
        "regression: gamma of a photo", _regression, _gammas, {"mae": ("gamma explained", True)}
    ),
    "series": TaskNetwork(
        "series: which tones sound", _series, _signals, {"auc": ("area under the curve", False)}
    ),
}
