"""Searches of networks with several ends, of pixels, series and numbers, and where they are cut."""

import itertools
from functools import partial

import keras
import numpy as np
import pytest
import tensorflow as tf
from ekg_tf.nets import stateless
from ekg_tf.nets.graph import ChannelGraph
from ekg_tf.nets.zoo.resnet import cifar_resnet
from ekg_tf.options.methods import SWP
from ekg_tf.pruning.engine import features
from ekg_tf.pruning.engine.cuts import LONG, MAX_LIVE
from ekg_tf.pruning.engine.evaluator import ExactEvaluator, NaiveEvaluator
from ekg_tf.pruning.engine.fast import FastEvaluator
from ekg_tf.pruning.engine.segments import Segments
from ekg_tf.pruning.history import History, output_shapes
from ekg_tf.pruning.methods.by_name import SEARCHES
from ekg_tf.pruning.space.candidates import Proposal
from ekg_tf.pruning.space.stages import frozen_gates
from ekg_tf.pruning.supernet.network import Supernet, stages_of
from ekg_tf.pruning.worth.rewards import Knowledge, Reward, loss_and_accuracy
from ekg_tf.utils.errors import UserError
from ekg_tf.utils.runfolder import RunFolder
from ekg_tf.utils.trees import mapped, parts_of, rows_of, tree_of

from tests.helpers.networks import random_mask
from tests.helpers.options import search_options
from tests.helpers.searches import proposals_at
from tests.helpers.tasks import BUILDERS, Case, regression, series, two_ends, unet


def squared(teacher, student):
    """Knowledge of one's own, without a bound."""
    pairs = zip(parts_of(teacher), parts_of(student), strict=True)
    return sum(tf.reduce_mean((a - b) ** 2, -1) for a, b in pairs) - 1.0


def outputs_of(model, val):
    """By batch statistics, from the stock network; tree of float32 [n, ...]."""
    batches = []
    for rows in val.batches():
        values = stateless.read(model)
        inputs = rows_of(val.inputs, rows)
        with stateless.batch_statistics(model):
            batches.append(stateless.call(model, values, inputs, training=True)[0])
    return mapped(lambda *parts: np.concatenate(parts), *batches)


def assert_close(found, expected, **tolerance):
    for one, other in zip(parts_of(found), parts_of(expected), strict=True):
        np.testing.assert_allclose(one, other, **tolerance)


def mean_losses(case, outputs, teacher=None):
    """The loss of every example by Keras's own losses on what the network gives."""
    given = case.task.given(mapped(tf.constant, outputs))
    weights = parts_of(case.val.weights) if case.val.weights is not None else (None,) * 9
    total, heads = 0.0, zip(parts_of(given), parts_of(case.val.targets), strict=False)
    for number, (one, target) in enumerate(heads):
        head = case.task.heads[number]
        name = case.given.model.loss
        loss = keras.losses.get(name[number] if isinstance(name, list) else name)
        values = np.asarray(loss(target, one))
        values = values.reshape(len(values), -1).mean(1)
        total = total + head.weight * values * (1 if weights[number] is None else weights[number])
    return total


# ---------------------------------------------------------------- evaluators


@pytest.mark.parametrize(("teacher", "weighted"), [(False, False), (True, True)])
@pytest.mark.parametrize("build", BUILDERS)
def test_every_evaluator_gives_the_rewards_of_the_pruned_networks(build, teacher, weighted):
    case = Case(build, weighted=weighted)
    graph, val = case.graph, case.val
    reward = Reward(case.task, val, case.teacher() if teacher else None)
    evaluators = [kind(graph, val) for kind in (ExactEvaluator, NaiveEvaluator)]
    for mask in (graph.open_mask(), random_mask(graph, keep=0.8)):
        proposals = proposals_at(graph, mask)
        assert len(proposals) == len(graph.groups)
        expected = outputs_of(graph.pruned(mask), val)
        exact, naive = [], None
        for evaluator in evaluators:
            assert_close(evaluator.set_current(mask), expected, atol=1e-4)
        exact, naive = (one.best(proposals, reward) for one in evaluators)
        assert exact.best == naive.best == np.argmax(naive.rewards)
        done = ~np.isnan(exact.rewards)
        np.testing.assert_allclose(exact.rewards[done], naive.rewards[done], rtol=1e-5, atol=1e-5)
        assert (naive.rewards[~done] < naive.reward).all()
        assert_close(exact.outputs, naive.outputs, atol=1e-4)
        for proposal, value in zip(proposals, naive.rewards, strict=True):
            pruned = outputs_of(graph.pruned(proposal.mask), val)
            assert -np.mean(reward.all_losses(pruned)) == pytest.approx(value, abs=1e-4)


@pytest.mark.parametrize("build", BUILDERS)
def test_the_loss_on_d_val_is_keras_own(build):
    case = Case(build, weighted=True)
    outputs = outputs_of(case.graph.model, case.val)
    loss, accuracy = loss_and_accuracy(case.task, case.val, outputs)
    assert loss == pytest.approx(float(np.mean(mean_losses(case, outputs))), rel=1e-5)
    assert accuracy is None


@pytest.mark.parametrize("build", [two_ends, unet])
@pytest.mark.parametrize("options", [{"cache_bytes": 0}, {"workers": 1}])
def test_neither_memory_nor_threads_change_the_outcome(build, options):
    case = Case(build)
    reward = Reward(case.task, case.val, case.teacher())
    mask = random_mask(case.graph, keep=0.8)
    proposals = proposals_at(case.graph, mask)
    outcomes = []
    for one in ({}, options):
        evaluator = ExactEvaluator(case.graph, case.val, **one)
        outputs, scores = evaluator.set_current_with_importance(mask, reward)
        assert_close(evaluator.set_current(mask), outputs, atol=1e-5)
        outcomes.append((outputs, scores, evaluator.best(proposals, reward)))
    (outputs, scores, best), (others, other_scores, other_best) = outcomes
    assert_close(others, outputs, atol=0)
    np.testing.assert_array_equal(other_scores, scores)
    assert (other_best.best, other_best.reward) == (best.best, best.reward)


@pytest.mark.parametrize("build", [two_ends, unet, series])
def test_full_width_with_xla_is_the_same_as_sliced(build):
    case = Case(build, count=16, batch_images=8)
    reward = Reward(case.task, case.val, case.teacher())
    mask = random_mask(case.graph, keep=0.8)
    sliced, masked = (ExactEvaluator(case.graph, case.val, compile=one) for one in (False, True))
    outputs, scores = sliced.set_current_with_importance(mask, reward)
    compiled, compiled_scores = masked.set_current_with_importance(mask, reward)
    assert_close(compiled, outputs, atol=1e-4)
    np.testing.assert_allclose(compiled_scores[:-1], scores[:-1], rtol=2e-3, atol=1e-3)
    proposals = proposals_at(case.graph, mask)
    assert sliced.best(proposals, reward).best == masked.best(proposals, reward).best


@pytest.mark.parametrize("evaluator", [ExactEvaluator, FastEvaluator])
def test_without_a_known_bound_nothing_is_given_up(evaluator):
    """A loss of one's own that is below zero, and knowledge of one's own."""
    case = Case(regression, batch_images=3, knowledge=squared)
    for teacher in (None, case.teacher()):
        reward = Reward(case.task, case.val, teacher)
        assert (reward.least_losses() == -np.inf).all()
        exact, naive = evaluator(case.graph, case.val), NaiveEvaluator(case.graph, case.val)
        mask = case.graph.open_mask()
        exact.set_current(mask)
        proposals = proposals_at(case.graph, mask, step=0.3)
        expected = naive.best(proposals, reward)
        for _ in range(3):
            outcome = exact.best(proposals, reward)
            assert np.isfinite(outcome.reward) and outcome.reward > 0
            if evaluator is ExactEvaluator:
                assert outcome.best == expected.best
                np.testing.assert_allclose(outcome.rewards, expected.rewards, rtol=1e-5)
        assert all(np.isfinite(ratio) for ratio in exact.ratios().values())


def test_a_known_bound_gives_up_early_for_numbers_as_well():
    case = Case(series, count=40, batch_images=2)
    last = case.graph.model.get_layer("next")
    kernel = last.kernel.numpy()
    kernel[:, 0] = 0  # so that one filter can go for nothing
    last.kernel.assign(kernel)
    outputs = outputs_of(case.graph.model, case.val)
    object.__setattr__(case.val, "targets", outputs + 0.05)  # a network that is nearly right
    reward = Reward(case.task, case.val, outputs)
    assert (reward.least_losses() == 0).all()
    evaluator = ExactEvaluator(case.graph, case.val, workers=1)
    mask = case.graph.open_mask()
    evaluator.set_current(mask)
    number, gate = next((n, g) for n, g in enumerate(case.graph.groups) if g.layers == ("third",))
    for_nothing = mask.copy()
    for_nothing[gate.start] = 0
    size = case.graph.flops(for_nothing)
    proposals = [
        proposals_at(case.graph, mask, 1.0)[0],
        Proposal(number, np.array([0]), 0.0, for_nothing, size),
    ]
    outcomes = [evaluator.best(proposals, reward) for _ in range(2)]
    expected = NaiveEvaluator(case.graph, case.val).best(proposals, reward)
    assert {one.best for one in outcomes} == {expected.best} == {1}
    assert np.isnan(outcomes[1].rewards).any()


# ---------------------------------------------------------------- importance and features


def scores_by_hand(case, mask, reward):
    """|sum of (d loss / d y) * y| at every kernel's input, by Keras's own functions."""
    graph = case.graph
    pruned = graph.pruned(mask)
    sub = ChannelGraph(pruned)
    layers = dict.fromkeys(call.operation.name for call in sub.calls if "kernel" in _names(call))
    scores = np.zeros(graph.num_units + 1)
    sites = {}
    for ours, theirs in zip(graph.calls, sub.calls, strict=True):
        if ours.operation.name in layers:
            sites.setdefault(id(ours.inputs[0]), (ours.inputs[0], theirs.inputs[0]))
    for rows in case.val.batches():
        for tensor, site in sites.values():
            units = graph.tensor_units(tensor)
            kept = units[mask[units] > 0]
            if any(site is one for one in pruned.inputs) or (kept == graph.num_units).all():
                continue
            front = keras.Model(pruned.inputs, [site])
            for layer in front.layers:
                if isinstance(layer, keras.layers.BatchNormalization):
                    layer.momentum = 1.0
            whole = _with_factor(pruned, site)
            factor = tf.Variable(np.ones(len(kept), np.float32))
            with tf.GradientTape() as tape:
                outputs = whole([*parts_of(rows_of(case.val.inputs, rows)), factor])
                loss = tf.reduce_sum(reward.losses(tree_of(outputs), rows))
            slope = tape.gradient(loss, factor, unconnected_gradients="zero").numpy()
            signed = np.zeros_like(scores)
            np.add.at(signed, kept, slope)
            scores += np.abs(signed)
    return scores * (mask > 0)


def _names(call):
    return [one.name for one in getattr(call.operation, "weights", ())]


def _with_factor(model, site):
    """A function (inputs, factors of the site's channels) -> outputs, batch statistics."""
    calls = ChannelGraph(model).calls

    def run(arguments):
        *inputs, factor = arguments
        values = {id(t): tf.constant(x) for t, x in zip(model.inputs, inputs, strict=True)}
        with stateless.batch_statistics(model):
            for call in calls:
                args, kwargs = call.arguments.fill_in(values)
                if isinstance(call.operation, keras.layers.BatchNormalization):
                    kwargs["training"] = True
                results = keras.tree.flatten(call.operation(*args, **kwargs))
                for tensor, value in zip(call.outputs, results, strict=True):
                    values[id(tensor)] = value * factor if tensor is site else value
        return [values[id(one)] for one in model.outputs]

    return run


@pytest.mark.parametrize("build", BUILDERS)
def test_taylor_scores_of_every_task(build):
    case = Case(build, weighted=True)
    mask = random_mask(case.graph, keep=0.7)
    reward = Reward(case.task, case.val, case.teacher())
    evaluator = ExactEvaluator(case.graph, case.val)
    outputs, scores = evaluator.set_current_with_importance(mask, reward)
    expected = scores_by_hand(case, mask, reward)
    assert (expected[:-1][mask[:-1] > 0] > 0).any()
    np.testing.assert_allclose(
        scores[:-1], expected[:-1], rtol=2e-3, atol=2e-4 * expected[:-1].max()
    )
    assert_close(outputs, outputs_of(case.graph.pruned(mask), case.val), atol=1e-4)
    # without a teacher the same pass serves a reward of another structure
    alone = Reward(case.task, case.val)
    _, scores = evaluator.set_current_with_importance(mask, alone)
    expected = scores_by_hand(case, mask, alone)
    np.testing.assert_allclose(
        scores[:-1], expected[:-1], rtol=2e-3, atol=2e-4 * expected[:-1].max()
    )


@pytest.mark.parametrize("build", [two_ends, unet, series])
def test_features_of_every_task(build):
    case = Case(build)
    mask = random_mask(case.graph)
    segments = Segments(case.graph)
    inputs = rows_of(case.val.inputs, case.val.batches()[0])
    both = features.FeaturePass(segments)
    outputs, found = both.run(mapped(tf.constant, inputs), segments.weights(mask), mask)
    expected = outputs_of(case.graph.pruned(mask), case.val)
    assert_close(outputs, rows_of(expected, case.val.batches()[0]), atol=1e-4)
    assert found.shape == (8, features.width(case.graph.model))


# ---------------------------------------------------------------- cuts


def kernels_between(segments):
    calls, bounds = segments.graph.calls, segments.bounds
    reads = [getattr(segments.layers.get(one.operation.name), "reads", False) for one in calls]
    return [sum(reads[a:b]) for a, b in itertools.pairwise(bounds)]


def test_a_residual_network_is_cut_where_one_tensor_is_live():
    segments = Segments(ChannelGraph(cifar_resnet(20, 10, (8, 8, 1))))
    assert segments.bounds == [0, 1, 9, 16, 23, 32, 39, 46, 55, 62, 69, 72]
    assert {len(cut) for cut in segments.cuts} == {1}


def test_a_network_with_skips_is_cut_where_a_few_tensors_are_live():
    graph = ChannelGraph(unet())
    segments = Segments(graph)
    lives = [len(cut) for cut in segments.cuts]
    assert len(lives) >= 9 and max(lives) == 3 and lives.count(1) >= 2
    kernels = kernels_between(segments)
    assert min(kernels) >= 1 and max(kernels) <= 2


def test_an_input_that_waits_and_an_early_output_are_live():
    first, last = keras.Input((5,)), keras.Input((2,))
    x, early = first, None
    for number in range(LONG + 2):
        x = keras.layers.Dense(4, activation="relu", name=f"dense{number}")(x)
        early = x if number == 2 else early
    x = keras.layers.Concatenate()([x, last])
    graph = ChannelGraph(keras.Model([first, last], [early, keras.layers.Dense(3)(x)]))
    segments = Segments(graph)
    first, last = graph.model.inputs
    early = graph.model.outputs[0]
    assert [len(cut) for cut in segments.cuts] == [2] * 4 + [3] * 4 + [2]
    assert all(any(last is one for one in cut) for cut in segments.cuts[:-1])
    assert all(any(early is one for one in cut) for cut in segments.cuts[3:])
    assert segments.graph.is_whole(early)


def test_more_than_a_few_live_tensors_are_no_cut():
    image = keras.Input((4, 4, 3))
    branches = [image] * (MAX_LIVE + 2)
    for number in range(2):
        branches = [
            keras.layers.Conv2D(2, 1, name=f"b{number}{place}")(one)
            for place, one in enumerate(branches)
        ]
    graph = ChannelGraph(keras.Model(image, keras.layers.Concatenate()(branches)))
    segments = Segments(graph)
    assert sum(kernels_between(segments)) > LONG
    assert all(len(cut) <= MAX_LIVE for cut in segments.cuts)


def test_cuts_lower_the_number_of_calls_that_proposals_run():
    """Calls that the proposals of all gates of a U-Net run, beside those of whole passes."""
    graph = ChannelGraph(unet())
    segments = Segments(graph)
    whole = len(graph.calls) * len(graph.groups)
    run = sum(
        len(graph.calls) - segments.bounds[segments.first_segment(gate)]
        for gate in range(len(graph.groups))
    )
    assert run < 0.65 * whole


# ---------------------------------------------------------------- whole searches


def searched(path, case, method, stop_at=None, **options):
    settings = search_options(**({"rate": 0.6, "method": method} | options))
    order = None
    if settings.method.supernet:
        random = np.random.default_rng(3)
        parts = [random.permutation(group.channels) for group in case.graph.groups]
        order = np.concatenate(parts)
    for stop in (stop_at, None) if stop_at else (None,):
        with RunFolder.open(path, {"do_log": False}) as folder:
            history = History(folder, output_shapes(case.graph, len(case.val)))
            search = SEARCHES[method](
                case.graph, case.val, history, settings, case.task, order=order
            )
            if stop:
                history.add = partial(_add_until, history.add, stop)
                with pytest.raises(KeyboardInterrupt):
                    search.run()
            else:
                search.run()
    return history


def _add_until(add, stop, row, outputs):
    if row["step"] == stop:
        raise KeyboardInterrupt
    add(row, outputs)


def untimed(history):
    """Rows without what threads decide, which is when a hopeless proposal is given up."""
    timed = ("seconds", "images", "chain")
    return [{k: v for k, v in row.items() if k not in timed} for row in history.rows]


SMALL = {
    "swp": {"width_steps": 4, "population": 4, "generations": 2},
    "autoslim": {"width_steps": 4},
    "ekg": {"teacher": "ensemble"},
}


@pytest.mark.parametrize("build", BUILDERS)
def test_a_killed_search_of_any_task_ends_with_the_same_network(tmp_path, build):
    case = Case(build, weighted=True)
    whole = searched(tmp_path / "whole", case, "ekg", **SMALL["ekg"])
    resumed = searched(tmp_path / "killed", case, "ekg", stop_at=3, **SMALL["ekg"])
    assert untimed(whole) == untimed(resumed) and len(whole.rows) > 4
    assert whole.rows[-1]["flops_rate"] <= 0.6
    steps = len(whole.rows) - 1
    network = case.graph.pruned(whole.mask(case.graph, steps))
    outputs = outputs_of(network, case.val)
    assert_close(whole.outputs(steps), outputs, atol=1e-4)
    row = whole.rows[-1]
    assert row["val_accuracy"] is None
    assert row["val_loss"] == pytest.approx(np.mean(mean_losses(case, outputs)), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("method", sorted(set(SEARCHES) - {"ekg"}))
@pytest.mark.parametrize("build", [two_ends, unet, regression])
def test_every_method_searches_any_task(tmp_path, build, method):
    case = Case(build)
    history = searched(tmp_path, case, method, **SMALL.get(method, {}))
    row = history.rows[-1]
    assert row["rate"] <= 0.6 and np.isfinite(row["val_loss"])
    outputs = outputs_of(case.graph.pruned(history.mask(case.graph, row["step"])), case.val)
    assert_close(history.outputs(row["step"]), outputs, atol=1e-4)


def test_the_exact_search_takes_the_naive_ones_steps(tmp_path):
    case = Case(unet)
    exact, naive = (
        searched(tmp_path / one, case, "ekg", evaluator=one, teacher="ensemble")
        for one in ("exact", "naive")
    )
    assert [row["widths"] for row in exact.rows] == [row["widths"] for row in naive.rows]


def test_a_loss_that_is_not_finite_is_one_clear_line(tmp_path):
    case = Case(regression)
    targets = case.val.targets.copy()
    targets[3] = np.nan
    object.__setattr__(case.val, "targets", targets)
    with pytest.raises(UserError, match="step 0 of the search: the loss on D_val is nan"):
        searched(tmp_path, case, "ekg")


def test_knowledge_is_a_mean_of_trees():
    knowledge = Knowledge("ensemble")
    for value in (1.0, 2.0, 6.0):
        knowledge.add((np.full((2, 3), value, np.float32), np.full((2,), -value, np.float32)))
    first, second = knowledge.outputs
    assert (first == 3).all() and (second == -3).all() and first.dtype == np.float32


# ---------------------------------------------------------------- supernets


def test_a_network_without_a_single_tensor_cut_is_one_stage():
    case = Case(two_ends)
    (stage,) = stages_of(case.graph, "auto")
    assert len(stage.gates) == len(case.graph.groups) and not frozen_gates(case.graph, [stage])
    assert stage.flops == case.graph.flops()
    with pytest.raises(UserError, match=r"2 stages: .* into 1 stages at most"):
        stages_of(case.graph, 2)


@pytest.mark.parametrize("build", BUILDERS)
def test_the_sandwich_loss_is_that_of_the_pruned_networks(build):
    case = Case(build, count=12, batch_images=12, weighted=True)
    model, val = case.graph.model, case.val
    order = np.concatenate([np.arange(group.channels) for group in case.graph.groups])
    supernet = Supernet(model, order, SWP(width_steps=4), case.task)
    step = tf.constant(5)
    batch = {
        "inputs": mapped(lambda one: tf.constant(one[:, None]), val.inputs),
        "targets": mapped(tf.constant, val.targets),
        "weights": mapped(tf.constant, val.weights),
        "step": tf.fill([12], step),
    }
    values = [tf.convert_to_tensor(v.value) for v in model.variables]
    loss, metrics, _ = tf.function(supernet.make_forward(1, 2), autograph=False)(values, batch, [])
    whole = mapped(tf.constant, outputs_of(model, val))
    expected = [float(tf.reduce_mean(Reward(case.task, val).losses(whole)))]
    for mask in supernet.masks(1, step, 2):
        student = mapped(tf.constant, outputs_of(supernet.graph.pruned(mask.numpy()), val))
        expected.append(float(case.task.distillation(whole, student, 1.0)))
    assert float(metrics["label_loss"]) == pytest.approx(expected[0], rel=1e-4, abs=1e-5)
    assert float(metrics["narrowest_loss"]) == pytest.approx(expected[1], rel=1e-3, abs=1e-5)
    assert float(loss) == pytest.approx(sum(expected), rel=1e-3, abs=1e-4)
    assert "accuracy" not in metrics
