"""Layers of one's own that convolve or multiply by weights of their own, as layers of Keras's."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from ekg_tf.nets.given import Given
from ekg_tf.nets.graph import ChannelGraph

from tests.helpers.networks import assert_a_third_can_go

L, ops = keras.layers, keras.ops
RNG = np.random.default_rng(0)
BLUR = np.ones((3, 3, 1, 1), np.float32) / 9
MATRIX = RNG.normal(size=(6, 5)).astype(np.float32)


class Weighted(keras.Layer):
    """Calls a function of (x, its kernel, its bias).

    Args:
        shape: of the kernel, which starts with random numbers. bias: its size; None: it has none.
    """

    def __init__(self, function, shape, bias=None, **options):
        super().__init__(**options)
        regularizer = keras.regularizers.L2(1e-4)
        self._function = function
        self.kernel = self.add_weight(
            shape=shape, initializer="glorot_uniform", regularizer=regularizer, name="kernel"
        )
        self.bias = None
        if bias:
            self.bias = self.add_weight(shape=(bias,), initializer="ones", name="bias")

    def call(self, x):
        return self._function(x, self.kernel, self.bias)


def between(*layers, steps=False):
    """A network of them, between convolutions of 6 and of 7 filters."""
    image = keras.Input((9, 9, 3))
    x = L.Conv2D(6, 3, activation="relu", name="first")(image)
    x = L.Reshape((-1, 6))(x) if steps else x
    for layer in layers:
        x = layer(x)
    kind = L.Conv1D if steps else L.Conv2D
    x = kind(7, 1, activation="relu", name="last")(x)
    pool = L.GlobalAveragePooling1D() if steps else L.GlobalAveragePooling2D()
    return keras.Model(image, L.Dense(3)(pool(x)))


def read(model):
    """(the core, its graph): the core computes what the model does, and so does a pruned one."""
    images = RNG.normal(size=(5, 9, 9, 3)).astype(np.float32)
    for variable in model.weights:
        variable.assign(variable + 0.1 * RNG.normal(size=variable.shape))
    model.compile("sgd", "mse")
    given = Given.read(model, images)
    expected = np.asarray(model(images))
    np.testing.assert_allclose(given.finished(given.core)(images), expected, rtol=1e-4, atol=1e-5)
    graph = ChannelGraph(given.core, closed=given.closed)
    assert_a_third_can_go(graph, images, RNG)
    return given.core, graph


def tf_convolution(x, kernel, bias):
    return tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(x, kernel, 2, "SAME"), bias))


# {name: (layers, whether on steps, {the layer of Keras's: (kind, has a bias)}, its filters)}
CASES = {
    "conv": (
        [Weighted(lambda x, k, b: ops.relu(ops.conv(x, k, padding="same") + b), (3, 3, 6, 8), 8)],
        (L.Conv2D, True, 8),
    ),
    "conv of TensorFlow": ([Weighted(tf_convolution, (3, 3, 6, 8), 8)], (L.Conv2D, True, 8)),
    "conv of one place": (
        [Weighted(lambda x, k, b: ops.relu(b + ops.conv(x, k)), (1, 1, 6, 8), 8)],
        (L.Conv2D, True, 8),
    ),
    "dilated": (
        [Weighted(lambda x, k, b: ops.conv(x, k, dilation_rate=2), (2, 2, 6, 8))],
        (L.Conv2D, False, 8),
    ),
    "depthwise": (
        [Weighted(lambda x, k, b: ops.depthwise_conv(x, k, strides=2) + b, (3, 3, 6, 1), 6)],
        (L.DepthwiseConv2D, True, 6),
    ),
    "matmul": (
        [Weighted(lambda x, k, b: ops.relu(x @ k + b), (6, 8), 8)],
        (L.Dense, True, 8),
    ),
    "dot": ([Weighted(lambda x, k, b: ops.dot(x, k), (6, 8))], (L.Dense, False, 8)),
    "tensordot": ([Weighted(lambda x, k, b: tf.tensordot(x, k, 1), (6, 8))], (L.Dense, False, 8)),
    "einsum": (
        [Weighted(lambda x, k, b: ops.einsum("nhwc,cd->nhwd", x, k) + b, (6, 8), 8)],
        (L.Dense, True, 8),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_kernel_of_ones_own_is_a_layer(name):
    layers, (kind, biased, filters) = CASES[name]
    core, graph = read(between(*layers))
    weighted = layers[0].name
    (made,) = (one for one in core.layers if one.name.startswith(f"{weighted}_"))
    assert type(made) is kind and made.use_bias == biased and made.trainable
    kernel = "depthwise_regularizer" if kind is L.DepthwiseConv2D else "kernel_regularizer"
    assert getattr(made, kernel).l2 == pytest.approx(1e-4)
    widths = {layer: group.channels for group in graph.groups for layer in group.layers}
    expected = {"first": 6, made.name: filters, "last": 7}
    if name == "depthwise":
        del expected[made.name]  # its filters are those of the first
    assert {key: widths[key] for key in expected} == expected


def test_a_constant_kernel_is_a_layer_that_is_not_trained():
    def blur(x):
        return ops.depthwise_conv(x, np.repeat(BLUR, 6, 2), padding="same")

    core, graph = read(between(blur, lambda x: ops.matmul(x, MATRIX)))
    fixed = [one for one in core.layers if one.weights and not one.trainable]
    assert {type(one) for one in fixed} == {L.DepthwiseConv2D, L.Dense}
    assert {group.channels for group in graph.groups} == {6, 5, 7}
    assert not {id(one) for one in core.trainable_variables} & {id(one.kernel) for one in fixed}


def test_a_constant_kernel_stays_as_it_is_in_a_fine_tuning(tmp_path):
    own = Weighted(lambda x, k, b: ops.matmul(x, k), (5, 6))
    model = between(lambda x: ops.matmul(x, MATRIX), own)
    model.compile("sgd", "mse")
    given = Given.read(model)
    given.finished(given.core).save(tmp_path / "network.keras")
    student = given.read_again(keras.models.load_model(tmp_path / "network.keras")).core
    given.thaw(student)
    held = [one.name for one in student.layers if one.weights and not one.trainable]
    assert len(held) == 1 and held[0].startswith("matmul")


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_kernels_of_layers_in_half_precision(policy):
    own = Weighted(lambda x, k, b: ops.conv(x, k) + b, (3, 3, 6, 8), 8, dtype=policy)
    model = between(own)
    model.compile("sgd", "mse")
    given = Given.read(model)
    assert not given.closed
    (made,) = (one for one in given.finished(given.core).layers if one.name == f"{own.name}_kernel")
    assert made.dtype_policy.name == policy


def test_one_kernel_for_several_calls_stays_one():
    once = Weighted(lambda x, k, b: ops.relu(ops.conv(x, k, padding="same")), (3, 3, 6, 6))
    core, _ = read(between(once, once))
    assert core.count_params() == between(once, once).count_params()
    twice = Weighted(
        lambda x, k, b: (
            ops.conv(x, k, padding="same") + ops.conv(x, k, padding="same", dilation_rate=2)
        ),
        (3, 3, 6, 6),
    )
    core, _ = read(between(twice))
    assert core.count_params() == between(twice).count_params()


OPERATIONS = {
    "normalised": lambda x: ops.normalize(x, axis=-1),
    "length": lambda x: x / (0.1 + ops.norm(x, axis=-1, keepdims=True)),
    "moments": lambda x: x - ops.moments(x, (1,), keepdims=True)[0],
    "where": lambda x: ops.where(ops.logical_and(x > 0.1, x < 2), x, 0.1 * x),
    "tiled": lambda x: ops.tile(x, (1, 2, 1)),
    "taken": lambda x: ops.take(x, [3, 0, 2], axis=1),
    "moved": lambda x: ops.moveaxis(ops.moveaxis(ops.expand_dims(x, 1), 1, 2), 2, 1)[:, 0],
    "summed up": lambda x: ops.sort(ops.cumsum(x, axis=1), axis=1),
    "numbers": lambda x: ops.nan_to_num(ops.mod(ops.arctan2(x, 2.0), 1.5)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_hand_channels_on(name):
    _, graph = read(between(OPERATIONS[name], steps=True))
    widths = {layer: group.channels for group in graph.groups for layer in group.layers}
    assert widths["first"] == 6 and widths["last"] == 7


def test_equal_parts_of_the_channels_stay_equal():
    """As a gate by half of the channels has them, or queries, keys and values in one tensor."""
    for operation, width in (
        (lambda x: x[..., :3] * ops.sigmoid(x[..., 3:]), 3),
        (lambda x: x[:, :, :2] + x[:, :, 2:4] * x[:, :, -2:], 2),
        (lambda x: ops.concatenate([x[..., :3] * 2, x[..., 3:]], axis=-1), 3),
    ):
        _, graph = read(between(operation, steps=True))
        widths = {layer: group.channels for group in graph.groups for layer in group.layers}
        assert widths["first"] == width and widths["last"] == 7
    for uneven, parts in (
        (lambda x: x[..., :4], [4, 2]),
        (lambda x: x[..., 1:4], [1, 3, 2]),
        (lambda x: x[..., ::2], []),
    ):
        _, graph = read(between(uneven, steps=True))
        assert [one.channels for one in graph.groups if "first" in one.layers] == parts


def test_operations_that_move_or_pick_channels_keep_them_whole():
    for operation in (
        lambda x: ops.moveaxis(x, -1, 1),
        lambda x: ops.take(x, [0, 1], axis=-1),
        lambda x: ops.tile(x, (1, 1, 2)),
        lambda x: ops.cumsum(x, axis=-1),
    ):
        _, graph = read(between(operation, steps=True))
        assert not [one for one in graph.groups if "first" in one.layers]
