"""A baseline's self-supervised teacher: its loss, how it follows, and that it goes again."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from ekg_tf.dataloader import own
from ekg_tf.dataloader.dataset import make_split
from ekg_tf.nets.given import Given
from ekg_tf.nets.rebuild import copied
from ekg_tf.nets.zoo.resnet import cifar_resnet
from ekg_tf.op_utils import distributed, make_train_step
from ekg_tf.options import recipes
from ekg_tf.options.training import Baseline, Training
from ekg_tf.phases import baseline
from ekg_tf.pruning.knowledge.byol import HEADS, apart, byol_loss, with_heads
from ekg_tf.training import epochs
from ekg_tf.training.task import classification, task_of
from ekg_tf.utils import devices
from ekg_tf.utils.errors import UserError
from ekg_tf.utils.keras_files import load_keras
from ekg_tf.utils.runfiles import BASELINE
from ekg_tf.utils.runfolder import RunFolder

from ekg_tf import train_cifar
from tests.helpers.networks import residual
from tests.helpers.replicas import one_replica, two_replicas

SETTINGS = Training(
    epochs=2, learning_rate=0.05, batch_size=16, weight_decay=1e-4, decay_points=(0.5,)
)
BYOL = baseline.Byol(weight=0.5, momentum=0.9)


def test_how_far_apart_two_directions_are():
    one = tf.constant([[3.0, 0.0], [0.0, 2.0]])
    assert float(apart(one, 5 * one)) == pytest.approx(0)
    assert float(apart(one, -one)) == pytest.approx(4)
    assert float(apart(one, one[:, ::-1])) == pytest.approx(2)


def test_a_view_foretells_the_other_ones_projection():
    rng = np.random.default_rng(0)
    logits, predicted, projected = (
        rng.normal(size=(2, 5, size)).astype(np.float32) for size in (3, 4, 4)
    )
    batch = {"targets": tf.constant([0, 1, 2, 0, 1])}
    taught = (logits, projected, None)  # the teacher's own prediction isn't used
    loss, metrics = byol_loss(classification(), 0.5)((logits, None, predicted), batch, [taught])
    a, b = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (predicted, projected))
    expected = np.mean([2 - 2 * (a[v] * b[1 - v]).sum(-1) for v in (0, 1)])
    assert float(metrics["byol_loss"]) == pytest.approx(expected, rel=1e-5)
    assert float(loss) == pytest.approx(float(metrics["label_loss"]) + 0.5 * expected, rel=1e-5)


@pytest.mark.parametrize("made", [one_replica, two_replicas])
def test_the_teacher_follows_the_network(made):
    strategy = made()
    with strategy.scope():
        model = with_heads(residual(), 0)
        target, optimizer = copied(model), keras.optimizers.SGD(0.1)
    before = [one.numpy() for one in target.trainable_variables]
    steps = make_train_step(
        model,
        optimizer,
        byol_loss(classification(), 1.0),
        strategy,
        teachers=[target],
        momentum=0.75,
    )
    size = model.input_shape[1:]
    batch = {
        "inputs": np.random.default_rng(0).normal(size=(8, 2, *size)).astype(np.float32),
        "targets": np.arange(8, dtype=np.int32) % model.output_shape[0][-1],
    }
    data = tf.data.Dataset.from_tensor_slices(batch).batch(8, drop_remainder=True)
    loss = steps(iter(distributed(strategy, data)), tf.constant(1))["loss"]
    assert np.isfinite(loss).all()
    moved = 0.0
    for old, now, new in zip(
        before, target.trainable_variables, model.trainable_variables, strict=True
    ):
        expected = 0.75 * old + 0.25 * new.numpy()
        np.testing.assert_allclose(now.numpy(), expected, rtol=1e-5, atol=1e-7)
        moved = max(moved, np.abs(now.numpy() - old).max())
    assert moved > 1e-4


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (48, 8, 8, 1)).astype(np.uint8)
    split = make_split(images, np.arange(48) % 3, 3, "the test")
    return own.dataset(split, split, ("a", "b", "c"))


def trained(path, data, byol=BYOL):
    keras.utils.set_random_seed(3)
    model = cifar_resnet(8, 3, (8, 8, 1))
    task = task_of(Given.read(model))
    device = devices.make(tf.distribute.get_strategy())
    with RunFolder.open(path, {}) as folder:
        return baseline.trained(folder, model, task, data, SETTINGS, device, byol)


def test_a_killed_baseline_ends_as_one_that_wasnt(tmp_path, data, monkeypatch):
    whole = trained(tmp_path / "whole", data)
    saved = epochs.save

    def save(*args):
        saved(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(epochs, "save", save)
        trained(tmp_path / "killed", data)
    again = trained(tmp_path / "killed", data)
    for one, other in zip(whole.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    plain = trained(tmp_path / "plain", data, None)
    names = [layer.name for layer in plain.layers]
    assert [layer.name for layer in whole.layers] == names, "the heads are dropped"
    assert not np.array_equal(whole.get_weights()[0], plain.get_weights()[0])
    kept = load_keras(tmp_path / "whole" / BASELINE)
    assert kept.count_params() == plain.count_params()


def test_two_heads_stand_behind_the_networks_outputs():
    model = residual()
    both = with_heads(model, 0)
    assert len(both.outputs) == 1 + HEADS
    assert both.outputs[0].shape == model.outputs[0].shape
    assert both.outputs[1].shape == both.outputs[2].shape
    again = with_heads(residual(), 0)
    for name in ("byol_projection_1", "byol_prediction_2"):
        one, other = (net.get_layer(name).kernel for net in (both, again))
        np.testing.assert_array_equal(one, other)


def test_flags_of_the_teacher():
    resolved = Training(epochs=3, learning_rate=0.1)
    known = recipes.as_baseline(Baseline(teacher="byol", byol_weight=2.0), resolved)
    assert baseline.Byol.of(known) == baseline.Byol(2.0, 0.99)
    assert known.flags()["baseline_teacher"] == "byol" and known.epochs == 3
    assert baseline.Byol.of(recipes.as_baseline(Baseline(), resolved)) is None
    argv = "--dataset DIGITS --train_path run "
    with pytest.raises(UserError, match="byol_momentum is for --baseline_teacher byol"):
        train_cifar.main((argv + "--byol_momentum 0.5").split())
    with pytest.raises(UserError, match="for a baseline that is trained here"):
        train_cifar.main((argv + "--trained_param x.keras --baseline_teacher byol").split())
