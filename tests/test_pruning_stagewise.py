"""SWP's and AutoSlim's searches: combination, evolution, whole searches, resumed and not."""

import itertools
from functools import partial

import keras
import numpy as np
import pytest
import tensorflow as tf
from ekg_tf.nets.graph import ChannelGraph
from ekg_tf.nets.zoo.resnet import cifar_resnet
from ekg_tf.pruning.engine.validation import Validation
from ekg_tf.pruning.history import History
from ekg_tf.pruning.methods.combine import combine, pareto
from ekg_tf.pruning.methods.evolution import (
    Archive,
    elite,
    evolve,
    first_generation,
    next_generation,
)
from ekg_tf.pruning.methods.slimming import AccuracyReward, SlimmingSearch
from ekg_tf.pruning.methods.stagewise import StageWiseSearch
from ekg_tf.pruning.space.candidates import OVERSHOOT
from ekg_tf.pruning.supernet.network import feature_loss
from ekg_tf.pruning.supernet.ratings import StageRater
from ekg_tf.training.task import classification
from ekg_tf.utils.runfolder import RunFolder

from tests.helpers.networks import images_for, shaken
from tests.helpers.options import search_options

OPTIONS = {
    StageWiseSearch: {"method": "swp", "width_steps": 5, "population": 6, "generations": 3},
    SlimmingSearch: {"method": "autoslim", "width_steps": 5},
}


# ---------------------------------------------------------------- combination


def test_pareto_by_hand():
    #                  0    1    2    3    4
    saved = np.array([5.0, 0.0, 3.0, 3.0, 4.0])
    losses = np.array([2.0, 0.0, 1.0, 0.5, 2.0])
    # 2 is beaten by 3, 4 by 0
    assert pareto(saved, losses).tolist() == [1, 3, 0]


@pytest.mark.parametrize("seed", range(5))
def test_combination_against_brute_force(seed):
    random = np.random.default_rng(seed)
    saved = [random.integers(0, 30, count).astype(float) for count in (6, 5, 7)]
    losses = [random.random(len(one)) for one in saved]
    needed = 50.0  # divides the bins: nothing is rounded
    options = [
        (sum(losses[s][i] for s, i in enumerate(choice)), choice)
        for choice in itertools.product(*(range(len(one)) for one in saved))
        if sum(saved[s][i] for s, i in enumerate(choice)) >= needed
    ]
    found = combine(saved, losses, needed)
    if not options:
        assert found is None
    else:
        assert tuple(found) == min(options)[1]


def test_a_combination_that_saves_too_little_is_none():
    assert combine([np.array([0.0, 2.0])] * 2, [np.array([0.0, 1.0])] * 2, 4.5) is None
    assert combine([np.array([0.0, 2.0])] * 2, [np.array([0.0, 1.0])] * 2, 4.0) == [1, 1]


# ---------------------------------------------------------------- evolution


def test_the_first_generation_has_both_ends_and_no_doubles():
    sizes = np.array([5, 9, 1, 4])
    genes = first_generation(sizes, 12, [0, 1])
    assert genes[0].tolist() == [0, 0, 0, 0] and genes[1].tolist() == [4, 8, 0, 3]
    assert (genes >= 0).all() and (genes < sizes).all()
    assert len(np.unique(genes, axis=0)) == len(genes) <= 12


def test_the_elite_is_the_best_of_every_niche_that_is_not_beaten():
    saved = np.array([0.0, 1.0, 1.5, 2.0, 3.0])
    losses = np.array([0.0, 0.5, 0.3, 0.2, 0.9])
    # niches of width 1: [0], [1, 2], [3, 4]; 2 is beaten by 3
    assert elite(saved, losses, 3).tolist() == [0, 3]


def weighted(genes):
    """A loss by which filters of the gates differ in worth."""
    return (8 - genes) @ np.array([1.0, 0.1, 0.5, 0.01])


def evolved(archive, generations=6, stop=None):
    def done():
        if archive.generations == stop:
            raise KeyboardInterrupt

    evolve(
        archive,
        weighted,
        lambda genes: (8 - genes).sum(1).astype(float),
        np.full(4, 9),
        population=10,
        generations=generations,
        seed=[0, 2],
        done=done,
    )
    return archive


def test_evolution_improves_and_repeats_nothing():
    archive = evolved(Archive.empty(4), generations=12)
    assert len(np.unique(archive.genes, axis=0)) == len(archive.genes) > 80
    # Half of all is saved best by the gates of least worth: 8 * 0.1 + 8 * 0.01.
    half = (8 - archive.genes).sum(1) >= 16
    first = half & (np.arange(len(half)) < 10)
    assert archive.losses[first].min() > 3
    assert 0.88 <= archive.losses[half].min() < 1.5


def test_evolution_goes_on_where_it_stopped():
    archive = Archive.empty(4)
    with pytest.raises(KeyboardInterrupt):
        evolved(archive, stop=3)
    whole, resumed = evolved(Archive.empty(4)), evolved(archive)
    np.testing.assert_array_equal(whole.genes, resumed.genes)
    np.testing.assert_array_equal(whole.losses, resumed.losses)


def test_a_stage_of_few_versions_is_rated_once():
    archive = Archive.empty(1)
    rated = []
    evolve(
        archive,
        lambda genes: rated.extend(genes[:, 0].tolist()) or np.zeros(len(genes)),
        lambda genes: -genes[:, 0].astype(float),
        np.array([3]),
        population=8,
        generations=5,
        seed=[0],
        done=lambda: None,
    )
    assert sorted(rated) == [0, 1, 2] and archive.generations == 5
    none = next_generation(archive, np.zeros(3), np.array([3]), 8, [1])
    assert none.shape == (0, 1)


# ---------------------------------------------------------------- ratings


@pytest.fixture(scope="module")
def graph():
    return ChannelGraph(shaken(cifar_resnet(8, 5, (8, 8, 3))))


@pytest.fixture(scope="module")
def val(graph):
    labels = np.random.default_rng(5).integers(0, 5, 25).astype(np.int32)
    return Validation(images_for(graph.model, 25), labels, 10)


def random_mask(graph, gates, seed):
    random, mask = np.random.default_rng(seed), graph.open_mask()
    for gate in gates:
        one = graph.groups[gate]
        mask[one.start + random.permutation(one.channels)[one.channels // 2 :]] = 0
    return mask


def test_stage_losses_are_those_of_the_masked_network(graph, val):
    """Of a stage that starts at the input, and of the last one; whatever fits into memory."""
    usual = StageRater(graph, val, classification(), "auto")
    tight = StageRater(graph, val, classification(), "auto", cache_bytes=0)
    assert len(usual.stages) == 3
    assert "computed again" in tight.plan() and "computed again" not in usual.plan()
    first, last = usual.stages[0], usual.stages[-1]
    masks = [random_mask(graph, first.gates, seed) for seed in range(3)]
    losses = usual.rate(0, masks)
    np.testing.assert_allclose(tight.rate(0, masks), losses, rtol=1e-5)
    gated, variable = graph.gated()
    (border,) = usual.segments.cuts[first.last]
    (layer,) = (one for one in graph.calls if border is one.outputs[0])
    behind = keras.Model(gated.inputs, gated.get_layer(layer.operation.name).output)
    whole = [behind(val.inputs[rows], training=True) for rows in val.batches()]
    for mask, loss in zip(masks, losses, strict=True):
        variable.assign(mask)
        pairs = zip(val.batches(), whole, strict=True)
        parts = [
            float(feature_loss(behind(val.inputs[rows], training=True), target)) * len(target)
            for rows, target in pairs
        ]
        assert loss == pytest.approx(sum(parts) / 25, rel=1e-3)
    # the last stage alone changes: its loss is the KL of the whole network's softmax
    mask = random_mask(graph, last.gates, 9)
    open_logits, logits = usual.outputs(graph.open_mask()), usual.outputs(mask)
    expected = float(classification().distillation(open_logits, tf.constant(logits), 1.0))
    assert usual.rate(2, [mask])[0] == pytest.approx(expected, rel=1e-3)
    assert usual.rate(1, [graph.open_mask()])[0] == pytest.approx(0, abs=1e-9)
    assert usual.evaluations == 5


# ---------------------------------------------------------------- whole searches


def searched(method, path, graph, val, stop_at=None, **options):
    """The history of a search that is stopped before row `stop_at` and then goes on."""
    options = search_options(**({"rate": 0.5} | OPTIONS[method] | options))
    arguments = {"do_log": False, "method": options.method.name}
    for stop in (stop_at, None) if stop_at else (None,):
        with RunFolder.open(path, arguments) as folder:
            history = History(folder, [(25, 5)])
            search = method(graph, val, history, options, classification(), order=order_of(graph))
            if stop:
                history.add = partial(add_until, history.add, stop)
                with pytest.raises(KeyboardInterrupt):
                    search.run()
            else:
                search.run()
    return history


def order_of(graph):
    """Some rank for every unit in its gate."""
    random = np.random.default_rng(3)
    return np.concatenate([random.permutation(group.channels) for group in graph.groups])


def add_until(add, stop, row, logits):
    if row["step"] == stop:
        raise KeyboardInterrupt
    add(row, logits)


def untimed(history):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history.rows]


@pytest.mark.parametrize("method", [StageWiseSearch, SlimmingSearch])
def test_a_search_ends_at_the_target_and_resumes(method, tmp_path, graph, val):
    whole = searched(method, tmp_path / "whole", graph, val)
    last = whole.rows[-1]
    assert 0.5 - OVERSHOOT <= last["rate"] <= 0.5
    assert last["rate"] == last["flops"] / graph.flops()
    assert graph.flops(whole.mask(graph, len(whole.rows) - 1)) == last["flops"]
    for row in (1, 3):
        resumed = searched(method, tmp_path / f"resumed{row}", graph, val, stop_at=row)
        assert untimed(resumed) == untimed(whole)
    rates = [row["rate"] for row in whole.rows]
    assert rates == sorted(set(rates), reverse=True) and len(rates) > 6
    assert sum(row["evaluations"] for row in whole.rows) > 20


def test_networks_of_combinations_are_those_of_the_rows(tmp_path, graph, val):
    """They aren't nested: rows take filters back, and keep the leading channels all the same."""
    history = searched(StageWiseSearch, tmp_path / "run", graph, val, keep=(0.7,))
    assert any("restored_units" in row for row in history.rows)
    near = [row["rate"] for row in history.rows if 0.7 - OVERSHOOT <= row["rate"] <= 0.7]
    assert len(near) == 1
    order = order_of(graph)
    for number, row in enumerate(history.rows):
        mask = history.mask(graph, number)
        assert graph.flops(mask) == row["flops"]
        for gate, width in zip(graph.groups, row["widths"], strict=True):
            np.testing.assert_array_equal(mask[gate.units], order[gate.units] < width)


@pytest.mark.parametrize("method", [StageWiseSearch, SlimmingSearch])
def test_widths_are_multiples(method, tmp_path, graph, val):
    history = searched(method, tmp_path / "run", graph, val, rate=0.6, round_to=4)
    assert history.rows[-1]["rate"] <= 0.6
    for gate, width in zip(graph.groups, history.rows[-1]["widths"], strict=True):
        assert width % 4 == 0 or width == gate.channels


# ---------------------------------------------------------------- slimming


def test_accuracy_decides_before_the_loss():
    labels = np.array([0, 1, 1], np.int32)
    val = Validation(np.zeros((3, 1), np.float32), labels, 3)
    reward = AccuracyReward(classification(), val)
    logits = tf.constant([[np.log(3.0), 0], [0, np.log(3.0)], [0.0, 0]], tf.float32)
    # right with p = 3/4, right with p = 3/4, wrong (the tie goes to class 0) with p = 1/2
    expected = [1e-3 * np.log(4 / 3), 1e-3 * np.log(4 / 3), 1 + 1e-3 * np.log(2)]
    np.testing.assert_allclose(reward.losses(logits), expected, rtol=1e-5)
    np.testing.assert_allclose(reward.losses(logits[2:], slice(2, 3)), expected[2:], rtol=1e-5)
    assert reward.least_losses().tolist() == [0, 0, 0]


def test_slimming_steps_go_down_the_grid(tmp_path, graph, val):
    history = searched(SlimmingSearch, tmp_path / "run", graph, val)
    grids = {16: [3, 6, 10, 13, 16], 32: [6, 13, 19, 26, 32], 64: [13, 26, 38, 51, 64]}
    for before, after in itertools.pairwise(history.rows[:-2]):
        changed = [
            (gate.channels, old, new)
            for gate, old, new in zip(graph.groups, before["widths"], after["widths"], strict=True)
            if old != new
        ]
        ((channels, old, new),) = changed
        assert new == max(width for width in grids[channels] if width < old)
        assert after["evaluations"] == len(graph.groups) or before["rate"] < 0.7
