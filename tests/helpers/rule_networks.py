"""Tiny networks, one or two rules of the channel graph in each, and what makes them tell."""

import keras
import numpy as np

from tests.helpers.networks import CLASSES, head

L, ops = keras.layers, keras.ops


def conv(filters, name, kernel=3, **options):
    return L.Conv2D(filters, kernel, padding="same", name=name, **options)


def image(*shape):
    return L.Input(shape or (8, 8, 3))


def between(layer, channels=6):
    """A layer between two convolutions, the first with `channels` filters."""
    x = image()
    return keras.Model(x, head(conv(4, "after")(layer(conv(channels, "before")(x)))))


def one_dimensional():
    x = image(12, 3)
    y = L.Conv1D(6, 3, padding="causal", activation="relu", name="causal")(x)
    y = L.MaxPooling1D()(L.ZeroPadding1D()(L.SpatialDropout1D(0.1)(y)))
    y = L.DepthwiseConv1D(3, depth_multiplier=2, activation="relu", name="depthwise")(y)
    y = L.UpSampling1D()(L.SeparableConv1D(5, 3, name="separable")(y))
    y = L.Conv1DTranspose(4, 3, strides=2, activation="relu", name="transposed")(L.Cropping1D()(y))
    return keras.Model(x, L.Dense(CLASSES, name="fc")(L.GlobalMaxPooling1D()(y)))


def three_dimensional():
    x = image(6, 6, 6, 2)
    y = L.Conv3D(4, 3, activation="relu", name="conv")(L.ZeroPadding3D()(x))
    y = L.Conv3DTranspose(6, 2, strides=2, activation="relu", name="transposed")(y)
    y = L.AveragePooling3D(2)(L.PReLU(name="slopes")(L.Cropping3D()(y)))
    y = L.Conv3D(6, 1, groups=2, name="grouped")(y)
    return keras.Model(x, L.Dense(CLASSES, name="fc")(L.GlobalAveragePooling3D()(y)))


def decoder():
    x = image()
    y = conv(6, "down", strides=2, activation="relu")(x)
    y = L.Conv2DTranspose(5, 3, strides=2, padding="same", activation="relu", name="up")(y)
    y = L.SeparableConv2D(4, 3, depth_multiplier=2, activation="relu", name="separable")(y)
    return keras.Model(x, head(L.UpSampling2D()(y)))


def grouped():
    x = image()
    y = L.BatchNormalization(name="bn")(conv(8, "wide")(x))
    y = conv(12, "grouped", groups=4, activation="relu")(y)
    y = conv(24, "depthwise", groups=12, activation="relu")(y)
    return keras.Model(x, head(y))


def excited():
    """Squeeze and excitation by Reshape and 1x1 convolutions, and a map broadcast over channels."""
    x = image()
    y = conv(6, "stem", activation="relu")(x)
    z = L.Reshape((1, 1, 6))(L.GlobalAveragePooling2D()(y))
    z = conv(3, "squeeze", 1, activation="relu")(z)
    y = L.Multiply()([y, conv(6, "excite", 1, activation="sigmoid")(z)])
    y = L.Multiply()([y, conv(1, "map", activation="sigmoid")(y)])
    return keras.Model(x, head(y))


def operations():
    x = image()
    y = ops.relu(conv(6, "a")(x))
    z = ops.maximum(conv(6, "b")(x) * 0.5, 0.1) + 3.0
    y = ops.concatenate([y + z, ops.pad(conv(4, "c")(x), [[0, 0], [0, 0], [0, 0], [0, 0]])], -1)
    y = ops.mean(ops.max_pool(y, 2) * ops.mean(y, (1, 2), keepdims=True), axis=(1, 2))
    y = ops.squeeze(ops.expand_dims(y, 1), 1)
    return keras.Model(x, L.Dense(CLASSES, name="fc")(y))


def activations():
    """Called as functions, which makes operations that are neither layers nor of keras.ops."""
    x, act = image(), keras.activations
    y = act.relu(conv(6, "a")(x), negative_slope=0.1) + act.silu(conv(6, "b")(x))
    return keras.Model(x, head(act.gelu(act.relu(conv(5, "c")(y), max_value=6))))


def nested():
    """A model called twice, holding a Sequential one, with a name that occurs outside too."""
    inner = L.Input((8, 8, 6))
    stack = keras.Sequential([L.Input((8, 8, 6)), conv(5, "conv", activation="relu")], name="stack")
    part = keras.Model(inner, L.Add()([conv(6, "back")(stack(inner)), inner]), name="part")
    x = image()
    y = part(part(conv(6, "conv")(x)))
    return keras.Model(x, head(y))


def flat_rows():
    x = image(4, 4, 3)
    y = L.Reshape((-1, 6))(L.Permute((2, 1, 3))(conv(6, "conv", activation="relu")(x)))
    y = L.Flatten()(L.Dense(5, activation="relu", name="each")(y))
    y = L.Dense(8, activation="relu", name="hidden")(y)
    y = L.Reshape((4, 2))(y)  # four rows of two: even channels together, odd ones together
    return keras.Model(x, L.Dense(CLASSES, name="fc")(L.Flatten()(y)))


def reduced():
    """Maps of means, sums, extremes and deviations, over so many channels that arrays shrink."""
    x = image()
    y = conv(20, "conv", activation="silu")(x)
    kinds = (ops.mean, ops.sum, ops.max, ops.min, ops.amax, ops.amin, ops.std, ops.var)
    maps = ops.concatenate([kind(y, axis=-1, keepdims=True) for kind in kinds], axis=-1)
    y = y * conv(1, "map", activation="sigmoid")(maps)
    energy = ops.expand_dims(ops.mean(ops.square(y), axis=[3]), -1)
    return keras.Model(x, head(ops.concatenate([y, energy], axis=-1)))


CASES = {
    one_dimensional: [(("causal",), 6), (("separable",), 5), (("transposed",), 4)],
    three_dimensional: [(("conv",), 4), (("grouped",), 3), (("transposed",), 3)],
    decoder: [(("down",), 6), (("separable",), 4), (("up",), 5)],
    grouped: [(("grouped",), 3), (("wide",), 2)],
    excited: [(("excite", "stem"), 6), (("squeeze",), 3)],
    activations: [(("a", "b"), 6), (("c",), 5)],
    operations: [(("a", "b"), 6), (("c",), 4)],
    nested: [(("back", "conv"), 6), (("stack_conv",), 5)],
    reduced: [(("conv",), 20)],
    flat_rows: [(("conv",), 6), (("each",), 5), (("hidden",), 2)],
}
NORMS = [
    L.LayerNormalization(name="norm"),
    L.LayerNormalization(scale=False, name="norm"),
    L.GroupNormalization(1, name="norm"),
    L.GroupNormalization(2, name="norm"),
    L.GroupNormalization(-1, name="norm"),
    L.UnitNormalization(name="norm"),
    L.BatchNormalization(name="norm"),
    L.PReLU(shared_axes=[1, 2], name="norm"),
]


def shake(model):
    rng = np.random.default_rng(1)
    for variable in model.weights:
        if "kernel" not in variable.name:
            variable.assign(rng.uniform(0.4, 1.4, variable.shape))
    return model


def batch_of(model, images=6):
    rng = np.random.default_rng(2)
    return rng.normal(0.2, 1, (images, *model.input_shape[1:])).astype(np.float32)
