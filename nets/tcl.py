"""Stock Keras layers with filter masks: convolutions of every kind and FC (Dense).

A layer is *bound* to the network's unit mask (see `nets.gates`) by `in_units` and `out_units`. Its
effective weights come in two forms that give the same output on the kept channels:

* `masked(mask)`: tensors of the original shape, removed filters zero (mask float32 [U + 1], may be
  a tensor);
* `sliced(mask)`: numpy arrays without the removed filters (mask is a numpy array).

Both follow docs/method.md 1, "Masking": a kernel behind which a batch norm takes the factor out
again keeps its norm, W' = W*m_in*m_out * ||W|| / ||W*m_in*m_out||, Frobenius norms over the whole
kernel; a kernel with a constraint keeps to that; any other is W*m_in*m_out.
`apply(x, weights)` runs the layer on effective weights of either form. Layout: channels last.

Which axis of which weight belongs to which channels is said once per class, by the static method
`axes`; it also works on the stock layer, which is how weights are counted and sliced without a
mask-aware twin. `nets.tcl_norm` has the other layers with weights per channel.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from .layer_rules import is_depthwise

Weights = dict[str, "tf.Tensor | np.ndarray"]
Rule = Callable  # (whole kernel, masked kernel) -> effective kernel
Axes = dict[str, dict[int, np.ndarray]]  # {weight: {negative axis: int32 [channels] units}}

KERNELS = ("kernel", "depthwise_kernel", "pointwise_kernel")
# Weights that are set to zero for removed channels; the others (moving statistics) are left alone.
ZEROED = (*KERNELS, "bias", "gamma", "beta", "scale", "embeddings", "recurrent_kernel")


def kernel_rule(variable: keras.Variable, scaled: bool) -> Rule | None:
    """What is done to a masked weight: its constraint, the norm that it keeps, or nothing (None).

    A rule is a function (whole, masked) -> effective, both arrays of the same kind.
    """
    if variable.name not in KERNELS:
        return None
    if variable.constraint is not None:
        return lambda whole, masked: variable.constraint(masked)
    return _norm_kept if scaled else None


def _norm_kept(whole, masked):
    if isinstance(masked, np.ndarray):
        return masked * _norm_ratio(whole, masked)
    return masked * tf.math.divide_no_nan(tf.norm(whole), tf.norm(masked))


def slice_weights(
    axes: Axes, full: Weights, mask: np.ndarray, keep: np.ndarray, rules: Mapping[str, Rule | None]
) -> Weights:
    """Effective weights without the removed filters.

    Args:
        axes: as `Gated.axes` gives them.
        full: {weight: float32 array}, the layer's own weights.
        mask: unit mask, float32 [U + 1].
        keep: units to leave in the arrays, as zeros where `mask` removes them.
        rules: {weight: as `kernel_rule` gives it}.
    """
    return {
        name: _sliced(name, axes.get(name, {}), full[name], mask, keep, rules.get(name))
        for name in full
    }


def _sliced(name: str, axes: dict, value: np.ndarray, mask, keep, rule) -> np.ndarray:
    original = value
    for axis, units in axes.items():
        stay = keep[units] > 0
        if not stay.all():
            value = np.compress(stay, value, axis)
        factor = mask[units][stay]
        if name in ZEROED and not factor.all():
            value = value * factor.reshape(-1, *[1] * (-axis - 1))
    if rule is not None and value is not original:
        value = np.asarray(rule(original, value))
    return value


def _norm_ratio(full: np.ndarray, kept: np.ndarray) -> np.float32:
    kept_norm = np.linalg.norm(kept)
    return np.float32(np.linalg.norm(full) / kept_norm) if kept_norm > 0 else np.float32(0)


def sliced_size(axes: dict[int, np.ndarray], shape: tuple, mask: np.ndarray) -> int:
    """Number of elements that a weight of `shape` has after slicing."""
    size = list(shape)
    for axis, units in axes.items():
        size[axis] = int(np.count_nonzero(mask[units]))
    return math.prod(size)


class Gated:
    """What all mask-aware layers share: the binding to the mask and the two forms of the weights.

    Attributes:
        reads: a filter of this layer sums over its input channels: they are looked at by the
            importance pass.
        scaled: the kernels keep their norm.
        by_moving: a batch norm that always normalises by its moving statistics.
    """

    units_mask: tf.Variable | None = None
    in_units: np.ndarray | None = None
    out_units: np.ndarray | None = None
    scaled = False
    by_moving = False
    reads = False

    @staticmethod
    def axes(layer: keras.Layer, in_units: np.ndarray, out_units: np.ndarray) -> Axes:
        """The units of the axes of the layer's weights; a weight that isn't named stays whole."""
        return {v.name: {-1: out_units} for v in layer.weights}

    @staticmethod
    def config(
        layer: keras.Layer, in_units: np.ndarray, out_units: np.ndarray, mask: np.ndarray
    ) -> dict:
        """What changes in the stock layer's configuration under a unit mask."""
        return {}

    @property
    def moving(self) -> tuple[str, ...]:
        """Names of the weights that the search doesn't use: moving statistics."""
        return ()

    def bind(
        self,
        units_mask: tf.Variable,
        in_units: np.ndarray,
        out_units: np.ndarray,
        *,
        scaled: bool = False,
    ) -> None:
        """Ties the layer to a mask variable, float32 [U + 1].

        Args:
            in_units: int32 [input channels], the unit of every input channel (U = always kept).
            out_units: int32 [output channels], likewise.
            scaled: the kernels keep their norm.
        """
        self.units_mask, self.scaled = units_mask, scaled
        self.in_units = np.asarray(in_units, np.int32)
        self.out_units = np.asarray(out_units, np.int32)

    def full(self) -> dict[str, np.ndarray]:
        """The layer's own weights by name, float32."""
        return {v.name: np.asarray(v.numpy(), np.float32) for v in self.weights}

    def current(self) -> Weights:
        """The weights that `call` uses: as they are when unbound, else under the bound mask."""
        if self.units_mask is None:
            return {v.name: v.value for v in self.weights}
        return self.masked(self.units_mask)

    def masked(self, mask: Any) -> Weights:
        """Effective weights of the original shapes, removed filters zero."""
        axes = self.axes(self, self.in_units, self.out_units)
        weights = {}
        for variable in self.weights:
            name, whole = variable.name, tf.convert_to_tensor(variable.value)
            kept = whole
            if name in ZEROED:
                for axis, units in axes.get(name, {}).items():
                    factor = tf.gather(mask, units)
                    kept = kept * tf.reshape(factor, [-1, *[1] * (-axis - 1)])
            if rule := kernel_rule(variable, self.scaled):
                kept = rule(whole, kept)
            weights[name] = kept
        return weights

    def sliced(
        self, mask: np.ndarray, keep: np.ndarray | None = None, full: dict | None = None
    ) -> dict[str, np.ndarray]:
        """Effective weights without the removed filters.

        Args:
            mask: unit mask, float32 [U + 1].
            keep: units to leave in the arrays, as zeros where `mask` removes them; default: mask.
            full: what `full()` gave, to save reading the weights again.
        """
        axes = self.axes(self, self.in_units, self.out_units)
        rules = {v.name: kernel_rule(v, self.scaled) for v in self.weights}
        stay = mask if keep is None else keep
        return slice_weights(axes, full or self.full(), mask, stay, rules)

    def apply(self, x: Any, weights: Weights, training: bool = True) -> Any:
        """x float [n, ..., in] -> [n, ..., out] under effective weights of either form."""
        raise NotImplementedError

    @staticmethod
    def further(args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Of a call's arguments those that `apply` takes beside its first."""
        return {}

    def call(self, inputs: Any) -> Any:
        return self.apply(inputs, self.current())


class _GatedKernel(Gated):
    """Layers with one kernel [..., in, out] and an optional bias [out]; `training` is unused."""

    reads = True

    @staticmethod
    def axes(layer, in_units, out_units) -> Axes:
        return {"kernel": {-2: in_units, -1: out_units}, "bias": {-1: out_units}}

    @staticmethod
    def config(layer, in_units, out_units, mask) -> dict:
        return {"filters": int(np.count_nonzero(mask[out_units]))}

    def transform(self, x, weights: Weights):
        """The layer without bias and activation."""
        raise NotImplementedError

    def apply(self, x, weights: Weights, training: bool = True):
        y = self.transform(x, weights)
        if self.use_bias:
            y = y + weights["bias"]
        return self.activation(y) if self.activation is not None else y


class _GatedConvolution(_GatedKernel):
    """Conv1D, Conv2D, Conv3D; kernel [..., in / groups, out]."""

    @staticmethod
    def axes(layer, in_units, out_units) -> Axes:
        axes = {"kernel": {-1: out_units}, "bias": {-1: out_units}}
        if not is_depthwise(layer, len(in_units)):
            # The groups' channels are tied: those of the first stand for all.
            axes["kernel"] = {-2: in_units[: len(in_units) // layer.groups], -1: out_units}
        return axes

    @staticmethod
    def config(layer, in_units, out_units, mask) -> dict:
        changes = {"filters": int(np.count_nonzero(mask[out_units]))}
        if is_depthwise(layer, len(in_units)):
            changes["groups"] = int(np.count_nonzero(mask[in_units]))
        return changes

    @property
    def reads(self) -> bool:
        return self.groups == 1 or not is_depthwise(self, len(self.in_units))

    def transform(self, x, weights: Weights):
        kernel = weights["kernel"]
        strides, padding = list(self.strides), self.padding
        options = {"dilation_rate": self.dilation_rate, "data_format": self.data_format}
        if padding == "causal":
            left = self.dilation_rate[0] * (self.kernel_size[0] - 1)
            x, padding = tf.pad(x, [[0, 0], [left, 0], [0, 0]]), "valid"
        options |= {"strides": strides, "padding": padding}
        if max(self.dilation_rate) > 1 and None in kernel.shape:
            return dilated(x, self.dilation_rate, self.kernel_size, padding, self._spread(kernel))
        return self._convolved(x, kernel, options)

    def _spread(self, kernel):
        """The convolution without dilation and padding, as a function of x."""
        options = {"strides": [1] * len(self.strides), "padding": "valid"}
        return lambda x: self._convolved(x, kernel, options | {"data_format": self.data_format})

    def _convolved(self, x, kernel, options: dict):
        strides = options["strides"]
        if self.groups == 1:
            return keras.ops.conv(x, kernel, **options)
        channels = self.groups if self.in_units is None else len(self.in_units)
        if is_depthwise(self, channels):
            options["strides"] = tuple(strides)
            # Group i makes the outputs i * m .. i * m + m - 1: the order of a depthwise kernel.
            turned = [*kernel.shape[:-2], -1, self.filters // self.groups]
            return keras.ops.depthwise_conv(x, tf.reshape(kernel, turned), **options)
        # One convolution per group: Keras's own would compile by XLA, for known widths only.
        parts = zip(tf.split(x, self.groups, -1), tf.split(kernel, self.groups, -1), strict=True)
        return tf.concat([keras.ops.conv(*part, **options) for part in parts], -1)


class Conv1D(_GatedConvolution, keras.layers.Conv1D):
    """keras.layers.Conv1D with filter masks."""


class Conv2D(_GatedConvolution, keras.layers.Conv2D):
    """keras.layers.Conv2D with filter masks."""


class Conv3D(_GatedConvolution, keras.layers.Conv3D):
    """keras.layers.Conv3D with filter masks."""


class _GatedTransposed(_GatedKernel):
    """Transposed convolutions; kernel [..., out, in]."""

    @staticmethod
    def axes(layer, in_units, out_units) -> Axes:
        return {"kernel": {-1: in_units, -2: out_units}, "bias": {-1: out_units}}

    def transform(self, x, weights: Weights):
        kernel = tf.convert_to_tensor(weights["kernel"])
        # keras.ops.conv_transpose needs the number of filters; it may be open here.
        size = self.compute_output_shape((1, *x.shape[1:-1], 1))[1:-1]
        return tf.nn.conv_transpose(
            x,
            kernel,
            tf.stack([tf.shape(x)[0], *size, tf.shape(kernel)[-2]]),
            self.strides,
            padding=self.padding.upper(),
            data_format={3: "NWC", 4: "NHWC", 5: "NDHWC"}[len(x.shape)],
            dilations=self.dilation_rate,
        )


class Conv1DTranspose(_GatedTransposed, keras.layers.Conv1DTranspose):
    """keras.layers.Conv1DTranspose with filter masks."""


class Conv2DTranspose(_GatedTransposed, keras.layers.Conv2DTranspose):
    """keras.layers.Conv2DTranspose with filter masks."""


class Conv3DTranspose(_GatedTransposed, keras.layers.Conv3DTranspose):
    """keras.layers.Conv3DTranspose with filter masks."""


class FC(_GatedKernel, keras.layers.Dense):
    """keras.layers.Dense with masks on its inputs and outputs."""

    @staticmethod
    def config(
        layer: keras.Layer, in_units: np.ndarray, out_units: np.ndarray, mask: np.ndarray
    ) -> dict:
        return {"units": int(np.count_nonzero(mask[out_units]))}

    def transform(self, x: Any, weights: Weights) -> Any:
        return keras.ops.matmul(x, weights["kernel"])

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return self.apply(inputs, self.current())


class _GatedDepthwise(_GatedKernel):
    """Depthwise convolutions; kernel [..., in, multiplier], bias [in * multiplier]."""

    reads = False

    @staticmethod
    def axes(layer, in_units, out_units) -> Axes:
        return {"kernel": {-2: in_units}, "bias": {-1: out_units}}

    @staticmethod
    def config(layer, in_units, out_units, mask) -> dict:
        return {}

    def transform(self, x, weights: Weights):
        return _depthwise(self, x, weights["kernel"])


def dilated(x: Any, rates: tuple, sizes: tuple, padding: str, convolve: Callable) -> Any:
    """A dilated convolution of stride 1 as an undilated one of the positions so far apart.

    Keras's own needs the static size of the kernel, which sliced kernels don't have.

    Args:
        x: float [n, ..., in]. rates, sizes: of the kernel, per spatial axis.
        convolve: the convolution of such positions, padding "valid".
    """
    whole = [rate * (size - 1) for rate, size in zip(rates, sizes, strict=True)]
    base = [[one // 2, one - one // 2] if padding == "same" else [0, 0] for one in whole]
    sizes = [tf.shape(x)[axis + 1] if n is None else n for axis, n in enumerate(x.shape[1:-1])]
    paddings, crops = tf.required_space_to_batch_paddings(tf.stack(sizes), list(rates), base)
    y = convolve(tf.space_to_batch(x, list(rates), paddings))
    return tf.batch_to_space(y, list(rates), crops)


def _depthwise(layer, x, kernel):
    if max(layer.dilation_rate) > 1 and None in kernel.shape:

        def convolve(x):
            return keras.ops.depthwise_conv(
                x, kernel, strides=1, padding="valid", data_format=layer.data_format
            )

        return dilated(x, layer.dilation_rate, layer.kernel_size, layer.padding, convolve)
    return keras.ops.depthwise_conv(
        x,
        kernel,
        strides=layer.strides,
        padding=layer.padding,
        dilation_rate=layer.dilation_rate,
        data_format=layer.data_format,
    )


class DepthwiseConv1D(_GatedDepthwise, keras.layers.DepthwiseConv1D):
    """keras.layers.DepthwiseConv1D with filter masks."""


class DepthwiseConv2D(_GatedDepthwise, keras.layers.DepthwiseConv2D):
    """keras.layers.DepthwiseConv2D with filter masks."""


class _GatedSeparable(_GatedKernel):
    """Separable convolutions; depthwise kernel [..., in, m], pointwise [..., in * m, out]."""

    @staticmethod
    def axes(layer, in_units, out_units) -> Axes:
        between = np.repeat(in_units, layer.depth_multiplier)
        return {
            "depthwise_kernel": {-2: in_units},
            "pointwise_kernel": {-2: between, -1: out_units},
            "bias": {-1: out_units},
        }

    def transform(self, x, weights: Weights):
        y = _depthwise(self, x, weights["depthwise_kernel"])
        return keras.ops.conv(
            y, weights["pointwise_kernel"], padding="valid", data_format=self.data_format
        )


class SeparableConv1D(_GatedSeparable, keras.layers.SeparableConv1D):
    """keras.layers.SeparableConv1D with filter masks."""


class SeparableConv2D(_GatedSeparable, keras.layers.SeparableConv2D):
    """keras.layers.SeparableConv2D with filter masks."""
