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
        models, batch_images, compile, seconds, shapes: as of `timings`.
    """
    rounds = timings(models, batch_images, compile=compile, seconds=seconds, shapes=shapes)
    return medians(rounds)


def timings(
    models: list[keras.Model],
    batch_images: int,
    *,
    compile: bool = False,
    seconds: float = 4.0,
    shapes: Sequence[Sequence[int]] | None = None,
) -> np.ndarray:
    """Milliseconds per image of inference-mode forward passes, float64 [rounds, models].

    Args:
        models: they take images of one shape.
        batch_images: images per pass.
        compile: XLA.
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
    rounds = turns(
        [
            partial(_passed, forward, packed(model, inputs))
            for model, forward in zip(models, forwards, strict=True)
        ],
        seconds,
    )
    return rounds / batch_images


def _passed(forward: Callable, inputs: Any) -> list[np.ndarray]:
    return [one.numpy() for one in parts_of(forward(inputs))]


def alternately(calls: Sequence[Callable[[], object]], seconds: float = 4.0) -> list[float]:
    """Median milliseconds of every call; `calls` and `seconds` as of `turns`."""
    return medians(turns(calls, seconds))


def turns(calls: Sequence[Callable[[], object]], seconds: float = 4.0) -> np.ndarray:
    """Milliseconds of calls that take turns, float64 [rounds, calls].

    Every other round goes backwards: what runs second profits from what ran before it.

    Args:
        calls: each returns when its work is done.
        seconds: for all of them, after a warm-up of 3 rounds; at least 15 rounds.
    """
    for call in [*calls] * WARM_UP:
        call()
    rounds: list[list[float]] = []
    numbers = list(range(len(calls)))
    start = time.perf_counter()
    while time.perf_counter() - start < seconds or len(rounds) < LEAST_RUNS:
        taken = [0.0] * len(calls)
        for number in numbers if len(rounds) % 2 else reversed(numbers):
            begin = time.perf_counter()
            calls[number]()
            taken[number] = time.perf_counter() - begin
        rounds.append(taken)
    return 1000 * np.array(rounds)


def medians(rounds: np.ndarray) -> list[float]:
    """Of every column of `turns` or `timings`."""
    return [float(one) for one in np.median(rounds, axis=0)]


BLOCKS = 8  # that a measurement is cut into, to see how far its parts are apart
# Two copies of one network lie at other places in memory: seen to make so much of a difference.
SYSTEMATIC = 0.03


def ratio_of(rounds: np.ndarray, of: int = 1, to: int = 0) -> tuple[float, float]:
    """(lowest, highest) ratio of two columns of `turns` that the measurement admits.

    The rounds are cut into 8 blocks in time order; each gives a ratio of medians. Returned are the
    lowest and the highest of them, 3 % further apart at each end. Under noise that hits all blocks
    alike the true ratio lies outside with a probability below 1 %.

    Args:
        of, to: numbers of the columns; the ratio is `of` / `to`.
    """
    blocks = np.array_split(rounds, min(BLOCKS, len(rounds)))
    ratios = [np.median(one[:, of]) / np.median(one[:, to]) for one in blocks]
    return float(min(ratios)) * (1 - SYSTEMATIC), float(max(ratios)) * (1 + SYSTEMATIC)


LARGE_BATCH, LARGE_BATCH_PIXELS = 128, 128 * 128 * 128  # images of 224 come in batches of 32


def latency_batches(data: Dataset) -> tuple[int, int]:
    """Images per pass that latencies are measured at: 1, and 128 of small images or fewer."""
    shapes = data.image_shape if data.several_inputs else (data.image_shape,)
    pixels = max(math.prod(shape[:-1]) for shape in shapes)
    large = LARGE_BATCH
    while large > 1 and large * pixels > LARGE_BATCH_PIXELS:
        large //= 2
    return 1, large
