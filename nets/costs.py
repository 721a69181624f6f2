"""Multiply-accumulates of the calls of a network, as products of channel counts.

A cost is (positions, in_units or None, out_units): under a unit mask it amounts to positions *
kept inputs * kept outputs, with None for one input per output (depthwise).
"""

import math

import keras
import numpy as np

from ..utils.errors import UserError
from . import layer_rules as rules
from .keras_graph import Call

Cost = tuple[int, np.ndarray | None, np.ndarray]


def _spatial(layer, shape: tuple) -> int:
    """Number of positions of a tensor with batch and channel axes."""
    first = getattr(layer, "data_format", "channels_last") == "channels_first"
    sizes = shape[2:] if first else shape[1:-1]
    if None in sizes:
        raise UserError(
            f"{layer.name} works on tensors of open size {shape}: FLOPs can't be counted; "
            "build the network for a fixed image size"
        )
    return math.prod(sizes)


def kernel_costs(call: Call, units: tuple | None, num_units: int) -> list[Cost]:
    """The costs of one call of a convolution or dense layer.

    Args:
        units: (in_units, out_units) of the layer; None: it is never pruned.
        num_units: the unit that is always kept.

    Raises:
        UserError: the layer works on tensors of open size.
    """
    layer = call.operation
    transposed = type(layer) in rules.TRANSPOSED
    # Every input position of a transposed convolution meets the whole kernel.
    tensor = call.inputs[0] if transposed else call.outputs[0]
    positions = _spatial(layer, tuple(tensor.shape))
    if units is None:
        weights = sum(math.prod(v.shape) for v in layer.weights if "kernel" in v.name)
        return [(positions * weights, None, np.array([num_units]))]
    in_units, out_units = units
    if type(layer) is keras.layers.Dense:
        return [(positions, in_units, out_units)]
    taps = positions * math.prod(layer.kernel_size)
    if type(layer) in rules.DEPTHWISE:
        return [(taps, None, out_units)]
    if type(layer) in rules.SEPARABLE:
        between = np.repeat(in_units, layer.depth_multiplier)
        return [(taps, None, between), (positions, between, out_units)]
    if rules.is_depthwise(layer, len(in_units)):
        return [(taps, None, out_units)]
    return [(taps, in_units[: len(in_units) // getattr(layer, "groups", 1)], out_units)]


def total(costs: list[Cost], mask: np.ndarray) -> int:
    """Sum of the costs under a unit mask, float [U + 1]."""
    result = 0
    for positions, in_units, out_units in costs:
        inputs = 1 if in_units is None else np.count_nonzero(mask[in_units])
        result += positions * int(inputs) * int(np.count_nonzero(mask[out_units]))
    return result
