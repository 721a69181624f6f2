"""TensorFlow's functions on symbolic tensors: what they give is what TensorFlow gives."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from ekg_tf.nets.tf_calls import FUNCTIONS, as_keras_ops

from tests.helpers.tf_functions import CASES


@pytest.mark.parametrize("name", CASES)
def test_the_same_numbers(name):
    functions, given = CASES[name]
    x = np.random.default_rng(0).uniform(*given, (3, 4, 4, 8)).astype(np.float32)
    for function in functions:
        symbolic = keras.Input(batch_shape=x.shape)
        with as_keras_ops():
            outputs = function(symbolic)
        flat = keras.tree.flatten(outputs)
        assert all(isinstance(one, keras.KerasTensor) for one in flat)
        model = keras.Model(symbolic, flat)
        found, expected = model(x), keras.tree.flatten(function(tf.constant(x)))
        assert len(flat) == len(expected)
        for ours, theirs in zip(keras.tree.flatten(found), expected, strict=True):
            assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
            close = {"rtol": 1e-5, "atol": 1e-5}
            np.testing.assert_allclose(*(np.asarray(one, float) for one in (ours, theirs)), **close)


def test_every_function_is_tried():
    asked = set()
    for functions, _ in CASES.values():
        for function in functions:
            asked |= asked_for(function)
    assert set(FUNCTIONS) - asked == set()


def asked_for(function) -> set[str]:
    """The functions that the dispatcher is asked for."""
    seen = set()

    class Seen(dict):
        def get(self, name, default=None):
            seen.add(name)
            return super().get(name, default)

    with pytest.MonkeyPatch.context() as patch, as_keras_ops():
        patch.setattr("ekg_tf.nets.tf_calls.FUNCTIONS", Seen(FUNCTIONS))
        function(keras.Input(batch_shape=(3, 4, 4, 8)))
    return seen


def test_sizes_are_numbers():
    x = keras.Input(batch_shape=(3, 4, 4, 8))
    with as_keras_ops():
        assert tf.shape(x).tolist() == [3, 4, 4, 8] and tf.rank(x) == 4
        assert tf.reshape(x, (tf.shape(x)[0], tf.shape(x)[1] * 4, -1)).shape == (3, 16, 8)
        assert tf.image.resize(x, tf.shape(x)[1:3] * 2).shape == (3, 8, 8, 8)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: tf.gather(x, [[0], [1], [0]], axis=2, batch_dims=1),
        lambda x: tf.nn.conv2d(x, tf.ones((3, 3, 8, 2)), 1, [[0, 0], [1, 1], [1, 1], [0, 0]]),
        lambda x: tf.split(x, [-1, 2], axis=-1),
        lambda x: tf.norm(x, ord=1, axis=-1),
        lambda x: tf.nn.max_pool2d(x, [1, 2, 2, 4], 2, "SAME"),
        lambda x: tf.image.resize(x, (8, 8), preserve_aspect_ratio=True),
        lambda x: tf.shape(keras.Input((None, 4))),
    ],
)
def test_what_is_not_known_is_refused_as_by_keras(function):
    with as_keras_ops(), pytest.raises(ValueError, match="KerasTensor cannot be used as input"):
        function(keras.Input(batch_shape=(3, 4, 4, 8)))


def test_outside_nothing_is_changed():
    x = keras.Input((4,))
    with as_keras_ops():
        tf.nn.relu(x)
    with pytest.raises(ValueError, match="KerasTensor cannot be used as input"):
        tf.nn.relu(x)
    with as_keras_ops():
        np.testing.assert_array_equal(tf.nn.relu(tf.constant([-1.0, 2.0])), [0, 2])
