"""What Keras layers do to channels: the rules of `nets.layer_kinds`, channels in the last axis.

A rule is a function (ids, site) -> ids of the output's channels. It raises `NoRule` for a
configuration that it doesn't understand; the caller then freezes what the call touches.
"""

import math
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from ..utils.devices import full_float32
from .channels import Ids, NoRule, Site
from .keras_graph import CustomScaleLayer, LayerScale, StochasticDepth, takes_training
from .products import product_of

L = keras.layers
Rule = Callable[[Ids, Site], np.ndarray]

CONVOLUTIONS = (L.Conv1D, L.Conv2D, L.Conv3D)
TRANSPOSED = (L.Conv1DTranspose, L.Conv2DTranspose, L.Conv3DTranspose)
DEPTHWISE = (L.DepthwiseConv1D, L.DepthwiseConv2D)
SEPARABLE = (L.SeparableConv1D, L.SeparableConv2D)
CONV_RECURRENT = (L.ConvLSTM1D, L.ConvLSTM2D, L.ConvLSTM3D)
# Recurrent layers, and how many states they have.
STATES = {L.SimpleRNN: 1, L.GRU: 1, **dict.fromkeys((L.LSTM, *CONV_RECURRENT), 2)}
KERNEL_LAYERS = (*CONVOLUTIONS, *TRANSPOSED, *DEPTHWISE, *SEPARABLE, L.Dense)

LINEAR_POOLING = (
    *(L.AveragePooling1D, L.AveragePooling2D, L.AveragePooling3D),
    *(L.GlobalAveragePooling1D, L.GlobalAveragePooling2D, L.GlobalAveragePooling3D),
    *(L.AdaptiveAveragePooling1D, L.AdaptiveAveragePooling2D, L.AdaptiveAveragePooling3D),
    *(L.ZeroPadding1D, L.ZeroPadding2D, L.ZeroPadding3D),
    *(L.Cropping1D, L.Cropping2D, L.Cropping3D),
)
PER_CHANNEL = (
    *LINEAR_POOLING,
    *(L.Activation, L.ReLU, L.LeakyReLU, L.ELU, L.PReLU, L.Identity),
    *(L.Dropout, L.SpatialDropout1D, L.SpatialDropout2D, L.SpatialDropout3D),
    *(L.GaussianNoise, L.GaussianDropout, L.AlphaDropout, StochasticDepth, LayerScale),
    *(L.MaxPooling1D, L.MaxPooling2D, L.MaxPooling3D),
    *(L.GlobalMaxPooling1D, L.GlobalMaxPooling2D, L.GlobalMaxPooling3D),
    *(L.AdaptiveMaxPooling1D, L.AdaptiveMaxPooling2D, L.AdaptiveMaxPooling3D),
    *(L.UpSampling1D, L.UpSampling2D, L.UpSampling3D, L.RepeatVector),
)
# InceptionResNetV2's layer adds the second input, scaled by one number, to the first.
MERGES = (L.Add, L.Subtract, L.Multiply, L.Average, L.Maximum, L.Minimum, CustomScaleLayer)
# Activations that work on every number by itself; any other may mix channels, as softmax does.
POINTWISE_ACTIVATIONS = frozenset(
    "linear relu relu6 leaky_relu elu selu celu gelu silu swish mish hard_silu hard_swish sigmoid "
    "hard_sigmoid log_sigmoid sparse_sigmoid tanh hard_tanh tanh_shrink softplus sparse_plus "
    "squareplus softsign soft_shrink hard_shrink threshold exponential".split()
)


# Activations that give zero for zero.
ZERO_AT_ZERO = frozenset(
    "linear relu relu6 leaky_relu elu selu gelu silu swish tanh softsign".split()
)


def is_depthwise(layer: keras.Layer, in_channels: int) -> bool:
    """Whether a grouped convolution has one input channel per group, as a depthwise one.

    Only then can whole groups go. Three axes or unequal strides have no depthwise kernel in
    TensorFlow: such layers are treated as any grouped convolution.
    """
    groups = getattr(layer, "groups", 1)
    plain = len(layer.kernel_size) <= 2 and len(set(layer.strides)) == 1 if groups > 1 else False
    return plain and groups == in_channels


def kernel_rule(ids: Ids, site: Site) -> np.ndarray:
    return ids.fresh(site.out_shape[-1], site.layer.name)


def convolution_rule(ids: Ids, site: Site) -> np.ndarray:
    """Groups stay equal: the k-th channels of all groups are tied, in the input and the output.

    Two groups on inputs [0, 1, 2, 3] that make [4, 5, 6, 7, 8, 9]: 0-2, 1-3 and 4-7, 5-8, 6-9.
    """
    groups, inputs = site.layer.groups, site.inputs[0]
    if is_depthwise(site.layer, len(inputs)):
        return np.repeat(inputs, site.out_shape[-1] // len(inputs))
    output = kernel_rule(ids, site)
    if groups > 1:
        ids.tie_rows(inputs.reshape(groups, -1))
        ids.tie_rows(output.reshape(groups, -1))
    return output


def depthwise_rule(ids: Ids, site: Site) -> np.ndarray:
    return np.repeat(site.inputs[0], site.layer.depth_multiplier)


def same_rule(ids: Ids, site: Site) -> np.ndarray:
    return site.inputs[0]


def _check_axis(site: Site) -> None:
    axis = site.layer.axis
    axes = [axis] if isinstance(axis, int) else list(axis)
    if axes not in ([-1], [len(site.in_shapes[0]) - 1]):
        raise NoRule(f"works along axis {axis}, not along the channels alone")


def batch_norm_rule(ids: Ids, site: Site) -> np.ndarray:
    _check_axis(site)
    if site.layer.renorm:
        raise NoRule("renormalises")
    return site.inputs[0]


def layer_norm_rule(ids: Ids, site: Site) -> np.ndarray:
    _check_axis(site)
    if site.layer.rms_scaling:
        raise NoRule("has rms_scaling")
    return site.inputs[0]


def rms_norm_rule(ids: Ids, site: Site) -> np.ndarray:
    _check_axis(site)
    return site.inputs[0]


@full_float32()
def tried_rule(ids: Ids, site: Site) -> np.ndarray:
    """A layer of an unknown kind without weights, such as one that drops whole paths in training.

    Run on some of the channels of random numbers it must give what it gives for these channels
    among all; it must take them in training too, and an open number of them.
    """
    layer, width = site.layer, len(site.inputs[0])
    if len(site.inputs) != 1 or site.out_shape != site.in_shapes[0] or width < 2:
        raise NoRule("has no rule")
    rng = np.random.default_rng(0)
    sizes = [2 if size is None else size for size in site.in_shapes[0]]
    whole = rng.normal(size=sizes).astype(np.float32)
    some = np.sort(rng.permutation(width)[: (width + 1) // 2])
    options = {"training": False} if takes_training(layer) else {}
    try:
        expected = np.asarray(layer(whole, **options))[..., some]
        found = np.asarray(layer(whole[..., some], **options))
        in_training = layer(whole[..., some], **dict.fromkeys(options, True))
        spec = tf.TensorSpec((None, *sizes[1:-1], None), tf.float32)
        tf.function(lambda x: layer(x, **options), autograph=False).get_concrete_function(spec)
    except Exception:  # the user's own code may raise anything
        raise NoRule("has no rule") from None
    alike = found.shape == expected.shape == tuple(in_training.shape)
    if not alike or not np.allclose(found, expected, rtol=1e-5, atol=1e-6):
        raise NoRule("has no rule")
    return site.inputs[0]


def over_channels_rule(ids: Ids, site: Site) -> np.ndarray:
    """What is left has no channels."""
    size = 1 if site.layer.keepdims else site.out_shape[-1]
    output = ids.fresh(size or 0, site.layer.name)
    ids.freeze(output, f"{site.layer.name} runs over the channels")
    return output


def group_norm_rule(ids: Ids, site: Site) -> np.ndarray:
    _check_axis(site)
    groups, inputs = site.layer.groups, site.inputs[0]
    if 1 < groups < len(inputs):  # groups of equal size, as in a grouped convolution
        ids.tie_rows(inputs.reshape(groups, -1))
    return inputs


def scaling_rule(ids: Ids, site: Site) -> np.ndarray:
    """Rescaling and Normalization, whose constants lie in the configuration."""
    constants = (getattr(site.layer, name, None) for name in ("scale", "offset"))
    if isinstance(site.layer, L.Normalization) or any(np.size(c) > 1 for c in constants):
        ids.freeze(site.inputs[0], f"{site.layer.name} has constants per channel")
    return site.inputs[0]


def merge_rule(ids: Ids, site: Site) -> np.ndarray:
    widest = max(site.inputs, key=len)
    for other in site.inputs:
        if len(other) == len(widest):
            ids.tie(widest, other)
        else:
            # One channel broadcast over all: it belongs to none of them.
            ids.freeze(other, f"broadcast over channels by {site.layer.name}")
    return widest


def product_rule(ids: Ids, site: Site) -> np.ndarray:
    """A letter on the last axis of every operand that has it is a channel: tied, or summed over."""
    product = product_of(site.layer, site.arguments)
    if product is None or not product.output or len(product.output) != len(site.out_shape):
        raise NoRule("has a form that isn't known")
    units, channel = iter(site.inputs), dict[str, np.ndarray]()
    for number, (letters, operand) in enumerate(zip(product.sides, product.operands, strict=True)):
        if not isinstance(operand, keras.KerasTensor):
            continue
        mine = next(units)
        if not product.runs_over_channels(number):
            ids.freeze(mine, f"{site.layer.name} uses them along another axis")
        elif letters[-1] in channel:
            ids.tie(channel[letters[-1]], mine)
        else:
            channel[letters[-1]] = mine
    if product.output[-1:] in channel:
        return channel[product.output[-1]]
    fresh = ids.fresh(site.out_shape[-1] or 0, site.layer.name)
    ids.freeze(fresh, f"{site.layer.name} makes them of positions")
    return fresh


def concatenate_rule(ids: Ids, site: Site) -> np.ndarray:
    if site.layer.axis in (-1, len(site.out_shape) - 1):
        return np.concatenate(site.inputs)
    for other in site.inputs[1:]:
        ids.tie(site.inputs[0], other)
    return site.inputs[0]


def reshape_rule(ids: Ids, site: Site) -> np.ndarray:
    """Every row of the new last axis must keep the same channels: rows that differ are tied.

    Three positions of channels [0, 1] flattened: [0, 1, 0, 1, 0, 1]. Channels [0, 1, 2, 3] as two
    rows [0, 1] and [2, 3]: 0-2, 1-3.
    """
    source, before, after = site.inputs[0], site.in_shapes[0][1:], site.out_shape[1:]
    if not after or not before or after[-1] is None:
        raise NoRule("reshapes channels of an open number")
    if after[-1] == len(source):  # every row is one position's channels
        return source
    if None in before or None in after:
        raise NoRule("reshapes a tensor of open size")
    rows = np.tile(source, math.prod(before[:-1])).reshape(-1, after[-1])
    if after[-1] == 1:
        raise NoRule("turns channels into positions")
    ids.tie_rows(rows)
    return rows[0]


def parts_rule(ids: Ids, site: Site) -> list[np.ndarray]:
    """Parts of fixed sizes lose channels each by itself, but never the last one."""
    parts = np.split(site.inputs[0], site.layer.places)
    for part in parts:
        ids.tie(part, ids.fresh(len(part), ""))
    return parts


def shuffle_rule(ids: Ids, site: Site) -> np.ndarray:
    """Channels in another order."""
    return site.inputs[0][list(site.layer.indices)]


def permute_rule(ids: Ids, site: Site) -> np.ndarray:
    if site.layer.dims[-1] != len(site.layer.dims):
        raise NoRule("moves the channels to another axis")
    return site.inputs[0]


def off_channels_rule(ids: Ids, site: Site) -> np.ndarray:
    """Softmax along other axes than the channels'."""
    rank = len(site.in_shapes[0])
    axes = {axis % rank for axis in np.atleast_1d(site.layer.axis)}
    if rank - 1 in axes:
        raise NoRule("runs over the channels")
    return site.inputs[0]


def recurrent_rule(ids: Ids, site: Site) -> np.ndarray | list[np.ndarray]:
    """A unit of the state is a channel, if a unit without weights stays at zero; what is given as
    its first value, and what is given back of it, has the same channels."""
    layer = site.layer
    if layer.stateful:
        raise NoRule("keeps its states between batches")
    name = getattr(layer.activation, "__name__", "")
    output = kernel_rule(ids, site)
    if name not in ZERO_AT_ZERO:
        ids.freeze(output, f"{layer.name} has units that are not zero without weights ({name})")
    for tensor, state in zip(site.tensors[1:], site.inputs[1:], strict=True):
        if tensor.dtype != "bool":  # else it is a mask
            ids.tie(state, output)
    return [output] * (1 + STATES[type(layer)]) if layer.return_state else output


def embedding_rule(ids: Ids, site: Site) -> np.ndarray:
    ids.freeze(site.inputs[0], f"{site.layer.name} takes numbers of tokens")
    return kernel_rule(ids, site)


def is_linear(layer: keras.Layer) -> bool:
    """Whether the layer has no activation."""
    activation = getattr(layer, "activation", None)
    return activation is None or getattr(activation, "__name__", "") == "linear"


def mixing_activation(layer: keras.Layer) -> str:
    """Name of the layer's activation if it may mix channels, else ""."""
    activation = getattr(layer, "activation", None)
    name = getattr(activation, "__name__", type(activation).__name__)
    pointwise = (
        activation is None
        or name in POINTWISE_ACTIVATIONS
        or type(activation) in (L.Activation, L.ReLU, L.LeakyReLU, L.ELU, L.Identity)
    )
    return "" if pointwise else name
