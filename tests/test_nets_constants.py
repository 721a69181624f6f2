"""Numbers that never change in a user's code: encodings, masks and states made for a batch, factors
of kernels. They keep nothing whole; what assigns to its weights stays whole."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from ekg_tf.nets.constants import WithConstant
from ekg_tf.nets.given import Given
from ekg_tf.nets.graph import ChannelGraph
from ekg_tf.nets.keras_graph import calls_of
from ekg_tf.utils.errors import UserError

from tests.helpers.networks import assert_a_third_can_go

L, ops = keras.layers, keras.ops
RNG = np.random.default_rng(0)


def read(model: keras.Model, shake: bool = True) -> tuple[Given, ChannelGraph]:
    """The network read; opened and pruned it computes what it computes."""
    inputs = RNG.normal(size=(5, *model.input_shape[1:])).astype(np.float32)
    for variable in model.weights if shake else ():
        variable.assign(variable + 0.1 * RNG.normal(size=variable.shape))
    given = Given.read(model, inputs, plain=True)
    expected = np.asarray(model(inputs, training=False))
    found = given.finished(given.core)(inputs, training=False)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    graph = ChannelGraph(given.core, closed=given.closed)
    assert_a_third_can_go(graph, inputs, RNG)
    return given, graph


def widths(graph: ChannelGraph) -> dict[str, int]:
    return {name: group.channels for group in graph.groups for name in group.layers}


class Causal(L.Layer):
    """Attention with a mask that is made for every example, all alike."""

    def build(self, shape):
        self.attention = L.MultiHeadAttention(2, 4)
        self.attention.build(shape, shape)
        self.built = True

    def call(self, x):
        n, steps = tf.shape(x)[0], tf.shape(x)[1]
        allowed = tf.reshape(tf.range(steps)[:, None] >= tf.range(steps), (1, steps, steps))
        repeats = tf.concat([tf.expand_dims(n, -1), tf.constant([1, 1])], 0)
        return x + self.attention(x, x, attention_mask=tf.tile(allowed, repeats))


class Started(L.Layer):
    """Puts a step of numbers in front."""

    def build(self, shape):
        self.dense = L.Dense(8, activation="tanh")
        self.dense.build(shape)
        self.built = True

    def call(self, x):
        first = ops.ones((ops.shape(x)[0], 1, x.shape[-1])) * 0.5
        return self.dense(ops.concatenate([first, x], axis=1))


class ByHand(Started):
    """A recurrent layer as a loop, which begins with zeros."""

    def call(self, x):
        state = ops.zeros((ops.shape(x)[0], 8))
        for step in range(x.shape[1]):
            state = x[:, step] + self.dense(state)
        return ops.stack([state, state], axis=1)


@pytest.mark.parametrize(("layer", "first"), [(Causal, 8), (Started, None), (ByHand, 8)])
def test_numbers_that_are_made_for_a_batch_are_for_any_batch(layer, first):
    i = keras.Input((3, 5))
    x = layer(name="own")(L.Dense(8, activation="relu", name="first")(i))
    x = L.Dense(6, activation="relu", name="last")(x)
    given, graph = read(keras.Model(i, L.Dense(2)(L.GlobalAveragePooling1D()(x))))
    assert not given.closed
    assert widths(graph).get("first") == first and widths(graph)["last"] == 6


class Moving(L.Layer):
    """Adds an encoding of positions that it holds as an array."""

    encoding = RNG.normal(size=(1, 9, 8)).astype(np.float32)

    def call(self, x):
        return self.encoding[:, : x.shape[1]] * x + self.encoding[0, 0] * 2


def test_an_array_with_a_number_per_channel_follows_the_channels():
    i = keras.Input((3, 5))
    x = Moving()(L.Dense(8, activation="relu", name="first")(i - np.arange(5.0, dtype="float32")))
    position = L.Embedding(3, 8)(np.arange(3))  # called on numbers, it is an array for Keras
    y = L.MultiHeadAttention(2, 4)(x, x + position)
    scores = ops.matmul(x, ops.transpose(y, (0, 2, 1))) + np.eye(3, dtype="float32")
    x = L.Dense(6, name="last")(ops.matmul(ops.softmax(scores), x))
    given, graph = read(keras.Model(i, L.Dense(2)(L.GlobalAveragePooling1D()(x))))
    assert not given.closed and widths(graph)["first"] == 8
    assert any(isinstance(one, WithConstant) for one in given.core.layers)
    finished = given.finished(given.core)
    assert not any(isinstance(one, WithConstant | L.Embedding) for one in finished.layers)


class Positions(Moving):
    """As embeddings are scaled before their positions are added."""

    def call(self, x):
        return x * 2.0 + self.encoding[:, : x.shape[1]]


def test_a_product_with_a_number_leaves_the_batch_open():
    i = keras.Input((3, 5))
    x = Positions()(L.Dense(8, name="first")(i))
    given, _ = read(keras.Model(i, L.Dense(2)(L.GlobalAveragePooling1D()(x))))
    for call in calls_of(given.core):  # `x * 2.0` is sparse for Keras, and then it goes wrong
        assert [one.shape[0] for one in call.outputs] == [None]


def test_axes_of_size_one_between_the_channels_and_the_batch_are_followed():
    i, t = keras.Input((6, 6, 3)), keras.Input((4,))
    x = L.Conv2D(6, 3, name="first")(i) + L.Dense(6, name="time")(t)[:, None, None, :]
    x = L.Conv2D(5, 3, name="last")(
        x * L.Dense(6, activation="sigmoid", name="gate")(t)[:, None, None]
    )
    model = keras.Model([i, t], L.Dense(2)(L.GlobalAveragePooling2D()(x)))
    graph = ChannelGraph(Given.read(model, plain=True).core)
    assert widths(graph) == {"first": 6, "time": 6, "gate": 6, "last": 5}
    moved = keras.Model(i, L.Dense(2)(L.Flatten()(L.Conv2D(6, 3, name="first")(i)[..., None])))
    assert "moves the channels" in ChannelGraph(moved).frozen["first"]


class Equalized(L.Layer):
    """A convolution whose kernel is multiplied by a number first."""

    def __init__(self, filters, size, **options):
        super().__init__(**options)
        self.filters, self.size = filters, size

    def build(self, shape):
        sizes = (self.size, self.size, shape[-1], self.filters)
        self.w = self.add_weight(shape=sizes, initializer="random_normal", name="kernel")
        self.b = self.add_weight(shape=(self.filters,), name="bias")
        self.scale = ops.sqrt(2 / (self.size**2 * shape[-1]))

    def call(self, x):
        return tf.nn.conv2d(x, self.scale * self.w, 1, "SAME") + self.b


def test_kernels_times_a_number_are_kernels():
    i = keras.Input((6, 6, 3))
    x = L.LeakyReLU()(Equalized(6, 3, name="own")(i) * 0.5)
    x = L.ReLU()(Equalized(5, 1, name="narrow")(x))
    given, graph = read(keras.Model(i, L.Dense(2)(L.GlobalAveragePooling2D()(x))))
    assert not given.closed
    assert widths(graph) == {"own_kernel": 6, "narrow_kernel": 5}


class MaskedConv(L.Layer):
    """PixelCNN's: sets some of its weights to zero whenever it is called."""

    def build(self, shape):
        self.conv = L.Conv2D(6, 3, padding="same")
        self.conv.build(shape)
        self.mask = np.ones(self.conv.kernel.shape, np.float32)
        self.mask[1:] = 0
        self.built = True

    def call(self, x):
        self.conv.kernel.assign(self.conv.kernel * self.mask)
        return self.conv(x)


def test_a_layer_that_assigns_to_its_weights_stays_whole():
    i = keras.Input((6, 6, 3))
    x = MaskedConv(name="own")(L.Conv2D(6, 3, name="first")(i))
    given = Given.read(keras.Model(i, L.Dense(2)(L.GlobalAveragePooling2D()(x))), plain=True)
    assert given.closed["own"].startswith("uses or changes weights")


def test_arrays_on_the_left_of_a_tensor_and_blanks_in_an_einsum():
    class Own(L.Layer):
        def call(self, x):
            scores = tf.einsum("bhwc, bHWc->bhwHW", x, np.full(6, 0.5, np.float32) * x)
            return tf.einsum("bhwHW,bHWc->bhwc", scores, x)

    i = keras.Input((3, 4, 3))
    x = L.Conv2D(5, 1, name="last")(Own()(L.Conv2D(6, 1, name="first")(i)))
    given, graph = read(keras.Model(i, L.Dense(2)(L.GlobalAveragePooling2D()(x))))
    assert not given.closed and widths(graph)["first"] == 6


def test_a_product_that_leaves_no_axis_stays_whole():
    i = keras.Input((4,))
    a, b = L.Dense(6, name="first")(i), L.Dense(6, name="second")(i)
    graph = ChannelGraph(keras.Model(i, L.Dense(2)(i) + ops.tensordot(a, b, 2)))
    assert {"first", "second"} <= set(graph.frozen)


def test_attention_with_all_its_arguments_by_name_is_opened():
    i = keras.Input((4, 5))
    x = L.Dense(8, activation="relu", name="first")(i)
    mask = ops.mean(i, axis=-1) > -1
    y = L.MultiHeadAttention(2, 4)(query=x, value=x, key=x, query_mask=mask, key_mask=mask)
    given, graph = read(keras.Model(i, L.Dense(3)(L.GlobalAveragePooling1D()(x + y))))
    assert not given.closed and widths(graph)["first"] == 8


def test_a_masked_network_runs_where_tanh_follows_a_batch_norm():
    """TensorFlow made one operation of the three, which it doesn't have on a CPU."""
    i = keras.Input((6, 6, 3))
    x = L.BatchNormalization()(L.Conv2D(6, 3, use_bias=False, name="first")(i))
    x = L.Conv2D(2, 3)(L.Activation("tanh")(x))
    _, graph = read(keras.Model(i, x))
    assert widths(graph) == {"first": 6}


def test_layers_that_keep_states_between_batches_are_refused():
    i = keras.Input(batch_shape=(4, 3, 5))
    model = keras.Model(i, L.Dense(2)(L.LSTM(6, stateful=True, name="kept")(i)))
    with pytest.raises(UserError, match=r"kept keeps its states .* stateful=False"):
        Given.read(model)


class Penalised(L.Layer):
    def build(self, shape):
        self.dense = L.Dense(6)
        self.dense.build(shape)
        self.built = True

    def call(self, x):
        y = self.dense(x)
        self.add_loss(ops.mean(ops.square(y)))
        return y


def test_layers_that_add_a_loss_say_so():
    zeros = np.zeros((2, 4), np.float32)
    i = keras.Input((4,))
    given = Given.read(keras.Model(i, L.Dense(2)(Penalised(name="own")(i))), zeros, plain=True)
    assert "add_loss" in given.closed["own"]
