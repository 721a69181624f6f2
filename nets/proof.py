"""The proof that a pruned network computes what the masked one computes."""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from . import stateless
from .graph import ChannelGraph

# float32 sums in another order differ by so much of the largest output, whatever the network.
TOLERANCE = 1e-4


def agreement(
    graph: ChannelGraph,
    mask: np.ndarray,
    pruned: keras.Model,
    images: np.ndarray | Sequence[np.ndarray],
    *,
    batch_images: int = 64,
    batch_statistics: bool = False,
) -> dict[str, float | int]:
    """Compares the masked network with the pruned one; neither is changed.

    Args:
        graph: of the original network.
        mask: unit mask, float32 [U + 1].
        pruned: what `graph.pruned(mask)` gave, or the same read from a file.
        images: float32 [n, ...], or one array per input of the network.
        batch_statistics: batch norms use the statistics of each batch, without dropout, instead of
            their moving ones.

    Returns:
        {"max_difference": of all outputs, "relative_difference": the same divided by the largest
        absolute output, "largest_output", "images": n}.

    Raises:
        ValueError: there is no image.
    """
    arrays = [images] if isinstance(images, np.ndarray) else list(images)
    if not len(arrays[0]):
        raise ValueError("there is no image to compare the networks on")
    gated, variable = graph.gated()
    variable.assign(mask)
    forwards = [_forward(one, batch_statistics) for one in (gated, pruned)]
    # A Sequential read from a file has no `input`, but always one.
    model = graph.model
    single = isinstance(model, keras.Sequential) or isinstance(model.input, keras.KerasTensor)
    difference = largest = 0.0
    for first in range(0, len(arrays[0]), batch_images):
        batch = [tf.constant(one[first : first + batch_images]) for one in arrays]
        batch = batch[0] if single else batch
        masked, small = (keras.tree.flatten(one(batch)) for one in forwards)
        for a, b in zip(masked, small, strict=True):
            # np.maximum, unlike max, keeps NaN
            difference = np.maximum(difference, np.abs(a.numpy() - b.numpy()).max())
            largest = np.maximum(largest, np.abs(a.numpy()).max())
    return {
        "max_difference": float(difference),
        "relative_difference": float(difference / largest) if largest else float(difference),
        "largest_output": float(largest),
        "images": len(arrays[0]),
    }


def _forward(model: keras.Model, batch_statistics: bool):
    def forward(inputs):
        if not batch_statistics:
            return model(inputs, training=False)
        # The scope catches the new moving statistics.
        with stateless.batch_statistics(model), keras.StatelessScope():
            return model(inputs, training=True)

    return tf.function(forward, autograph=False)


def agrees(result: dict) -> bool:
    """Whether an `agreement` is within `TOLERANCE`; NaN isn't."""
    return bool(result["relative_difference"] <= TOLERANCE)


def sentence(result: dict) -> str:
    """An `agreement` in one line."""
    verb = "agree" if agrees(result) else "DO NOT AGREE"
    return (
        f"masked and pruned outputs {verb}: max difference {result['max_difference']:.2g}, "
        f"relative {result['relative_difference']:.2g}, on {result['images']} images"
    )
