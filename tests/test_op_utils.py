"""The compiled steps against hand computations, numpy and each other."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from ekg_tf.nets.rebuild import to_policy
from ekg_tf.training import evaluation
from ekg_tf.training.task import classification
from ekg_tf.utils.errors import UserError

from ekg_tf import op_utils
from tests.helpers.replicas import one_replica, two_replicas

TASK = classification()

CLASSES = 7


def small_net(bn=True, dropout=0.0, seed=1):
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    x = inputs = layers.Input((6, 6, 3))
    for filters in (4, 5):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=not bn)(x)
        if bn:
            x = layers.BatchNormalization(momentum=0.8)(x)
        x = layers.ReLU()(x)
    x = layers.GlobalAveragePooling2D()(x)
    if dropout:
        x = layers.Dropout(dropout)(x)
    return keras.Model(inputs, layers.Dense(CLASSES)(x))


def shaken_net(**options):
    """With batch norms that are not fresh, which would hide mistakes."""
    model = small_net(**options)
    random = np.random.default_rng(5)
    for v in model.variables:
        if v.name in ("beta", "moving_mean", "gamma", "moving_variance"):
            low = 0.5 if v.name in ("gamma", "moving_variance") else -0.5
            v.assign(random.uniform(low, low + 1, v.shape))
    return model


def examples(count, views=1, seed=2):
    random = np.random.default_rng(seed)
    return {
        "inputs": random.normal(0.3, 1, (count, views, 6, 6, 3)).astype(np.float32),
        "targets": random.integers(0, CLASSES, count, np.int32),
        "index": np.arange(count, dtype=np.int32),
    }


def batches(arrays, batch):
    return tf.data.Dataset.from_tensor_slices(arrays).batch(batch, drop_remainder=True)


def cross_entropy(logits, batch, teacher):
    views = tf.unstack(logits)
    label = batch["targets"]
    per_view = [tf.nn.sparse_softmax_cross_entropy_with_logits(label, v) for v in views]
    right = tf.equal(tf.argmax(views[0], -1, tf.int32), label)
    return tf.reduce_mean(tf.add_n(per_view)), {"accuracy": tf.reduce_mean(tf.cast(right, "float"))}


def train(strategy, arrays, batch, steps, build=small_net, loss_fn=cross_entropy, **options):
    """Weights (all variables) and metrics after some steps of Nesterov SGD at 0.1."""
    with strategy.scope():
        model = build()
        optimizer = keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True)
    step = op_utils.make_train_step(model, optimizer, loss_fn, strategy, **options)
    data = iter(strategy.experimental_distribute_dataset(batches(arrays, batch)))
    metrics = step(data, tf.constant(steps))
    return [v.numpy() for v in model.variables], {k: v.numpy() for k, v in metrics.items()}


def assert_close(first, second, tolerance):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


# ---------------------------------------------------------------- training


def without_bn():
    return small_net(bn=False)


def one_weight():
    inputs = keras.layers.Input((1, 1, 1))
    outputs = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")
    return keras.Model(inputs, outputs(keras.layers.Flatten()(inputs)))


def half_square(logits, batch, teacher):
    return tf.reduce_mean(logits**2) / 2, {}


@pytest.mark.parametrize("strategy", [one_replica, two_replicas])
@pytest.mark.parametrize("accum", [1, 2])
def test_nesterov_and_l2_by_hand(strategy, accum):
    # the images are 1, so the gradient is w + 0.5 w, once for any number of replicas and parts
    # g = 1.5,    v = -0.15,                     w = 1     + 0.9 * v - 0.1 * g = 0.715
    # g = 1.0725, v = 0.9 * -0.15    - 0.10725,  w = 0.715 + 0.9 * v - 0.1 * g = 0.389725
    arrays = {"inputs": np.ones((8, 1, 1, 1, 1), np.float32), "targets": np.zeros(8, np.int32)}
    weights, metrics = train(
        strategy(), arrays, 4, 2, one_weight, half_square, weight_decay=0.5, accum=accum
    )
    assert weights[0].item() == pytest.approx(0.389725, abs=1e-6)
    assert metrics["loss"] == pytest.approx([0.5, 0.715**2 / 2], abs=1e-6)
    assert metrics["examples"].tolist() == [4, 4]


def test_two_replicas_equal_one():
    arrays = examples(96)
    one, metrics_one = train(one_replica(), arrays, 32, 3, without_bn, weight_decay=0.01)
    two, metrics_two = train(two_replicas(), arrays, 32, 3, without_bn, weight_decay=0.01)
    assert_close(one, two, 1e-5)
    assert set(metrics_one) == set(metrics_two) == {"loss", "accuracy", "examples"}
    for name in metrics_one:
        np.testing.assert_allclose(metrics_one[name], metrics_two[name], atol=1e-5)


def test_accumulation_equals_one_batch():
    arrays = examples(256, views=2)
    whole, metrics_whole = train(one_replica(), arrays, 128, 2, without_bn)
    parts, metrics_parts = train(one_replica(), arrays, 128, 2, without_bn, accum=4)
    assert_close(whole, parts, 1e-5)
    np.testing.assert_allclose(metrics_whole["loss"], metrics_parts["loss"], atol=1e-5)


@pytest.mark.parametrize("strategy, accum", [(one_replica, 1), (one_replica, 2), (two_replicas, 1)])
def test_xla_equals_plain_with_bn(strategy, accum):
    arrays = examples(96, views=2)
    plain, _ = train(strategy(), arrays, 32, 3, accum=accum, weight_decay=0.01)
    compiled, _ = train(strategy(), arrays, 32, 3, accum=accum, weight_decay=0.01, compile=True)
    assert_close(plain, compiled, 1e-4)


def bn_only():
    inputs = keras.layers.Input((6, 6, 3))
    x = keras.layers.BatchNormalization(momentum=0.8)(inputs)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(CLASSES)(x))


@pytest.mark.parametrize(
    "strategy, accum", [(one_replica, 1), (one_replica, 2), (two_replicas, 1), (two_replicas, 2)]
)
def test_moving_statistics_by_hand(strategy, accum):
    """Parts follow one another, replicas are averaged, and both views count at once."""
    arrays = examples(16, views=2)
    weights, _ = train(strategy(), arrays, 16, 1, bn_only, accum=accum)
    replicas = 2 if strategy is two_replicas else 1
    expected = []
    for own in np.split(arrays["inputs"], replicas):
        mean, variance = np.zeros(3), np.ones(3)
        for part in np.split(own, accum):
            mean = 0.8 * mean + 0.2 * part.mean((0, 1, 2, 3))
            variance = 0.8 * variance + 0.2 * part.var((0, 1, 2, 3))
        expected.append([mean, variance])
    by_shape = [w for w in weights if w.shape == (3,)]  # gamma, beta, mean, variance
    assert_close(by_shape[2:], np.mean(expected, 0), 1e-5)


@pytest.mark.parametrize("strategy", [one_replica, two_replicas])
def test_random_seeds_advance_and_are_not_averaged(strategy):
    model = small_net(dropout=0.5)
    place = next(i for i, v in enumerate(model.variables) if v.dtype == "int64")
    before = model.variables[place].numpy()
    weights, _ = train(strategy(), examples(24), 8, 3, lambda: small_net(dropout=0.5), accum=2)
    assert (weights[place] - before).tolist() == [0, 6]


def test_views_come_back_in_order():
    arrays = examples(12, views=2)
    seen = {}

    def keep(logits, batch, teacher):
        seen["shape"] = logits.shape
        first, second = (tf.reduce_mean(v) for v in tf.unstack(logits))
        fits = tf.reduce_sum(logits[1] * tf.one_hot(batch["targets"], CLASSES), -1)
        return tf.reduce_mean(logits), {"a": first, "b": second, "c": tf.reduce_mean(fits)}

    _, metrics = train(one_replica(), arrays, 12, 1, without_bn, keep)
    assert seen["shape"] == (2, 12, CLASSES)
    one, two = (without_bn()(arrays["inputs"][:, i]).numpy() for i in (0, 1))
    assert metrics["a"][0] == pytest.approx(one.mean(), abs=1e-6)
    assert metrics["b"][0] == pytest.approx(two.mean(), abs=1e-6)
    assert metrics["c"][0] == pytest.approx(two[range(12), arrays["targets"]].mean(), abs=1e-6)


@pytest.mark.parametrize("strategy", [one_replica, two_replicas])
def test_teacher_sees_the_views_and_stays_as_it_is(strategy):
    arrays = examples(8, views=2)
    strategy = strategy()
    with strategy.scope():
        teacher = shaken_net(dropout=0.5, seed=3)
    before = [v.numpy() for v in teacher.variables]

    def mimic(logits, batch, targets):
        (target,) = targets
        assert target.shape == logits.shape
        return tf.reduce_mean((logits - target) ** 2), {"target": tf.reduce_mean(target**2)}

    _, metrics = train(strategy, arrays, 8, 1, loss_fn=mimic, teachers=[teacher], compile=True)
    for old, variable in zip(before, teacher.variables, strict=True):
        np.testing.assert_array_equal(old, variable.numpy())
    forward = evaluation.make_forward(teacher, bn="batch")
    own = np.split(arrays["inputs"], strategy.num_replicas_in_sync)
    target = np.mean([np.mean(forward(x.reshape(-1, 6, 6, 3)).numpy() ** 2) for x in own])
    assert metrics["target"][0] == pytest.approx(target, rel=1e-4)


def test_frozen_variables_keep_their_values_and_are_not_decayed():
    def build():
        model = small_net(bn=False)
        model.layers[1].trainable = False
        return model

    weights, _ = train(two_replicas(), examples(16), 16, 1, build, weight_decay=0.1)
    before = [v.numpy() for v in build().variables]
    np.testing.assert_array_equal(weights[0], before[0])
    assert np.abs(weights[2] - before[2]).max() > 0


def test_accumulation_refuses_what_does_not_divide():
    with pytest.raises(ValueError, match="10 per replica cannot be cut into 3"):
        train(one_replica(), examples(10), 10, 1, accum=3)
    with pytest.raises(ValueError, match="accum is 0"):
        train(one_replica(), examples(10), 10, 1, accum=0)


def test_check_finite_names_the_first_bad_step():
    def cause(place: int) -> str:
        return f"place {place}"

    op_utils.check_finite(tf.constant([1.0, 2.0]), 5, cause)
    with pytest.raises(op_utils.NonFiniteLoss, match="inf at step 7: place 2"):
        op_utils.check_finite(np.array([1.0, 2.0, np.inf, np.nan]), 5, cause)
    assert issubclass(op_utils.NonFiniteLoss, UserError)


# ---------------------------------------------------------------- evaluation


def linear_net(classes, weights):
    inputs = keras.layers.Input((1, 1, 2))
    dense = keras.layers.Dense(classes, use_bias=False)
    model = keras.Model(inputs, dense(keras.layers.Flatten()(inputs)))
    model.set_weights([weights])
    return model


@pytest.mark.parametrize("compile", [False, True])
def test_evaluate_against_numpy(compile):
    random = np.random.default_rng(0)
    weights = random.normal(size=(2, 8)).astype(np.float32)
    image = random.normal(size=(50, 1, 1, 2)).astype(np.float32)
    label = random.integers(0, 8, 50, np.int32)
    data = tf.data.Dataset.from_tensor_slices({"inputs": image, "targets": label}).batch(16)
    result = evaluation.evaluate(linear_net(8, weights), TASK, data, compile=compile)
    logits = image.reshape(50, 2) @ weights
    own = logits[range(50), label]
    assert result["loss"] == pytest.approx(np.mean(np.log(np.exp(logits).sum(1)) - own), abs=1e-5)
    order = np.argsort(-logits, axis=1)
    assert result["top1"] == pytest.approx(100 * np.mean(order[:, 0] == label))
    assert result["top5"] == pytest.approx(100 * np.mean((order[:, :5] == label[:, None]).any(1)))
    assert result["examples"] == 50


def test_a_last_batch_of_another_size_is_not_traced_for(monkeypatch):
    """Tracing a network takes as long as many a test does."""
    model, traced = small_net(), []
    call = model.call

    def counted(*args, **kwargs):
        traced.append(args[0].shape[0])
        return call(*args, **kwargs)

    monkeypatch.setattr(model, "call", counted)
    sizes = (8, 8, 3)
    images = [np.ones((size, 6, 6, 3), np.float32) for size in sizes]
    batches = [{"inputs": one, "targets": np.zeros(len(one), np.int32)} for one in images]
    assert evaluation.evaluate(model, TASK, batches)["examples"] == sum(sizes)
    evaluation.reestimate_bn(model, batches)
    assert traced == [None, None]


def test_evaluate_few_classes_ties_nan_and_nothing():
    batch = {"inputs": np.ones((4, 1, 1, 2), np.float32), "targets": np.array([0, 1, 2, 3])}
    tied = evaluation.evaluate(linear_net(4, np.zeros((2, 4))), TASK, [batch])
    assert tied["top5"] is None and tied["top1"] == 25  # argmax is class 0
    broken = evaluation.evaluate(linear_net(4, np.full((2, 4), np.nan)), TASK, [batch])
    assert broken["top1"] == 0 and np.isnan(broken["loss"])
    with pytest.raises(ValueError, match="no example"):
        evaluation.evaluate(linear_net(4, np.zeros((2, 4))), TASK, [])


def numpy_bn(x, gamma, beta, epsilon=1e-3):
    axes = tuple(range(x.ndim - 1))
    return gamma * (x - x.mean(axes)) / np.sqrt(x.var(axes) + epsilon) + beta


@pytest.mark.parametrize("compile", [False, True])
def test_forward_in_both_bn_modes(compile):
    model = shaken_net(dropout=0.9)
    before = [v.numpy() for v in model.variables]
    image = examples(16)["inputs"][:, 0]
    inference = evaluation.make_forward(model, bn="inference", compile=compile)(image)
    np.testing.assert_allclose(inference, model(image, training=False), atol=1e-5)
    x = image
    for i in (1, 4):
        bn = model.layers[i + 1]
        x = np.maximum(numpy_bn(model.layers[i](x).numpy(), bn.gamma.numpy(), bn.beta.numpy()), 0)
    dense = model.layers[-1]
    expected = x.mean((1, 2)) @ dense.kernel.numpy() + dense.bias.numpy()
    batch = evaluation.make_forward(model, bn="batch", compile=compile)(image)
    np.testing.assert_allclose(batch, expected, atol=1e-4)
    for old, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, variable.numpy())
    assert model.layers[-2].rate == 0.9


def test_frozen_batch_norms_keep_to_their_moving_statistics_in_batch_mode():
    model, images = small_net(), examples(4)["inputs"][:, 0]
    by_batch = evaluation.make_forward(model, bn="batch")(images)
    model.trainable = False
    frozen = evaluation.make_forward(model, bn="batch")(images)
    np.testing.assert_allclose(frozen, model(images, training=False), atol=1e-6)
    assert np.abs(frozen - by_batch).max() > 1e-3
    before = [v.numpy() for v in model.variables]
    evaluation.reestimate_bn(model, [{"inputs": images}])
    for old, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, variable)


def test_unknown_modes_are_refused():
    model = small_net()
    with pytest.raises(ValueError, match="'inference' or 'batch'"):
        evaluation.make_forward(model, bn="train")


def test_reestimate_bn_against_numpy():
    model = shaken_net(dropout=0.5)
    model.layers[2].moving_mean.assign([np.nan] * 4)  # a broken start must not survive
    before = {v.path: v.numpy() for v in model.variables}
    image = examples(40)["inputs"][:, 0]
    parts = [image[:16], image[16:32], image[32:]]
    evaluation.reestimate_bn(model, [{"inputs": part} for part in parts])
    y = [model.layers[1](part).numpy() for part in parts]
    bn = model.layers[2]
    assert bn.momentum == 0.8
    sizes = [16, 16, 8]
    mean = np.average([a.mean((0, 1, 2)) for a in y], 0, sizes)
    variance = np.average([a.var((0, 1, 2)) for a in y], 0, sizes)
    assert_close([bn.moving_mean.numpy(), bn.moving_variance.numpy()], [mean, variance], 1e-5)
    # the second batch norm follows the first one's batch statistics, not its moving ones
    x = [np.maximum(numpy_bn(a, bn.gamma.numpy(), bn.beta.numpy()), 0) for a in y]
    y = [model.layers[4](a).numpy() for a in x]
    mean = np.average([a.mean((0, 1, 2)) for a in y], 0, sizes)
    np.testing.assert_allclose(model.layers[5].moving_mean.numpy(), mean, atol=1e-4)
    for variable in model.variables:
        if not variable.name.startswith("moving"):
            np.testing.assert_array_equal(before[variable.path], variable.numpy())


def test_a_batch_norm_that_is_used_several_times_has_the_mean_of_its_uses():
    layers = keras.layers
    image = layers.Input((6, 6, 4))
    conv, shared = layers.Conv2D(4, 3, padding="same"), layers.BatchNormalization(momentum=0.8)
    x, uses = image, []
    for _ in range(3):
        uses.append(conv(x))
        x = layers.ReLU()(shared(uses[-1]))
    x = layers.BatchNormalization()(layers.Conv2D(2, 3)(x))
    model = keras.Model(image, layers.GlobalAveragePooling2D()(x))
    conv.bias.assign([0.5, -0.5, 1.0, 0.0])
    shared.gamma.assign([1.0, 2.0, 0.5, 1.5])
    rng = np.random.default_rng(0)
    images = [rng.normal(size=(n, 6, 6, 4)).astype(np.float32) for n in (12, 4)]
    evaluation.reestimate_bn(model, [{"inputs": one} for one in images])
    assert shared.momentum == 0.8
    means, variances = [], []
    for one in images:
        x, found = one, []
        for _ in range(3):
            y = conv(x).numpy()
            found.append((y.mean((0, 1, 2)), y.var((0, 1, 2))))
            x = np.maximum(numpy_bn(y, shared.gamma.numpy(), shared.beta.numpy()), 0)
        means.append(np.mean([mean for mean, _ in found], 0))
        variances.append(np.mean([variance for _, variance in found], 0))
        assert np.ptp([variance for _, variance in found], axis=0).max() > 0.1
    for moving, values in ((shared.moving_mean, means), (shared.moving_variance, variances)):
        np.testing.assert_allclose(moving, np.average(values, 0, [12, 4]), rtol=2e-3, atol=2e-3)


def test_reestimate_bn_edges():
    evaluation.reestimate_bn(small_net(bn=False), [])
    with pytest.raises(ValueError, match="no batch"):
        evaluation.reestimate_bn(small_net(), [])


def test_evaluation_of_mirrored_models():
    image = examples(16)["inputs"][:, 0]
    data = [{"inputs": image, "targets": examples(16)["targets"]}]
    with two_replicas().scope():
        mirrored = shaken_net()
    single = shaken_net()
    assert evaluation.evaluate(mirrored, TASK, data) == pytest.approx(
        evaluation.evaluate(single, TASK, data)
    )
    for model in (mirrored, single):
        evaluation.reestimate_bn(model, data)
    assert_close(mirrored.get_weights(), single.get_weights(), 1e-6)


# ---------------------------------------------------------------- mixed precision


def test_mixed_precision_clone():
    model = shaken_net()
    half = to_policy(model, "mixed_bfloat16")
    assert [v.path for v in half.variables] == [v.path for v in model.variables]
    assert all(v.dtype == "float32" for v in half.variables)
    assert half.layers[1].compute_dtype == half.layers[2].compute_dtype == "bfloat16"
    image = examples(16)["inputs"][:, 0]
    assert half.output.dtype == "float32"
    np.testing.assert_allclose(half(image), model(image), atol=0.05)
    half.layers[1].kernel.assign(half.layers[1].kernel * 2)
    model.set_weights(half.get_weights())
    assert_close(model.get_weights(), half.get_weights(), 0)
    assert to_policy(half, "float32")(image).numpy() == pytest.approx(model(image).numpy())


def test_layers_of_whole_numbers_keep_their_type():
    category = keras.Input((1,), dtype="int64")
    place = keras.layers.Hashing(8)(category)
    model = keras.Model(category, keras.layers.Dense(4)(keras.layers.Embedding(8, 6)(place)))
    half = to_policy(model, "mixed_bfloat16")
    assert {layer.dtype for layer in half.layers if "hashing" in layer.name} == {"int64"}
    numbers = np.arange(5)[:, None]
    np.testing.assert_allclose(half(numbers), model(numbers), rtol=0.02, atol=0.01)


def test_mixed_precision_takes_moments_in_float32():
    """Moments of numbers that bfloat16 holds exactly, but whose sum and squares it does not."""
    layers = keras.layers
    inputs = layers.Input((6, 6, 3))
    x = layers.BatchNormalization(momentum=0.0)(inputs)
    model = keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))
    half = to_policy(model, "mixed_bfloat16")
    image = np.random.default_rng(0).choice([100.0, 100.5, 101.0], (64, 6, 6, 3))
    evaluation.reestimate_bn(half, [{"inputs": image.astype(np.float32)}])
    np.testing.assert_allclose(half.layers[1].moving_mean, image.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(half.layers[1].moving_variance, image.var((0, 1, 2)), rtol=1e-3)


def test_mixed_precision_trains_like_float32():
    def build():
        return to_policy(small_net(), "mixed_bfloat16")

    full, _ = train(one_replica(), examples(96), 32, 3)
    half, metrics = train(one_replica(), examples(96), 32, 3, build, compile=True)
    assert all(w.dtype == np.float32 for w in half) and np.isfinite(metrics["loss"]).all()
    assert_close(full, half, 0.05)
