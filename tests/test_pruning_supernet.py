"""Supernets: the width grid, stages, losses, and training steps against naive computations."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from ekg_tf.nets.gates import Gates
from ekg_tf.nets.graph import ChannelGraph
from ekg_tf.nets.zoo.builders import build
from ekg_tf.op_utils import make_train_step
from ekg_tf.options.methods import SWP, AutoSlim
from ekg_tf.pruning.space.stages import frozen_gates
from ekg_tf.pruning.space.width_grid import WidthGrid, grid
from ekg_tf.pruning.supernet.network import (
    Supernet,
    feature_loss,
    stages_of,
)
from ekg_tf.training.task import classification
from ekg_tf.utils.errors import UserError

from tests.helpers.networks import CLASSES, L, conv_bn, head, images_for, mobile, residual, shaken
from tests.helpers.replicas import one_replica, two_replicas


def random_order(graph, seed=3):
    random = np.random.default_rng(seed)
    parts = [random.permutation(gate.channels) for gate in graph.groups]
    return np.concatenate(parts).astype(np.int32)


def supernet_of(model, stagewise):
    order = random_order(ChannelGraph(model))
    options = (SWP if stagewise else AutoSlim)(width_steps=4)
    return Supernet(model, order, options, classification(), stagewise=stagewise)


# ---------------------------------------------------------------- widths


@pytest.mark.parametrize(
    ("channels", "steps", "round_to", "widths"),
    [
        (16, 5, 1, [3, 6, 10, 13, 16]),
        (16, 5, 8, [8, 16]),
        (10, 9, 1, [2, 3, 4, 5, 6, 7, 8, 9, 10]),
        (20, 5, 4, [4, 8, 12, 16, 20]),
        (6, 9, 4, [4, 6]),
        (4, 9, 8, [4]),
        (2, 9, 1, [1, 2]),
        (1, 9, 1, [1]),
    ],
)
def test_grid(channels, steps, round_to, widths):
    assert grid(channels, steps, round_to) == widths


def test_masks_keep_the_leading_channels():
    graph = ChannelGraph(residual())
    order, gates = random_order(graph), Gates(graph.groups)
    gates.set_order(order)
    np.testing.assert_array_equal(gates.order(), order)
    widths = WidthGrid(gates, 4, frozen={1})
    assert widths.grids[1] == [graph.groups[1].channels] and 1 not in widths.free
    for choice in (widths.full(), np.zeros_like(widths.sizes), widths.sizes // 2):
        mask = widths.mask(choice)
        assert mask[-1] == 1 and mask.dtype == np.float32
        for number, gate in enumerate(graph.groups):
            kept = widths.grids[number][choice[number]]
            ranks = order[gate.start : gate.start + gate.channels]
            np.testing.assert_array_equal(mask[gate.units], ranks < kept)
        np.testing.assert_array_equal(widths.mask_tensor(tf.constant(choice)), mask)


def test_random_choices_depend_on_seed_and_step_alone():
    widths = WidthGrid(Gates(ChannelGraph(residual()).groups), 9)
    draw = tf.function(lambda step: widths.random_choice(7, step, 0))
    draws = np.array([draw(tf.constant(step)).numpy() for step in range(2000)])
    for column, size in zip(draws.T, widths.sizes, strict=True):
        shares = np.bincount(column, minlength=size) * size / 2000
        assert len(shares) == size and 0.75 < shares.min() <= shares.max() < 1.25
    assert np.abs(np.corrcoef(draws.T) - np.eye(len(widths.sizes))).max() < 0.1
    assert np.abs(np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]) < 0.1
    compiled = tf.function(lambda step: widths.random_choice(7, step, 0), jit_compile=True)
    np.testing.assert_array_equal(draws[:20], [compiled(tf.constant(s)) for s in range(20)])
    assert (draws[:20] != [widths.random_choice(8, tf.constant(s), 0) for s in range(20)]).any()
    assert (draws[:20] != [widths.random_choice(7, tf.constant(s), 1) for s in range(20)]).any()


# ---------------------------------------------------------------- stages


@pytest.mark.parametrize(
    ("arch", "shape", "stages", "frozen"),
    [
        # (first segment, last segment, number of gates) of every stage
        ("ResNet-20", (32, 32, 3), [(0, 4, 3), (4, 7, 3), (7, 11, 4)], {0, 5}),
        ("ResNet-56", (8, 8, 3), [(0, 10, 9), (10, 19, 9), (19, 29, 10)], {0, 11}),
        ("MobileNet-v2", (32, 32, 3), [(0, 5, 4), (5, 9, 3), (9, 18, 8), (18, 26, 7)], {3, 6, 15}),
        ("ResNet-50", (224, 224, 3), [(0, 4, 7), (4, 8, 8), (8, 14, 12), (14, 18, 7)], {3, 10, 19}),
    ],
)
def test_one_stage_for_every_resolution(arch, shape, stages, frozen):
    graph = ChannelGraph(build(arch, 10, shape))
    found = stages_of(graph, "auto")
    assert [(one.first, one.last, len(one.gates)) for one in found] == stages
    assert frozen_gates(graph, found) == frozen
    assert sum(one.flops for one in found) == graph.flops()


def test_stages_are_joined_and_cut_to_a_number():
    graph = ChannelGraph(build("ResNet-20", 10, (8, 8, 1)))
    (whole,) = stages_of(graph, 1)
    assert len(whole.gates) == len(graph.groups) and not frozen_gates(graph, [whole])
    # 893,952 + 819,200 + 819,840 by resolution: cut once the first two-thirds or the last
    assert [one.last for one in stages_of(graph, 2)] == [4, 11]
    assert [one.last for one in stages_of(graph, 5)] == [2, 4, 7, 9, 11]
    with pytest.raises(UserError, match=r"60 stages: .* into 9 stages at most"):
        stages_of(graph, 60)


@pytest.mark.parametrize("count", [3, 5])
def test_what_a_stage_removes_is_saved_in_that_stage_alone(count):
    graph = ChannelGraph(build("ResNet-20", 10, (8, 8, 1)))
    stages = stages_of(graph, count)
    widths = WidthGrid(Gates(graph.groups), 9, frozen=frozen_gates(graph, stages))
    saved = []
    for stage in stages:
        choice = widths.full()
        choice[list(stage.gates)] = 0
        saved.append(graph.flops() - graph.flops(widths.mask(choice)))
        assert 0 < saved[-1] < stage.flops
    least = np.zeros_like(widths.sizes)
    assert graph.flops() - graph.flops(widths.mask(least)) == sum(saved)


# ---------------------------------------------------------------- losses


def test_stage_losses_by_hand():
    student, teacher = tf.constant([[1.0, 2], [3, 4]]), tf.constant([[0.0, 2], [3, 2]])
    assert float(feature_loss(student, teacher)) == pytest.approx((1 + 0 + 0 + 4) / 4)
    # teacher 1/4, 3/4; student 1/2, 1/2: 0.25 ln 0.5 + 0.75 ln 1.5; the second row agrees
    teacher = tf.constant([[0.0, np.log(3.0)], [1.0, 1.0]])
    loss = float(classification().distillation(teacher, tf.zeros((2, 2)), 1.0))
    assert loss == pytest.approx(0.130812 / 2, abs=1e-6)


def divergence(teacher, student):
    p, q = (np.exp(one - one.max(-1, keepdims=True)) for one in (teacher, student))
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    return float(np.mean(np.sum(p * np.log(p / q), -1)))


@pytest.mark.parametrize("build_net", [residual, mobile])
def test_sandwich_loss_is_that_of_the_pruned_networks(build_net):
    model = shaken(build_net())
    supernet = supernet_of(model, stagewise=False)
    images, labels = images_for(model, 12), np.arange(12, dtype=np.int32) % CLASSES
    step = tf.constant(5)
    batch = {"inputs": images[:, None], "targets": labels, "step": tf.fill([12], step)}
    values = [tf.convert_to_tensor(v.value) for v in model.variables]
    forward = tf.function(supernet.make_forward(1, 2), autograph=False)
    loss, metrics, _ = forward(values, batch, [])
    whole = model(images, training=True).numpy()
    masks = [mask.numpy() for mask in supernet.masks(1, step, 2)]
    assert (masks[0] == supernet.grid.mask(np.zeros_like(supernet.grid.sizes))).all()
    parts = []
    for mask in masks:
        student = supernet.graph.pruned(mask)(images, training=True).numpy()
        parts.append(divergence(whole, student))
    shifted = whole - whole.max(-1, keepdims=True)
    own = shifted[range(12), labels] - np.log(np.exp(shifted).sum(-1))
    assert float(metrics["narrowest_loss"]) == pytest.approx(parts[0], abs=2e-5)
    assert float(metrics["random_loss"]) == pytest.approx(np.mean(parts[1:]), abs=2e-5)
    assert float(loss) == pytest.approx(-own.mean() + sum(parts), abs=1e-4)
    assert float(metrics["accuracy"]) == pytest.approx(100 * np.mean(whole.argmax(-1) == labels))


def test_random_layers_are_off_in_the_whole_network_and_its_versions():
    image = L.Input((8, 8, 3))
    x = L.ReLU()(conv_bn(L.RandomFlip()(image), 4, "first"))
    model = shaken(keras.Model(image, head(conv_bn(L.Dropout(0.9)(x), 6, "second", strides=2))))
    supernet = supernet_of(model, stagewise=False)
    images = tf.constant(images_for(model, 9))
    values = [tf.convert_to_tensor(v.value) for v in model.variables]
    moving = [v for v in model.variables if v.name == "moving_mean"]
    (logits,), state = supernet.features(values, images, moving)
    version = supernet.run_stage(values, 0, images, tf.ones(supernet.graph.num_units + 1))
    np.testing.assert_allclose(version, logits, atol=1e-5)
    assert len(moving) == 2
    for new, variable in zip(state, moving, strict=True):
        assert np.abs(new.numpy() - variable.numpy()).max() > 1e-3


# ---------------------------------------------------------------- training steps


def two_resolutions(bn=True):
    """Two stages, with a residual stream in the first; without batch norm if `bn` is False."""

    def conv(x, filters, name, **options):
        if bn:
            return conv_bn(x, filters, name, **options)
        return L.Conv2D(filters, 3, padding="same", name=name, **options)(x)

    image = L.Input((8, 8, 3))
    x = L.ReLU()(conv(image, 6, "stem"))
    y = L.ReLU()(conv(x, 5, "a1"))
    x = L.ReLU(name="border")(L.Add()([conv(y, 6, "a2"), x]))
    x = L.ReLU()(conv(x, 7, "b1", strides=2))
    return keras.Model(image, head(L.ReLU()(conv(x, 8, "b2"))))


def batches_for(count, batch, shape=(8, 8, 3)):
    random = np.random.default_rng(2)
    arrays = {
        "inputs": random.normal(0.3, 1, (count, 1, *shape)).astype(np.float32),
        "targets": random.integers(0, CLASSES, count, np.int32),
        "step": np.arange(count, dtype=np.int32) // batch + 3,
    }
    return arrays, tf.data.Dataset.from_tensor_slices(arrays).batch(batch, drop_remainder=True)


def stepped(strategy, stagewise, steps, make=two_resolutions, **options):
    """All variables after some steps of plain SGD at rate 1, and the metrics."""
    keras.utils.set_random_seed(1)
    with strategy.scope():
        model = make()
        optimizer = keras.optimizers.SGD(1.0 if steps == 1 else 0.05)
    forward = supernet_of(model, stagewise).make_forward(0, 2)
    step = make_train_step(model, optimizer, None, strategy, forward=forward, **options)
    data = iter(strategy.experimental_distribute_dataset(batches_for(8 * steps, 8)[1]))
    metrics = step(data, tf.constant(steps))
    return model, [v.numpy() for v in model.variables], {k: v.numpy() for k, v in metrics.items()}


def test_one_stagewise_step_against_eager_gradients():
    keras.utils.set_random_seed(1)
    model = two_resolutions()
    start = [v.numpy() for v in model.trainable_variables]
    supernet = supernet_of(model, stagewise=True)
    assert len(supernet.stages) == 2 and len(supernet.graph.groups) == 4
    gated, mask_variable = supernet.graph.gated()
    cut = gated.get_layer(_add(gated)).output
    first, second = keras.Model(gated.inputs, cut), keras.Model(cut, gated.outputs)
    arrays, _ = batches_for(8, 8)
    images, labels = arrays["inputs"][:, 0], arrays["targets"]
    stock = keras.Model(model.inputs, [model.get_layer(_add(model)).output, model.outputs[0]])
    with tf.GradientTape() as tape:
        feature, logits = stock(images, training=True)
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
    total = [one.numpy() for one in tape.gradient(loss, model.trainable_variables)]
    expected_loss = float(loss)
    for mask in supernet.masks(0, tf.constant(3), 2):
        mask_variable.assign(mask)
        with tf.GradientTape() as tape:
            difference = first(images, training=True) - feature.numpy()
            log_q = tf.nn.log_softmax(second(feature.numpy(), training=True))
            p = tf.nn.softmax(logits.numpy())
            loss = tf.reduce_sum(difference**2) / tf.size(difference, tf.float32)
            loss += tf.reduce_mean(tf.reduce_sum(p * (tf.math.log(p) - log_q), -1))
        expected_loss += float(loss)
        grads = tape.gradient(loss, gated.trainable_variables, unconnected_gradients="zero")
        total = [a + b.numpy() for a, b in zip(total, grads, strict=True)]
    trained, _, metrics = stepped(one_replica(), True, 1)
    assert metrics["loss"][0] == pytest.approx(expected_loss, abs=1e-4)
    for old, new, grad in zip(start, trained.trainable_variables, total, strict=True):
        np.testing.assert_allclose(old - new.numpy(), grad, atol=2e-4)
    # Only the whole network's pass, run above on `model` as well, moves the statistics.
    for mine, plain in zip(trained.variables, model.variables, strict=True):
        if plain.name.startswith("moving"):
            np.testing.assert_allclose(mine.numpy(), plain.numpy(), atol=1e-5)


def _add(model):
    return next(layer.name for layer in model.layers if isinstance(layer, L.Add))


def without_bn():
    return two_resolutions(bn=False)


def test_replicas_parts_and_xla_give_the_same_network():
    """Of the stage-wise step; the sandwich rule is the same code with a single stage."""
    _, one, metrics = stepped(one_replica(), True, 2, without_bn)
    assert {"loss", "accuracy", "label_loss", "narrowest_loss", "random_loss"} <= set(metrics)
    others = [
        stepped(two_replicas(), True, 2, without_bn),
        stepped(one_replica(), True, 2, without_bn, accum=2, compile=True),
    ]
    for _, weights, others_metrics in others:
        np.testing.assert_allclose(metrics["loss"], others_metrics["loss"], atol=1e-5)
        for a, b in zip(one, weights, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=2e-5)
