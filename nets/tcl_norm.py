"""Mask-aware layers without filters of their own: normalisations, scales, Reshape, parts,
constants, channels in another order.

See `nets.tcl`. Normalisations whose statistics run over several channels take them over the kept
ones alone; their effective weights carry `keep`, float32 [channels].
"""

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from . import constants, keras_graph, parts, reductions, shuffles
from .tcl import Axes, Gated, Weights

MOVING = ("moving_mean", "moving_variance")
LEAST_SQUARE = 1e-24  # of a length that UnitNormalization divides by


class BatchNorm(Gated, keras.layers.BatchNormalization):
    """keras.layers.BatchNormalization over the last axis with a filter mask.

    Removed channels come out as exact zeros. As in the search of the paper, `training=True`
    normalises by the statistics of the batch; the moving statistics are never changed by this
    class.
    """

    @property
    def moving(self) -> tuple[str, ...]:
        """Names of the weights that the search doesn't use."""
        return () if self.by_moving else MOVING

    def masked(self, mask: Any) -> Weights:
        weights = super().masked(mask)
        if not self.scale or not self.center:
            weights["keep"] = tf.gather(mask, self.out_units)
        return weights

    def apply(self, x: Any, weights: Weights, training: bool = True, mask: Any = None) -> Any:
        """x float [..., c] -> the same shape; `training` chooses batch or moving statistics, but
        a frozen layer keeps to its moving ones, as in stock Keras.

        Args:
            mask: bool [...], the places whose values make the statistics of the batch.
        """
        training = training and not self.by_moving
        gamma, beta = weights.get("gamma"), weights.get("beta")
        channels = tf.shape(x)[-1:]
        gamma = tf.ones(channels) if gamma is None else gamma
        beta = tf.zeros(channels) if beta is None else beta
        mean, variance = (None, None) if training else (weights[name] for name in MOVING)
        if training and mask is not None:
            (mean, variance), training = _masked_moments(x, mask), False
        y = batch_norm(x, gamma, beta, mean, variance, self.epsilon, training)
        return y * weights["keep"] if "keep" in weights else y

    @staticmethod
    def further(args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
        return {"mask": kwargs.get("mask")}

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        return self.apply(inputs, self.current(), bool(training) and self.trainable, mask)


def _masked_moments(x: Any, mask: Any) -> tuple[Any, Any]:
    """Mean and variance [c] of x float [..., c] over the places where mask, bool [...], is true."""
    axes = list(range(len(x.shape) - 1))
    count = tf.cast(mask, x.dtype)[..., None]
    total = tf.reduce_sum(count) + keras.backend.epsilon()  # as Keras counts
    mean = tf.reduce_sum(count * x, axes) / total
    return mean, tf.reduce_sum(count * (x - mean) ** 2, axes) / total


def batch_norm(
    x: Any, gamma: Any, beta: Any, mean: Any, variance: Any, epsilon: float, training: bool
) -> Any:
    """Batch normalisation over all axes but the last, by batch (training) or given statistics.

    `mean` and `variance` aren't looked at in training.

    In training, 4-D inputs take TensorFlow's fused kernel, which is faster forwards and backwards
    on a CPU and a GPU. By given statistics they don't: TensorFlow fuses that with a convolution
    before and a tanh behind into an operation that it doesn't have on a CPU.
    """
    if training and len(x.shape) == 4:
        empty = tf.zeros([0], tf.float32)
        return tf.raw_ops.FusedBatchNormV3(
            x=x,
            scale=gamma,
            offset=beta,
            mean=empty,
            variance=empty,
            epsilon=epsilon,
            is_training=True,
        ).y
    if training:
        mean, variance = tf.nn.moments(x, list(range(len(x.shape) - 1)))
    return tf.nn.batch_normalization(x, mean, variance, beta, gamma, epsilon)


class _AcrossChannels(Gated):
    """Normalisations whose statistics run over several channels: over the kept ones."""

    def current(self) -> Weights:
        weights = super().current()
        if "keep" not in weights:
            weights["keep"] = tf.ones([self._channels], tf.float32)
        return weights

    def build(self, input_shape):
        super().build(input_shape)
        self._channels = input_shape[-1]

    @property
    def _units(self) -> np.ndarray:
        """Of the channels that the statistics run over."""
        return self.out_units

    def masked(self, mask) -> Weights:
        return super().masked(mask) | {"keep": tf.gather(mask, self._units)}

    def sliced(
        self, mask: np.ndarray, keep: np.ndarray | None = None, full: dict | None = None
    ) -> dict[str, np.ndarray]:
        stay = (mask if keep is None else keep)[self._units] > 0
        kept = np.asarray(mask, np.float32)[self._units][stay]
        return super().sliced(mask, keep, full) | {"keep": kept}

    def _scaled(self, y, weights: Weights):
        if "gamma" in weights:
            y = y * weights["gamma"]
        return y + weights["beta"] if "beta" in weights else y


class LayerNorm(_AcrossChannels, keras.layers.LayerNormalization):
    """keras.layers.LayerNormalization over the last axis with a filter mask."""

    def apply(self, x: Any, weights: Weights, training: bool = True) -> Any:
        """x float [..., c] -> the same shape; `training` is unused."""
        keep = weights["keep"]
        count = tf.reduce_sum(keep)
        centred = x - tf.reduce_sum(x * keep, -1, keepdims=True) / count
        variance = tf.reduce_sum(tf.square(centred) * keep, -1, keepdims=True) / count
        return self._scaled(centred * tf.math.rsqrt(variance + self.epsilon), weights)


class RMSNorm(_AcrossChannels, keras.layers.RMSNormalization):
    """keras.layers.RMSNormalization over the last axis with a filter mask."""

    def apply(self, x: Any, weights: Weights, training: bool = True) -> Any:
        """x float [..., c] -> the same shape; `training` is unused."""
        keep = weights["keep"]
        square = tf.reduce_sum(tf.square(x) * keep, -1, keepdims=True) / tf.reduce_sum(keep)
        return x * tf.math.rsqrt(square + self.epsilon) * weights["scale"]


class UnitNorm(_AcrossChannels, keras.layers.UnitNormalization):
    """keras.layers.UnitNormalization by the length of what is kept."""

    def apply(self, x: Any, weights: Weights, training: bool = True) -> Any:
        """x float [n, ..., c] -> the same shape; `training` is unused."""
        axes = [int(axis) % len(x.shape) for axis in np.atleast_1d(self.axis)]
        square = tf.reduce_sum(tf.square(x * weights["keep"]), axes, keepdims=True)
        kept = tf.math.rsqrt(tf.maximum(square, LEAST_SQUARE))
        return x * weights["keep"] * kept


class OverChannels(_AcrossChannels, reductions.OverChannels):
    """A mean, sum, extreme or length over the channels that are kept."""

    @staticmethod
    def axes(layer: keras.Layer, in_units: np.ndarray, out_units: np.ndarray) -> Axes:
        return {"keep": {-1: in_units}}

    @property
    def _units(self) -> np.ndarray:
        return self.in_units

    def apply(self, x: Any, weights: Weights, training: bool = True) -> Any:
        """x float [n, ..., c] -> [n, ...], or [n, ..., 1]; `training` is unused."""
        keep = weights["keep"]
        if self.kind in ("Max", "Amax", "Min", "Amin"):
            never = x.dtype.min if self.kind in ("Max", "Amax") else x.dtype.max
            return reductions.OverChannels.call(self, tf.where(keep > 0, x, never))
        if self.kind == "Norm":
            return reductions.OverChannels.call(self, x * keep)
        total = tf.reduce_sum(x * keep, -1, keepdims=True)
        if self.kind != "Sum":
            total /= tf.reduce_sum(keep)
        if self.kind in ("Var", "Std"):
            square = tf.reduce_sum(tf.square(x - total) * keep, -1, keepdims=True)
            total = square / tf.reduce_sum(keep)
            total = tf.sqrt(total) if self.kind == "Std" else total
        return total if self.keepdims else total[..., 0]


class GroupNorm(_AcrossChannels, keras.layers.GroupNormalization):
    """keras.layers.GroupNormalization over the last axis with a filter mask."""

    @staticmethod
    def config(
        layer: keras.Layer, in_units: np.ndarray, out_units: np.ndarray, mask: np.ndarray
    ) -> dict:
        instance = layer.groups == len(out_units)  # every channel is a group by itself
        return {"groups": int(np.count_nonzero(mask[out_units]))} if instance else {}

    def apply(self, x: Any, weights: Weights, training: bool = True) -> Any:
        """x float [n, ..., c] -> the same shape; `training` is unused."""
        # -1: in instance normalisation the groups become fewer, else their channels.
        instance = self.groups == self._channels
        split = [-1, 1] if instance else [self.groups, -1]
        keep = tf.reshape(weights["keep"], split)
        shape = tf.shape(x)
        positions = tf.reduce_prod(shape[1:-1])
        groups = tf.reshape(x, tf.concat([shape[:1], [positions], tf.shape(keep)], 0))
        # The groups keep equal numbers of channels; a removed instance has none.
        count = tf.reduce_sum(keep, -1, keepdims=True) * tf.cast(positions, tf.float32)
        mean = tf.math.divide_no_nan(_group_sum(groups * keep), count)
        centred = groups - mean
        variance = tf.math.divide_no_nan(_group_sum(tf.square(centred) * keep), count)
        y = tf.reshape(centred * tf.math.rsqrt(variance + self.epsilon), shape)
        return self._scaled(tf.ensure_shape(y, x.shape), weights)


def _group_sum(groups):
    """float [n, positions, groups, channels] -> [n, 1, groups, 1]."""
    return tf.reduce_sum(groups, [1, 3], keepdims=True)


class PReLU(Gated, keras.layers.PReLU):
    """keras.layers.PReLU whose slopes follow their channels."""

    @staticmethod
    def axes(layer: keras.Layer, in_units: np.ndarray, out_units: np.ndarray) -> Axes:
        return {"alpha": {-1: out_units}} if layer.alpha.shape[-1] == len(out_units) else {}

    def apply(self, x: Any, weights: Weights, training: bool = True) -> Any:
        """x float [n, ..., c] -> the same shape; `training` is unused."""
        return tf.nn.relu(x) - weights["alpha"] * tf.nn.relu(-x)


class Embedding(Gated, keras.layers.Embedding):
    """keras.layers.Embedding whose vectors lose entries."""

    @staticmethod
    def axes(layer: keras.Layer, in_units: np.ndarray, out_units: np.ndarray) -> Axes:
        return {"embeddings": {-1: out_units}}

    @staticmethod
    def config(
        layer: keras.Layer, in_units: np.ndarray, out_units: np.ndarray, mask: np.ndarray
    ) -> dict:
        return {"output_dim": int(np.count_nonzero(mask[out_units]))}

    def apply(self, x: Any, weights: Weights, training: bool = True) -> Any:
        """x numbers [n, ...] -> float [n, ..., dimensions]; `training` is unused."""
        return tf.gather(weights["embeddings"], tf.cast(x, tf.int32))

    def call(self, inputs: Any) -> Any:
        return self.apply(inputs, self.current())


class LayerScale(Gated, keras_graph.LayerScale):
    """ConvNeXt's factor per channel."""

    @staticmethod
    def config(
        layer: keras.Layer, in_units: np.ndarray, out_units: np.ndarray, mask: np.ndarray
    ) -> dict:
        return {"projection_dim": int(np.count_nonzero(mask[out_units]))}

    def apply(self, x: Any, weights: Weights, training: bool = True) -> Any:
        """x float [..., c] -> the same shape; `training` is unused."""
        (gamma,) = weights.values()
        return x * gamma


class Reshape(Gated, keras.layers.Reshape):
    """keras.layers.Reshape whose last axis follows the channels; the others stay."""

    @staticmethod
    def config(
        layer: keras.Layer, in_units: np.ndarray, out_units: np.ndarray, mask: np.ndarray
    ) -> dict:
        shape = list(layer.target_shape)
        if shape[-1] != -1:
            shape[-1] = int(np.count_nonzero(mask[out_units]))
        return {"target_shape": tuple(shape)}

    def apply(self, x: Any, weights: Weights, training: bool = True) -> Any:
        """x float [n, ..., in] -> [n, ..., out]; `training` is unused."""
        channels = x.shape[-1] if self.in_units is None else len(self.in_units)
        size = self.compute_output_shape((1, *x.shape[1:-1], channels))[1:-1]
        if None in size:
            return super().call(x)
        known = None not in x.shape[1:]  # else some channels may have gone
        last = math.prod(x.shape[1:]) // math.prod(size) if known else -1
        return tf.reshape(x, [tf.shape(x)[0], *size, last])


class Parts(Gated, parts.Parts):
    """`nets.parts.Parts` whose places follow the channels.

    Sliced weights carry `sizes`, float32 [parts], of what is left of each.
    """

    @staticmethod
    def axes(layer: keras.Layer, in_units: np.ndarray, out_units: np.ndarray) -> Axes:
        return {"sizes": {}}

    @staticmethod
    def config(
        layer: keras.Layer, in_units: np.ndarray, out_units: np.ndarray, mask: np.ndarray
    ) -> dict:
        sizes = _sizes(layer.places, in_units, mask)
        return {"places": tuple(int(place) for place in np.cumsum(sizes)[:-1])}

    def sliced(
        self, mask: np.ndarray, keep: np.ndarray | None = None, full: dict | None = None
    ) -> dict[str, np.ndarray]:
        sizes = _sizes(self.places, self.in_units, mask if keep is None else keep)
        return {"sizes": np.array(sizes, np.float32)}

    def apply(self, x: Any, weights: Weights, training: bool = True) -> Any:
        """x float [n, ..., c] -> a list of its parts; `training` is unused."""
        if "sizes" not in weights:
            return parts.Parts.call(self, x)
        sizes = tf.cast(weights["sizes"], tf.int32)
        return tf.split(x, sizes, axis=-1, num=len(self.places) + 1)


class WithConstant(Gated, constants.WithConstant):
    """`nets.constants.WithConstant` whose array follows the channels.

    Sliced weights carry `value`, float32 [..., channels that are left].
    """

    @staticmethod
    def config(
        layer: keras.Layer, in_units: np.ndarray, out_units: np.ndarray, mask: np.ndarray
    ) -> dict:
        return {"value": layer.value[..., mask[out_units] > 0]}

    def sliced(
        self, mask: np.ndarray, keep: np.ndarray | None = None, full: dict | None = None
    ) -> dict[str, np.ndarray]:
        stay = (mask if keep is None else keep)[self.out_units] > 0
        return {"value": self.value[..., stay].astype(np.float32)}

    def apply(self, x: Any, weights: Weights, training: bool = True) -> Any:
        """x float [n, ..., c] -> the same, broadcast; `training` is unused."""
        return self.applied(x, tf.cast(weights.get("value", self.value), x.dtype))


class Shuffled(Gated, shuffles.Shuffled):
    """`nets.shuffles.Shuffled` whose places follow the channels.

    Sliced weights carry `indices`, float32 [channels that are left].
    """

    @staticmethod
    def config(
        layer: keras.Layer, in_units: np.ndarray, out_units: np.ndarray, mask: np.ndarray
    ) -> dict:
        return {"indices": tuple(map(int, _places(layer.indices, mask[in_units] > 0)))}

    def sliced(
        self, mask: np.ndarray, keep: np.ndarray | None = None, full: dict | None = None
    ) -> dict[str, np.ndarray]:
        stay = (mask if keep is None else keep)[self.in_units] > 0
        return {"indices": _places(self.indices, stay).astype(np.float32)}

    def apply(self, x: Any, weights: Weights, training: bool = True) -> Any:
        """x float [n, ..., c] -> the same shape; `training` is unused."""
        indices = tf.cast(weights.get("indices", self.indices), tf.int32)
        return tf.gather(x, indices, axis=-1)


def _places(indices: tuple[int, ...], stay: np.ndarray) -> np.ndarray:
    """The indices of the channels that stay, among these alone."""
    taken = np.array(indices)
    return (np.cumsum(stay) - 1)[taken[stay[taken]]]


def _sizes(places: tuple[int, ...], units: np.ndarray, mask: np.ndarray) -> list[int]:
    """How many channels are left between the places."""
    return [np.count_nonzero(mask[part]) for part in np.split(units, places)]
