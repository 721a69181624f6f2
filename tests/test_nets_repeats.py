"""Attention over steps with RepeatVector and Permute, which name a number of channels."""

import keras
import numpy as np
import pytest
from ekg_tf.nets.given import Given
from ekg_tf.nets.graph import ChannelGraph

from tests.helpers.networks import assert_a_third_can_go

L = keras.layers
STEPS, CHANNELS = 6, 8


@pytest.mark.parametrize(
    ("merge", "free"), [(L.multiply, True), (L.add, True), (L.concatenate, False)]
)
def test_weights_repeated_for_all_channels_keep_none_of_them(merge, free):
    i, rng = keras.Input((STEPS, 3)), np.random.default_rng(0)
    x = L.Conv1D(CHANNELS, 3, padding="same", name="first")(i)
    weights = L.Activation("softmax")(L.Flatten()(L.Dense(1)(x)))
    x = merge([x, L.Permute((2, 1))(L.RepeatVector(CHANNELS)(weights))])
    x = L.Dense(5, activation="relu", name="second")(x)
    model = keras.Model(i, L.Dense(2)(L.GlobalAveragePooling1D()(x)))
    inputs = rng.normal(size=(5, STEPS, 3)).astype(np.float32)
    given = Given.read(model, inputs)
    np.testing.assert_allclose(given.finished(given.core)(inputs), model(inputs), atol=1e-6)
    graph = ChannelGraph(given.core)
    assert_a_third_can_go(graph, inputs, rng)
    assert any("second" in group.layers for group in graph.groups)
    assert any("first" in group.layers for group in graph.groups)
    repeated = any(isinstance(one, L.RepeatVector) for one in given.core.layers)
    assert repeated is not free
