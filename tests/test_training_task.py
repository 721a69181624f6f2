"""What a network is trained for, against Keras's own loss and metrics and against numpy."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from ekg_tf.dataloader import given_data, own
from ekg_tf.dataloader.batches import eval_batches
from ekg_tf.nets.given import Given
from ekg_tf.nets.keras_graph import Compiled
from ekg_tf.phases.opening import work_on
from ekg_tf.training.evaluation import evaluate
from ekg_tf.training.metrics import UserMetrics, jackknife
from ekg_tf.training.task import classification, task_of
from ekg_tf.training.trainer import needs_lamb
from ekg_tf.utils.errors import UserError
from ekg_tf.utils.trees import mapped

from tests.helpers.any_task import TASKS, examples_for

L = keras.layers
RNG = np.random.default_rng(0)


def outputs_of(given, inputs):
    return mapped(lambda x: tf.cast(x, tf.float32), given.core(inputs, training=False))


def opened(name):
    """The task of a kind of network, its core's outputs on a dozen examples, and their targets."""
    model, inputs, targets, _ = examples_for(name)
    given = Given.read(model, inputs)
    return task_of(given, examples=inputs), outputs_of(given, inputs), targets


@pytest.mark.parametrize("name", TASKS)
def test_the_loss_is_the_one_that_keras_reports(name):
    model, inputs, targets, plain = examples_for(name)
    given = Given.read(model, inputs)
    task = task_of(given, examples=inputs)
    outputs = outputs_of(given, inputs)
    losses = task.example_losses(outputs, mapped(tf.constant, targets))
    assert losses.shape == (12,)
    keras_says = model.evaluate(*plain, batch_size=12, verbose=0, return_dict=True)
    assert float(tf.reduce_mean(losses)) == pytest.approx(keras_says["loss"], rel=1e-5)
    metrics = UserMetrics(task)
    for rows in (slice(0, 5), slice(5, 12)):
        part = mapped(lambda x, rows=rows: x[rows], outputs)
        metrics.update(part, mapped(lambda x, rows=rows: tf.constant(x[rows]), targets))
    found = metrics.result()
    known = {key: value for key, value in keras_says.items() if not key.endswith("loss")}
    assert found == pytest.approx(known, rel=1e-5)
    assert metrics.result() == pytest.approx({key: 0.0 for key in known}, abs=1e-6), (
        "the result is of the batches since the last call"
    )


def of_labels(y_true, y_pred):
    """Takes whole numbers [n] alone, which Keras casts to float32."""
    rows = keras.ops.one_hot(keras.ops.cast(y_true, "int32"), 3)
    return (1.0 + 0.5 * y_true) * -keras.ops.sum(rows * keras.ops.log(y_pred), axis=-1)


def of_a_column(y_true, y_pred):
    return of_labels(y_true[:, 0], y_pred)


def of_rows(y_true, y_pred):
    return keras.ops.sum(y_true[:, :3] * (1 - y_pred) ** 2, axis=-1)


class OfLabels(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return of_labels(y_true, y_pred)


GIVEN_AS = {
    "labels": (of_labels, lambda labels: labels),
    "labels of uint8": (of_labels, lambda labels: labels.astype(np.uint8)),
    "labels, a class of losses": (OfLabels(), lambda labels: labels),
    "column": (of_a_column, lambda labels: labels[:, None]),
    "one-hot": (of_rows, lambda labels: np.eye(3, dtype=np.float32)[labels]),
    "one-hot of integers": (of_rows, lambda labels: np.eye(3, dtype=np.int64)[labels]),
    "probabilities": (of_rows, lambda labels: (0.1 + 0.7 * np.eye(3))[labels]),
}


@pytest.mark.parametrize("name", GIVEN_AS)
def test_a_loss_of_ones_own_gets_the_targets_as_they_were_given(name):
    loss, written = GIVEN_AS[name]
    image = keras.Input((6, 6, 3))
    x = L.GlobalAveragePooling2D()(L.Conv2D(4, 3, activation="relu")(image))
    model = keras.Model(image, L.Dense(3, activation="softmax")(x))

    def metric(y_true, y_pred):  # which Keras gives integers as they are
        return loss(keras.ops.cast(y_true, "float32"), y_pred)

    model.compile("sgd", loss, metrics=[metric])
    x = RNG.random((12, 6, 6, 3)).astype(np.float32)
    y = written(np.arange(12) % 3)
    work = work_on(model, lambda fit: own.dataset(*given_data.read((x, y), (x, y), fit)))
    found = evaluate(work.given.core, work.task, eval_batches(work.data, "test", 5))
    keras_says = model.evaluate(x, y, batch_size=12, verbose=0, return_dict=True)
    assert found["loss"] == pytest.approx(keras_says.pop("loss"), rel=1e-5)
    assert found.get("metrics", {}) == pytest.approx(keras_says, rel=1e-5)


@pytest.mark.parametrize(
    ("norm", "frozen", "loss", "needed"),
    [
        (True, False, "sparse_categorical_crossentropy", False),
        (True, True, "sparse_categorical_crossentropy", False),
        (False, False, "sparse_categorical_crossentropy", True),
        (True, False, "mse", True),
    ],
)
def test_sgd_is_for_batch_norm_and_cross_entropy(norm, frozen, loss, needed):
    image = keras.Input((6, 6, 3))
    x = L.Conv2D(4, 3)(image)
    x = L.BatchNormalization(trainable=not frozen)(x) if norm else L.LayerNormalization()(x)
    ends = {"activation": "softmax"} if "cross" in loss else {}
    model = keras.Model(image, L.Dense(3, **ends)(L.GlobalAveragePooling2D()(x)))
    model.compile("adam", loss)
    given = Given.read(model, RNG.random((4, 6, 6, 3)).astype(np.float32))
    assert needs_lamb(given, task_of(given)) == needed


METRICS = {
    "auc": keras.metrics.AUC,
    "iou": lambda: keras.metrics.BinaryIoU(target_class_ids=[1]),
    "of each class": lambda: keras.metrics.FBetaScore(threshold=0.5),
    "several": lambda: Several(name="several"),
}


class Several(keras.metrics.Mean):
    """A metric of two values."""

    def update_state(self, y_true, y_pred, sample_weight=None):
        super().update_state(y_pred)

    def result(self):
        return {"mean": super().result(), "twice": 2 * super().result()}


@pytest.mark.parametrize("name", METRICS)
def test_the_jackknife_of_a_metric_is_near_what_other_examples_would_give(name):
    """30 test sets of the same kind: the errors foretell their spread."""
    inputs = keras.Input((3,))
    model = keras.Model(inputs, L.Activation("sigmoid")(inputs))
    model.compile(loss="binary_crossentropy", metrics=[METRICS[name]()])
    task = task_of(Given.read(model))
    rng, values, errors = np.random.default_rng(0), [], []
    for _ in range(30):
        outputs = rng.normal(size=(400, 3)).astype(np.float32)
        targets = (outputs + rng.normal(size=outputs.shape) > 0).astype(np.float32)
        metrics = UserMetrics(task, errors=True)
        metrics.update(tf.constant(outputs), tf.constant(targets))
        found = metrics.errors()
        values.append(metrics.result())
        errors.append(found)
    for key in values[0]:
        spread = np.std([one[key] for one in values], ddof=1)
        assert np.mean([one[key] for one in errors]) == pytest.approx(spread, rel=0.4)


def test_the_blocks_of_the_jackknife_have_as_many_examples_as_they_have():
    """Ten examples in eight blocks of two and one."""
    inputs = keras.Input((1,))
    model = keras.Model(inputs, L.Activation("linear")(inputs))
    model.compile(loss="mse", metrics=["mae"])
    outputs = RNG.normal(size=(10, 1)).astype(np.float32)
    metrics = UserMetrics(task_of(Given.read(model), examples=outputs), errors=True)
    metrics.update(tf.constant(outputs), tf.zeros((10, 1)))
    values, blocks = np.abs(outputs), np.array_split(np.arange(10), 8)
    left = np.array([np.delete(values, rows, 0).mean(0) for rows in blocks])
    sizes = np.array([float(len(rows)) for rows in blocks])
    (found,) = metrics.errors().values()
    assert found == pytest.approx(float(jackknife(values.mean(0), left, sizes)[0]), rel=1e-4)


def test_the_jackknife_of_a_mean():
    values = RNG.normal(size=(400, 1))
    alone = (values.sum(0) - values) / (len(values) - 1)
    known = values.std(0, ddof=1) / np.sqrt(len(values))
    np.testing.assert_allclose(jackknife(values.mean(0), alone, np.ones(400)), known)
    blocks = np.split(values, np.cumsum(np.resize([2, 5, 9], 60))[:-1])  # of unequal sizes
    sizes = np.array([float(len(one)) for one in blocks])
    left = np.array([(values.sum(0) - one.sum(0)) / (400 - len(one)) for one in blocks])
    np.testing.assert_allclose(jackknife(values.mean(0), left, sizes), known, rtol=0.3)


def test_a_metric_that_may_be_no_sum_has_no_error():
    class Largest(keras.metrics.Metric):
        def __init__(self, **settings):
            super().__init__(**settings)
            self.most = self.add_variable((), "zeros", name="most")

        def update_state(self, y_true, y_pred, sample_weight=None):
            self.most.assign(keras.ops.maximum(self.most, keras.ops.max(y_pred)))

        def result(self):
            return self.most

    inputs = keras.Input((3,))
    model = keras.Model(inputs, L.Activation("sigmoid")(inputs))
    model.compile(loss="binary_crossentropy", metrics=[Largest(name="largest"), "mae"])
    metrics = UserMetrics(task_of(Given.read(model)), errors=True)
    metrics.update(tf.zeros((40, 3)), tf.zeros((40, 3)))
    assert len(metrics.errors()) == 1 and len(metrics.result()) == 2


@pytest.mark.parametrize("name", TASKS)
def test_no_loss_is_below_its_bound(name):
    task, outputs, targets = opened(name)
    teacher = mapped(lambda x: x.numpy() + RNG.normal(size=x.shape).astype("f"), outputs)
    targets = mapped(tf.constant, targets)
    for known in (None, teacher):
        prepared = task.prepared(known, outputs)
        least = task.least_losses(prepared, 12)
        found = task.example_losses(outputs, targets) + task.knowledge_losses(prepared, outputs)
        assert (found.numpy() >= least - 1e-5).all()
        if known is None:
            alone = task.example_losses(outputs, targets)
            np.testing.assert_allclose(found, alone, rtol=1e-6)


@pytest.mark.parametrize("name", TASKS)
def test_a_teacher_alike_has_the_least_knowledge_to_give(name):
    task, outputs, _ = opened(name)
    other = mapped(lambda x: x.numpy() + RNG.normal(size=x.shape).astype("f"), outputs)
    beyond = []  # what is left when the bound is taken off, where losses have none
    for teacher in (mapped(lambda x: x.numpy(), outputs), other):
        prepared = task.prepared(teacher, outputs)
        own = sum(head.weight * head.least for head in task.heads)
        bound = task.least_losses(prepared, 12) - own
        beyond.append(task.knowledge_losses(prepared, outputs).numpy() - bound)
    np.testing.assert_allclose(beyond[0], 0, atol=1e-5)
    assert (beyond[1] >= -1e-5).all() and beyond[1].mean() > 1e-2


@pytest.mark.parametrize("name", TASKS)
def test_distillation_of_itself_is_nothing(name):
    task, outputs, _ = opened(name)
    assert float(task.distillation(outputs, outputs, 4.0)) == pytest.approx(0, abs=1e-6)
    views = mapped(lambda x: tf.stack([x, x + 1.5 * RNG.normal(size=x.shape)]), outputs)
    assert float(task.distillation(outputs, views, 4.0)) > 1e-3


def test_bernoulli_and_squared_knowledge_by_hand():
    i = L.Input((2,))
    model = keras.Model(i, [L.Dense(2, activation="sigmoid", name="a")(i), L.Dense(1, name="b")(i)])
    model.compile("sgd", loss=["binary_crossentropy", "mse"], loss_weights=[2.0, 0.5])
    given = Given.read(model)
    x = RNG.normal(size=(64, 2)).astype(np.float32)
    task = task_of(given, examples=x)
    z = np.array([[0.0, 2.0]], np.float32), np.array([[1.0]], np.float32)
    t = np.array([[1.0, -1.0]], np.float32), np.array([[3.0]], np.float32)
    p, q = 1 / (1 + np.exp(-t[0])), 1 / (1 + np.exp(-z[0]))
    cross = -(p * np.log(q) + (1 - p) * np.log(1 - q)).mean()
    variance = np.asarray(given.core(x)[1]).var()
    expected = 2.0 * cross + 0.5 * 4.0 / variance
    prepared = task.prepared(t, z)
    assert float(task.knowledge_losses(prepared, z)[0]) == pytest.approx(expected, rel=1e-5)
    divergence = (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean()
    found = float(task.distillation(t, mapped(tf.constant, z), 1.0))
    assert found == pytest.approx(2.0 * divergence + 0.5 * 4.0 / variance, rel=1e-4)


def test_a_loss_of_ones_own_for_a_whole_batch_is_taken_example_by_example():
    def dice(y, p):
        return 1 - 2 * tf.reduce_sum(y * p) / (tf.reduce_sum(y) + tf.reduce_sum(p) + 1)

    i = L.Input((4, 4, 1))
    model = keras.Model(i, L.Conv2D(1, 1, activation="sigmoid")(i))
    model.compile("sgd", loss=dice)
    x, y = RNG.random((6, 4, 4, 1)).astype("f"), (RNG.random((6, 4, 4, 1)) > 0.5).astype("f")
    given = Given.read(model)
    task = task_of(given)
    losses = task.example_losses(outputs_of(given, x), tf.constant(y))
    expected = [float(dice(y[[n]], model(x)[n : n + 1])) for n in range(6)]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert np.isneginf(task.least_losses(task.prepared(None, y), 6)).all()


def test_knowledge_of_ones_own():
    model, inputs, _, _ = examples_for("regression")
    given = Given.read(model, inputs)
    seen = []

    def knowledge(teacher, student):
        seen.append((teacher.shape, student.shape))
        return tf.reduce_mean(tf.abs(teacher - student), -1)

    task = task_of(given, examples=inputs, knowledge=knowledge)
    outputs = outputs_of(given, inputs)
    prepared = task.prepared(outputs.numpy() + 2, outputs)
    np.testing.assert_allclose(task.knowledge_losses(prepared, outputs), np.full(12, 2), rtol=1e-5)
    nothing = task.knowledge_losses(task.prepared(None, outputs), outputs)
    np.testing.assert_array_equal(nothing, np.zeros(12))
    views = tf.stack([outputs, outputs + 1])
    assert float(task.distillation(outputs, views, 4.0)) == pytest.approx(0.5, rel=1e-5)
    assert all(one == two for one, two in seen)
    assert np.isneginf(task.least_losses(prepared, 12)).all()


def test_weights_of_examples_of_pixels_and_of_classes():
    task, logits = classification(), tf.constant(RNG.normal(size=(3, 4)).astype("f"))
    labels = tf.constant([0, 1, 3])
    plain = task.example_losses(logits, labels).numpy()
    weighted = task.example_losses(logits, labels, tf.constant([2.0, 0.0, 1.0]))
    np.testing.assert_allclose(weighted, plain * [2, 0, 1], rtol=1e-6)
    of_class = classification(np.array([3, 1, 1, 0.5], np.float32))
    np.testing.assert_allclose(of_class.example_losses(logits, labels), plain * [3, 1, 0.5])
    model, inputs, targets, _ = examples_for("segmentation")
    given = Given.read(model, inputs)
    task, outputs = task_of(given), outputs_of(given, inputs)
    weights = RNG.random(outputs.shape[:-1]).astype("f")
    found = task.example_losses(outputs, tf.constant(targets), tf.constant(weights))
    each = tf.nn.sigmoid_cross_entropy_with_logits(targets, outputs).numpy()
    np.testing.assert_allclose(found, (each * weights[..., None]).mean((1, 2, 3)), rtol=1e-5)


@pytest.mark.parametrize("applied", [True, False], ids=["probabilities", "logits"])
def test_a_label_that_the_loss_leaves_out(applied):
    image = keras.Input((4, 5, 3))
    end = L.Conv2D(3, 1, activation="softmax" if applied else None)(image)
    model = keras.Model(image, end)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=not applied, ignore_class=255)
    overlap = keras.metrics.MeanIoU(3, "overlap", ignore_class=255, sparse_y_pred=False)
    model.compile("sgd", loss, metrics=["accuracy", overlap])
    inputs = RNG.normal(size=(6, 4, 5, 3)).astype("f")
    labels = RNG.integers(0, 3, (6, 4, 5))
    labels[RNG.random(labels.shape) < 0.3] = 255
    labels[5] = 255
    given = Given.read(model, inputs)
    task, outputs = task_of(given), outputs_of(given, inputs)
    targets = tf.constant(labels, tf.int32)
    found = task.example_losses(outputs, targets).numpy()
    keras_says = [float(loss(labels[k : k + 1], model(inputs[k : k + 1]))) for k in range(5)]
    np.testing.assert_allclose(found, [*keras_says, 0.0], rtol=1e-5)
    assert np.isfinite(task.least_losses(task.prepared(None, outputs), 6)).all()
    metrics = UserMetrics(task)
    metrics.update(outputs, targets)
    hits = (np.asarray(model(inputs)).argmax(-1) == labels)[labels != 255]
    values = metrics.result()
    assert values["accuracy"] == pytest.approx(hits.mean())
    said = model.evaluate(inputs, labels, verbose=0, return_dict=True)
    assert values["overlap"] == pytest.approx(said["overlap"])


def test_views_whose_targets_have_moved():
    model, inputs, targets, _ = examples_for("segmentation")
    given = Given.read(model, inputs)
    task = task_of(given)
    one = outputs_of(given, inputs)
    two = outputs_of(given, inputs[:, :, ::-1])
    moved = np.stack([targets, targets[:, :, ::-1]], 1)
    found = task.view_losses(tf.stack([one, two]), tf.constant(moved), viewed=True)
    np.testing.assert_allclose(found[0], task.example_losses(one, tf.constant(targets)), rtol=1e-6)
    other = task.example_losses(two, tf.constant(targets[:, :, ::-1].copy()))
    np.testing.assert_allclose(found[1], other, rtol=1e-6)


def test_what_has_no_loss_is_refused():
    i = L.Input((3,))
    for end in (L.Dense(2, activation="sigmoid"), L.Dense(1)):
        given = Given.read(keras.Model(i, end(i)))
        with pytest.raises(UserError, match=r"isn't compiled.*compile it with the loss"):
            task_of(given)
    given = Given.read(keras.Model(i, L.Dense(2)(i)))
    assert task_of(given).is_classifier
    with pytest.raises(UserError, match="none that Keras knows"):
        task_of(given, aims=Compiled(loss="mean_squared_eror"))
    with pytest.raises(UserError, match=r"class 2: there are 0\.\.1"):
        task_of(given, class_weight={2: 1.0})
    with pytest.raises(UserError, match="loss for other: "):
        Given.read(keras.Model(i, L.Dense(2, name="own")(i)), loss={"other": "mse"})


def test_logits_probabilities_and_what_lies_between_mean_the_same():
    """The same weights behind four kinds of end give the same core outputs."""
    i = L.Input((3,))
    dense = L.Dense(4, name="d")
    plain = keras.Model(i, dense(i))
    logits = plain(np.eye(3, dtype="f")).numpy()
    soft = keras.Model(i, L.Softmax()(dense(i)))
    named = keras.Model({"x": i}, {"p": L.Reshape((4,))(keras.ops.softmax(dense(i)))})
    average = keras.Model(i, L.Average()([L.Softmax()(dense(i)), L.Softmax()(dense(i))]))
    shown = [Given.read(one, np.eye(3, dtype="f")) for one in (plain, soft, named, average)]
    assert [one.outputs[0].applied for one in shown] == [False, True, True, True]
    assert [one.outputs[0].operation is None for one in shown] == [True, False, False, True]
    for given in shown:
        found = tf.nn.softmax(given.core(np.eye(3, dtype="f")))
        np.testing.assert_allclose(found, tf.nn.softmax(logits), rtol=1e-5)
        again = given.finished(given.core)
        values = keras.tree.flatten(
            again({"x": np.eye(3, dtype="f")} if given is shown[2] else np.eye(3, dtype="f"))
        )
        expected = logits if given is shown[0] else tf.nn.softmax(logits)
        np.testing.assert_allclose(values[0], expected, rtol=1e-5)
