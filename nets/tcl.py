"""Stock Keras layers with filter masks: Conv2D, DepthwiseConv2D, FC (Dense) and BatchNorm.

A layer is *bound* to the network's unit mask (see `nets.gates`) by `in_units` and `out_units`. Its
effective weights come in two forms that give the same output on the kept channels:

* `masked(mask)`: tensors of the original shape, removed filters zero (mask float32 [U + 1], may be
  a tensor);
* `sliced(mask)`: numpy arrays without the removed filters (mask is a numpy array).

Both follow the paper's norm-preserving rule (method.md 1, "Masking"):
W' = W*m_in*m_out * ||W|| / ||W*m_in*m_out||, Frobenius norms over the whole kernel.
`apply(x, weights)` runs the layer on effective weights of either form. Layout: channels last.
"""

import keras
import numpy as np
import tensorflow as tf

Weights = dict[str, "tf.Tensor | np.ndarray"]


def _norm_ratio(full: np.ndarray, kept: np.ndarray) -> np.float32:
    kept_norm = np.linalg.norm(kept)
    return np.float32(np.linalg.norm(full) / kept_norm) if kept_norm > 0 else np.float32(0)


class Gated:
    """What the four layers share: the binding to the mask and the two forms of the weights."""

    units_mask: tf.Variable | None = None
    in_units: np.ndarray | None = None
    out_units: np.ndarray | None = None

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

    def _finish(self, y, weights: Weights):
        """Bias and activation, as the stock kernel layers apply them."""
        if self.use_bias:
            y = y + weights["bias"]
        return self.activation(y) if self.activation is not None else y

    def masked(self, mask) -> Weights:
        """Effective weights of the original shapes, removed filters zero."""
        raise NotImplementedError

    def sliced(
        self, mask: np.ndarray, keep: np.ndarray | None = None, full: dict | None = None
    ) -> dict[str, np.ndarray]:
        """Effective weights without the removed filters.

        Args:
            mask: unit mask, float32 [U + 1].
            keep: units to leave in the arrays, as zeros where `mask` removes them; default: mask.
            full: what `full()` gave, to save reading the weights again.
        """
        raise NotImplementedError


class _GatedKernel(Gated):
    """Layers with one kernel [..., in, out] and an optional bias [out]."""

    def masked(self, mask) -> Weights:
        kernel = tf.convert_to_tensor(self.kernel)
        mask_in = tf.gather(mask, self.in_units)
        mask_out = tf.gather(mask, self.out_units)
        kept = kernel * mask_in[:, None] * mask_out
        ratio = tf.math.divide_no_nan(tf.norm(kernel), tf.norm(kept))
        weights = {"kernel": kept * ratio}
        if self.use_bias:
            weights["bias"] = self.bias * mask_out
        return weights

    def sliced(
        self, mask: np.ndarray, keep: np.ndarray | None = None, full: dict | None = None
    ) -> dict[str, np.ndarray]:
        full, keep = full or self.full(), mask if keep is None else keep
        stay_in, stay_out = keep[self.in_units] > 0, keep[self.out_units] > 0
        mask_in, mask_out = mask[self.in_units][stay_in], mask[self.out_units][stay_out]
        kept = full["kernel"][..., stay_in, :][..., stay_out] * mask_in[:, None] * mask_out
        weights = {"kernel": kept * _norm_ratio(full["kernel"], kept)}
        if self.use_bias:
            weights["bias"] = full["bias"][stay_out] * mask_out
        return weights


class Conv2D(_GatedKernel, keras.layers.Conv2D):
    """keras.layers.Conv2D with filter masks (groups = 1)."""

    def apply(self, x, weights: Weights, training: bool = True):
        """x float [n, h, w, in] -> [n, h', w', out]; `training` is unused."""
        y = keras.ops.conv(
            x,
            weights["kernel"],
            strides=list(self.strides),
            padding=self.padding,
            dilation_rate=self.dilation_rate,
            data_format=self.data_format,
        )
        return self._finish(y, weights)

    def call(self, inputs):
        return self.apply(inputs, self.current())


class FC(_GatedKernel, keras.layers.Dense):
    """keras.layers.Dense with masks on its inputs and outputs."""

    def apply(self, x, weights: Weights, training: bool = True):
        """x float [..., in] -> [..., out] under effective weights; `training` is unused."""
        y = keras.ops.matmul(x, weights["kernel"])
        return self._finish(y, weights)

    def call(self, inputs, training=None):
        return self.apply(inputs, self.current())


class DepthwiseConv2D(Gated, keras.layers.DepthwiseConv2D):
    """keras.layers.DepthwiseConv2D with masks; kernel [kh, kw, in, multiplier]."""

    def masked(self, mask) -> Weights:
        kernel = tf.convert_to_tensor(self.kernel)
        kept = kernel * tf.gather(mask, self.in_units)[:, None]
        ratio = tf.math.divide_no_nan(tf.norm(kernel), tf.norm(kept))
        weights = {"kernel": kept * ratio}
        if self.use_bias:
            weights["bias"] = self.bias * tf.gather(mask, self.out_units)
        return weights

    def sliced(
        self, mask: np.ndarray, keep: np.ndarray | None = None, full: dict | None = None
    ) -> dict[str, np.ndarray]:
        full, keep = full or self.full(), mask if keep is None else keep
        stay = keep[self.in_units] > 0
        kept = full["kernel"][:, :, stay] * mask[self.in_units][stay][:, None]
        weights = {"kernel": kept * _norm_ratio(full["kernel"], kept)}
        if self.use_bias:
            stay = keep[self.out_units] > 0
            weights["bias"] = full["bias"][stay] * mask[self.out_units][stay]
        return weights

    def apply(self, x, weights: Weights, training: bool = True):
        """x float [n, h, w, in] -> [n, h', w', in * multiplier]; `training` is unused."""
        y = keras.ops.depthwise_conv(
            x,
            weights["kernel"],
            strides=self.strides,
            padding=self.padding,
            dilation_rate=self.dilation_rate,
            data_format=self.data_format,
        )
        return self._finish(y, weights)

    def call(self, inputs):
        return self.apply(inputs, self.current())


class BatchNorm(Gated, keras.layers.BatchNormalization):
    """keras.layers.BatchNormalization over the last axis with a filter mask.

    Removed channels come out as exact zeros. As in the search of the paper, `training=True`
    normalises by the statistics of the batch; the moving statistics are never changed by this
    class.
    """

    def masked(self, mask) -> Weights:
        keep = tf.gather(mask, self.out_units)
        weights = {v.name: v.value for v in self.weights}
        for name in ("gamma", "beta"):
            if name in weights:
                weights[name] = weights[name] * keep
        if not self.scale or not self.center:
            weights["keep"] = keep
        return weights

    def sliced(
        self, mask: np.ndarray, keep: np.ndarray | None = None, full: dict | None = None
    ) -> dict[str, np.ndarray]:
        stay = (mask if keep is None else keep)[self.out_units] > 0
        weights = {name: value[stay] for name, value in (full or self.full()).items()}
        for name in ("gamma", "beta"):
            if name in weights:
                weights[name] = weights[name] * mask[self.out_units][stay]
        return weights

    def apply(self, x, weights: Weights, training: bool = True):
        """x float [..., c] -> the same shape; `training` chooses batch or moving statistics."""
        gamma = weights.get("gamma")
        beta = weights.get("beta")
        if gamma is None:
            gamma = tf.ones_like(weights["moving_mean"])
        if beta is None:
            beta = tf.zeros_like(weights["moving_mean"])
        y = batch_norm(
            x,
            gamma,
            beta,
            weights["moving_mean"],
            weights["moving_variance"],
            self.epsilon,
            training,
        )
        return y * weights["keep"] if "keep" in weights else y

    def call(self, inputs, training=None, mask=None):
        # As in stock Keras, a frozen layer keeps to its moving statistics.
        return self.apply(inputs, self.current(), bool(training) and self.trainable)


def batch_norm(x, gamma, beta, mean, variance, epsilon: float, training: bool):
    """Batch normalisation over all axes but the last, by batch (training) or given statistics.

    4-D inputs take TensorFlow's fused kernel, which is faster forwards and backwards on a CPU and a
    GPU.
    """
    if len(x.shape) == 4:
        empty = tf.zeros([0], tf.float32)
        return tf.raw_ops.FusedBatchNormV3(
            x=x,
            scale=gamma,
            offset=beta,
            mean=empty if training else mean,
            variance=empty if training else variance,
            epsilon=epsilon,
            is_training=training,
        ).y
    if training:
        mean, variance = tf.nn.moments(x, list(range(len(x.shape) - 1)))
    return tf.nn.batch_normalization(x, mean, variance, beta, gamma, epsilon)
