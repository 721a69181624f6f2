"""Stock Keras layers with filter masks: convolutions of every kind and FC (Dense).

A layer is *bound* to the network's unit mask (see `nets.gates`) by `in_units` and `out_units`. Its
effective weights come in two forms that give the same output on the kept channels:

* `masked(mask)`: tensors of the original shape, removed filters zero (mask float32 [U + 1], may be
  a tensor);
* `sliced(mask)`: numpy arrays without the removed filters (mask is a numpy array).

Both follow the paper's norm-preserving rule (docs/method.md 1, "Masking") for every kernel:
W' = W*m_in*m_out * ||W|| / ||W*m_in*m_out||, Frobenius norms over the whole kernel.
`apply(x, weights)` runs the layer on effective weights of either form. Layout: channels last.

Which axis of which weight belongs to which channels is said once per class, by the static method
`axes`; it also works on the stock layer, which is how weights are counted and sliced without a
mask-aware twin. `nets.tcl_norm` has the other layers with weights per channel.
"""

import math

import keras
import numpy as np
import tensorflow as tf

from .layer_rules import is_depthwise

Weights = dict[str, "tf.Tensor | np.ndarray"]
Axes = dict[str, dict[int, np.ndarray]]  # {weight: {negative axis: int32 [channels] units}}

KERNELS = ("kernel", "depthwise_kernel", "pointwise_kernel")
# Weights that are set to zero for removed channels; the others (moving statistics) are left alone.
ZEROED = (*KERNELS, "bias", "gamma", "beta")


def slice_weights(axes: Axes, full: Weights, mask: np.ndarray, keep: np.ndarray) -> Weights:
    """Effective weights without the removed filters.

    Args:
        axes: as `Gated.axes` gives them.
        full: {weight: float32 array}, the layer's own weights.
        mask: unit mask, float32 [U + 1].
        keep: units to leave in the arrays, as zeros where `mask` removes them.
    """
    return {name: _sliced(name, axes.get(name, {}), full[name], mask, keep) for name in full}


def _sliced(name: str, axes: dict, value: np.ndarray, mask, keep) -> np.ndarray:
    original = value
    for axis, units in axes.items():
        stay = keep[units] > 0
        if not stay.all():
            value = np.compress(stay, value, axis)
        factor = mask[units][stay]
        if name in ZEROED and not factor.all():
            value = value * factor.reshape(-1, *[1] * (-axis - 1))
    if name in KERNELS and value is not original:
        value = value * _norm_ratio(original, value)
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
        moving: names of the weights that only inference uses, moving statistics.
    """

    units_mask: tf.Variable | None = None
    in_units: np.ndarray | None = None
    out_units: np.ndarray | None = None
    reads = False
    moving: tuple[str, ...] = ()

    @staticmethod
    def axes(layer, in_units: np.ndarray, out_units: np.ndarray) -> Axes:
        """The units of the axes of the layer's weights; a weight that isn't named stays whole."""
        return {v.name: {-1: out_units} for v in layer.weights}

    @staticmethod
    def config(layer, in_units, out_units, mask: np.ndarray) -> dict:
        """What changes in the stock layer's configuration under a unit mask."""
        return {}

    def bind(self, units_mask: tf.Variable, in_units: np.ndarray, out_units: np.ndarray) -> None:
        """Ties the layer to a mask variable, float32 [U + 1].

        Args:
            in_units: int32 [input channels], the unit of every input channel (U = always kept).
            out_units: int32 [output channels], likewise.
        """
        self.units_mask = units_mask
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

    def masked(self, mask) -> Weights:
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
            if name in KERNELS:
                kept = kept * tf.math.divide_no_nan(tf.norm(whole), tf.norm(kept))
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
        return slice_weights(axes, full or self.full(), mask, mask if keep is None else keep)

    def apply(self, x, weights: Weights, training: bool = True):
        """x float [n, ..., in] -> [n, ..., out] under effective weights of either form."""
        raise NotImplementedError

    def call(self, inputs):
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
    def config(layer, in_units, out_units, mask) -> dict:
        return {"units": int(np.count_nonzero(mask[out_units]))}

    def transform(self, x, weights: Weights):
        return keras.ops.matmul(x, weights["kernel"])

    def call(self, inputs, training=None):
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


def _depthwise(layer, x, kernel):
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
