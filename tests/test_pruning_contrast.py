"""Contrastive transfer: losses against numpy, features of sub-networks, the bank of features."""

import math
from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
from ekg_tf.nets.graph import ChannelGraph
from ekg_tf.nets.rebuild import to_policy
from ekg_tf.pruning.engine import features
from ekg_tf.pruning.engine.segments import Segments
from ekg_tf.pruning.knowledge.bank import build_bank
from ekg_tf.pruning.knowledge.bank_reader import open_features
from ekg_tf.pruning.knowledge.contrast import ckt_loss, info_nce, pull, with_projection
from ekg_tf.pruning.knowledge.distill import kd_loss
from ekg_tf.training.task import classification
from ekg_tf.utils.errors import UserError

from tests.helpers.banks import EXAMPLES, FULL, batches, searched, small
from tests.helpers.networks import CLASSES, images_for, mobile, random_mask, residual, shaken, vgg

# Two views of three images, unit vectors of the plane; the bank's features.
Z = np.array([[[1, 0], [0, 1], [0.6, 0.8]], [[0, 1], [0, 1], [1, 0]]], np.float32)
BANK = np.array([[1, 0], [0, 1], [0.8, 0.6]], np.float32)


def test_info_nce_against_numpy():
    expected = []
    for view in Z.astype(np.float64):
        for n in range(3):
            similar = np.exp([10 * view[n] @ BANK[j] for j in range(3)])
            expected.append(-math.log(similar[n] / similar.sum()))
    assert float(info_nce(Z, BANK)) == pytest.approx(np.mean(expected), rel=1e-5)


def test_pull_against_typed_in_numbers():
    # Squared distances: 0, 0, 0.04 + 0.04; 2, 0, 0.04 + 0.36
    assert float(pull(Z, BANK)) == pytest.approx((0.08 + 2 + 0.4) / 6, rel=1e-5)


def test_the_loss_of_contrastive_transfer_normalises_both_sides():
    logits = np.zeros((2, 3, 2), np.float32)
    outputs = tf.constant(logits), tf.constant(5 * Z)
    batch = {"targets": tf.constant([0, 1, 0]), "features": tf.constant(3 * BANK)}
    for kind, contrast in (("infonce", info_nce), ("pull", pull)):
        loss, metrics = ckt_loss(classification(), kind)(outputs, batch, [])
        assert float(metrics["label_loss"]) == pytest.approx(math.log(2))
        assert float(loss) == pytest.approx(math.log(2) + float(contrast(Z, BANK)), rel=1e-5)


def test_hintons_distillation_against_typed_in_numbers():
    teacher = np.array([[[4 * math.log(3), 0]]], np.float32)  # softmax at T = 4: 3/4, 1/4
    outputs, batch = tf.zeros((1, 1, 2)), {"targets": tf.constant([0])}
    loss, metrics = kd_loss(classification(), 4.0, 0.9)(outputs, batch, [tf.constant(teacher)])
    divergence = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert float(metrics["distillation_loss"]) == pytest.approx(16 * divergence, rel=1e-5)
    assert float(loss) == pytest.approx(0.1 * math.log(2) + 0.9 * 16 * divergence, rel=1e-5)


@pytest.mark.parametrize("build", [residual, mobile, vgg])
@pytest.mark.parametrize("compile", [False, True])
def test_features_are_those_of_the_pruned_network(build, compile):
    graph = ChannelGraph(shaken(build()))
    images, mask = images_for(graph.model), random_mask(graph, keep=0.5)
    segments = Segments(graph, compile=compile)
    both = features.FeaturePass(segments)
    logits, found = both.run(tf.constant(images), segments.weights(mask), mask)
    pruned = graph.pruned(mask)
    tapped = keras.Model(
        pruned.inputs[0], [pruned.outputs[0], features.pooled(features.penultimate(pruned))]
    )
    for layer in tapped.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 1.0
    expected_logits, expected = tapped(images, training=True)
    kept = mask[graph.tensor_units(features.penultimate(graph.model))] > 0
    assert found.shape[1] == len(kept) == features.width(graph.model)
    np.testing.assert_allclose(logits, expected_logits, atol=1e-4)
    np.testing.assert_allclose(found[:, kept], expected, atol=1e-4)
    assert not found[:, ~kept].any()


def test_the_projection_shares_the_students_layers():
    student = residual()
    model = with_projection(student, 12, seed=1)
    images = images_for(student)
    logits, projected = model(images)
    assert logits.shape == (8, CLASSES) and projected.shape == (8, 12)
    np.testing.assert_allclose(logits, student(images), atol=1e-6)
    again = with_projection(student, 12, seed=1)
    np.testing.assert_array_equal(projected, again(images)[1])
    model.set_weights([weight + 1 for weight in model.get_weights()])
    np.testing.assert_allclose(model(images)[0], student(images), rtol=1e-5)
    mixed = to_policy(model, "mixed_bfloat16")
    kinds = {layer.name: layer.compute_dtype for layer in mixed.layers}
    assert {kinds[name] for name in ("ckt_projection", "fc")} == {"float32"}
    assert kinds["stem"] == "bfloat16"


def build(folder, graph, history, batches, features):
    return build_bank(
        folder,
        graph,
        history,
        lambda first: batches[first:],
        layout=replace(FULL, features=features),
        fingerprint="digits",
        compile=False,
    )


def test_the_bank_holds_the_mean_of_the_teachers_features(tmp_path):
    graph = small()
    folder, history = searched(tmp_path / "run", graph)
    order = np.random.default_rng(0).permutation(EXAMPLES)
    with folder:
        kept = features.width(graph.model)
        manifest = build(folder, graph, history, batches(order), kept)
    bank = open_features(tmp_path / "run", manifest, "digits")["features"]
    assert bank.dtype == np.float16 and bank.shape == (EXAMPLES, kept)
    expected = np.zeros(bank.shape)
    for batch in batches(order):
        for teacher in manifest["teachers"]:
            pruned = graph.pruned(history.mask(graph, teacher["step"]))
            tapped = keras.Model(pruned.inputs[0], features.penultimate(pruned))
            values = tapped(batch["inputs"]).numpy()
            mask = history.mask(graph, teacher["step"])
            alive = mask[graph.tensor_units(features.penultimate(graph.model))] > 0
            unit = values / np.linalg.norm(values, axis=-1, keepdims=True)
            expected[np.ix_(batch["index"], alive)] += unit / len(manifest["teachers"])
    np.testing.assert_allclose(bank, expected, atol=1e-3)


def test_a_bank_without_features_says_what_to_do(tmp_path):
    graph = small()
    folder, history = searched(tmp_path / "run", graph)
    with folder:
        manifest = build(folder, graph, history, batches(np.arange(EXAMPLES)), 0)
    assert manifest["features"] == 0
    with pytest.raises(UserError, match="needs a search whose bank keeps features"):
        open_features(tmp_path / "run", manifest, "digits")
