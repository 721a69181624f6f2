"""Noisy images of a bar in one of three directions, which small networks learn in seconds."""

import numpy as np

from tests.helpers.own_kinds import CLASSES, SIZE


def bars(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [n, SIZE, SIZE, 3] and labels int64 [n]: upright, level, slanting."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % CLASSES)
    images = rng.normal(90, 20, (count, SIZE, SIZE, 3))
    line = np.arange(SIZE)
    for image, label in zip(images, labels, strict=True):
        place = rng.integers(2, SIZE - 4)
        if label == 0:
            image[:, place : place + 2] += 120
        elif label == 1:
            image[place : place + 2] += 120
        else:
            image[line, (line + place) % SIZE] += 150
    return np.clip(images, 0, 255).astype(np.uint8), labels
