"""Networks of every kind that people have go the whole way, or are refused in one line."""

from functools import partial

import keras
import numpy as np
import pytest
import tensorflow as tf
from ekg_tf.dataloader import examples_of, own
from ekg_tf.dataloader.dataset import make_split
from ekg_tf.nets.given import Given
from ekg_tf.nets.graph import ChannelGraph
from ekg_tf.nets.rebuild import at_shapes, copied
from ekg_tf.phases.opening import work_on
from ekg_tf.phases.rehearsal import rehearse
from ekg_tf.pruning.worth.scores import weight_scores
from ekg_tf.reports import networks
from ekg_tf.training.task import task_of
from ekg_tf.utils import devices
from ekg_tf.utils.errors import UserError
from ekg_tf.utils.keras_files import load_keras, save_keras

import ekg_tf as ekg
from ekg_tf.api.arguments import reader
from tests.helpers import own_kinds
from tests.helpers.own_kinds import CLASSES, KINDS, SIZE

L, ops = keras.layers, keras.ops
# Kinds of which less than half of the FLOPs is within reach, each for a layer that stays whole.
LITTLE = {"normalisation_of_features"}


def data_for(model: keras.Model, high: float = 255):
    shape = tuple(model.inputs[0].shape[1:]) if getattr(model, "inputs", None) else (SIZE, SIZE, 3)
    rng = np.random.default_rng(0)
    images = rng.uniform(0, high, (24, *shape)).astype(np.float32)
    split = make_split(images, np.arange(24) % CLASSES, CLASSES, "the test")
    return own.dataset(split, split, ("a", "b", "c"))


def device():
    return devices.make(tf.distribute.get_strategy())


@pytest.mark.parametrize("name", sorted(KINDS.keys() - {"nested_twice"}))
def test_a_network_of_this_kind_goes_the_whole_way(name):
    model = KINDS[name]()
    data = data_for(model, high=19 if name == "embedded" else 255)
    model(np.zeros((1, *data.image_shape), np.float32))  # Keras builds some layers only now
    before = [array.copy() for array in model.get_weights()]
    given = Given.read(model, examples_of(data))
    rehearse(given, task_of(given), data, device())
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)  # the user's network isn't touched
    graph = ChannelGraph(given.core)
    assert (graph.lowest_rate() < 0.5) == (name not in LITTLE)
    scores = weight_scores("l1", graph.kernels(), graph.open_mask(), [])
    assert np.isfinite(scores).all() and (graph.kernels() or not graph.groups)


def rehearsed(model, data):
    given = Given.read(model, examples_of(data))
    rehearse(given, task_of(given), data, device())


def test_layers_on_every_step_are_called_once_on_all_of_them():
    given = Given.read(own_kinds.frames())
    graph = ChannelGraph(given.core)
    made = [type(call.operation).__name__ for call in graph.calls]
    assert [made.count(one) for one in ("Unstack", "Concatenate", "Split", "Stack")] == [1] * 4
    assert "TimeDistributed" not in made
    per_step = 6 * 6 * 27 * 6 + 2 * 2 * 54 * 8 + 32 * 10
    assert graph.flops() == 4 * (per_step + 4 * (10 * 8 + 8 * 8)) + 8 * CLASSES
    assert [group.channels for group in graph.groups] == [6, 8, 10, 8]
    mask = graph.open_mask()
    for group in graph.groups:
        mask[group.start : group.start + group.channels // 2] = 0
    pruned = 4 * (6 * 6 * 27 * 3 + 2 * 2 * 27 * 4 + 16 * 5 + 4 * (5 * 4 + 4 * 4)) + 4 * CLASSES
    assert graph.flops(mask) == pruned == ChannelGraph(graph.pruned(mask)).flops()


def test_layers_on_steps_of_an_open_number_stay_whole():
    given = Given.read(own_kinds.frames(steps=None), np.zeros((2, 4, 8, 8, 3), np.float32))
    graph = ChannelGraph(at_shapes(given.core, [(4, 8, 8, 3)]))
    assert [group.channels for group in graph.groups] == [10, 8]


def test_layers_derived_from_keras_own_become_these():
    model = own_kinds.derived()
    graph = ChannelGraph(Given.read(model).core)
    made = [type(call.operation) for call in graph.calls]
    convolutions = [call for call in graph.calls if isinstance(call.operation, L.Conv2D)]
    assert len(convolutions) == 3 and len({id(call.operation) for call in convolutions}) == 2
    assert set(map(type, (call.operation for call in convolutions))) == {L.Conv2D}
    assert made.count(L.BatchNormalization) == 2 and made.count(L.Dense) == 2
    assert {one.__module__.split(".")[0] for one in made} == {"keras"}
    assert [group.channels for group in graph.groups] == [8, 12]  # the twice called one is tied
    assert graph.lowest_rate() < 0.1


def test_a_derived_layer_that_does_more_with_its_kernel_stays_whole():
    i, x = own_kinds.image()
    x = own_kinds.StandardisedConv(6, 3, name="own")(L.Conv2D(8, 3, name="before")(x))
    model = own_kinds.classifier(i, L.Conv2D(4, 3)(L.ReLU()(x)))
    graph = ChannelGraph(Given.read(model).core)
    assert "before" in graph.frozen and [group.channels for group in graph.groups] == [4]


def test_a_file_that_keras_itself_reads_back_otherwise_is_refused():
    model = KINDS["nested_twice"]()
    data = data_for(model)
    with pytest.raises(UserError, match="the network in its own file gives other outputs"):
        rehearsed(model, data)


class NoConfig(L.Layer):
    """A layer that stays whole, whose configuration lacks an argument of __init__."""

    def __init__(self, factor, **options):
        super().__init__(**options)
        self.factor = factor
        self.inner = L.Dense(4)

    def call(self, x, training=None):
        return self.inner(x) * self.factor if training else self.inner(x)

    def get_config(self):
        return super().get_config()


def refused(build) -> str:
    i = keras.Input((6,))
    model = keras.Model(i, L.Dense(CLASSES)(build(i)))
    with pytest.raises(UserError) as error:
        Given.read(model)
    return str(error.value)


def test_what_cannot_be_copied_is_refused_with_the_remedy():
    unknown = L.Lambda(lambda y: tf.numpy_function(np.abs, [y], tf.float32), (6,))
    words = refused(unknown)
    assert "is a Lambda" in words and "can't be run on symbolic tensors" in words
    assert "let get_config() return all arguments" in refused(lambda x: NoConfig(2.0)(x))


def test_a_lambda_becomes_what_it_does_also_in_the_file_of_the_given_network(tmp_path):
    model = KINDS["lambdas"]()
    given = Given.read(model)
    assert not [one for one in given.core.layers if isinstance(one, L.Lambda)]
    save_keras(tmp_path / "given.keras", given.to_write())
    again = keras.models.load_model(tmp_path / "given.keras")  # in safe mode
    x = np.random.default_rng(0).uniform(0, 255, (4, SIZE, SIZE, 3)).astype(np.float32)
    np.testing.assert_allclose(again(x), model(x), atol=1e-6)
    plain = KINDS["plain"]()
    assert Given.read(plain).to_write() is plain


def test_lora_and_quantised_layers_are_refused_with_the_remedy():
    dense = L.Dense(8)
    i = keras.Input((6,))
    model = keras.Model(i, L.Dense(CLASSES)(dense(i)))
    dense.enable_lora(2)
    with pytest.raises(UserError, match="has LoRA enabled: merge it"):
        Given.read(model)
    quantised = keras.Model(i, L.Dense(CLASSES)(L.Dense(8)(i)))
    quantised.quantize("int8")
    with pytest.raises(UserError, match=r"is quantised .*prune the network before"):
        Given.read(quantised)


def test_nan_is_refused_at_the_door():
    model = KINDS["plain_logits"]()
    model.layers[-1].bias.assign([np.nan, 0, 0])
    data = data_for(model)
    with pytest.raises(UserError, match="NaN or infinite outputs"):
        rehearsed(model, data)


def test_probabilities_are_told_from_logits_by_their_values():
    i = keras.Input((4,))
    average = L.Average()([L.Dense(CLASSES)(i), L.Dense(CLASSES)(i)])
    images = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    assert not Given.read(keras.Model(i, average), images).outputs[0].applied
    given = Given.read(KINDS["averaged_heads"](), np.zeros((4, SIZE, SIZE, 3), np.float32))
    assert given.outputs[0].applied and given.outputs[0].operation is None
    x = np.random.default_rng(0).uniform(0, 255, (4, SIZE, SIZE, 3)).astype(np.float32)
    np.testing.assert_allclose(tf.nn.softmax(given.core(x)), given.model(x), atol=1e-6)


def test_the_result_has_the_given_networks_policy_flags_names_and_loss():
    model = own_kinds.bfloat16()
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    given = Given.read(model)
    assert {layer.compute_dtype for layer in given.core.layers} == {"float32"}
    finished = given.finished(given.core)
    policies = [layer.dtype_policy.name for layer in model.layers[1:]]
    assert [layer.dtype_policy.name for layer in finished.layers[1:]] == policies
    assert finished.loss == "sparse_categorical_crossentropy" and finished.optimizer is not None

    named = own_kinds.named_ends()
    finished = Given.read(named).finished(Given.read(named).core)
    assert list(finished.output) == ["kind"] and list(finished.input) == ["picture"]

    frozen = own_kinds.frozen_inside()
    given = Given.read(frozen)
    norms = [one for one in given.core.layers if isinstance(one, L.BatchNormalization)]
    assert norms and not any(norm.trainable for norm in norms)
    assert all(norm.by_moving for norm in _twins(given.core, norms))
    flags = [layer.trainable for layer in given.finished(given.core).layers]
    assert flags.count(False) == len(norms)


def _twins(core, norms):
    gated, _ = ChannelGraph(core).gated()
    return [gated.get_layer(norm.name) for norm in norms]


# ---------------------------------------------------------------- state outside of the weights


def _normalization():
    layer = L.Normalization(axis=-1)
    layer.adapt(np.random.default_rng(0).normal(3, 5, (32, 4)).astype("float32"))
    return layer


def _discretization():
    layer = L.Discretization(num_bins=4)
    layer.adapt(np.random.default_rng(0).normal(0, 1, (64, 4)).astype("float32"))
    return layer


def _lookup():
    return L.IntegerLookup(vocabulary=[3, 5, 7])


@pytest.mark.parametrize(
    ("layer", "inputs"),
    [
        (_normalization(), np.random.default_rng(1).normal(3, 5, (8, 4)).astype("float32")),
        (_discretization(), np.random.default_rng(1).normal(0, 1, (8, 4)).astype("float32")),
        (_lookup(), np.array([[3, 5, 9, 7]], "int64")),
    ],
    ids=["Normalization", "Discretization", "IntegerLookup"],
)
def test_a_copy_carries_the_state_that_a_layer_keeps_outside_of_its_weights(layer, inputs):
    i = keras.Input((4,), dtype=inputs.dtype.name)
    model = keras.Model(i, layer(i))
    np.testing.assert_allclose(copied(model)(inputs), model(inputs), atol=1e-6)


def test_opened_layers_are_compared_with_themselves():
    given = Given.read(own_kinds.custom_layers())
    assert len(given.closed) == 1
    assert "does something else in training" in next(iter(given.closed.values()))
    given = Given.read(own_kinds.blocks())
    assert not given.closed
    assert sum(isinstance(one, L.Conv2D) for one in given.core.layers) == 5


def test_a_subclassed_network_is_timed_and_tested_as_it_was_given(monkeypatch):
    monkeypatch.setattr(networks, "timings", partial(networks.timings, seconds=0.05))
    model = KINDS["subclassed"]()
    data = data_for(model)
    given = Given.read(model, examples_of(data))
    found = networks.describe(given, given, task_of(given), data, device())
    assert found["before"]["parameters"] == model.count_params()
    assert all(value > 0 for value in found["before"]["latency_ms"].values())
    assert found["before"]["test"] == found["after"]["test"]
    functional = given.at_shapes([one.shape[1:] for one in given.core.inputs])
    images = examples_of(data)[:8]
    np.testing.assert_allclose(functional(images), model(images), atol=1e-5)


def test_a_subclassed_network_is_inspected_by_what_it_was_built_on():
    with pytest.raises(UserError, match=r"without the shape of what it takes \(input_shape\)"):
        ekg.inspect(own_kinds.Subclassed())
    report = ekg.inspect(own_kinds.Subclassed(), input_shape=(SIZE, SIZE, 3))
    assert report.flops > 0 and any(group["prunable"] for group in report.groups)
    assert ekg.inspect(KINDS["subclassed"]()).flops == report.flops
    larger = ekg.inspect(KINDS["subclassed"](), input_shape=(2 * SIZE, 2 * SIZE, 3))
    assert larger.flops > report.flops
    with pytest.raises(UserError, match="can't be called on"):
        ekg.inspect(KINDS["subclassed"](), input_shape=(SIZE,))


class Around(keras.Model):
    """Trains a network by another, as the guides write it: nothing of it can be saved."""

    def __init__(self, student, teacher):
        super().__init__()
        self.student, self.teacher = student, teacher

    def call(self, x):
        return self.student(x)


def test_a_network_around_others_is_what_its_call_needs():
    student, teacher = KINDS["subclassed"](), KINDS["subclassed"]()
    model, images = Around(student, teacher), np.ones((1, SIZE, SIZE, 3), np.float32)
    given = Given.read(model, images)
    assert given.unused
    assert given.count_params() == student.count_params() < model.count_params()
    np.testing.assert_allclose(given.finished(given.core)(images), student(images), atol=1e-6)


def test_a_distiller_is_told_to_give_the_network_inside():
    student, teacher = KINDS["subclassed"](), KINDS["subclassed"]()
    losses = keras.distillation.LogitsDistillation()
    distiller = keras.distillation.Distiller(teacher, student, distillation_losses=losses)
    with pytest.raises(UserError, match="only trains its student; to prune"):
        Given.read(distiller, np.zeros((1, SIZE, SIZE, 3), np.float32))


class ByName(keras.Model):
    """Takes a dict, gives a dict."""

    def __init__(self):
        super().__init__()
        self.conv, self.dense = L.Conv2D(6, 3, activation="relu"), L.Dense(5, activation="relu")
        self.label, self.size = L.Dense(CLASSES, activation="softmax"), L.Dense(1)

    def call(self, inputs):
        x = [ops.mean(self.conv(inputs["image"]), axis=(1, 2)), self.dense(inputs["extra"])]
        x = ops.concatenate(x, axis=-1)
        return {"size": self.size(x), "label": self.label(x)}


@pytest.mark.parametrize("size", [SIZE, SIZE + 4])  # it was built on the first
def test_a_subclassed_network_keeps_inputs_and_outputs_by_name(size):
    model, rng = ByName(), np.random.default_rng(0)
    model({"image": np.zeros((1, SIZE, SIZE, 3)), "extra": np.zeros((1, 3))})
    model.compile("sgd", {"label": "sparse_categorical_crossentropy", "size": "mse"})
    inputs = {
        "image": rng.normal(size=(24, size, size, 3)).astype(np.float32),
        "extra": rng.normal(size=(24, 3)).astype(np.float32),
    }
    targets = {"size": rng.normal(size=(24, 1)).astype(np.float32), "label": np.arange(24) % 3}
    data = (inputs, targets)
    work = work_on(model, reader(data, data, None, "the test"))
    assert work.given.keys == (["extra", "image"], ["label", "size"])
    if size != SIZE:
        rehearse(work.given, work.task, work.data, device())
    expected, found = model(inputs), work.given.finished(work.given.core)(inputs)
    for name in targets:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5)


class Steps(keras.Model):
    """Tells classes apart at every place."""

    def __init__(self):
        super().__init__()
        self.conv, self.last = L.Conv2D(6, 3, padding="same"), L.Conv2D(CLASSES, 1)

    def call(self, x):
        return self.last(ops.relu(self.conv(x)))


@pytest.mark.parametrize("built", [SIZE, SIZE + 4, None])
def test_labels_of_every_place_for_a_subclassed_network(built):
    model, rng = Steps(), np.random.default_rng(0)
    if built:
        model(np.zeros((1, built, built, 3)))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    images = rng.normal(size=(24, SIZE, SIZE, 3)).astype(np.float32)
    data = images, rng.integers(0, CLASSES, (24, SIZE, SIZE))
    work = work_on(model, reader(data, data, None, "the test"))
    np.testing.assert_array_equal(work.data.train.targets, data[1])
    rehearse(work.given, work.task, work.data, device())
    batches = tf.data.Dataset.from_tensor_slices(data).batch(5)
    streamed = work_on(model, reader(batches, batches, None, "the test"))
    assert streamed.data.train.targets.shape == (24, SIZE, SIZE)
    assert streamed.given.core.count_params() == work.given.core.count_params()
    other = images, data[1][:, 1:]
    with pytest.raises(UserError, match="shape"):
        work = work_on(model, reader(other, other, None, "the test"))
        rehearse(work.given, work.task, work.data, device())


def curved(x):
    """An activation of the user's, which isn't registered."""
    return x * ops.relu6(x + 3) / 6


class Unregistered(L.Layer):
    def __init__(self, filters):
        super().__init__()
        self.conv = L.Conv2D(filters, 3, activation=curved)

    def call(self, x):
        return curved(self.conv(x))


def test_what_keras_would_not_read_back_goes_into_files_in_its_parts(tmp_path):
    i = keras.Input((SIZE, SIZE, 3))
    x = Unregistered(8)(L.Conv2D(6, 3, activation=curved)(i))
    model = classifier_of(i, L.Activation(curved)(x))
    given = Given.read(model)
    graph = ChannelGraph(given.core)
    assert [group.channels for group in graph.groups] == [6, 8]
    save_keras(tmp_path / "given.keras", given.to_write())
    again = load_keras(tmp_path / "given.keras", compile=False)
    images = np.random.default_rng(0).normal(size=(4, SIZE, SIZE, 3)).astype(np.float32)
    np.testing.assert_allclose(again(images), model(images), atol=1e-5)
    known = KINDS["custom_layers"]()  # registered, and one of them can't be opened
    assert Given.read(known).to_write() is known


def mixing(x):
    """Runs over the channels, so they stay."""
    return x / (1 + ops.max(ops.abs(x), axis=-1, keepdims=True))


def test_an_activation_of_ones_own_is_followed_by_what_it_does():
    i = keras.Input((SIZE, SIZE, 3))
    x = L.Conv2D(6, 3, activation=mixing, name="mixed")(i)
    model = classifier_of(i, L.Conv2D(8, 3, activation=curved)(x))
    report = ekg.inspect(model)
    assert [group["width"] for group in report.groups if group["prunable"]] == [8]
    (mixed,) = (group for group in report.groups if group["layers"] == ["mixed"])
    assert "runs over the channels" in mixed["reason"]


def test_what_runs_over_the_channels_comes_back_as_it_was(tmp_path):
    i = keras.Input((SIZE, SIZE, 3))
    x = L.Conv2D(6, 3, activation="relu", name="first")(i)
    x = x * ops.sigmoid(ops.mean(x, axis=-1, keepdims=True) - ops.max(x, axis=-1, keepdims=True))
    x = x / (1 + ops.expand_dims(ops.sum(x, axis=-1), -1))
    model = classifier_of(i, x)
    given = Given.read(model)
    graph = ChannelGraph(given.core)
    assert [group.layers for group in graph.groups] == [("first",)]
    mask = graph.open_mask()
    mask[:3] = 0
    pruned = given.finished(graph.pruned(mask))
    save_keras(tmp_path / "pruned.keras", pruned)
    again = load_keras(tmp_path / "pruned.keras", compile=False)
    kinds = {type(one).__name__ for one in again.operations}
    assert {"Mean", "Max", "Sum"} <= kinds and "OverChannels" not in kinds
    assert again.count_params() == graph.parameters(mask)


@keras.saving.register_keras_serializable("test_given_kinds")
class Direction(L.Layer):
    """An output of the user's own."""

    def build(self, shape):
        self.dense = L.Dense(5)
        self.dense.build(shape)
        self.built = True

    def call(self, x):
        x = self.dense(x)
        return x / ops.sqrt(1e-6 + ops.sum(ops.square(x), axis=-1, keepdims=True))


def test_outputs_in_a_list_keep_the_names_of_layers_that_are_opened():
    i = keras.Input((SIZE, SIZE, 3))
    x = L.GlobalAveragePooling2D()(L.Conv2D(6, 3, activation="relu")(i))
    ends = [Direction(name="direction")(x), L.Dense(3, activation="softmax", name="label")(x)]
    model = keras.Model(i, ends)
    model.compile("sgd", {"direction": "mse", "label": "sparse_categorical_crossentropy"})
    given = Given.read(model)
    assert not given.closed and [one.kind for one in given.outputs] == ["numbers", "classes"]
    finished = given.finished(given.core)
    assert finished.output_names == ["direction", "label"]
    images = np.zeros((4, SIZE, SIZE, 3))
    finished.fit(images, {"direction": np.zeros((4, 5)), "label": np.zeros(4)}, verbose=0)


def classifier_of(i, x):
    return keras.Model(i, L.Dense(CLASSES, activation="softmax")(L.GlobalAveragePooling2D()(x)))
