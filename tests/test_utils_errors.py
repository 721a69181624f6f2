"""What is left of other people's errors."""

import keras
import pytest
from ekg_tf.utils.errors import LONGEST, line_of


class Block(keras.layers.Layer):
    def call(self, x):
        raise ValueError("no\nsuch luck")


def test_the_words_of_an_error_inside_keras_are_its_own():
    with pytest.raises(ValueError, match="Exception encountered") as caught:
        Block()(keras.ops.ones((1, 1)))
    assert line_of(caught.value) == "no"
    with pytest.raises(ValueError, match="automatically infer") as caught:
        Block()(keras.Input((1,)))
    assert line_of(caught.value) == "no"
    with pytest.raises(TypeError) as caught:
        keras.layers.Dense.from_config({"units": 2, "activation": "nowhere"})
    assert line_of(caught.value).startswith("Could not interpret activation function")


def test_an_error_without_words_is_its_type_and_a_long_one_is_cut():
    assert line_of(KeyError()) == "KeyError"
    assert len(line_of(ValueError("x" * 999))) == LONGEST
    assert line_of(ValueError("No class A. Full object config: {1: 2}")) == "No class A."
