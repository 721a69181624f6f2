"""Weight scores against plain loops."""

import keras
import numpy as np
import pytest
from ekg_tf.nets.graph import ChannelGraph
from ekg_tf.pruning.worth.scores import fpgm, l1, weight_scores

from tests.helpers.networks import random_mask, residual, shared

L = keras.layers


def test_literals():
    kernel = np.array([[3.0, 0.0, -1.0], [-4.0, 0.0, 0.0]])  # filters (3, -4), (0, 0), (-1, 0)
    assert l1(kernel).tolist() == [7, 0, 1]
    far = 32**0.5
    np.testing.assert_allclose(fpgm(kernel), [5 + far, 5 + 1, far + 1])
    np.testing.assert_allclose(fpgm(np.ones((2, 2, 3, 4))), [0, 0, 0, 0], atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 3, 5, 7), (4, 6)])
def test_against_loops(shape):
    kernel = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    filters = [kernel[..., i].astype(np.float64).ravel() for i in range(shape[-1])]
    sums = [sum(abs(w) for w in one) for one in filters]
    np.testing.assert_allclose(l1(kernel), sums, rtol=1e-6)
    distances = [sum(np.sqrt(((a - b) ** 2).sum()) for b in filters) for a in filters]
    np.testing.assert_allclose(fpgm(kernel), distances, rtol=1e-6)


@pytest.mark.parametrize("score", ["l1", "fpgm"])
def test_scores_of_a_stream_are_summed_over_its_layers(score):
    graph = ChannelGraph(residual())
    kernels = graph.kernels()
    mask = random_mask(graph)
    scores = weight_scores(score, kernels, mask, [0])
    function = {"l1": l1, "fpgm": fpgm}[score]
    kept = [np.flatnonzero(mask[gate.units]) for gate in graph.groups]
    stem, a1, stream, b1 = range(4)
    inputs = {"a2": a1, "shortcut": stem, "b2": b1}
    expected = sum(
        function(kernels[name][0][:, :, kept[gate]][..., kept[stream]])
        for name, gate in inputs.items()
    )
    gate = graph.groups[stream]
    np.testing.assert_allclose(scores[gate.start + kept[stream]], expected, rtol=1e-6)
    assert scores.shape == mask.shape
    assert (scores[:-1] > 0).tolist() == (mask[:-1] > 0).tolist()


def test_a_shared_layer_counts_once():
    graph = ChannelGraph(shared())
    kernels = graph.kernels()
    mask = graph.open_mask()
    scores = weight_scores("l1", kernels, mask, [0])
    gate = next(gate for gate in graph.groups if "both" in gate.layers)
    np.testing.assert_allclose(scores[gate.units], np.abs(kernels["both"][0]).sum((0, 1, 2)))


@pytest.mark.parametrize("kind", [L.SimpleRNN, L.GRU, L.LSTM])
def test_a_recurrent_unit_is_worth_the_columns_of_all_its_gates(kind):
    steps = keras.Input((6, 3))
    model = keras.Model(steps, L.Dense(2)(kind(4, name="cell")(steps)))
    graph = ChannelGraph(model)
    (group,) = graph.groups
    columns = np.abs(model.get_layer("cell").cell.kernel.numpy()).sum(0)
    found = weight_scores("l1", graph.kernels(), graph.open_mask(), [])[group.units]
    np.testing.assert_allclose(found, columns.reshape(-1, 4).sum(0), rtol=1e-6)


def test_flops_of_a_convolutional_recurrent_layer():
    """Input and state meet their kernels, 2 x 2 with four gates, at 3 x 4 places of five steps."""
    steps = keras.Input((5, 4, 5, 3))
    x = L.ConvLSTM2D(6, 2)(steps)
    graph = ChannelGraph(keras.Model(steps, L.Dense(2)(L.Flatten()(x))))
    assert graph.flops() == 5 * 3 * 4 * (2 * 2 * 3 * 24 + 2 * 2 * 6 * 24) + 3 * 4 * 6 * 2
    mask = graph.open_mask()
    mask[graph.groups[0].start + np.arange(2)] = 0
    assert graph.flops(mask) == 5 * 3 * 4 * (2 * 2 * 3 * 16 + 2 * 2 * 4 * 16) + 3 * 4 * 4 * 2


def test_random_scores_depend_on_the_seed_alone():
    graph = ChannelGraph(residual())
    mask = random_mask(graph)
    one, same, other = (weight_scores("random", {}, mask, [0, i]) for i in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    assert (one[mask == 0] == 0).all()
    assert len(set(one[mask > 0])) == (mask > 0).sum()
