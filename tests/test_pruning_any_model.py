"""The search's compiled segments on every kind of layer: the logits are those of the pruned one."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from ekg_tf.nets.flatten import flatten
from ekg_tf.nets.graph import ChannelGraph
from ekg_tf.pruning.engine.importance import ImportancePass
from ekg_tf.pruning.engine.segments import Segments
from ekg_tf.pruning.engine.validation import Validation
from ekg_tf.pruning.worth.rewards import Reward
from ekg_tf.pruning.worth.scores import weight_scores
from ekg_tf.training.evaluation import make_forward
from ekg_tf.training.task import classification

from tests.helpers.networks import CLASSES, random_mask
from tests.helpers.rule_networks import CASES, NORMS, batch_of, between, shake

L = keras.layers


def check(model):
    model = shake(model)
    graph, images = ChannelGraph(flatten(model).model), batch_of(model)
    segments, mask = Segments(graph), random_mask(graph, keep=0.5)
    weights = segments.weights(mask)
    logits = segments.outputs_from(tf.constant(images), weights)
    expected = make_forward(graph.pruned(mask), bn="batch")(images)
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    labels = np.arange(len(images), dtype=np.int32) % CLASSES
    val = Validation(images, labels, len(images))
    teacher = np.full((len(images), CLASSES), 1 / CLASSES, np.float32)
    reward = Reward(classification(), val, teacher)
    importance = ImportancePass(segments, [], reward)
    _, same, scores, _ = importance.run(images, reward.terms(slice(None)), weights, mask)
    np.testing.assert_allclose(same, logits, rtol=1e-3, atol=1e-4)
    assert np.isfinite(scores).all() and (scores[mask == 0] == 0).all()
    by_weight = weight_scores("l1", graph.kernels(), mask, [0])
    for gate in graph.groups:
        assert scores[gate.units].max() > 0 and by_weight[gate.units].max() > 0


@pytest.mark.parametrize("build", CASES)
def test_segments_of_every_kind_of_layer(build):
    check(build())


@pytest.mark.parametrize("layer", NORMS, ids=lambda one: type(one).__name__)
def test_segments_of_layers_that_normalise_or_scale(layer):
    check(between(type(layer).from_config(layer.get_config())))


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        *((L.SimpleRNN, {}), (L.LSTM, {}), (L.GRU, {})),
        *((L.GRU, {"reset_after": False}), (L.GRU, {"use_bias": False})),
    ],
)
def test_segments_of_recurrent_layers(kind, settings):
    """A GRU's cell cuts its gates apart by its number of units, which are fewer in a segment."""
    steps = keras.Input((6, 3))
    x = kind(10, return_sequences=True, **settings)(steps)
    check(keras.Model(steps, L.Dense(CLASSES)(kind(8, **settings)(x))))


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        (L.ConvLSTM1D, (4, 6, 3)),
        (L.ConvLSTM2D, (4, 5, 6, 3)),
        (L.ConvLSTM3D, (3, 4, 4, 3, 2)),
    ],
)
def test_segments_of_convolutional_recurrent_layers(kind, shape):
    steps = keras.Input(shape)
    x = kind(6, 2, return_sequences=True, padding="same")(steps)
    x = L.Flatten()(kind(5, 2, strides=2, recurrent_activation="hard_sigmoid")(x))
    check(keras.Model(steps, L.Dense(CLASSES)(x)))
