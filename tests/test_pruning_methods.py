"""FFP's coarse-to-fine search and the one-shot searches on a small ResNet-8."""

import keras
import numpy as np
import pytest
from ekg_tf.nets.gates import Gates
from ekg_tf.nets.graph import ChannelGraph
from ekg_tf.nets.zoo.resnet import cifar_resnet
from ekg_tf.pruning.history import History
from ekg_tf.pruning.methods.by_name import SEARCHES
from ekg_tf.pruning.space.candidates import OVERSHOOT
from ekg_tf.pruning.space.widths import relative_scores, smallest, without
from ekg_tf.training.evaluation import make_forward
from ekg_tf.training.task import classification
from ekg_tf.utils.runfolder import RunFolder

from tests.helpers.networks import residual, shaken
from tests.helpers.options import search_options
from tests.helpers.searches import greedy_search, validation

EXAMPLES = 40


def searched(path, method, *, target=0.5, **options):
    """(graph, D_val, history) of a search."""
    keras.utils.set_random_seed(0)
    graph = ChannelGraph(shaken(cifar_resnet(8, 5, (8, 8, 3))))
    val = validation(graph.model, count=EXAMPLES, batch_images=EXAMPLES)
    settings = search_options(target, method=method, **options)
    with RunFolder.open(path, {}) as folder:
        history = History(folder, [(EXAMPLES, 5)])
        SEARCHES[method](graph, val, history, settings, classification()).run()
    return graph, val, history


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("ffp", {}),
        ("ffp", {"score": "fpgm", "target": 0.7}),
        ("uniform", {}),
        ("uniform", {"score": "l1", "target": 0.3}),
        ("global", {}),
        ("global", {"score": "random", "target": 0.7}),
    ],
)
def test_the_target_is_met_and_the_history_tells_the_networks(tmp_path, method, options):
    graph, val, history = searched(tmp_path, method, **options)
    target, last = options.get("target", 0.5), history.rows[-1]
    assert target - OVERSHOOT <= last["flops_rate"] <= target
    steps = len(history.rows) - 1
    assert steps == 1 if method != "ffp" else 4 <= steps <= 15
    assert sum(row["evaluations"] for row in history.rows) <= 11 * steps
    mask = history.mask(graph, steps)
    assert graph.flops(mask) == last["flops"]
    logits = make_forward(graph.pruned(mask), bn="batch")(val.inputs)
    np.testing.assert_allclose(history.outputs(steps), logits, atol=1e-4)


@pytest.mark.parametrize("method", ["ffp", "uniform", "global"])
def test_widths_are_multiples_where_they_are_asked_for(tmp_path, method):
    graph, _, history = searched(tmp_path, method, target=0.6, round_to=4)
    assert history.rows[-1]["flops_rate"] <= 0.6
    for gate, kept in zip(graph.groups, history.rows[-1]["widths"], strict=True):
        assert kept % 4 == 0 or kept == gate.channels


def test_a_coarse_to_fine_search_resumes_to_the_same_network(tmp_path):
    _, _, whole = searched(tmp_path, "ffp")
    names = [row["name"] for row in whole.rows[1:]]
    assert any("gates of least cost" in name for name in names)
    with RunFolder.open(tmp_path, {}) as folder:
        folder.truncate("history.jsonl", 3)
    _, _, resumed = searched(tmp_path, "ffp")
    for one, other in zip(whole.rows, resumed.rows, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_uniform_keeps_the_same_share_of_every_gate(tmp_path):
    graph, _, history = searched(tmp_path, "uniform", score="l1")
    widths = history.rows[-1]["widths"]
    shares = [kept / gate.channels for kept, gate in zip(widths, graph.groups, strict=True)]
    # A filter of the narrowest gate is 1/16 of it; another one may go at the end.
    assert max(shares) - min(shares) <= 2 / 16


def test_a_global_threshold_takes_the_least_normalised_scores(tmp_path):
    graph, _, history = searched(tmp_path, "global", score="l1", target=0.8)
    _, _, uniform = searched(tmp_path / "uniform", "uniform", score="l1", target=0.8)
    assert history.rows[-1]["widths"] != uniform.rows[-1]["widths"]
    graph = ChannelGraph(residual())
    scores = np.zeros(graph.num_units + 1)
    for gate in graph.groups:
        scores[gate.units] = np.arange(1, gate.channels + 1)
    first = relative_scores(Gates(graph.groups), scores)[0]
    root_mean_square = np.sqrt((1 + 4 + 9 + 16) / 4)
    np.testing.assert_allclose(first, np.array([1, 2, 3, 4]) / root_mean_square)


def test_the_smallest_number_that_meets_a_condition():
    assert smallest(lambda x: x >= 0.3, 1e-6) == pytest.approx(0.3, abs=2e-6)
    assert smallest(lambda x: x >= 1, 1e-3) == 1.0
    assert smallest(lambda x: False, 1e-3) is None


def test_filters_leave_several_gates_at_once():
    gates = Gates(ChannelGraph(residual()).groups)
    gates[0].rank(np.array([3.0, 1.0, 2.0, 4.0]))
    mask = without(gates, {0: 2, 1: 1})
    assert np.flatnonzero(mask == 0).tolist() == [1, 2, gates[1].start + gates[1].channels - 1]
    assert gates.mask().all()


def test_a_walk_without_data_foresees_the_number_of_steps(tmp_path):
    search = greedy_search(tmp_path / "run", "exact", target=0.5)
    assert search.remaining() == (0, 0)
    steps = len(search.history.rows) - 1
    tried = sum(row["evaluations"] for row in search.history.rows)
    del search.history.rows[1:]
    search.gates.set_mask(search.graph.open_mask())
    foreseen, trials = search.remaining()
    assert steps / 2 <= foreseen <= 2 * steps
    assert tried / 3 <= trials <= 3 * tried
