"""Searches that live with little memory: the same numbers, ways chosen by what they take."""

import shutil
from collections import namedtuple
from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
from ekg_tf.nets.graph import ChannelGraph
from ekg_tf.nets.keras_graph import calls_of
from ekg_tf.nets.sections import Sections
from ekg_tf.nets.stateless import call
from ekg_tf.op_utils import make_train_step
from ekg_tf.options.methods import EKG
from ekg_tf.options.search import SearchOptions
from ekg_tf.phases import adapting, memory
from ekg_tf.pruning.engine.current import MemoryPlan
from ekg_tf.pruning.engine.evaluator import ExactEvaluator
from ekg_tf.pruning.engine.fast import FastEvaluator
from ekg_tf.pruning.engine.importance import ImportancePass
from ekg_tf.pruning.engine.kept import Files, Kept
from ekg_tf.pruning.engine.memory import SLACK, Needs, counted, least, plan_within
from ekg_tf.pruning.engine.prefix import PrefixCuts
from ekg_tf.pruning.engine.recomputed import RecomputedPass
from ekg_tf.pruning.engine.segments import Segments
from ekg_tf.utils.devices import Device
from ekg_tf.utils.errors import UserError

import ekg_tf as ekg
from tests.helpers.networks import (
    ZOO,
    conv_bn,
    dense_block,
    head,
    images_for,
    random_mask,
    residual,
    shaken,
)
from tests.helpers.searches import proposals_at, reward_for, searched, validation

L = keras.layers
LEAN = MemoryPlan(workers=1, passes=1, recompute=True, cached_bytes=0)


def arrays(found):
    return [np.asarray(one) for one in tf.nest.flatten(found)]


def assert_equal(found, expected):
    pairs = list(zip(arrays(found), arrays(expected), strict=True))
    assert pairs
    for a, b in pairs:
        np.testing.assert_array_equal(a, b)


def long_skip():
    """A tensor that is read before, between and behind cuts of several tensors."""
    image = L.Input((8, 8, 3))
    x = L.ReLU()(conv_bn(image, 6, "stem"))
    y = x
    for number in range(7):
        y = L.ReLU()(conv_bn(y, 5, f"inner{number}"))
        if number in (2, 5):
            y = L.Concatenate()([y, x])
    return keras.Model(image, head(L.Concatenate()([y, x])))


@pytest.mark.parametrize("build", [*ZOO, long_skip])
def test_segment_by_segment_the_importance_pass_gives_the_same_numbers(build):
    graph = ChannelGraph(shaken(build()))
    val = validation(graph.model, count=9)
    reward, parts = reward_for(graph.model, val), Segments(graph)
    cuts = list(range(len(parts.cuts)))
    mask = random_mask(graph, keep=0.7)
    asked = tf.constant(val.inputs), reward.terms(slice(None)), parts.weights(mask), mask
    whole, again = (
        kind(parts, cuts[::2], reward, cuts[1:]).run(*asked)
        for kind in (ImportancePass, RecomputedPass)
    )
    assert whole[2].max() > 0
    assert_equal(again, whole)


def test_a_gradient_that_a_loss_does_not_reach_is_zero_in_both():
    """Of two outputs the loss reads one."""
    image = L.Input((8, 8, 3))
    x = L.ReLU()(conv_bn(image, 4, "stem"))
    y = L.ReLU()(conv_bn(x, 5, "other"))
    model = shaken(keras.Model(image, [head(x, "fc"), head(y, "fc2")]))
    graph = ChannelGraph(model)
    parts, images = Segments(graph), tf.constant(images_for(model))

    class FirstAlone:
        losses_on = staticmethod(lambda outputs, terms: tf.reduce_sum(outputs[0] ** 2, 1))
        terms = staticmethod(lambda rows: {"none": tf.zeros([8])[rows]})

    mask = graph.open_mask()
    asked = images, FirstAlone.terms(slice(None)), parts.weights(mask), mask
    cuts = list(range(len(parts.cuts)))
    kinds = ImportancePass, RecomputedPass
    whole, again = (kind(parts, cuts, FirstAlone, cuts[1:]).run(*asked) for kind in kinds)
    assert_equal(again, whole)
    unread = graph.groups[[one.layers[0] for one in graph.groups].index("other")]
    assert (again[2][unread.start : unread.start + unread.channels] == 0).all()
    assert again[2].max() > 0


@pytest.mark.parametrize("kind", [ExactEvaluator, FastEvaluator])
@pytest.mark.parametrize("build", [residual, dense_block])
def test_no_way_of_living_with_little_memory_changes_a_number(build, kind):
    graph = ChannelGraph(shaken(build()))
    val = validation(graph.model, count=25)
    reward, mask = reward_for(graph.model, val), random_mask(graph, keep=0.8)
    proposals, found = proposals_at(graph, mask), []
    for plan in (MemoryPlan(), LEAN, MemoryPlan(passes=1, cached_bytes=5000)):
        evaluator = kind(graph, val, plan=plan)
        outputs, scores = evaluator.set_current_with_importance(mask, reward)
        outcome = evaluator.best(proposals, reward)
        again = evaluator.set_current(mask)
        current = evaluator.current
        found.append([outputs, scores, again, outcome.outputs, outcome.reward, outcome.best])
        if plan is LEAN:
            assert current._outside == set(current.cuts.kept[1:])
            assert not any(kept._values.keys() - {0} for kept in current.cache)
    for one in found[1:]:
        assert_equal(one, found[0])


@pytest.mark.parametrize("evaluator", ["exact", "fast"])
def test_a_search_with_little_memory_has_the_same_history(tmp_path, evaluator):
    plans = {"plenty": MemoryPlan(workers=1), "lean": LEAN}
    ends = [
        searched(tmp_path / name, evaluator, target=0.85, plan=plan)[2].rows[-1]
        for name, plan in plans.items()
    ]
    assert ends[0]["step"] > 1
    assert ends[0]["chain"] == ends[1]["chain"]  # a digest of all rows and outputs


def test_what_is_kept_in_files_is_read_back_and_goes_with_the_process():
    rng = np.random.default_rng(0)
    pair = tf.constant(rng.normal(size=(3, 2))), tf.constant([[1], [7]])
    values = {0: tf.zeros([2]), 4: pair, 9: tf.constant([1.5, -0.0])}
    files = Files()
    kept = Kept(values, {4}, files, "x")
    assert list(kept) == [0, 4, 9]
    assert_equal(dict(kept), values)
    assert kept[9] is values[9]
    assert kept[4][0] is not pair[0]
    assert {path.name for path in files._folder.iterdir()} == {"x_4.0", "x_4.1"}
    shutil.rmtree(files._folder)
    with pytest.raises(UserError, match="name a larger disk by TMPDIR"):
        Kept(values, {4}, files, "x")


def test_cuts_that_few_proposals_start_from_go_to_files_first():
    #                    cut: 0  1  2  3  4
    cuts = PrefixCuts([9, 40, 20, 30, 10], [2, 5, 1, 1, 0], budget=100)
    assert cuts.kept == [0, 1, 2, 3, 4]
    times = {1: 1.0, 2: 1.5, 3: 1.0, 4: 1.0}  # 110 in all
    assert cuts.outside(110, times) == set()
    assert cuts.outside(109, times) == {4}
    assert cuts.outside(99, times) == {4, 3}  # of 2 and 3 the larger one
    assert cuts.outside(0, times) == {1, 2, 3, 4}


NEEDS = Needs(
    batch=50,
    batches=2,
    whole=1000,
    recomputed=400,
    forward=100,
    ranking=True,
    inputs=0,
    kept=600,
    outside=50,
)


def test_the_fastest_way_that_fits_is_taken():
    def way(room):
        return plan_within(SLACK * room, NEEDS, 2)

    assert way(2600) == MemoryPlan()  # two passes of 1000 beside 600 that are kept
    assert way(2599) == MemoryPlan(passes=1)
    assert way(1599) == MemoryPlan(recompute=True)
    assert way(1399) == MemoryPlan(passes=1, recompute=True)
    # 400 of the pass and 300 until a batch is in its files
    assert way(990) == MemoryPlan(2, 1, True, cached_bytes=290)
    assert way(699) is None
    without = replace(NEEDS, ranking=False)  # forward passes alone
    assert plan_within(SLACK * 800, without, 2) == MemoryPlan()


def test_the_least_room_is_enough_and_less_is_not():
    for forward in (100, 800):
        needs = replace(NEEDS, forward=forward)
        assert plan_within(least(needs), needs, 2) is not None
        assert plan_within(least(needs) - 2, needs, 2) is None


# ---------------------------------------------------------------- theta_0


def trained(model, run, accum=2):
    """(loss of each of two steps, values of all variables after them)."""
    rng = np.random.default_rng(2)

    def loss_fn(outputs, batch, taught):
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(batch["targets"], outputs[0])
        return tf.reduce_mean(losses), {}

    optimizer = keras.optimizers.SGD(0.05)
    strategy = tf.distribute.get_strategy()
    steps = make_train_step(model, optimizer, loss_fn, strategy, accum=accum, run=run)
    targets = rng.integers(0, 5, 8).astype(np.int32)
    batch = {"inputs": images_for(model)[:, None], "targets": targets}
    batches = tf.data.Dataset.from_tensors(batch).repeat()
    return steps(iter(batches), tf.constant(2))["loss"], [v.numpy() for v in model.variables]


def dropping():
    image = L.Input((8, 8, 3))
    x = L.Dropout(0.4, seed=3)(L.ReLU()(conv_bn(image, 6, "a")))
    x = L.Dropout(0.4, seed=4)(L.ReLU()(conv_bn(x, 6, "b")))
    return keras.Model(image, head(x))


@pytest.mark.parametrize("build", [residual, dropping])
def test_training_in_sections_gives_the_same_numbers(build):
    model = shaken(build())
    copies = [keras.models.clone_model(model) for _ in range(2)]
    for one in copies:
        one.set_weights(model.get_weights())
    sections = adapting.in_sections(copies[1])
    assert len(sections._calls) > 1
    whole, parted = trained(copies[0], call), trained(copies[1], sections)
    assert np.abs(whole[1][0] - model.variables[0].numpy()).max() > 0
    assert_equal(parted, whole)


def test_sections_never_end_at_whole_numbers_or_masks():
    words = L.Input((6,), dtype="int32")
    same = L.Identity()(words)
    x = L.Embedding(9, 4, mask_zero=True)(same)
    x = L.Dense(4, name="masked")(x)
    x = L.LSTM(4, name="unmasked")(x)
    model = keras.Model(words, L.Dense(5)(x))
    sections = Sections(model, range(1, len(calls_of(model))))
    names = [[call.operation.name for call in calls] for calls in sections._calls]
    assert len(names) == 2
    assert "unmasked" in names[0]
    assert len(names[1]) == 1
    with pytest.raises(ValueError, match="training alone"):
        sections(model, [], None, training=False)


def test_micro_batches_take_the_memory_of_one():
    def peak(accum):
        image = x = L.Input((32, 32, 3))
        for number in range(6):  # 384 KiB an example: small tensors aren't counted
            x = L.ReLU()(L.Conv2D(96, 3, padding="same", name=f"c{number}")(x))
        model = keras.Model(image, head(x))
        with counted() as beyond:
            trained(model, call, accum)
            return beyond()

    assert peak(8) < 0.6 * peak(1)


# ---------------------------------------------------------------- before any work


def parts_of(**more):
    given = {"base": 2 << 30, "needs": NEEDS, "workers": 2}
    given |= {"adapting": 3 << 30, "in_sections": 1 << 30, "testing": 1 << 30}
    return memory._Parts(**given | more)


def test_a_limit_that_is_too_small_is_refused_with_the_smallest_that_would_do():
    parts = parts_of()
    with pytest.raises(UserError, match=r"would do is 3\.0 GiB; a smaller search_batch_size"):
        memory._within(2.9 * 2**30, parts, True, "memory 2.9")
    found = memory._within(3.0 * 2**30, parts, True, "memory 3")
    assert found.sections
    assert found.peak == 3 << 30
    assert not memory._within(5.0 * 2**30, parts, True, "memory 5").sections
    testing = parts_of(testing=4 << 30)
    with pytest.raises(UserError, match=r"would do is 6\.0 GiB; a smaller val_batch_size"):
        memory._within(5 * 2**30, testing, True, "memory 5")
    assert memory._within(2**30, testing, False, "").plan == LEAN  # it was looked at before


def test_a_search_that_cannot_fit_is_refused_before_there_is_a_folder(tmp_path):
    model = residual()
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    labels = np.arange(60, dtype=np.int32) % 5
    split = images_for(model, 60), labels
    folder = tmp_path / "run"
    with pytest.raises(UserError, match=r"memory 0\.1 is not enough .* would do is \d+\.\d GiB"):
        ekg.run_search(model, split, split, folder, method=ekg.EKG(memory=0.1), verbose=0)
    assert not folder.exists()


def test_where_no_limit_can_be_kept_one_is_refused_and_none_is_needed(monkeypatch):
    device = Device(tf.distribute.get_strategy(), compile=True)
    limited, free = (SearchOptions(method=EKG(memory=one)) for one in (9, None))
    with pytest.raises(UserError, match="memory 9: no limit can be kept on a GPU, with XLA"):
        memory.planned(None, None, None, limited, device)
    assert memory.planned(None, None, None, free, device) is memory.USUAL
    monkeypatch.setattr(memory, "is_counted", lambda: False)
    with pytest.raises(UserError, match="no limit can be kept without oneDNN's allocator"):
        memory.planned(None, None, None, limited, replace(device, compile=False))


def test_a_disk_that_is_too_small_for_the_files_is_named(monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 2**20))
    needs = replace(NEEDS, kept=2**30, outside=0)
    parts = parts_of(needs=needs, adapting=1, in_sections=1, testing=1)
    with pytest.raises(UserError, match=r"don't fit on the disk of .*TMPDIR"):
        memory._within(2.9 * 2**30, parts, True, "memory 2.9")


def test_a_warning_where_the_machine_is_too_small(monkeypatch, capsys):
    monkeypatch.setattr(memory, "free_bytes", lambda: 2**20)
    monkeypatch.setattr(memory, "resident_bytes", lambda: 2**30)
    found = memory._within_machine(parts_of())
    assert found.plan == LEAN or found.plan == MemoryPlan(1, 1, True, 0)
    printed = "".join(capsys.readouterr())
    assert "the search takes about 3.0 GiB of memory, and the machine has 1.0 GiB" in printed


def test_memory_is_an_option_of_the_methods_that_can_keep_it():
    assert EKG(memory=2).memory == 2.0
    with pytest.raises(UserError, match="not above 0"):
        EKG(memory=0)
    words = str(memory.Memory(MemoryPlan(1, 1, True, 2**30), True, 5 << 30))
    assert words == (
        "memory: about 5.0 GiB at the peak of the search: one batch at a time, gradients segment "
        "by segment, one network at a time, 1.0 GiB of activations in memory, others in files"
    )
