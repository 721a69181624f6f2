"""The exact evaluator against the naive one, step by step and over real searches."""

from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
from ekg_tf.nets import tcl, tcl_norm
from ekg_tf.nets.graph import ChannelGraph
from ekg_tf.nets.zoo.resnet import cifar_resnet
from ekg_tf.pruning.engine.evaluator import ExactEvaluator, NaiveEvaluator
from ekg_tf.pruning.engine.validation import Validation
from ekg_tf.pruning.worth.rewards import Reward
from ekg_tf.training.task import classification

from tests.helpers.networks import (
    dense_block,
    mobile,
    random_mask,
    residual,
    shaken,
    shared,
    squeeze,
    unknown,
    vgg,
)
from tests.helpers.searches import greedy_search, proposals_at, reward_for, searched, validation


@pytest.mark.parametrize(
    ("examples", "batch_images", "sizes"),
    [(24, 10, [8, 8, 8]), (25, 10, [8, 8, 9]), (9, 10, [9]), (10, 3, [2, 3, 2, 3])],
)
def test_batches_of_nearly_equal_size(examples, batch_images, sizes):
    val = Validation(np.zeros((examples, 2)), np.zeros(examples), batch_images)
    rows = val.batches()
    assert [one.stop - one.start for one in rows] == sizes
    assert [one.start for one in rows] == [0, *(one.stop for one in rows[:-1])]
    assert rows[-1].stop == examples


def assert_same_outcome(exact, naive):
    assert exact.best == naive.best == np.argmax(naive.rewards)
    assert exact.reward == pytest.approx(naive.reward, abs=1e-4)
    assert np.abs(exact.outputs - naive.outputs).max() <= 1e-3
    done = ~np.isnan(exact.rewards)
    assert done[exact.best]
    np.testing.assert_allclose(exact.rewards[done], naive.rewards[done], atol=1e-4)
    assert (naive.rewards[~done] < naive.reward).all()  # given up for a reason
    assert exact.evaluations == naive.evaluations == len(naive.rewards)


@pytest.mark.parametrize("build", [residual, mobile, squeeze, dense_block, vgg, shared, unknown])
def test_the_same_choice_in_every_kind_of_network(build):
    model = shaken(build())
    graph = ChannelGraph(model)
    val = validation(model, count=25)
    reward = reward_for(model, val)
    exact, naive = ExactEvaluator(graph, val), NaiveEvaluator(graph, val)
    gated, variable = graph.gated()
    for mask in (graph.open_mask(), random_mask(graph, keep=0.8)):
        proposals = proposals_at(graph, mask)
        assert len(proposals) == len(graph.groups)
        variable.assign(mask)
        expected = [gated(val.inputs[rows], training=True) for rows in val.batches()]
        logits = exact.set_current(mask)
        assert np.abs(logits).max() > 0.1
        np.testing.assert_allclose(logits, np.concatenate(expected), atol=1e-4)
        naive.set_current(mask)
        assert_same_outcome(exact.best(proposals, reward), naive.best(proposals, reward))


def test_the_same_choice_by_loss_per_size():
    graph = ChannelGraph(shaken(residual()))
    val = validation(graph.model, count=25)
    reward = reward_for(graph.model, val)
    exact, naive = ExactEvaluator(graph, val, workers=1), NaiveEvaluator(graph, val)
    mask = random_mask(graph, keep=0.8)
    exact.set_current(mask)
    now = float(reward.all_losses(exact.current.outputs).mean())
    proposals = proposals_at(graph, mask)
    rises = -naive.best(proposals, reward).rewards - now
    chosen = set()
    for seed in range(8):
        weights = 10 ** np.random.default_rng(seed).uniform(-2, 2, len(proposals))
        weighed = [
            replace(one, weight=float(weight))
            for one, weight in zip(proposals, weights, strict=True)
        ]
        outcome, expected = exact.best(weighed, reward), naive.best(weighed, reward)
        values = np.where(rises > 0, rises / weights, rises * weights)
        assert outcome.best == expected.best == int(np.argmin(values))
        assert outcome.reward == pytest.approx(expected.reward, abs=1e-4)
        chosen.add(outcome.best)
    assert len(chosen) > 1


@pytest.mark.parametrize("options", [{"cache_bytes": 0}, {"cache_bytes": 60_000}, {"workers": 1}])
def test_neither_memory_nor_threads_change_the_outcome(options):
    graph = ChannelGraph(shaken(cifar_resnet(8, 5, (8, 8, 3))))
    val = validation(graph.model, count=25)
    reward = reward_for(graph.model, val)
    usual, other = ExactEvaluator(graph, val), ExactEvaluator(graph, val, **options)
    full = list(range(len(usual.current.segments.cuts)))
    assert usual.current.cuts.kept == full
    assert (other.current.cuts.kept == full) == ("workers" in options)
    for mask in (graph.open_mask(), random_mask(graph, keep=0.7)):
        proposals = proposals_at(graph, mask)
        outcomes = []
        for evaluator in (usual, other):
            logits, scores = evaluator.set_current_with_importance(mask, reward)
            again = evaluator.set_current(mask)
            np.testing.assert_allclose(again, logits, atol=1e-5)
            outcomes.append((logits, scores, evaluator.best(proposals, reward)))
        (logits, scores, best), (other_logits, other_scores, other_best) = outcomes
        np.testing.assert_array_equal(other_logits, logits)
        np.testing.assert_array_equal(other_scores, scores)
        assert other_best.best == best.best
        assert other_best.reward == best.reward
        np.testing.assert_array_equal(other_best.outputs, best.outputs)


def test_rounded_widths_over_a_whole_search(tmp_path):
    _, _, history = searched(tmp_path, "exact", round_to=8, target=0.6)
    assert history.rows[-1]["flops_rate"] <= 0.6
    widths = {width for row in history.rows for width in row["widths"]}
    assert widths <= {8, 16, 24, 32, 40, 48, 56, 64}
    assert len(widths) > 3


def test_the_reward_is_that_of_the_pruned_network():
    model = shaken(residual())
    graph = ChannelGraph(model)
    val = validation(model)
    reward = reward_for(model, val)
    evaluator = ExactEvaluator(graph, val)
    mask = random_mask(graph)
    evaluator.set_current(mask)
    proposals = proposals_at(graph, mask)
    outcome = evaluator.best(proposals, reward)
    pruned = graph.pruned(proposals[outcome.best].mask)
    logits = np.concatenate([pruned(val.inputs[rows], training=True) for rows in val.batches()])
    np.testing.assert_allclose(outcome.outputs, logits, atol=1e-4)
    assert outcome.reward == pytest.approx(-float(tf.reduce_mean(reward.losses(logits))), abs=1e-5)


def test_the_logits_are_those_of_the_chosen_proposal_when_rewards_are_equal():
    # A dense layer without weights: whatever is removed, every proposal has the same reward.
    model = shaken(residual())
    graph = ChannelGraph(model)
    fc = model.get_layer("fc")
    fc.set_weights([np.zeros_like(fc.kernel), np.arange(5, dtype=np.float32)])
    val = validation(model)
    reward = reward_for(model, val)
    mask = graph.open_mask()
    for evaluator in (ExactEvaluator(graph, val), NaiveEvaluator(graph, val)):
        evaluator.set_current(mask)
        outcome = evaluator.best(proposals_at(graph, mask), reward)
        assert outcome.best == 0
        np.testing.assert_allclose(outcome.outputs, np.tile(np.arange(5), (24, 1)))


def test_hopeless_proposals_are_given_up():
    model = shaken(residual())
    fc = model.get_layer("fc")
    fc.kernel.assign(20 * fc.kernel)  # a network that is sure of what it says
    graph = ChannelGraph(model)
    val = validation(model, batch_images=2)
    exact, naive = ExactEvaluator(graph, val, workers=1), NaiveEvaluator(graph, val)
    mask = graph.open_mask()
    logits = exact.set_current(mask)
    reward = Reward(classification(), replace(val, targets=logits.argmax(-1)), logits)
    mild, severe = proposals_at(graph, mask, step=0.1), proposals_at(graph, mask, step=1.0)
    proposals = [*severe[:3], mild[3]]
    outcomes = [exact.best(proposals, reward) for _ in range(2)]
    expected = naive.best(proposals, reward)
    for outcome in outcomes:
        assert_same_outcome(outcome, expected)
    assert expected.best == len(proposals) - 1
    assert np.isnan(outcomes[1].rewards).any()  # the best one went first the second time


def with_dropout():
    image = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(6, 3, activation="relu")(image)
    x = keras.layers.SpatialDropout2D(0.3)(keras.layers.Conv2D(5, 3, activation="relu")(x))
    x = keras.layers.Dropout(0.5)(keras.layers.Flatten()(x))
    return keras.Model(image, keras.layers.Dense(5)(x))


def test_dropout_is_off_in_both_evaluators():
    model = shaken(with_dropout())
    graph = ChannelGraph(model)
    val = validation(model)
    reward = reward_for(model, val)
    mask = graph.open_mask()
    proposals = proposals_at(graph, mask)
    exact, naive = ExactEvaluator(graph, val), NaiveEvaluator(graph, val)
    logits = exact.set_current(mask)
    np.testing.assert_allclose(logits, model(val.inputs, training=False), atol=1e-4)
    naive.set_current(mask)
    assert_same_outcome(exact.best(proposals, reward), naive.best(proposals, reward))


@pytest.mark.parametrize(
    "options",
    [
        {"batch_images": 16},  # 13, 13 and 14 images
        {"batch_images": 40, "teacher": "none", "step": 0.1, "target": 0.85},
        {"teacher": "single", "score": "l1", "target": 0.8},
    ],
)
def test_a_whole_search_takes_the_same_steps(tmp_path, options):
    search = greedy_search(tmp_path / "exact", "exact", **options)
    exact = search.history
    _, _, naive = searched(tmp_path / "naive", "naive", **options)
    assert len(exact.rows) == len(naive.rows) >= 5
    for one, other in zip(exact.rows[1:], naive.rows[1:], strict=True):
        for key in ("gate", "removed_units", "widths", "flops", "evaluations"):
            assert one[key] == other[key]
        assert one["reward"] == pytest.approx(other["reward"], abs=1e-4)
        assert one["val_loss"] == pytest.approx(other["val_loss"], abs=1e-4)
    assert len({row["gate"] for row in exact.rows[1:]}) > 1
    rates = [row["flops_rate"] for row in exact.rows]
    assert rates[-2] > options.get("target", 0.72) >= rates[-1]
    assert (search.gates.mask() == exact.mask(search.graph, len(exact.rows) - 1)).all()


def test_the_history_tells_what_the_networks_of_the_search_give(tmp_path):
    graph, val, history = searched(tmp_path, "exact")
    for step in (1, len(history.rows) - 1):
        pruned = graph.pruned(history.mask(graph, step))
        logits = np.concatenate([pruned(val.inputs[rows], training=True) for rows in val.batches()])
        np.testing.assert_allclose(history.outputs(step), logits, atol=1e-4)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(val.targets, logits)
        row = history.rows[step]
        assert row["val_loss"] == pytest.approx(float(tf.reduce_mean(losses)), abs=1e-4)
        hits = logits.argmax(-1) == val.targets
        assert row["val_accuracy"] == pytest.approx(100 * hits.mean())
        assert row["flops"] == ChannelGraph(pruned).flops()


class Traces:
    """Counts how often Python runs the layers: only tracing does, a compiled function never."""

    def __init__(self, monkeypatch):
        self.count = 0
        for kind in (tcl.Conv2D, tcl.FC, tcl_norm.BatchNorm):
            monkeypatch.setattr(kind, "apply", self._counted(kind.apply))

    def _counted(self, apply):
        def counted(layer, *args, **kwargs):
            self.count += 1
            return apply(layer, *args, **kwargs)

        return counted


def test_nothing_is_traced_again_while_the_network_shrinks(monkeypatch):
    traces = Traces(monkeypatch)
    model = shaken(residual())
    graph = ChannelGraph(model)
    val = validation(model, count=25)
    evaluator = ExactEvaluator(graph, val)
    counts = []
    mask = graph.open_mask()
    for step in range(5):
        reward = reward_for(model, val, seed=step)
        evaluator.set_current_with_importance(mask, reward)
        evaluator.set_current(mask)
        proposals = proposals_at(graph, mask, step=0.2)
        mask = proposals[evaluator.best(proposals, reward).best].mask
        counts.append(traces.count)
    assert counts[0] > 0
    assert counts == counts[:1] * 5
    assert graph.flops(mask) < graph.flops()


def test_full_width_with_xla_is_the_same_as_sliced(monkeypatch):
    model = shaken(mobile())
    graph = ChannelGraph(model)
    val = validation(model, count=16, batch_images=8)
    reward = reward_for(model, val)
    sliced, masked = ExactEvaluator(graph, val), ExactEvaluator(graph, val, compile=True)
    traces, counts = Traces(monkeypatch), []
    for mask in (graph.open_mask(), random_mask(graph, keep=0.8)):
        logits, scores = sliced.set_current_with_importance(mask, reward)
        compiled_logits, compiled_scores = masked.set_current_with_importance(mask, reward)
        np.testing.assert_allclose(compiled_logits, logits, atol=1e-4)
        np.testing.assert_allclose(compiled_scores[:-1], scores[:-1], rtol=2e-3, atol=1e-3)
        proposals = proposals_at(graph, mask)
        outcomes = [one.best(proposals, reward) for one in (sliced, masked)]
        assert outcomes[0].best == outcomes[1].best
        np.testing.assert_allclose(outcomes[1].outputs, outcomes[0].outputs, atol=1e-4)
        both = ~np.isnan(outcomes[0].rewards + outcomes[1].rewards)
        assert both.any()
        rewards = [one.rewards[both] for one in outcomes]
        np.testing.assert_allclose(rewards[1], rewards[0], atol=1e-4)
        counts.append(traces.count)
    assert counts[1] == counts[0]  # another mask compiles nothing anew
