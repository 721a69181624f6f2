"""The proof that a pruned network computes what the masked one computes."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ..utils.devices import full_float32
from ..utils.trees import mapped, parts_of
from . import stateless
from .graph import ChannelGraph
from .keras_graph import Call, calls_of, ends

# float32 sums in another order differ by so much of the largest output, whatever the network ...
TOLERANCE = 1e-4
# ... but for a network that magnifies: then by what noise of NOISE in the input alone causes.
NOISE, TIMES = 1e-7, 10
LARGEST = 2**20  # of whole numbers that so much noise leaves apart


@full_float32()
def agreement(
    graph: ChannelGraph,
    mask: np.ndarray,
    pruned: keras.Model,
    images: np.ndarray | Sequence[np.ndarray],
    *,
    batch_images: int = 64,
    batch_statistics: bool = False,
) -> dict[str, float | int | str | None]:
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
        absolute output, "noise_difference": what noise of 1e-7 in the images changes, divided
        likewise, "largest_output", "images": n, "first_layer": where they differ first, None where
        they agree}.

    Raises:
        ValueError: there is no image.
    """
    arrays = [images] if isinstance(images, np.ndarray) else list(images)
    if not len(arrays[0]):
        raise ValueError("there is no image to compare the networks on")
    gated, variable = graph.gated()
    variable.assign(mask)
    masked, small = (_forward(one, batch_statistics) for one in (gated, pruned))
    single = not isinstance(ends(graph.model)[0], (list, tuple, dict))
    rng = np.random.default_rng(0)
    difference = largest = noise = 0.0
    for first in range(0, len(arrays[0]), batch_images):
        parts = [one[first : first + batch_images] for one in arrays]
        noisy = [_shaken(one, rng) for one in parts]
        batch, shaken = ([tf.constant(one, tf.float32) for one in some] for some in (parts, noisy))
        whole = _outputs(masked, batch, single)
        pairs = zip(
            whole, _outputs(small, batch, single), _outputs(masked, shaken, single), strict=True
        )
        for a, b, c in pairs:
            # np.maximum, unlike max, keeps NaN
            difference = np.maximum(difference, np.abs(a - b).max())
            noise = np.maximum(noise, np.abs(a - c).max())
            largest = np.maximum(largest, np.abs(a).max())
    result = {
        "max_difference": float(difference),
        "relative_difference": float(difference / largest) if largest else float(difference),
        "noise_difference": float(noise / largest) if largest else float(noise),
        "largest_output": float(largest),
        "images": len(arrays[0]),
        "first_layer": None,
    }
    if not agrees(result):
        batch = [one[:batch_images] for one in arrays]
        result["first_layer"] = _first_layer(graph, mask, gated, pruned, batch)
    return result


def _shaken(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Numbers with a noise of NOISE; whole ones, such as tokens, stay the same where they are
    rounded down."""
    whole = bool((x == np.trunc(x)).all())
    signs = rng.choice([0, 1] if whole else [-1, 1], x.shape)
    signs = np.where(np.abs(x) < LARGEST, signs, 0) if whole else signs
    return (x * (1 + NOISE * signs)).astype(np.float32)


def _outputs(forward: Callable, batch: list, single: bool) -> list[np.ndarray]:
    return [one.numpy() for one in keras.tree.flatten(forward(batch[0] if single else batch))]


def _first_layer(graph, mask, gated, pruned, batch: list[np.ndarray]) -> str:
    """Name of the first layer whose kept channels differ, by moving statistics."""
    tensors = {
        name: call.outputs[0]
        for name, call in _calls_by_name(graph.model).items()
        if isinstance(call.operation, keras.Layer)
    }
    sides = []
    for model in (gated, pruned):
        calls = _calls_by_name(model)
        inner = keras.Model(model.inputs, [calls[name].outputs[0] for name in tensors])
        sides.append(inner(batch, training=False))
    for name, a, b in zip(tensors, *sides, strict=True):
        a, b = a.numpy(), b.numpy()
        if a.shape != b.shape:
            a = a[..., mask[graph.tensor_units(tensors[name])] > 0]
        largest = max(1e-6, float(np.abs(a).max()))
        if a.shape != b.shape or not np.abs(a - b).max() <= TOLERANCE * largest:
            return name
    return "none by moving statistics"


def _calls_by_name(model: keras.Model) -> dict[str, Call]:
    found: dict[str, Call] = {}
    for call in calls_of(model):
        found.setdefault(call.operation.name, call)
    return found


def _forward(model: keras.Model, batch_statistics: bool):
    def forward(inputs):
        if not batch_statistics:
            return model(inputs, training=False)
        # The scope catches the new moving statistics.
        with stateless.batch_statistics(model), keras.StatelessScope():
            return model(inputs, training=True)

    return stateless.for_any_size(tf.function(forward, autograph=False))


def agrees(result: dict) -> bool:
    """Whether an `agreement` is within what rounding explains; NaN isn't."""
    allowed = max(TOLERANCE, TIMES * result.get("noise_difference", 0.0))
    return bool(result["relative_difference"] <= allowed)


def sentence(result: dict) -> str:
    """An `agreement` in one line."""
    verb = "agree" if agrees(result) else "DO NOT AGREE"
    where = result.get("first_layer")
    return (
        f"masked and pruned outputs {verb}: max difference {result['max_difference']:.2g}, "
        f"relative {result['relative_difference']:.2g}, on {result['images']} images"
        + (f"; first in layer {where}" if where else "")
    )


@full_float32()
def difference(expected: Callable, found: Callable, inputs: Any) -> tuple[float, float]:
    """How far two networks' outputs lie apart, and what noise of 1e-7 does to the first one's.

    Args:
        expected, found: float32 [n, ...] -> outputs [n, ...], tuples where there are several.
        inputs: float32 [n, ...], a tuple where there are several.

    Returns:
        Both as shares of the largest absolute value of an output, of the worst output; NaN where
        one isn't finite.
    """
    rng = np.random.default_rng(0)

    shaken = mapped(lambda x: _shaken(x, rng), inputs)
    sides = [
        [np.asarray(part, np.float64) for part in parts_of(run(mapped(tf.constant, x)))]
        for run, x in ((expected, inputs), (found, inputs), (expected, shaken))
    ]
    apart = noise = 0.0
    for a, b, c in zip(*sides, strict=True):
        largest = max(float(np.abs(a).max()), 1e-30)
        # np.maximum, unlike max, keeps NaN
        apart = np.maximum(apart, np.abs(a - b).max() / largest)
        noise = np.maximum(noise, np.abs(a - c).max() / largest)
    return float(apart), float(noise)
