"""Latency of forward passes, measured alternately so that noise hits all models alike."""

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ..dataloader import Dataset
from ..nets.keras_graph import packed
from ..utils.trees import parts_of, tree_of
from .evaluation import make_forward

WARM_UP = 3
LEAST_RUNS = 15


def latencies(
    models: list[keras.Model],
    batch_images: int,
    *,
    compile: bool = False,
    seconds: float = 4.0,
    shapes: Sequence[Sequence[int]] | None = None,
) -> list[float]:
    """Median milliseconds per image of an inference-mode forward pass of every model.

    Args:
        models: they take images of one shape.
        batch_images: images per pass.
        seconds: time to spend on all models together, after the warm-up; at least 15 passes each.
        shapes: of their inputs without the batch; None: those of the first model, which then leaves
            no size open.
    """
    forwards = [make_forward(model, bn="inference", compile=compile) for model in models]
    rng = np.random.default_rng(0)
    # From 0 to 1: what looks up rows of a table takes them for numbers of rows that are there.
    shapes = [one.shape[1:] for one in models[0].inputs] if shapes is None else shapes
    inputs = tree_of(
        tf.constant(rng.random((batch_images, *shape)), tf.float32) for shape in shapes
    )
    # .numpy() waits for the result
    medians = alternately(
        [
            partial(_passed, forward, packed(model, inputs))
            for model, forward in zip(models, forwards, strict=True)
        ],
        seconds,
    )
    return [milliseconds / batch_images for milliseconds in medians]


def _passed(forward: Callable, inputs: Any) -> list[np.ndarray]:
    return [one.numpy() for one in parts_of(forward(inputs))]


def alternately(calls: Sequence[Callable[[], object]], seconds: float = 4.0) -> list[float]:
    """Median milliseconds of every call, each returning when its work is done.

    The calls take turns for `seconds` in all after a warm-up of 3 rounds, at least 15 rounds.
    """
    for call in [*calls] * WARM_UP:
        call()
    times: list[list[float]] = [[] for _ in calls]
    start = time.perf_counter()
    while time.perf_counter() - start < seconds or len(times[0]) < LEAST_RUNS:
        for call, series in zip(calls, times, strict=True):
            begin = time.perf_counter()
            call()
            series.append(time.perf_counter() - begin)
    return [1000 * float(np.median(series)) for series in times]


LARGE_BATCH, LARGE_BATCH_PIXELS = 128, 128 * 128 * 128  # images of 224 come in batches of 32


def latency_batches(data: Dataset) -> tuple[int, int]:
    """Images per pass that latencies are measured at: 1, and 128 of small images or fewer."""
    shapes = data.image_shape if data.several_inputs else (data.image_shape,)
    pixels = max(math.prod(shape[:-1]) for shape in shapes)
    large = LARGE_BATCH
    while large > 1 and large * pixels > LARGE_BATCH_PIXELS:
        large //= 2
    return 1, large
