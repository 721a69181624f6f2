"""Latency of forward passes, measured alternately so that noise hits all models alike."""

import time

import keras
import numpy as np
import tensorflow as tf

from utils.evaluation import make_forward

WARM_UP = 3
LEAST_RUNS = 15


def latencies(
    models: list[keras.Model], batch_images: int, *, compile: bool = False, seconds: float = 4.0
) -> list[float]:
    """Median milliseconds per image of an inference-mode forward pass of every model.

    Args:
        models: they take images of one shape.
        batch_images: images per pass.
        seconds: time to spend on all models together, after the warm-up; at least 15 passes each.
    """
    forwards = [make_forward(model, bn="inference", compile=compile) for model in models]
    shape = (batch_images, *models[0].input_shape[1:])
    images = tf.constant(np.random.default_rng(0).normal(size=shape), tf.float32)
    for forward in forwards * WARM_UP:
        forward(images).numpy()
    times: list[list[float]] = [[] for _ in models]
    start = time.perf_counter()
    while time.perf_counter() - start < seconds or len(times[0]) < LEAST_RUNS:
        for forward, series in zip(forwards, times, strict=True):
            begin = time.perf_counter()
            forward(images).numpy()
            series.append(time.perf_counter() - begin)
    return [1000 * float(np.median(series)) / batch_images for series in times]
