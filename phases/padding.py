"""Steps that Keras leaves out of the losses of a network's outputs, such as those of padded words.

A mask goes with such an output. Here it becomes sample weights, which everything that computes a
loss knows already: 0 where the mask excludes a step, and alike elsewhere, so that their mean is 1
as Keras has it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import keras
import numpy as np

from ..dataloader.dataset import Dataset, Split
from ..nets.given import Given
from ..nets.keras_graph import mask_of, packed
from ..utils.errors import UserError
from ..utils.trees import parts_of, tree_of

BATCH = 256


def left_out(given: Given, data: Dataset) -> Dataset:
    """The data with weights that leave out what masks exclude; as they are without such masks.

    Raises:
        UserError: the examples aren't arrays.
    """
    if not given.masked:
        return data
    splits = [_weighted(given, split) for split in (data.train, data.test)]
    return replace(data, train=splits[0], test=splits[1])


def _weighted(given: Given, split: Split) -> Split:
    if type(split) is not Split:
        raise UserError(
            f"{given.model.name} leaves steps out of the loss of its outputs (masks), which is for "
            "data in memory: give more of it (memory=, --data_memory)"
        )
    masks = _masks(given, split)
    targets = parts_of(split.targets)
    own = split.weights if isinstance(split.weights, tuple) else [split.weights] * len(targets)
    weights = []
    for number, (one, target) in enumerate(zip(own, targets, strict=True)):
        weight = np.ones(len(target), np.float32) if one is None else one
        if number in masks:
            mask = masks[number]
            weight = weight.reshape(*weight.shape, *[1] * (mask.ndim - weight.ndim))
            weight = weight * mask * (mask.size / max(1.0, mask.sum()))
        weights.append(weight.astype(np.float32))
    return replace(split, weights=tree_of(weights))


def _masks(given: Given, split: Split) -> dict[int, np.ndarray]:
    """{number of the output: float32 [n, steps, ...]}, by the given network itself."""
    model, inputs = given.model, parts_of(split.inputs)
    found: dict[int, list[np.ndarray]] = {number: [] for number in given.masked}
    for start in range(0, len(split), BATCH):
        rows = tree_of([np.asarray(one[start : start + BATCH], np.float32) for one in inputs])
        outputs: list[Any] = keras.tree.flatten(model(packed(model, rows), training=False))
        for number, parts in found.items():
            mask = mask_of(outputs[number])
            shape = outputs[number].shape[:-1]
            whole = np.ones(shape) if mask is None else keras.ops.convert_to_numpy(mask)
            parts.append(np.broadcast_to(whole, shape).astype(np.float32))
    return {number: np.concatenate(parts) for number, parts in found.items()}
