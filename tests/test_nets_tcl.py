"""The layers with filter masks against typed-in numbers and the stock layers."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from ekg_tf.nets import tcl, tcl_norm


def bound(layer, shape, weights, in_units, out_units, scaled=True):
    """The layer, built for inputs of `shape` with `weights`, bound to an open mask of 5 units."""
    layer.build((None, *shape))
    layer.set_weights([np.array(w, np.float32) for w in weights])
    mask = tf.Variable([1.0, 1.0, 1.0, 1.0, 1.0])
    layer.bind(mask, in_units, out_units, scaled=scaled)
    return layer


def fc(kernel, bias=None):
    """Two inputs, units 0 and 1; two outputs, units 2 and 3."""
    weights = [kernel] if bias is None else [kernel, bias]
    return bound(tcl.FC(2, use_bias=bias is not None), (2,), weights, [0, 1], [2, 3])


def test_the_norm_of_a_masked_kernel_stays():
    layer = fc([[3.0, 0.0], [4.0, 12.0]], [1.0, 2.0])  # norm sqrt(9 + 16 + 144) = 13
    mask = np.array([1, 1, 1, 0, 1], np.float32)  # without output 1: 5 of 13 are left
    masked, sliced = layer.masked(mask), layer.sliced(mask)
    np.testing.assert_allclose(masked["kernel"], [[7.8, 0], [10.4, 0]], rtol=1e-6)
    np.testing.assert_allclose(sliced["kernel"], [[7.8], [10.4]], rtol=1e-6)
    np.testing.assert_array_equal(masked["bias"], [1, 0])
    np.testing.assert_array_equal(sliced["bias"], [1])


def test_a_kernel_without_a_batch_norm_behind_it_is_only_masked():
    layer = bound(tcl.FC(2), (2,), [[[3.0, 0.0], [4.0, 12.0]], [1.0, 2.0]], [0, 1], [2, 3], False)
    mask = np.array([1, 1, 1, 0, 1], np.float32)
    np.testing.assert_array_equal(layer.masked(mask)["kernel"], [[3, 0], [4, 0]])
    np.testing.assert_array_equal(layer.sliced(mask)["kernel"], [[3], [4]])


@pytest.mark.parametrize("scaled", [True, False])
def test_a_constrained_kernel_keeps_to_its_constraint_instead(scaled):
    layer = tcl.FC(2, use_bias=False, kernel_constraint=keras.constraints.UnitNorm(axis=0))
    bound(layer, (2,), [[[0.6, 1.0], [0.8, 0.0]]], [0, 1], [2, 3], scaled)
    mask = np.array([0, 1, 1, 1, 1], np.float32)  # without input 0
    np.testing.assert_allclose(layer.masked(mask)["kernel"], [[0, 0], [1, 0]], atol=1e-6)
    np.testing.assert_allclose(layer.sliced(mask)["kernel"], [[1, 0]], atol=1e-6)


def test_input_and_output_masks_meet_in_one_kernel():
    layer = fc([[3.0, 0.0], [4.0, 12.0]])
    mask = np.array([0, 1, 0, 1, 1], np.float32)
    np.testing.assert_allclose(layer.masked(mask)["kernel"], [[0, 0], [0, 13]], rtol=1e-6)
    np.testing.assert_allclose(layer.sliced(mask)["kernel"], [[13]], rtol=1e-6)


def test_an_open_mask_leaves_the_kernel_as_it_is():
    layer = fc([[3.0, 0.0], [4.0, 12.0]])
    np.testing.assert_array_equal(layer.masked(np.ones(5, np.float32))["kernel"], layer.kernel)


def test_a_kernel_of_which_only_zeros_are_kept_stays_zero():
    layer = fc([[3.0, 0.0], [4.0, 12.0]])
    mask = np.array([1, 0, 0, 1, 1], np.float32)  # keeps the entry 0.0
    np.testing.assert_array_equal(layer.masked(mask)["kernel"], np.zeros((2, 2)))
    np.testing.assert_array_equal(layer.sliced(mask)["kernel"], [[0]])


def test_a_layer_runs_on_the_mask_that_it_is_bound_to():
    layer = fc([[3.0, 0.0], [4.0, 12.0]], [1.0, 2.0])
    layer.units_mask.assign([1, 1, 1, 0, 1])
    np.testing.assert_allclose(layer(np.ones((1, 2))), [[7.8 + 10.4 + 1, 0]], rtol=1e-6)


def test_depthwise_norm_with_two_channels_per_input():
    # in 0 makes channels (3, 4), in 1 makes (12, 84): norms 5 and 12 * sqrt(50), 85 together
    layer = tcl.DepthwiseConv2D(1, depth_multiplier=2)
    kernel = np.array([[3.0, 4.0], [12.0, 84.0]]).reshape(1, 1, 2, 2)
    bound(layer, (4, 4, 2), [kernel, [1, 2, 3, 4]], [0, 1], [0, 0, 1, 1])
    mask = np.array([1, 0, 1, 1, 1], np.float32)
    norm = np.sqrt(25 + 144 + 7056)
    np.testing.assert_allclose(layer.masked(mask)["kernel"][0, 0, 0], [0.6 * norm, 0.8 * norm])
    np.testing.assert_array_equal(layer.masked(mask)["kernel"][0, 0, 1], [0, 0])
    np.testing.assert_array_equal(layer.masked(mask)["bias"], [1, 2, 0, 0])
    assert layer.sliced(mask)["kernel"].shape == (1, 1, 1, 2)
    np.testing.assert_array_equal(layer.sliced(mask)["bias"], [1, 2])


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", [(6, 2, 2, 3), (6, 3)])
@pytest.mark.parametrize("options", [{}, {"scale": False}, {"center": False}])
def test_batch_norm_is_the_stock_one_and_exactly_zero_where_removed(training, shape, options):
    rng = np.random.default_rng(0)
    stock = keras.layers.BatchNormalization(**options)
    stock.build(shape)
    stock.set_weights([rng.uniform(0.5, 1.5, 3) for _ in stock.weights])
    ours = tcl_norm.BatchNorm(**options)
    ours.build(shape)
    ours.set_weights(stock.get_weights())
    x = rng.normal(1, 2, shape).astype(np.float32)
    before = [w.copy() for w in ours.get_weights()]
    np.testing.assert_allclose(ours(x, training=training), stock(x, training=training), atol=1e-5)
    whole = ours(x, training=training).numpy()
    ours.bind(tf.Variable([1.0, 0.0, 1.0, 1.0]), [0, 1, 2], [0, 1, 2])
    masked = ours(x, training=training).numpy()
    np.testing.assert_allclose(masked[..., [0, 2]], whole[..., [0, 2]], atol=1e-6)
    assert (masked[..., 1] == 0).all()
    for old, new in zip(before, ours.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)  # the moving statistics never move


def test_batch_statistics_by_hand():
    layer = tcl_norm.BatchNorm(epsilon=0.0)
    layer.build((None, 1))
    weights = [2.0], [10.0], [0.0], [1.0]  # gamma, beta, moving mean and variance
    layer.set_weights([np.array(one) for one in weights])
    x = np.array([[1.0], [3.0]], np.float32)  # mean 2, variance 1
    np.testing.assert_allclose(layer(x, training=True), [[8], [12]])
    np.testing.assert_allclose(layer(x, training=False), [[12], [16]])


def test_unbound_layers_are_the_stock_layers():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 6, 6, 4)).astype(np.float32)
    options = {"strides": 2, "padding": "same", "activation": "relu"}
    for ours, stock in (
        (tcl.Conv2D(3, 3, **options), keras.layers.Conv2D(3, 3, **options)),
        (tcl.Conv2D(3, 3, dilation_rate=2), keras.layers.Conv2D(3, 3, dilation_rate=2)),
        (tcl.DepthwiseConv2D(3, **options), keras.layers.DepthwiseConv2D(3, **options)),
        (tcl.FC(3, activation="tanh"), keras.layers.Dense(3, activation="tanh")),
    ):
        expected = stock(x)
        ours.build(x.shape)
        ours.set_weights(stock.get_weights())
        np.testing.assert_allclose(ours(x), expected, atol=1e-5)
