"""Which channels of a functional model must be removed together.

Every tensor of the network carries one id per channel (its last axis). A layer with a kernel gives
its output fresh ids; layers that work channel by channel hand ids on; element-wise merges tie the
ids of their inputs. Tied ids form one unit. An operation without a rule here *freezes* the ids it
touches: they are never pruned, and the reason is kept.

Worked example, a residual sum of 2 channels: stem gives ids [0, 1], the block's convolution [2, 3];
Add ties 0-2 and 1-3, so the units are {0, 2} and {1, 3}, and the gate of both layers has 2
channels.
"""

from collections.abc import Callable

import keras
import numpy as np

L = keras.layers

PER_CHANNEL = (
    L.Activation,
    L.ReLU,
    L.LeakyReLU,
    L.ELU,
    L.Dropout,
    L.SpatialDropout2D,
    L.GaussianNoise,
    L.MaxPooling2D,
    L.AveragePooling2D,
    L.GlobalAveragePooling2D,
    L.GlobalMaxPooling2D,
    L.ZeroPadding2D,
    L.Cropping2D,
    L.UpSampling2D,
    L.Identity,
)
ELEMENTWISE = (L.Add, L.Subtract, L.Multiply, L.Average, L.Maximum, L.Minimum)
# Activations that work on every number by itself; any other may mix channels, as softmax does.
POINTWISE_ACTIVATIONS = frozenset(
    "linear relu relu6 leaky_relu elu selu celu gelu silu swish mish hard_silu hard_swish sigmoid "
    "hard_sigmoid log_sigmoid sparse_sigmoid tanh hard_tanh tanh_shrink softplus sparse_plus "
    "squareplus softsign soft_shrink hard_shrink threshold exponential".split()
)


class Ids:
    """Channel ids with ties (union-find) and the blocks in which they were made."""

    def __init__(self):
        self._parent: list[int] = []
        self.block: list[int] = []  # number of the fresh() call that made the id
        self.block_names: list[str] = []
        self.frozen: dict[int, str] = {}  # id -> why

    def fresh(self, count: int, name: str) -> np.ndarray:
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        self.block.extend([len(self.block_names)] * count)
        self.block_names.append(name)
        return np.arange(first, first + count)

    def root(self, index: int) -> int:
        while self._parent[index] != index:
            self._parent[index] = self._parent[self._parent[index]]
            index = self._parent[index]
        return index

    def tie(self, a: np.ndarray, b: np.ndarray) -> None:
        for one, other in zip(a, b, strict=True):
            one, other = self.root(one), self.root(other)
            self._parent[max(one, other)] = min(one, other)

    def freeze(self, ids: np.ndarray, why: str) -> None:
        for index in ids:
            self.frozen.setdefault(int(index), why)

    def __len__(self) -> int:
        return len(self._parent)


def _kernel_rule(ids: Ids, layer, inputs: list[np.ndarray], shapes) -> np.ndarray:
    return ids.fresh(shapes[-1], layer.name)


def _depthwise_rule(ids: Ids, layer, inputs, shapes) -> np.ndarray:
    return np.repeat(inputs[0], layer.depth_multiplier)


def _same_rule(ids: Ids, layer, inputs, shapes) -> np.ndarray:
    return inputs[0]


def _elementwise_rule(ids: Ids, layer, inputs, shapes) -> np.ndarray:
    widest = max(inputs, key=len)
    for other in inputs:
        if len(other) == len(widest):
            ids.tie(widest, other)
        else:
            # One channel broadcast over all: it belongs to none of them.
            ids.freeze(other, f"broadcast over channels by {layer.name}")
    return widest


def _flatten_rule(ids: Ids, layer, inputs, shapes) -> np.ndarray:
    return np.tile(inputs[0], shapes[-1] // len(inputs[0]))


def _concatenate_rule(ids: Ids, layer, inputs, shapes) -> np.ndarray:
    if layer.axis in (-1, len(shapes) - 1):
        return np.concatenate(inputs)
    for other in inputs[1:]:
        ids.tie(inputs[0], other)
    return inputs[0]


def rule_for(layer, rank: int) -> Callable | None:
    """The rule of a layer for inputs of `rank` axes; None: its channels can't be followed."""
    kind = type(layer)
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        return None
    if mixing_activation(layer):
        # A kernel layer's own output can still be the network's end; its inputs stay prunable.
        return _kernel_rule if kind is L.Dense else None
    if kind is L.Dense or (kind is L.Conv2D and layer.groups == 1):
        return _kernel_rule
    if kind is L.DepthwiseConv2D:
        return _depthwise_rule
    if kind is L.BatchNormalization:
        return _same_rule if layer.axis in (-1, rank - 1) and not layer.renorm else None
    if kind in PER_CHANNEL:
        return _same_rule
    if kind in ELEMENTWISE:
        return _elementwise_rule
    if kind is L.Flatten:
        return _flatten_rule
    if kind is L.Concatenate:
        return _concatenate_rule
    return None


def mixing_activation(layer) -> str:
    """Name of the layer's activation if it may mix channels, else ""."""
    activation = getattr(layer, "activation", None)
    name = getattr(activation, "__name__", type(activation).__name__)
    pointwise = (
        activation is None or name in POINTWISE_ACTIVATIONS or type(activation) in PER_CHANNEL
    )
    return "" if pointwise else name
