"""Taylor scores against the derivative with respect to a multiplier at the gate's output."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from ekg_tf.nets.graph import ChannelGraph
from ekg_tf.pruning.engine.evaluator import ExactEvaluator
from ekg_tf.pruning.engine.validation import Validation
from ekg_tf.pruning.worth.rewards import Reward
from ekg_tf.training.task import classification

from tests.helpers.networks import CLASSES, SHAPE, conv_bn, images_for, random_mask, shaken

L = keras.layers
EXAMPLES = 25  # in batches of at most 9: 8, 8 and 9


def no_tap(x, name):
    return x


@keras.saving.register_keras_serializable("tests")
class Tap(keras.layers.Layer):
    """Multiplies every channel by a weight of its own, one at first."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, x):
        return x * self.scale


def tap(x, name):
    return Tap(name=name)(x)


def residual(widths=(4, 5), tap=no_tap):
    """A stream of two call sites and the gate of a block; stream and block are `widths` wide."""
    image = L.Input(SHAPE)
    x = tap(L.ReLU()(conv_bn(image, widths[0], "stem")), "stream_0")
    y = tap(L.ReLU()(conv_bn(x, widths[1], "inner", strides=1)), "inner_0")
    x = tap(L.ReLU()(L.Add()([conv_bn(y, widths[0], "outer"), x])), "stream_1")
    return keras.Model(image, L.Dense(CLASSES, name="fc")(L.GlobalAveragePooling2D()(x)))


def flat(widths=(4, 6), tap=no_tap):
    """Flatten behind the last convolution: a filter has many inputs of the dense layer."""
    image = L.Input(SHAPE)
    x = tap(L.ReLU()(conv_bn(image, widths[0], "first", strides=2)), "first_0")
    x = tap(L.ReLU()(conv_bn(x, widths[1], "second", strides=2)), "second_0")
    return keras.Model(image, L.Dense(CLASSES, name="fc")(L.Flatten()(x)))


GATES = {residual: ("stream", "inner"), flat: ("first", "second")}


def data(model, teacher):
    """D_val, and a reward with random teacher logits or none."""
    rng = np.random.default_rng(7)
    val = Validation(images_for(model, EXAMPLES), rng.integers(0, CLASSES, EXAMPLES), 9)
    logits = rng.normal(size=(EXAMPLES, CLASSES)).astype(np.float32) * 2
    return val, Reward(classification(), val, logits if teacher else None), logits


def batch_loss(model, val, rows, teacher_logits):
    """Sum of the losses of one batch, by Keras's own functions."""
    logits = model(val.inputs[rows], training=True)
    crossentropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")
    loss = crossentropy(val.targets[rows], logits)
    if teacher_logits is not None:
        soft = keras.losses.CategoricalCrossentropy(from_logits=True, reduction="sum")
        loss += soft(tf.nn.softmax(teacher_logits[rows]), logits)
    return loss


def tapped_copy(build, graph, mask):
    """The network under `mask` with a multiplier at every site."""
    pruned = graph.pruned(mask)
    by_first_layer = {gate.layers[0]: gate for gate in graph.groups}
    first = {"stream": "stem"}
    widths = [int(mask[by_first_layer[first.get(name, name)].units].sum()) for name in GATES[build]]
    model = build(widths, tap)
    for layer in pruned.layers:
        if layer.weights:
            model.get_layer(layer.name).set_weights(layer.get_weights())
    return model, [by_first_layer[first.get(name, name)] for name in GATES[build]]


def expected_scores(build, graph, mask, val, teacher_logits):
    """float64 [U]: |derivative of a batch's loss to a site's multipliers|, summed."""
    model, gates = tapped_copy(build, graph, mask)
    scores = np.zeros(graph.num_units)
    for layer in model.layers:
        if not isinstance(layer, Tap):
            continue
        gate = gates[GATES[build].index(layer.name.split("_")[0])]
        kept = gate.start + np.flatnonzero(mask[gate.units])
        for rows in val.batches():
            with tf.GradientTape() as tape:
                loss = batch_loss(model, val, rows, teacher_logits)
            scores[kept] += np.abs(tape.gradient(loss, layer.scale.value).numpy())
    return scores


@functools.cache
def graph_of(build):
    return ChannelGraph(shaken(build()))


@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("teacher", [False, True])
@pytest.mark.parametrize("build", [residual, flat])
def test_taylor_scores(build, teacher, pruned):
    graph = graph_of(build)
    mask = graph.open_mask()
    if pruned:
        mask = random_mask(graph)
    val, reward, teacher_logits = data(graph.model, teacher)
    assert [rows.stop - rows.start for rows in val.batches()] == [8, 8, 9]
    logits, scores = ExactEvaluator(graph, val).set_current_with_importance(mask, reward)
    expected = expected_scores(build, graph, mask, val, teacher_logits if teacher else None)
    assert scores.shape == mask.shape
    assert (scores[:-1][mask[:-1] == 0] == 0).all()
    assert (expected[mask[:-1] > 0] > 0).any()
    np.testing.assert_allclose(scores[:-1], expected, rtol=2e-3, atol=2e-4 * expected.max())
    again = ExactEvaluator(graph, val).set_current(mask)
    np.testing.assert_allclose(logits, again, atol=1e-5)


def test_the_derivative_is_that_of_finite_differences():
    graph = graph_of(residual)
    mask = graph.open_mask()
    val, _, teacher_logits = data(graph.model, teacher=True)
    model, gates = tapped_copy(residual, graph, mask)
    whole = Validation(val.inputs, val.targets, EXAMPLES)
    reward = Reward(classification(), val, teacher_logits)
    _, scores = ExactEvaluator(graph, whole).set_current_with_importance(mask, reward)
    scale = model.get_layer("inner_0").scale  # a gate with a single site
    for channel in range(5):
        slope = 0.0
        for step in (-1e-2, 1e-2):
            values = np.ones(5, np.float32)
            values[channel] += step
            scale.assign(values)
            slope += np.sign(step) * float(batch_loss(model, val, slice(None), teacher_logits))
        numeric = abs(slope / 2e-2)
        assert scores[gates[1].start + channel] == pytest.approx(numeric, rel=0.02, abs=0.02)
