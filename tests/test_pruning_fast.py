"""The fast evaluator: local effects, forecasts, several removals at once, and what falls back."""

import json
import threading

import numpy as np
import pytest
import tensorflow as tf
from ekg_tf.nets.gates import Gates
from ekg_tf.nets.graph import ChannelGraph
from ekg_tf.nets.zoo.resnet import cifar_resnet
from ekg_tf.pruning.engine.evaluator import ExactEvaluator, NaiveEvaluator, Trials
from ekg_tf.pruning.engine.fast import FastEvaluator
from ekg_tf.pruning.engine.local import Effect, Forecast
from ekg_tf.pruning.engine.segments import Segments
from ekg_tf.pruning.space.candidates import OVERSHOOT, Candidates
from ekg_tf.pruning.worth.rewards import Knowledge
from ekg_tf.utils.runfolder import RunFolder

from tests.helpers.networks import dense_block, random_mask, residual, shaken, squeeze, vgg
from tests.helpers.searches import proposals_at, reward_for, searched, validation


class Case:
    """An evaluator whose current network is a slightly pruned one, its reward and proposals."""

    def __init__(self, build, **options):
        self.model = shaken(build())
        self.graph, self.val = ChannelGraph(self.model), validation(self.model, count=24)
        self.reward = reward_for(self.model, self.val)
        self.evaluator = FastEvaluator(self.graph, self.val, **options)
        self.mask = random_mask(self.graph, keep=0.8)
        self.evaluator.set_current_with_importance(self.mask, self.reward)
        self.proposals = proposals_at(self.graph, self.mask)


def resnet():
    return cifar_resnet(8, 5, (8, 8, 3))


@pytest.mark.parametrize("build", [resnet, vgg])
def test_a_local_effect_foretells_a_small_change(build):
    """A change of the weights that is small enough: <g, delta> is the rise of the loss."""
    case = Case(build)
    current, rows = case.evaluator.current, case.evaluator.current.rows[:2]
    weights, parts = current.weights, current.segments
    found = 0
    for number, proposal in enumerate(case.proposals):
        span = case.evaluator._effects._spans[proposal.gate]
        if span is None:
            continue
        found += 1
        first, end = span
        changed = parts.changed_weights(weights, case.mask, proposal.gate)
        near = {
            name: {key: 1.001 * x if key == "kernel" else x for key, x in one.items()}
            if one is not weights[name]
            else one
            for name, one in changed.items()
        }
        for cache, slopes, one in zip(current.cache, current.slopes, rows, strict=False):
            delta = parts.run(cache[first], near, first, end) - cache[end]
            loss = lambda w, x=cache[first], one=one, first=first: float(  # noqa: E731
                tf.reduce_sum(case.reward.losses(parts.outputs_from(x, w, first), one))
            )
            rise = loss(near) - loss(weights)
            foretold = float(tf.reduce_sum(delta * slopes[end]))
            assert foretold == pytest.approx(rise, rel=0.1, abs=2e-4), number
    assert found >= 2


def test_effects_are_of_the_first_half_and_none_where_nothing_is_local():
    case = Case(resnet)
    effects = case.evaluator._effects.of(case.proposals)
    local = [effect for effect in effects if effect]
    assert len(case.evaluator.current.slopes) == 2  # of three batches
    assert len(local) >= 3
    for effect in local:
        assert 0 < effect.harm <= effect.spread
        assert 0 <= effect.depth < 1
    # a residual stream's gate reaches through several blocks
    assert None in effects
    nothing = Case(resnet, cache_bytes=0).evaluator
    assert nothing._effects.of(case.proposals) == [None] * len(case.proposals)
    case.evaluator.set_current(case.mask)  # without slopes
    assert case.evaluator._effects.of(case.proposals) == [None] * len(case.proposals)


@pytest.mark.parametrize("kind", [ExactEvaluator, FastEvaluator])
def test_on_a_gpu_a_step_is_the_calling_threads_alone(kind, monkeypatch):
    """Where threads share a GPU, TensorFlow can damage what they compute."""
    graph, threads = ChannelGraph(shaken(resnet())), set()
    val, real = validation(graph.model, count=24), Segments.run
    reward, mask = reward_for(graph.model, val), random_mask(graph, keep=0.8)

    def run(*args):
        threads.add(threading.get_ident())
        return real(*args)

    monkeypatch.setattr(Segments, "run", run)
    outcomes = []
    for gpus in ([], ["a GPU"]):
        monkeypatch.setattr(tf.config, "get_visible_devices", lambda _, gpus=gpus: gpus)
        threads.clear()
        evaluator = kind(graph, val)
        evaluator.set_current_with_importance(mask, reward)
        outcomes.append(evaluator.best(proposals_at(graph, mask), reward))
        assert (threads == {threading.get_ident()}) == bool(gpus)
    usual, alone = outcomes
    assert (alone.best, alone.reward) == (usual.best, usual.reward)
    np.testing.assert_array_equal(alone.outputs, usual.outputs)


def test_a_forecast_learns_and_goes_on_elsewhere():
    rng = np.random.default_rng(0)
    forecast, other = Forecast(), Forecast()
    effects = [Effect(*np.sort(rng.random(2)), rng.random()) for _ in range(200)]
    rises = [3 * one.harm**0.5 * np.exp(-one.depth) for one in effects]
    assert forecast.of(effects[0], 1.0) == pytest.approx(np.log(effects[0].harm + 1e-3))
    for effect, rise in zip(effects[:150], rises[:150], strict=True):
        forecast.learn(effect, rise, 1.0)
    other.restore(json.loads(json.dumps(forecast.state())))
    for effect, rise in zip(effects[150:], rises[150:], strict=True):
        found = forecast.of(effect, 1.0)
        assert found == pytest.approx(np.log(rise), abs=0.4)
        assert found == other.of(effect, 1.0)
        # what counts are shares of the scale
        seven = Effect(7 * effect.harm, 7 * effect.spread, effect.depth)
        assert forecast.of(seven, 7.0) == pytest.approx(found)


@pytest.mark.parametrize("build", [residual, squeeze, dense_block, vgg])
def test_outputs_without_several_proposals_are_the_masked_networks(build):
    case = Case(build)
    several = case.proposals[:3]
    outputs = case.evaluator._without_all(several)
    naive = NaiveEvaluator(case.graph, case.val)
    naive._mask.assign(np.min([one.mask for one in several], 0))
    expected = np.concatenate([naive._forward(x) for x in naive._inputs])
    np.testing.assert_allclose(outputs, expected, atol=1e-3)


@pytest.mark.parametrize("tied", [0.0, 1e9])
def test_near_ties_are_taken_at_once_and_the_rest_one_by_one(tied, monkeypatch):
    monkeypatch.setattr(FastEvaluator, "TIED", tied)
    case = Case(residual)
    everything = lambda proposals: list(range(len(proposals)))  # noqa: E731
    outcome = case.evaluator.best(case.proposals, case.reward, everything)
    expected = NaiveEvaluator(case.graph, case.val).best(case.proposals, case.reward)
    if not tied:
        assert len(outcome.chosen) == 1
        assert outcome.best == expected.best
        assert outcome.reward == pytest.approx(expected.reward, abs=1e-4)
        return
    assert len(outcome.chosen) == min(len(case.proposals), FastEvaluator.FINISHED)
    mask = np.min([case.proposals[index].mask for index in outcome.chosen], 0)
    outputs = case.evaluator.set_current(mask)
    np.testing.assert_allclose(outcome.outputs, outputs, atol=1e-4)
    losses = case.reward.all_losses(outputs)
    assert outcome.reward == pytest.approx(-float(np.mean(losses)), abs=1e-5)
    assert outcome.evaluations == len(case.proposals) + 1
    alone = case.evaluator.best(case.proposals, case.reward)
    assert len(alone.chosen) == 1


def test_removals_that_hurt_together_are_not_taken_together():
    case = Case(residual)
    trials = Trials(case.proposals, case.reward, case.evaluator.current.outputs)
    outputs = case.evaluator._without_all(case.proposals[:2])
    rise = float(case.reward.all_losses(outputs).mean()) - trials.current_loss
    assert trials.joint([0, 1], outputs, rise - 1e-3) is None
    outcome = trials.joint([0, 1], outputs, rise + 1e-3)
    assert outcome.chosen == (0, 1)
    assert outcome.evaluations == 2  # both networks that were run
    assert trials.joint([0, 1], np.full_like(outputs, np.nan), rise) is None


def test_several_removals_end_no_further_below_the_target_than_one_may():
    graph = ChannelGraph(shaken(residual()))
    mask = graph.open_mask()
    proposals = proposals_at(graph, mask, step=0.2)
    gates = Gates(graph.groups)
    whole = graph.flops()

    def together(target, *wanted):
        return Candidates(gates, graph.flops, target, 0.2).together(proposals, *wanted)

    assert together(0) == list(range(len(proposals)))
    assert together(whole) == [0]
    for target in np.linspace(0.5, 1, 8) * whole:
        taken = together(target)
        sizes = [
            graph.flops(np.min([proposals[i].mask for i in taken[:count]], 0))
            for count in range(1, len(taken) + 1)
        ]
        assert all(size > target for size in sizes[:-1])
        assert len(taken) == 1 or sizes[-1] >= target - OVERSHOOT * whole
        assert together(0, target) == taken


def test_an_ensemble_counts_removals():
    one, other = (np.full((2, 3), value, np.float32) for value in (1.0, 4.0))
    knowledge = Knowledge("ensemble")
    knowledge.add(one)
    knowledge.add(other, 2)
    np.testing.assert_allclose(knowledge.outputs, 3.0)


def test_a_fast_search_resumes_to_the_same_network(tmp_path, monkeypatch):
    monkeypatch.setattr(FastEvaluator, "FINISHED", 2)  # a forecast is asked for in every step
    _, val, fast = searched(tmp_path, "fast", target=0.5)
    assert 0.5 - OVERSHOOT - 0.01 < fast.rows[-1]["rate"] <= 0.5
    for before, row in zip(fast.rows[:-1], fast.rows[1:], strict=True):
        assert len(set(row["gates"])) == len(row["gates"]) == len(row["names"]) >= 1
        narrower = np.array(before["widths"]) > np.array(row["widths"])
        assert sorted(row["gates"]) == np.flatnonzero(narrower).tolist()
        assert row["images"] > len(val), "the current network and some proposals"
    assert max(len(row["gates"]) for row in fast.rows[1:]) > 1
    assert fast.rows[-1]["learnt"]["forecast"] != Forecast().state()
    with RunFolder.open(tmp_path, {}) as folder:
        folder.truncate("history.jsonl", len(fast.rows) // 2)
    _, _, resumed = searched(tmp_path, "fast", target=0.5)
    for one, other in zip(fast.rows, resumed.rows, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_some_proposals_of_many_are_finished(monkeypatch):
    monkeypatch.setattr(FastEvaluator, "FINISHED", 5)
    case = Case(resnet)
    assert len(case.proposals) > FastEvaluator.FINISHED
    case.evaluator.best(case.proposals, case.reward)
    # Now the forecast knows their rises: the ones that are finished are among the best.
    outcome = case.evaluator.best(case.proposals, case.reward)
    finished = ~np.isnan(outcome.rewards)
    assert finished.sum() == FastEvaluator.FINISHED
    expected = NaiveEvaluator(case.graph, case.val).best(case.proposals, case.reward)
    np.testing.assert_allclose(outcome.rewards[finished], expected.rewards[finished], atol=1e-4)
    assert outcome.reward == np.nanmax(outcome.rewards)
    assert expected.rewards[finished].mean() > expected.rewards[~finished].mean()
    assert outcome.images < expected.images


def test_networks_at_kept_rates_are_not_passed_by(tmp_path):
    _, _, history = searched(tmp_path, "fast", target=0.7, keep=(0.9, 0.8))
    rates = [row["rate"] for row in history.rows]
    for wanted in (0.9, 0.8, 0.7):
        assert wanted - 0.04 < next(rate for rate in rates if rate <= wanted) <= wanted


def test_without_gradients_three_quarters_are_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(FastEvaluator, "FINISHED", 2)
    _, _, history = searched(tmp_path, "fast", target=0.85, score="l1")
    first, *later = history.rows[1:]
    assert history.rows[-1]["rate"] <= 0.85
    assert np.isfinite([row["val_loss"] for row in history.rows]).all()
    assert first["learnt"]["forecast"] == Forecast().state()  # nothing was foretold
    assert max(row["evaluations"] for row in later) <= first["evaluations"]
