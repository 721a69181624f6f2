"""Rewards and the ensemble's knowledge on typed-in logits."""

import math

import numpy as np
import pytest
import tensorflow as tf
from ekg_tf.pruning.engine.validation import Validation
from ekg_tf.pruning.worth.rewards import Knowledge, Reward, loss_and_accuracy
from ekg_tf.training.task import classification

LN2, LN3 = math.log(2), math.log(3)


def test_knowledge_none():
    knowledge = Knowledge("none")
    knowledge.add(np.ones((2, 3), np.float32))
    assert knowledge.outputs is None


@pytest.mark.parametrize(("kind", "expected"), [("single", 1.0), ("ensemble", 3.0)])
def test_knowledge_of_three_networks(kind, expected):
    knowledge = Knowledge(kind)
    assert knowledge.outputs is None
    for value in (1.0, 2.0, 6.0):
        knowledge.add(np.full((2, 3), value, np.float32))
    assert knowledge.outputs.dtype == np.float32
    np.testing.assert_array_equal(knowledge.outputs, np.full((2, 3), expected))


def test_the_ensemble_is_a_running_mean_of_logits():
    knowledge = Knowledge("ensemble")
    means = []
    for row in ([4.0, 0.0], [0.0, 2.0], [2.0, 4.0]):
        knowledge.add(np.array([row], np.float32))
        means.append(knowledge.outputs.tolist())
    assert means == [[[4, 0]], [[2, 1]], [[2, 2]]]


def test_unknown_teacher():
    with pytest.raises(ValueError, match="'both' is none of"):
        Knowledge("both")


def labelled(labels):
    return Validation(np.zeros((len(labels), 1), np.float32), labels, len(labels))


def reward_of(labels, teacher):
    return Reward(classification(), labelled(labels), teacher)


def test_losses_by_hand():
    # softmax of (ln 3, 0) is (3/4, 1/4)
    teacher = np.array([[0, 0], [LN3, 0], [LN3, 0]], np.float32)
    reward = reward_of(np.array([0, 0, 1]), teacher)
    losses = reward.losses(tf.constant([[0, 0], [0, 0], [LN3, 0]], tf.float32))
    entropy = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    expected = [2 * LN2, 2 * LN2, math.log(4) + entropy]
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    np.testing.assert_allclose(reward.least_losses(), [LN2, entropy, entropy], rtol=1e-6)
    part = reward.losses(tf.constant([[LN3, 0]], tf.float32), slice(2, 3))
    np.testing.assert_allclose(part, expected[2:], rtol=1e-6)


def test_without_a_teacher_only_labels_count():
    reward = reward_of(np.array([0, 1]), None)
    logits = tf.constant([[0.5, 2, -1], [1, 0, 0]])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(logits)
        losses = reward.losses(logits)
        labels = tf.nn.sparse_softmax_cross_entropy_with_logits([0, 1], logits)
    np.testing.assert_allclose(losses, labels, rtol=1e-6)
    np.testing.assert_allclose(
        tape.gradient(losses, logits), tape.gradient(labels, logits), atol=1e-7
    )
    np.testing.assert_array_equal(reward.least_losses(), [0, 0])


def test_the_gradient_with_a_teacher():
    teacher = np.array([[LN3, 0]], np.float32)
    logits = tf.Variable([[0.0, LN2]])
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(reward_of(np.array([1]), teacher).losses(logits))
    # softmax (1/3, 2/3) minus label (0, 1), plus softmax minus teacher (3/4, 1/4)
    expected = [[1 / 3 + 1 / 3 - 3 / 4, 2 / 3 - 1 + 2 / 3 - 1 / 4]]
    np.testing.assert_allclose(tape.gradient(loss, logits), expected, atol=1e-6)


@pytest.mark.parametrize("scale", [0.1, 3.0, 40.0])
def test_least_losses_are_a_lower_bound(scale):
    rng = np.random.default_rng(0)
    teacher = rng.normal(size=(200, 10)) * scale
    labels = rng.integers(0, 10, 200)
    reward = reward_of(labels, teacher.astype(np.float32))
    least = reward.least_losses()
    assert (least >= 0).all()
    for logits in (rng.normal(size=(200, 10)) * scale, teacher, teacher * 1.1):
        losses = reward.losses(tf.constant(logits, tf.float32)).numpy()
        assert (losses >= least - 1e-5).all()
    sure = np.where(np.arange(10) == teacher.argmax(1)[:, None], teacher + 40, teacher)
    right = reward_of(sure.argmax(1), sure.astype(np.float32))
    reached = right.losses(tf.constant(sure, tf.float32)).numpy()
    np.testing.assert_allclose(reached, right.least_losses(), atol=1e-5)  # the bound is tight


def test_loss_and_accuracy():
    logits = np.array([[0, 0, 0], [1, 0, 0], [0, 9, 0], [0, 0, 1]], np.float32)
    loss, accuracy = loss_and_accuracy(classification(), labelled(np.array([2])), logits[:1])
    assert loss == pytest.approx(LN3)
    assert loss_and_accuracy(classification(), labelled(np.array([0, 1, 0])), logits[1:])[
        1
    ] == pytest.approx(200 / 3)
    assert isinstance(accuracy, float)
