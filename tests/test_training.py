"""Schedules with typed-in answers; the epoch loop killed and resumed in every place."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from ekg_tf.op_utils import NonFiniteLoss, make_train_step
from ekg_tf.training import epochs as training
from ekg_tf.training import schedules
from ekg_tf.utils.arrays import load_state
from ekg_tf.utils.errors import UserError

from tests.helpers.replicas import two_replicas

STEPS = 7


# ---------------------------------------------------------------- schedules


def test_steps_in():
    assert schedules.steps_in(3, 1000, 128) == 21
    with pytest.raises(ValueError, match="larger than the 100"):
        schedules.steps_in(3, 100, 128)


def test_step_decay_starts_at_the_first_step_at_or_after_the_fraction():
    schedule = schedules.step_decay(1.0, (0.25, 0.6), 0.2, 10)
    expected = [1, 1, 1, 0.2, 0.2, 0.2, 0.04, 0.04, 0.04, 0.04]
    assert [float(schedule(step)) for step in range(10)] == pytest.approx(expected)
    paper = schedules.step_decay(0.01, (0.3, 0.6, 0.8), 0.2, 39_000)
    steps = [0, 11_699, 11_700, 23_399, 23_400, 31_199, 31_200, 38_999]
    expected = [0.01, 0.01, 0.002, 0.002, 0.0004, 0.0004, 0.00008, 0.00008]
    assert [float(paper(tf.constant(s, tf.int64))) for s in steps] == pytest.approx(expected)
    exact = schedules.step_decay(1.0, (0.07,), 0.5, 100)
    assert [float(exact(step)) for step in (6, 7)] == [1, 0.5]


@pytest.mark.parametrize("points", [(0.6, 0.3), (0.5, 1.0), (0.0,), (0.3, 0.3)])
def test_step_decay_refuses_points(points):
    with pytest.raises(ValueError, match="increasing fractions"):
        schedules.step_decay(1.0, points, 0.2, 10)


def test_cosine():
    schedule = schedules.cosine(2.0, 8)
    assert [float(schedule(s)) for s in (0, 4, 8)] == pytest.approx([2, 1, 0], abs=1e-6)
    warm = schedules.cosine(2.0, 11, warmup_steps=3)
    steps = (0, 1, 2, 3, 7, 11)
    assert [float(warm(s)) for s in steps] == pytest.approx([0.5, 1, 1.5, 2, 1, 0], abs=1e-6)
    with pytest.raises(ValueError, match="10 warm-up steps do not fit into 10"):
        schedules.cosine(2.0, 10, 10)


# ---------------------------------------------------------------- the epoch loop


def build_net():
    layers = keras.layers
    x = inputs = layers.Input((6, 6, 3))
    x = layers.Conv2D(4, 3, use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Dropout(0.3, seed=11)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, layers.Dense(3)(x))


def epoch_batches(epoch, bad_step=None):
    random = np.random.default_rng(epoch)
    image = random.normal(size=(STEPS * 8, 1, 6, 6, 3)).astype(np.float32)
    if bad_step is not None:
        image[bad_step * 8] = np.nan
    label = random.integers(0, 3, STEPS * 8, np.int32)
    dataset = tf.data.Dataset.from_tensor_slices({"inputs": image, "targets": label})
    return dataset.batch(8, drop_remainder=True)


TRACES = []


def loss_fn(logits, batch, teacher):
    TRACES.append(logits)
    loss = tf.nn.sparse_softmax_cross_entropy_with_logits(batch["targets"], logits[0])
    return tf.reduce_mean(loss), {"entropy": tf.reduce_mean(loss) * 2}


class Killed(BaseException):
    """Stands for a power cut: nothing catches it."""


class Run:
    """What survives a kill (log, checkpoint), and fresh objects for every process."""

    def __init__(self, folder, strategy=None):
        self.rows, self.checkpoint = [], folder / "state.npz"
        self.strategy = strategy or tf.distribute.get_strategy()

    def keep(self, epochs):
        self.rows[:] = [row for row in self.rows if row["epoch"] <= epochs]

    def go(self, epochs, **changes):
        # another process starts from another seed, and must not end differently for that
        keras.utils.set_random_seed(len(self.rows))
        with self.strategy.scope():
            self.model = build_net()
            for variable, value in zip(self.model.weights, WEIGHTS, strict=True):
                variable.assign(value)
            schedule = schedules.step_decay(0.1, (0.5,), 0.1, 4 * STEPS)
            self.optimizer = keras.optimizers.SGD(schedule, momentum=0.9, nesterov=True)
        arguments = {
            "epoch_batches": epoch_batches,
            "log": self.rows.append,
            "evaluate": lambda: {"top1": 50.0},
        } | changes
        training.fit(
            train_steps=make_train_step(
                self.model, self.optimizer, loss_fn, self.strategy, weight_decay=0.01
            ),
            model=self.model,
            optimizer=self.optimizer,
            strategy=self.strategy,
            epochs=epochs,
            steps_per_epoch=STEPS,
            log_keep=self.keep,
            checkpoint=self.checkpoint,
            what="test",
            **arguments,
        )
        return self

    def state(self):
        return [v.numpy() for v in (*self.model.variables, *self.optimizer.variables)]

    def logged(self):
        return [
            {k: row[k] for k in ("epoch", "lr", "loss", "entropy", "top1")} for row in self.rows
        ]


keras.utils.set_random_seed(1)
WEIGHTS = build_net().get_weights()


@pytest.fixture(autouse=True)
def _short_intervals(monkeypatch):
    monkeypatch.setattr(training, "INTERVAL_STEPS", 3)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    return Run(tmp_path_factory.mktemp("straight")).go(4)


def assert_same(run, expected):
    for a, b in zip(run.state(), expected.state(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert run.logged() == expected.logged()


def test_epochs_share_one_trace(tmp_path):
    TRACES.clear()
    Run(tmp_path).go(3)
    assert len(TRACES) == 1


def test_rows(straight):
    assert [row["epoch"] for row in straight.rows] == [1, 2, 3, 4]
    assert [row["lr"] for row in straight.rows] == pytest.approx([0.1, 0.1, 0.01, 0.01])
    for row in straight.rows:
        assert row["entropy"] == pytest.approx(2 * row["loss"])
        assert row["top1"] == 50 and row["seconds"] > 0 and row["images_per_second"] > 0
        assert "examples" not in row
    assert int(straight.optimizer.iterations) == 4 * STEPS


def test_resumed_training_is_bit_identical(tmp_path, straight):
    run = Run(tmp_path).go(2).go(4)
    assert_same(run, straight)


def test_finished_training_only_loads_its_weights(tmp_path, straight):
    run = Run(tmp_path).go(4).go(4)
    assert_same(run, straight)


def test_kill_between_log_and_checkpoint(tmp_path, straight, monkeypatch):
    run, saves = Run(tmp_path), []

    def save(*args):
        saves.append(args)
        if len(saves) in (1, 3):
            raise Killed
        real(*args)

    real = training.save
    monkeypatch.setattr(training, "save", save)
    for _ in range(2):
        with pytest.raises(Killed):
            run.go(4)
    assert_same(run.go(4), straight)


def test_kill_within_an_epoch(tmp_path, straight):
    run = Run(tmp_path)

    def killed_in_second(epoch):
        if epoch == 1:
            raise Killed
        return epoch_batches(epoch)

    with pytest.raises(Killed):
        run.go(4, epoch_batches=killed_in_second)
    assert_same(run.go(4), straight)


def test_nan_stops_before_the_checkpoint(tmp_path):
    run = Run(tmp_path)
    bad = {0: None, 1: 4}
    with pytest.raises(NonFiniteLoss, match=f"at step {STEPS + 5}:"):
        run.go(2, epoch_batches=lambda epoch: epoch_batches(epoch, bad[epoch]))
    assert [row["epoch"] for row in run.rows] == [1]
    state = load_state(run.checkpoint)
    assert state["epochs_done"] == 1
    assert all(np.isfinite(array).all() for array in state.values())


def test_too_few_batches(tmp_path):
    with pytest.raises(ValueError, match="fewer than 7 batches"):
        Run(tmp_path).go(1, epoch_batches=lambda epoch: epoch_batches(epoch).take(5))


def test_two_replicas_resume(tmp_path):
    strategy = two_replicas()
    for name in "ab":
        (tmp_path / name).mkdir()
    whole = Run(tmp_path / "a", strategy).go(2, evaluate=None)
    parts = Run(tmp_path / "b", strategy).go(1, evaluate=None).go(2, evaluate=None)
    for a, b in zip(whole.state(), parts.state(), strict=True):
        np.testing.assert_array_equal(a, b)


# ---------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("kind", [keras.optimizers.SGD, keras.optimizers.AdamW])
def test_checkpoints_of_optimizers(tmp_path, kind):
    def fresh(seed):
        keras.utils.set_random_seed(seed)
        model, optimizer = build_net(), kind(0.1)
        optimizer.build(model.trainable_variables)
        return model, optimizer

    model, optimizer = fresh(1)
    optimizer.apply([tf.ones(v.shape) for v in model.trainable_variables])
    training.save(tmp_path / "s.npz", model, optimizer, 3)
    other, other_optimizer = fresh(2)
    assert training.restore(tmp_path / "s.npz", other, other_optimizer) == 3
    for a, b in ((model, other), (optimizer, other_optimizer)):
        for x, y in zip(a.variables, b.variables, strict=True):
            np.testing.assert_array_equal(x.numpy(), y.numpy())


def test_checkpoint_of_another_run_is_refused(tmp_path):
    model = build_net()
    sgd, momentum = keras.optimizers.SGD(0.1), keras.optimizers.SGD(0.1, momentum=0.9)
    for optimizer in (sgd, momentum):
        optimizer.build(model.trainable_variables)
    training.save(tmp_path / "s.npz", model, momentum, 1)
    with pytest.raises(UserError, match="training lacks, optimizer/2"):
        training.restore(tmp_path / "s.npz", model, sgd)
    inputs = keras.layers.Input((6, 6, 3))
    x = keras.layers.Conv2D(4, 5, use_bias=False)(inputs)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Dropout(0.3)(keras.layers.GlobalAveragePooling2D()(x))
    wider = keras.Model(inputs, keras.layers.Dense(3)(x))
    before = wider.get_weights()
    with pytest.raises(
        UserError, match=r"kernel has shape \(3, 3, 3, 4\) there and \(5, 5, 3, 4\)"
    ):
        training.restore(tmp_path / "s.npz", wider, momentum)
    for a, b in zip(before, wider.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
