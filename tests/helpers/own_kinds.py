"""Networks as people have them, one of each kind that was found to fail somewhere, untrained.

Every entry of KINDS is `name: build`; build() gives a classifier of CLASSES classes.
"""

import keras
import numpy as np
import tensorflow as tf
from keras import layers as L
from keras import ops

CLASSES, SIZE = 3, 12


def image(dtype: str | None = None) -> tuple:
    i = keras.Input((SIZE, SIZE, 3), dtype=dtype)
    return i, L.Rescaling(1 / 127.5, offset=-1)(i)


def conv(x, filters=8, strides=1, norm=True, activation="relu", **options):
    x = L.Conv2D(filters, 3, strides, "same", use_bias=not norm, **options)(x)
    x = L.BatchNormalization()(x) if norm else x
    return L.Activation(activation)(x) if activation else x


def classifier(i, x, activation="softmax") -> keras.Model:
    x = L.GlobalAveragePooling2D()(x)
    return keras.Model(i, L.Dense(CLASSES, activation=activation)(x))


def no_batch_norm():
    """Convolutions with biases and without batch norm, VGG's kind."""
    i, x = image()
    for filters, strides in ((8, 1), (16, 2), (16, 1)):
        x = conv(x, filters, strides, norm=False)
    return classifier(i, x)


def plain():
    i, x = image()
    return classifier(i, conv(conv(x, 8, 2), 12))


def logits_compiled():
    model = plain_logits()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    return model


def plain_logits():
    i, x = image()
    return classifier(i, conv(conv(x, 8, 2), 12), None)


def sequential():
    return keras.Sequential(
        [
            keras.Input((SIZE, SIZE, 3)),
            L.Rescaling(1 / 255),
            L.Conv2D(8, 3, activation="relu"),
            L.MaxPooling2D(),
            L.Conv2D(12, 3, activation="relu"),
            L.Flatten(),
            L.Dense(16, activation="relu"),
            L.Dropout(0.5),
            L.Dense(CLASSES, activation="softmax"),
        ]
    )


def augmented():
    """Augmentation and resizing as layers of the network."""
    i = keras.Input((SIZE, SIZE, 3))
    x = L.RandomFlip("horizontal", seed=1)(i)
    x = L.RandomRotation(0.1)(x)
    x = L.Resizing(16, 16)(x)
    x = L.Rescaling(scale=[1 / 255, 1 / 250, 1 / 245], offset=[0.1, 0.0, -0.1])(x)
    return classifier(i, conv(conv(x, 8, 2), 12))


def adapted():
    i = keras.Input((SIZE, SIZE, 3))
    norm = L.Normalization(axis=-1)
    norm.adapt(np.random.default_rng(0).normal(90, 40, (64, SIZE, SIZE, 3)).astype("float32"))
    return classifier(i, conv(norm(i), 12))


def normalisation_of_features():
    """A Normalization in the middle of the network."""
    i, x = image()
    norm = L.Normalization(axis=-1)
    norm.adapt(np.random.default_rng(0).normal(1, 2, (64, 8)).astype("float32"))
    x = L.GlobalAveragePooling2D()(conv(x, 8))
    x = L.Dense(16, activation="relu")(norm(x))
    return keras.Model(i, L.Dense(CLASSES, activation="softmax")(x))


def operators():
    i, x = image()
    x = ops.relu(conv(x, 8, 2, activation=None))
    y = conv(x) * 0.5 + x
    y = ops.concatenate([y, -y], axis=-1)
    y = ops.mean(ops.pad(y, [[0, 0], [1, 1], [1, 1], [0, 0]]), axis=(1, 2))
    y = ops.reshape(y, (-1, 16))
    return keras.Model(i, ops.softmax(L.Dense(CLASSES)(y)))


def sliced():
    """Crops on space and on channels, split, stack."""
    i, x = image()
    x = conv(x, 8)
    x = x[:, 1:-1, 1:-1, :]
    a, b = ops.split(x, 2, axis=-1)
    x = conv(ops.concatenate([a, b], -1), 8)
    x = ops.max(ops.stack([x, x * 2], axis=-1), axis=-1)
    return classifier(i, conv(x[..., :4], 8))


def shuffled():
    """ShuffleNet's channel shuffle."""
    i, x = image()
    x = L.Conv2D(16, 3, padding="same", groups=2)(conv(x, 16))
    x = L.Reshape((SIZE, SIZE, 2, 8))(x)
    x = L.Permute((1, 2, 4, 3))(x)
    x = L.Reshape((SIZE, SIZE, 16))(x)
    return classifier(i, conv(x, 12))


def pixels_shuffled():
    """Sub-pixel upsampling by reshapes."""
    i, x = image()
    x = conv(x, 16, 2)
    x = L.Reshape((6, 6, 2, 2, 4))(x)
    x = L.Permute((1, 3, 2, 4, 5))(x)
    x = L.Reshape((12, 12, 4))(x)
    return classifier(i, conv(x, 12))


def squeezed():
    i, x = image()
    x = conv(x, 12)
    s = L.GlobalAveragePooling2D(keepdims=True)(x)
    s = L.Conv2D(12, 1, activation="sigmoid")(L.Conv2D(4, 1, activation="silu")(s))
    return classifier(i, conv(x * s, 12))


def separable():
    i, x = image()
    x = L.SeparableConv2D(8, 3, depth_multiplier=2, dilation_rate=2, padding="same")(x)
    x = L.DepthwiseConv2D(3, dilation_rate=2, padding="same")(x)
    x = L.Conv2D(16, 3, groups=4, dilation_rate=2, padding="same")(L.ReLU()(x))
    return classifier(i, conv(x, 8))


def series():
    i = keras.Input((20, 4))
    x = L.Conv1D(8, 3, dilation_rate=2, padding="causal", activation="relu")(i)
    x = L.Conv1D(12, 3, dilation_rate=4, padding="same", activation="relu")(x)
    x = L.Conv1D(12, 3, padding="causal", activation="relu")(x)
    return keras.Model(i, L.Dense(CLASSES)(L.GlobalMaxPooling1D()(x)))


def volume():
    i = keras.Input((6, 8, 8, 2))
    x = L.Conv3D(6, 3, padding="same")(i)
    x = L.ReLU()(L.BatchNormalization()(x))
    x = L.Conv3D(8, 3, dilation_rate=2, padding="same")(L.MaxPooling3D()(x))
    return keras.Model(i, L.Dense(CLASSES)(L.GlobalAveragePooling3D()(x)))


def recurrent():
    i = keras.Input((10, 6))
    x = L.Dense(12, activation="relu")(i)
    x = L.LSTM(8, return_sequences=True)(x)
    x = L.Bidirectional(L.GRU(6))(x)
    x = L.Dense(12, activation="relu")(x)
    return keras.Model(i, L.Dense(CLASSES, activation="softmax")(x))


def conv_recurrent():
    """Convolutional LSTMs over frames, the last one over a map's rows as steps."""
    i = keras.Input((3, 8, 8, 2))
    x = L.ConvLSTM2D(6, 3, padding="same", return_sequences=True)(i)
    x = L.ConvLSTM2D(5, 3, strides=2, go_backwards=True)(L.BatchNormalization()(x))
    x = L.ConvLSTM1D(6, 2, dilation_rate=2, use_bias=False)(x)
    return keras.Model(i, L.Dense(CLASSES, activation="softmax")(L.Flatten()(x)))


def per_step():
    """TimeDistributed around a small network and around a layer."""
    frame = keras.Input((8, 8, 3))
    inner = keras.Model(frame, L.GlobalAveragePooling2D()(L.Conv2D(6, 3, activation="relu")(frame)))
    i = keras.Input((4, 8, 8, 3))
    x = L.TimeDistributed(inner)(i)
    x = L.TimeDistributed(L.Dense(10, activation="relu"))(x)
    x = L.GlobalAveragePooling1D()(x)
    return keras.Model(i, L.Dense(CLASSES, activation="softmax")(L.Dense(8, "relu")(x)))


def frames(steps=4):
    """Every layer of a network for images in a TimeDistributed of its own."""
    i = keras.Input((steps, 8, 8, 3))
    x = L.TimeDistributed(L.Conv2D(6, 3, use_bias=False))(i)
    x = L.TimeDistributed(L.BatchNormalization())(x)
    x = L.TimeDistributed(L.ReLU())(x)
    x = L.TimeDistributed(L.Conv2D(8, 3, strides=2, activation="relu"))(x)
    x = L.TimeDistributed(L.Flatten())(x)
    x = L.LSTM(8)(L.TimeDistributed(L.Dense(10, activation="relu"))(x))
    return keras.Model(i, L.Dense(CLASSES, activation="softmax")(x))


def transformer():
    i, x = image()
    x = L.Reshape((-1, 16))(L.Conv2D(16, 4, 4)(x))
    for _ in range(2):
        y = L.LayerNormalization()(x)
        x = L.Add()([x, L.MultiHeadAttention(2, 8)(y, y)])
        y = L.Dense(32, activation="gelu")(L.LayerNormalization()(x))
        x = L.Add()([x, L.Dense(16)(L.Dropout(0.1)(y))])
    x = L.GlobalAveragePooling1D()(L.LayerNormalization()(x))
    return keras.Model(i, L.Dense(CLASSES, activation="softmax")(x))


def einsum_dense():
    i = keras.Input((10, 6))
    x = L.EinsumDense("abc,cd->abd", output_shape=(None, 8), bias_axes="d")(i)
    x = L.Dense(12, activation="relu")(L.ReLU()(x))
    return keras.Model(i, L.Dense(CLASSES)(L.GlobalAveragePooling1D()(x)))


def group_norm():
    i, x = image()
    x = L.GroupNormalization(4)(L.Conv2D(8, 3)(x))
    x = L.Conv2D(12, 3)(L.Activation("silu")(x))
    x = L.LayerNormalization()(x)
    return classifier(i, L.Conv2D(8, 3, activation="gelu")(x), None)


def activation_layers():
    """Activations that are layers, with weights of their own and without."""
    i, x = image()
    x = L.Conv2D(8, 3, activation=L.PReLU(shared_axes=[1, 2]))(x)
    x = L.Conv2D(8, 3, activation=L.LeakyReLU(0.2))(x)
    x = L.Conv2D(8, 3)(x)
    return classifier(i, L.PReLU(shared_axes=[1, 2])(x))


def bfloat16():
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        i, x = image()
        x = L.GlobalAveragePooling2D()(conv(conv(x, 8, 2), 12))
        return keras.Model(i, L.Dense(CLASSES, activation="softmax", dtype="float32")(x))
    finally:
        keras.mixed_precision.set_global_policy("float32")


def frozen_inside():
    """A frozen base with batch norms, unfrozen again but for these."""
    b = keras.Input((SIZE, SIZE, 3))
    base = keras.Model(b, conv(conv(b, 8, 2), 12))
    for layer in base.layers:
        layer.trainable = not isinstance(layer, L.BatchNormalization)
    i, x = image()
    return classifier(i, base(x, training=False))


def nested_twice():
    """A model inside a model inside a Sequential, one of them called twice."""
    b = keras.Input((SIZE, SIZE, 8))
    inner = keras.Model(b, b + conv(b, 8))
    outer = keras.Sequential([keras.Input((SIZE, SIZE, 8)), inner, inner])
    i, x = image()
    return classifier(i, outer(conv(x, 8)))


def named_ends():
    i = keras.Input((SIZE, SIZE, 3), name="picture")
    out = L.Dense(CLASSES, activation="softmax")(L.GlobalAveragePooling2D()(conv(i, 8)))
    return keras.Model({"picture": i}, {"kind": out})


def input_in_a_list():
    i, x = image()
    x = L.GlobalAveragePooling2D()(conv(conv(x, 8, 2), 12))
    return keras.Model([i], [L.Dense(CLASSES, activation="softmax")(x)])


def softmax_then_flatten():
    i, x = image()
    x = L.GlobalAveragePooling2D(keepdims=True)(conv(x, 8))
    x = L.Softmax()(L.Conv2D(CLASSES, 1)(x))
    return keras.Model(i, L.Identity()(L.Flatten()(x)))


def averaged_heads():
    i, x = image()
    heads = [
        L.Dense(CLASSES, activation="softmax")(L.GlobalMaxPooling2D()(conv(x, 8))) for _ in "ab"
    ]
    return keras.Model(i, L.Average()(heads))


def log_softmax():
    i, x = image()
    return classifier(i, conv(x, 8), "log_softmax")


def one_layer_twice():
    """Weightless layers that are called on tensors of several widths; a shared kernel."""
    i, x = image()
    relu, flat, pool = L.ReLU(), L.Flatten(), L.MaxPooling2D(4)
    a = relu(L.Conv2D(6, 3, padding="same")(x))
    b = relu(L.Conv2D(10, 3, padding="same")(a))
    shared = L.Conv2D(10, 3, padding="same")
    c = shared(relu(shared(b)))
    x = L.Concatenate()([flat(pool(a)), flat(pool(c))])
    return keras.Model(i, L.Dense(CLASSES)(L.Dropout(0.2)(x)))


def constrained():
    i, x = image()
    x = L.Conv2D(8, 3, kernel_constraint=keras.constraints.UnitNorm([0, 1, 2]))(x)
    x = L.Conv2D(8, 3, kernel_constraint="non_neg")(L.BatchNormalization()(x))
    held = keras.constraints.MinMaxNorm(0.2, 0.8, axis=[0, 1, 2])
    return classifier(i, L.Conv2D(8, 3, kernel_constraint=held, activation="relu")(x))


def regularised():
    i, x = image()
    x = L.Conv2D(8, 3, kernel_regularizer="l2", activity_regularizer="l1")(x)
    return classifier(i, conv(L.GaussianNoise(0.1)(x), 8, kernel_initializer="he_normal"))


def spectral():
    i, x = image()
    x = L.SpectralNormalization(L.Conv2D(8, 3))(x)
    return classifier(i, conv(L.ReLU()(x), 8))


def embedded():
    i = keras.Input((12,))
    x = L.Embedding(20, 16)(i)
    x = L.Conv1D(8, 3, activation="relu")(x)
    return keras.Model(i, L.Dense(CLASSES)(L.GlobalMaxPooling1D()(x)))


@keras.saving.register_keras_serializable("own_kinds")
class Residual(L.Layer):
    """A block of layers with dropout and a shortcut, nested in itself once."""

    def __init__(self, filters, inner=True, **options):
        super().__init__(**options)
        self.filters, self.inner = filters, inner
        self.conv = L.Conv2D(filters, 3, padding="same", use_bias=False)
        self.norm = L.BatchNormalization()
        self.drop = L.Dropout(0.2)
        self.block = Residual(filters, False) if inner else None

    def build(self, shape):
        self.conv.build(shape)
        self.norm.build((*shape[:-1], self.filters))
        self.drop.build((*shape[:-1], self.filters))
        if self.block:
            self.block.build((*shape[:-1], self.filters))
        self.built = True

    def call(self, x, training=None):
        y = self.drop(ops.relu(self.norm(self.conv(x), training=training)), training=training)
        y = self.block(y, training=training) if self.block else y
        return x + y

    def get_config(self):
        return {**super().get_config(), "filters": self.filters, "inner": self.inner}


def blocks():
    i, x = image()
    return classifier(i, Residual(8)(Residual(8)(conv(x, 8))))


@keras.saving.register_keras_serializable("own_kinds")
class Swish(L.Layer):
    """A custom activation without weights."""

    def call(self, x):
        return x * ops.sigmoid(x)


@keras.saving.register_keras_serializable("own_kinds")
class Scale(L.Layer):
    """A custom layer with a weight per channel, which reads the static shape."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones", name="scale")

    def call(self, x):
        return x * ops.reshape(self.scale, (1,) * (len(x.shape) - 1) + (x.shape[-1],))


@keras.saving.register_keras_serializable("own_kinds")
class Noisy(L.Layer):
    """Branches on `training` and asks for the batch size."""

    def call(self, x, training=None):
        if training:
            x = x + keras.random.normal((ops.shape(x)[0], 1, 1, 1))
        return ops.reshape(x, (ops.shape(x)[0], *x.shape[1:]))


def custom_layers():
    i, x = image()
    x = Swish()(L.Conv2D(8, 3)(x))
    x = Scale()(L.Conv2D(8, 3)(x))
    return classifier(i, Noisy()(conv(conv(x, 8), 8)))


@keras.saving.register_keras_serializable("own_kinds")
class Subclassed(keras.Model):
    """A wholly subclassed network."""

    def __init__(self, **options):
        super().__init__(**options)
        self.first = L.Conv2D(8, 3, padding="same")
        self.norm = L.BatchNormalization()
        self.block = Residual(8)
        self.pool = L.GlobalAveragePooling2D()
        self.head = L.Dense(CLASSES, activation="softmax")

    def call(self, x, training=None):
        x = ops.relu(self.norm(self.first(x), training=training))
        return self.head(self.pool(self.block(x, training=training)))


def subclassed():
    model = Subclassed()
    model(np.zeros((2, SIZE, SIZE, 3), "float32"))
    return model


@keras.saving.register_keras_serializable("own_kinds")
class OwnStep(keras.Model):
    """A functional network with a train_step of its own."""

    def train_step(self, data):
        return super().train_step(data)


def own_train_step():
    i, x = image()
    x = L.GlobalAveragePooling2D()(conv(conv(x, 8, 2), 12))
    return OwnStep(i, L.Dense(CLASSES, activation="softmax")(x))


def fixed_batch():
    i = keras.Input(batch_shape=(1, SIZE, SIZE, 3))
    return classifier(i, conv(conv(i, 8, norm=False), 12, norm=False))


def uint8_input():
    i, x = image("uint8")
    return classifier(i, conv(x, 8))


@keras.saving.register_keras_serializable("own_kinds")
class Tokens(L.Layer):
    """A class token and positions: variables of its own, and an Embedding of constant numbers."""

    def build(self, shape):
        self.token = self.add_weight(shape=(1, 1, shape[-1]), initializer="normal", name="token")
        self.shift = self.add_weight(shape=(), initializer="ones", name="shift")
        self.position = L.Embedding(shape[1] + 1, shape[-1], name="position")
        self.position.build((1, shape[1] + 1))
        self.numbers = ops.expand_dims(ops.arange(shape[1] + 1), 0)
        self.built = True

    def call(self, x):
        token = ops.tile(self.token, (ops.shape(x)[0], 1, 1))
        x = ops.concatenate([token, x], axis=1) + self.position(self.numbers)
        return x + self.shift


@keras.saving.register_keras_serializable("own_kinds")
class PositionEmbedding(L.Layer):
    """Words and their places, as the Keras guides embed texts."""

    def __init__(self, length, words, width, **options):
        super().__init__(**options)
        self.sizes = {"length": length, "words": words, "width": width}
        self.tokens = L.Embedding(words, width, mask_zero=True)
        self.places = L.Embedding(length, width)

    def call(self, x):
        return self.tokens(x) + self.places(keras.ops.arange(0, keras.ops.shape(x)[-1]))

    def compute_mask(self, x, mask=None):
        return self.tokens.compute_mask(x)

    def get_config(self):
        return super().get_config() | self.sizes


@keras.saving.register_keras_serializable("own_kinds")
class EncoderBlock(L.Layer):
    """The transformer's block of the Keras guides, which makes an attention mask of the mask."""

    def __init__(self, width, causal=False, **options):
        super().__init__(**options)
        self.width, self.causal = width, causal
        self.attention = L.MultiHeadAttention(2, width // 2)
        self.dense = keras.Sequential([L.Dense(12, activation="relu"), L.Dense(width)])
        self.norms = [L.LayerNormalization(), L.LayerNormalization()]
        self.supports_masking = True

    def call(self, x, mask=None):
        if mask is not None:
            mask = keras.ops.cast(mask[:, None, :], "int32")
        y = self.attention(
            query=x, value=x, key=x, attention_mask=mask, use_causal_mask=self.causal
        )
        x = self.norms[0](x + y)
        return self.norms[1](x + self.dense(x))

    def get_config(self):
        return super().get_config() | {"width": self.width, "causal": self.causal}


@keras.saving.register_keras_serializable("own_kinds")
class DropPath(L.Layer):
    """Drops whole examples in training, by random numbers of no generator of its own."""

    def call(self, x, training=False):
        if not training:
            return x
        shape = (ops.shape(x)[0],) + (1,) * (len(x.shape) - 1)
        return x * ops.floor(0.9 + keras.random.uniform(shape)) / 0.9


@keras.saving.register_keras_serializable("own_kinds")
class RootMeanSquare(L.Layer):
    """A normalisation by the root mean square, with a factor per channel."""

    def __init__(self, dim, eps=1e-6, **options):
        super().__init__(**options)
        self.dim, self.eps = dim, eps

    def build(self, shape):
        self.gamma = self.add_weight(shape=(self.dim,), initializer="ones", name="gamma")

    def call(self, x):
        square = ops.mean(ops.square(x), axis=-1, keepdims=True)
        return x * ops.rsqrt(square + self.eps) * self.gamma

    def get_config(self):
        return {**super().get_config(), "dim": self.dim, "eps": self.eps}


@keras.saving.register_keras_serializable("own_kinds")
class HandAttention(L.Layer):
    """Attention with one Dense for all, matrices multiplied by hand; it also gives its scores."""

    def __init__(self, heads, **options):
        super().__init__(**options)
        self.heads = heads

    def build(self, shape):
        self.width = shape[-1]
        self.joint = L.Dense(3 * self.width, name="joint")
        self.joint.build(shape)
        self.out = L.Dense(self.width, name="out")
        self.out.build(shape)
        self.built = True

    def call(self, x, training=False):
        batch, steps = ops.shape(x)[0], x.shape[1]
        y = ops.reshape(self.joint(x), (batch, steps, 3, self.heads, -1))
        q, k, v = ops.unstack(ops.transpose(y, (2, 0, 3, 1, 4)), axis=0)
        scores = ops.matmul(q * 0.5, ops.swapaxes(k, -2, -1))
        y = ops.matmul(ops.softmax(scores), v)
        y = ops.reshape(ops.transpose(y, (0, 2, 1, 3)), (batch, steps, self.width))
        return self.out(y), None

    def get_config(self):
        return {**super().get_config(), "heads": self.heads}


@keras.saving.register_keras_serializable("own_kinds")
class HandBlock(L.Layer):
    """A transformer's block: of two norms, attention that gives no tensor beside, and an MLP."""

    def __init__(self, width, **options):
        super().__init__(**options)
        self.width = width

    def build(self, shape):
        self.before, self.attention = RootMeanSquare(self.width), HandAttention(2)
        self.after, self.drop = RootMeanSquare(self.width), DropPath()
        self.mlp = [L.Dense(2 * self.width, "gelu"), L.Dense(self.width)]
        for layer in (self.before, self.attention, self.after, self.mlp[0]):
            layer.build(shape)
        self.mlp[1].build((*shape[:-1], 2 * self.width))
        self.built = True

    def call(self, x, training=False):
        y, _ = self.attention(self.before(x))
        x = x + self.drop(y, training=training)
        y = self.after(x)
        for layer in self.mlp:
            y = layer(y)
        return x + self.drop(y, training=training)

    def get_config(self):
        return {**super().get_config(), "width": self.width}


def by_hand():
    """A vision transformer of the user's own layers."""
    i, x = image()
    x = Tokens()(L.Reshape((-1, 16))(L.Conv2D(16, 4, 4)(x)))
    x = HandBlock(16)(HandBlock(16)(x))
    return keras.Model(i, L.Dense(CLASSES)(RootMeanSquare(16)(x)[:, 0]))


@keras.saving.register_keras_serializable("own_kinds")
class Windows(L.Layer):
    """A layer on windows, which become examples and come back."""

    def __init__(self, **options):
        super().__init__(**options)
        self.inner = L.Dense(8)

    def call(self, x):
        batch, height, width, channels = ops.shape(x)
        y = ops.reshape(x, (batch, height // 3, 3, width // 3, 3, channels))
        y = ops.reshape(ops.transpose(y, (0, 1, 3, 2, 4, 5)), (-1, 9, channels))
        y = self.inner(ops.softmax(y, axis=1))
        y = ops.reshape(y, (batch, height // 3, width // 3, 3, 3, channels))
        y = ops.reshape(ops.transpose(y, (0, 1, 3, 2, 4, 5)), (batch, height, width, channels))
        return x + y


def windows():
    i, x = image()
    return classifier(i, conv(conv(Windows()(conv(x, 8)), 12), 12))


@keras.saving.register_keras_serializable("own_kinds")
class PaddedConv(L.Conv2D):
    """Other defaults than its base class, and something before the call."""

    def __init__(self, filters, kernel_size=3, use_bias=False, **options):
        super().__init__(filters, kernel_size, use_bias=use_bias, **options)

    def call(self, x):
        return super().call(ops.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]]))

    def compute_output_shape(self, shape):
        return super().compute_output_shape((shape[0], shape[1] + 2, shape[2] + 2, shape[3]))


@keras.saving.register_keras_serializable("own_kinds")
class Norm(L.BatchNormalization):
    def __init__(self, **options):
        super().__init__(**({"momentum": 0.9, "epsilon": 1e-5} | options))


@keras.saving.register_keras_serializable("own_kinds")
class HalfDense(L.Dense):
    def call(self, x, training=None):
        return super().call(x) * 0.5


@keras.saving.register_keras_serializable("own_kinds")
class StandardisedConv(L.Conv2D):
    """What it does with its kernel is not what its base class does."""

    def convolution_op(self, inputs, kernel):
        return super().convolution_op(inputs, kernel - ops.mean(kernel, (0, 1, 2), keepdims=True))


def derived():
    """Layers of classes derived from Keras's own, one of them called twice."""
    i, x = image()
    x = ops.relu(Norm()(PaddedConv(8, strides=2)(x)))
    twice = PaddedConv(8)
    x = ops.relu(Norm()(twice(ops.relu(twice(x)))))
    x = L.ReLU()(HalfDense(12)(L.Flatten()(x)))
    return keras.Model(i, L.Dense(CLASSES, activation="softmax")(x))


@keras.saving.register_keras_serializable("own_kinds")
class TfResidual(L.Layer):
    """A residual block with squeeze and excitation, written with functions of TensorFlow."""

    def __init__(self, filters, **options):
        super().__init__(**options)
        self.filters = filters
        self.first = L.Conv2D(filters, 3, padding="same", use_bias=False)
        self.norm = L.BatchNormalization()
        self.second = L.Conv2D(filters, 3, padding="same", activation=tf.nn.silu)
        self.squeeze = L.Dense(4, activation=tf.nn.relu)
        self.excite = L.Dense(filters)

    def call(self, x, training=None):
        y = tf.nn.relu(self.norm(self.first(x), training=training))
        y = self.second(y)
        weights = tf.sigmoid(self.excite(self.squeeze(tf.reduce_mean(y, axis=[1, 2]))))
        weights = tf.reshape(weights, [tf.shape(x)[0], 1, 1, self.filters])
        return tf.nn.relu(tf.add(x, y * weights))

    def get_config(self):
        return super().get_config() | {"filters": self.filters}


def tf_functions():
    i, x = image()
    x = TfResidual(8)(conv(x, 8))
    return classifier(i, TfResidual(8)(x))


def lambdas():
    """Code without a name between the layers, of one tensor and of two."""
    i = keras.Input((SIZE, SIZE, 3))
    x = conv(L.Lambda(lambda one: one / 127.5 - 1)(i), 8)
    x = L.Lambda(lambda one: tf.pad(one, [[0, 0], [1, 1], [1, 1], [0, 0]]))(x)
    return classifier(i, L.Lambda(lambda ones: tf.concat(ones, -1))([x, conv(x, 4)]))


@keras.saving.register_keras_serializable("own_kinds")
class TfSubclassed(keras.Model):
    def __init__(self, **options):
        super().__init__(**options)
        self.left = L.Conv2D(6, 3, padding="same")
        self.right = L.Conv2D(6, 1)
        self.block = TfResidual(12)
        self.head = L.Dense(CLASSES)

    def call(self, x, training=None):
        x = tf.cast(x, tf.float32) / 255.0
        x = tf.nn.relu(tf.concat([self.left(x), self.right(x)], axis=-1))
        x = tf.nn.max_pool2d(self.block(x, training=training), 2, 2, "SAME")
        return tf.nn.softmax(self.head(tf.reduce_mean(x, [1, 2])))


def tf_subclassed():
    return TfSubclassed()


def unnamed_activation():
    """Activations that are code without a name."""
    i, x = image()
    x = L.Conv2D(8, 3, activation=lambda y: ops.gelu(y, approximate=False))(x)
    x = L.Activation(lambda y: ops.relu(y) * 2)(L.Conv2D(8, 3)(x))
    return classifier(i, conv(x, 8))


class Focal(L.Layer):
    """Values, context and gates out of one Dense, by places; a path that is dropped in training.

    It isn't registered, and no configuration makes it again.
    """

    def __init__(self, width):
        super().__init__(name=f"focal_{width}")
        self.width, self.drop = width, DropPath()
        self.first = L.Dense(2 * width + 2)
        self.context = L.DepthwiseConv2D(3, padding="same", activation=ops.gelu)
        self.last = L.Dense(width)

    def call(self, x, training=None):
        value, context, gates = tf.split(self.first(x), [self.width, self.width, 2], axis=-1)
        context = self.context(context) * gates[..., :1] + context * gates[..., 1:]
        return x + self.drop(self.last(value * context), training=training)


def focal():
    """Unregistered parts, a block of pixels out of channels, an array with a number per channel."""
    i, x = image()
    x = L.Lambda(lambda y: tf.nn.depth_to_space(y, 2))(conv(x, 16, 4))
    x = Focal(4)(x + np.linspace(0.5, 1.5, 4, dtype="float32"))
    return classifier(i, conv(x, 8))


KINDS = {
    build.__name__: build
    for build in (
        *(no_batch_norm, plain, plain_logits, logits_compiled, sequential, augmented, adapted),
        *(normalisation_of_features, operators, sliced, shuffled, pixels_shuffled, squeezed),
        *(separable, series, volume, recurrent, conv_recurrent, per_step, frames, transformer),
        *(einsum_dense, activation_layers, bfloat16, frozen_inside, nested_twice, named_ends),
        *(input_in_a_list, softmax_then_flatten, averaged_heads, log_softmax, one_layer_twice),
        *(constrained, regularised, spectral, embedded, blocks, custom_layers, subclassed),
        *(own_train_step, fixed_batch, uint8_input, by_hand, windows, derived, group_norm),
        *(tf_functions, tf_subclassed, lambdas, focal),
    )
}
