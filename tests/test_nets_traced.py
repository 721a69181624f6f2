"""What the user's own layers do becomes part of the graph, checked against the layers."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from ekg_tf.nets.flatten import flatten
from ekg_tf.nets.given import Given
from ekg_tf.nets.graph import ChannelGraph
from ekg_tf.nets.proof import agreement, agrees
from ekg_tf.utils.errors import UserError

import ekg_tf as ekg
from tests.helpers import own_kinds
from tests.helpers.networks import assert_a_third_can_go

L, ops = keras.layers, keras.ops


def checked(model: keras.Model) -> tuple[keras.Model, dict[str, str], ChannelGraph]:
    """The flat network, what stays closed, and the graph; it computes what the model computes."""
    rng = np.random.default_rng(0)
    for variable in model.weights:
        variable.assign(variable + 0.1 * rng.normal(size=variable.shape))
    flat = flatten(model)
    images = rng.normal(size=(5, *model.input_shape[1:])).astype(np.float32)
    expected = np.asarray(model(images, training=False))
    np.testing.assert_allclose(flat.model(images, training=False), expected, rtol=1e-4, atol=1e-5)
    graph = ChannelGraph(flat.model)
    assert_a_third_can_go(graph, images, rng)
    return flat.model, flat.closed, graph


def test_a_transformer_of_own_layers_opens_to_the_last_weight():
    model = own_kinds.by_hand()
    flat, closed, graph = checked(model)
    assert flat.count_params() == model.count_params()
    assert not closed
    dropped = [one for one in flat.layers if isinstance(one, L.Dropout) and one.noise_shape]
    assert [one.noise_shape for one in dropped] == [(None, 1, 1)] * 4
    assert {round(one.rate, 4) for one in dropped} == {0.1}
    kept = graph.parameters(graph.least_mask())
    assert kept < 0.1 * graph.parameters()  # the classifier and the single number
    (shift,) = (layer for layer in flat.layers if layer.name.endswith("_shift"))
    assert shift.output_dim == 1 and graph.units[shift.name][1][0] == graph.num_units


def test_windows_open_and_their_channels_stay_with_the_reason():
    _, closed, graph = checked(own_kinds.windows())
    assert not closed
    assert any("fixed number of channels" in why for why in graph.frozen.values())
    assert graph.parameters(graph.least_mask()) < 0.5 * graph.parameters()


def test_code_without_a_name_becomes_operations():
    flat, _, graph = checked(own_kinds.unnamed_activation())
    assert graph.lowest_rate() < 0.2
    keras.Model.from_config(flat.get_config())  # has no lambda to be refused


class WeightsByHand(L.Layer):
    """Uses the kernel of a layer inside it without calling that."""

    def build(self, shape):
        self.inner = L.Dense(8)
        self.inner.build(shape)
        self.built = True

    def call(self, x):
        return ops.matmul(x, self.inner.kernel)


class Tied(L.Layer):
    """Calls a layer inside it, and uses its kernel beside."""

    def build(self, shape):
        self.inner = L.Dense(8)
        self.inner.build(shape)
        self.built = True

    def call(self, x):
        return ops.matmul(self.inner(x), ops.transpose(self.inner.kernel))


class Mixing(L.Layer):
    """Puts the examples behind the positions."""

    def build(self, shape):
        self.inner = L.Dense(shape[-1])
        self.inner.build(shape)
        self.built = True

    def call(self, x):
        y = ops.reshape(self.inner(x), (1, -1, x.shape[-1]))
        return ops.reshape(y - ops.max(y), (-1, *x.shape[1:]))


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (WeightsByHand, "uses the weights of dense"),
        (Tied, "uses or changes weights, perhaps of a layer inside it, in a way that isn't known"),
        (Mixing, "mixes the examples with their positions"),
    ],
)
def test_what_cannot_be_opened_stays_whole_with_the_reason(layer, why):
    i = keras.Input((6,))
    x = L.Dense(8, activation="relu", name="before")(i)
    flat = flatten(keras.Model(i, L.Dense(2)(layer(name="whole")(x))))
    assert why in flat.closed["whole"]
    assert "has no rule" in ChannelGraph(flat.model).frozen["before"]


class Distilled(keras.Model):
    """A student, the teacher that its training asks, and a number that nobody needs."""

    def __init__(self):
        super().__init__(name="distilled")
        self.student, self.teacher = (
            keras.Sequential(
                [L.Conv2D(n, 3, activation="relu"), L.Flatten(), L.Dense(3)], name=name
            )
            for n, name in ((6, "student"), (9, "teacher"))
        )
        self.weight = self.add_weight(shape=(2,), name="unneeded")

    def call(self, x):
        return self.student(x)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return super().compute_loss(x, self.teacher(x), y_pred, sample_weight, training)


class Listed(L.Layer):
    """Weighs what it is called on by variables in lists and dicts, as fused feature maps are."""

    def build(self, shapes):
        channels = shapes[0][-1]
        self._weights = [self.add_weight(shape=(), initializer="ones") for _ in shapes]
        self.scales = {"all": [self.add_weight(shape=(channels,), name="scale")], "no": 3.0}
        self.inner = [L.Dense(channels) for _ in shapes]
        for layer, shape in zip(self.inner, shapes, strict=True):
            layer.build(shape)
        self.built = True

    def call(self, tensors):
        weights = [tf.nn.relu(one) for one in self._weights]
        sides = zip(weights, self.inner, tensors, strict=True)
        summed = tf.reduce_sum([weight * layer(one) for weight, layer, one in sides], axis=0)
        return summed / (sum(weights) + 1e-4) * self.scales["all"][0] * self.scales["no"]


def test_variables_in_lists_are_weights_of_the_network():
    i = keras.Input((6,))
    sides = [L.Dense(8, name=name)(i) for name in ("first", "second")]
    x = L.Dense(5, name="third")(Listed(name="own")(sides))
    model = keras.Model(i, L.Dense(2)(x))
    rng = np.random.default_rng(0)
    for variable in model.weights:
        variable.assign(variable + 0.1 * rng.normal(size=variable.shape))
    flat = flatten(model)
    assert not flat.closed and flat.model.count_params() == model.count_params()
    inputs = rng.normal(size=(5, 6)).astype(np.float32)
    np.testing.assert_allclose(flat.model(inputs), model(inputs), atol=1e-5)
    graph = ChannelGraph(flat.model)
    assert {"first", "second", "third"} <= {one for gate in graph.groups for one in gate.layers}
    assert_a_third_can_go(graph, inputs, rng)


class Compiled(keras.Model):
    """Of layers of several classes: once it is compiled, Keras has them as keys of a dict."""

    def __init__(self):
        super().__init__(name="compiled")
        self.scale = L.Rescaling(2.0)
        self.inner = [L.Conv2D(6, 3), L.Dense(3)]

    def call(self, x):
        for layer in (self.scale, *self.inner):
            x = layer(x)
        return x


def test_a_compiled_network_is_opened():
    model, images = Compiled(), np.ones((2, 8, 8, 3), np.float32)
    model(images)
    model.compile(loss="mse")
    given = Given.read(model, images)
    assert not given.closed and len(ChannelGraph(given.core).groups) == 1


def test_what_a_call_does_not_need_is_left_out():
    model, images = Distilled(), np.random.default_rng(0).normal(size=(4, 8, 8, 3))
    expected = model(images)
    model.teacher(images)
    given = Given.read(model, images.astype(np.float32))
    assert not given.closed and len(ChannelGraph(given.core).groups) == 1
    (unused,) = given.unused.values()
    assert {"unneeded"} < set(unused) and len(unused) == 3  # and two layers of the teacher
    finished = given.finished(given.core)
    np.testing.assert_allclose(finished(images), expected, rtol=1e-4, atol=1e-5)
    assert finished.count_params() == model.student.count_params()


class Twofold(keras.Model):
    """Two outputs in training, as a network with a distillation token; their mean otherwise."""

    def __init__(self):
        super().__init__(name="twofold")
        self.conv, self.heads = L.Conv2D(6, 3, activation="relu"), [L.Dense(3), L.Dense(3)]

    def call(self, x, training=True):
        a, b = (head(ops.mean(self.conv(x), axis=(1, 2))) for head in self.heads)
        return (a, b) if training else (a + b) / 2


def test_a_network_with_other_outputs_in_training_is_asked_for_what_it_is_used_for():
    model, images = Twofold(), np.ones((2, 8, 8, 3), np.float32)
    model(images)
    with pytest.raises(UserError, match=r"give keras.Model\(x, model\(x, training=False\)\)"):
        Given.read(model, images)
    x = keras.Input((8, 8, 3))
    used = Given.read(keras.Model(x, model(x, training=False)))
    assert len(ChannelGraph(used.core).groups) == 1
    np.testing.assert_allclose(used.core(images), model(images, training=False), rtol=1e-5)


class Contrast(keras.Model):
    """As examples of training without labels have it: two networks and a train_step."""

    def __init__(self):
        super().__init__(name="contrast")
        self.encoder = keras.Sequential([keras.Input((8, 8, 3)), L.Conv2D(6, 3)])

    def train_step(self, data):
        raise NotImplementedError


def test_a_network_without_a_call_is_asked_for_what_is_used():
    with pytest.raises(UserError, match=r"has no call\(\).* that alone \(its encoder\)"):
        Given.read(Contrast(), np.ones((2, 8, 8, 3), np.float32))


class Asking(L.Layer):
    """Its call has no default for `training`."""

    def __init__(self):
        super().__init__()
        self.first, self.drop = L.Dense(8, activation="relu"), L.Dropout(0.5)

    def call(self, x, training):
        return self.drop(self.first(x), training=training)


def test_a_call_without_a_default_for_training_is_opened():
    i = keras.Input((6,))
    model = keras.Model(i, L.Dense(2)(Asking()(i, training=None)))
    assert not flatten(model).closed


class Steps(keras.Model):
    """Drops and augments in training alone, as `if training` in a `call` does."""

    def __init__(self):
        super().__init__()
        self.augment = keras.Sequential([L.RandomTranslation(0.1, 0.1), L.RandomContrast(0.2)])
        self.conv = L.Conv2D(6, 3, activation="relu")
        self.drop, self.head = L.Dropout(0.5), L.Dense(3)

    def call(self, x, training=False):
        if training:
            x = self.augment(x, training=training)
        x = ops.mean(self.conv(x), axis=(1, 2))
        if training:
            x = self.drop(x, training=training)
        return self.head(x)


class Unasked(Steps):
    """Leaves `training` to Keras."""

    def call(self, x):
        return self.head(self.drop(ops.mean(self.conv(self.augment(x)), axis=(1, 2))))


@pytest.mark.parametrize("build", [Steps, Unasked])
def test_what_is_done_in_training_alone_is_opened_too(build):
    model = build()
    i = keras.Input((8, 8, 3))
    flat = flatten(keras.Model(i, model(i)))
    assert not flat.closed
    kinds = [type(layer).__name__ for layer in flat.model.layers if layer.variables]
    assert kinds == ["RandomTranslation", "RandomContrast", "Conv2D", "Dropout", "Dense"]
    images = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)
    expected = model(images, training=False)
    np.testing.assert_allclose(flat.model(images, training=False), expected, atol=1e-5)
    assert np.abs(flat.model(images, training=True) - expected).max() > 1e-3
    assert len(ChannelGraph(flat.model).groups) == 1


class Otherwise(keras.Model):
    """Logits in training, probabilities otherwise."""

    def __init__(self, **options):
        super().__init__(**options)
        self.conv, self.head = L.Conv2D(6, 3, activation="relu"), L.Dense(3)

    def call(self, x, training=False):
        x = self.head(ops.mean(self.conv(x), axis=(1, 2)))
        return x if training else ops.softmax(x)


class Alone(Otherwise):
    """Can't be made again from its configuration."""

    def __init__(self):
        super().__init__()


def test_a_network_that_is_another_one_in_training_stays_whole():
    model, alone = Otherwise(name="whole"), Alone()
    for one in (model, alone):
        one(np.zeros((1, 8, 8, 3), np.float32))
    (group,) = ekg.inspect(model).groups
    assert not group["prunable"] and group["width"] == 3
    assert group["reason"] == "Otherwise whole does something else in training"
    with pytest.raises(UserError, match=r"in training, so it has to stay whole, and .*get_config"):
        ekg.inspect(alone)


class Queries(L.Layer):
    """What it holds, once for every example; `how` repeats it."""

    def __init__(self, how, **options):
        super().__init__(**options)
        self.how = how

    def get_config(self):
        return super().get_config() | {"how": self.how}

    def build(self, shape):
        self.queries = self.add_weight(shape=(3, 8), name="queries")
        self.built = True

    def call(self, x):
        n = ops.shape(x)[0]
        if self.how == "tiled":
            return ops.tile(ops.expand_dims(self.queries, 0), (n, 1, 1))
        if self.how == "repeated":
            return ops.repeat(ops.expand_dims(self.queries, 0), n, axis=0)
        return ops.broadcast_to(self.queries, (n, 3, 8))


class Fused(L.Layer):
    """A weight for each of its inputs, made positive."""

    def build(self, shapes):
        self.factors = self.add_weight(shape=(len(shapes),), initializer="ones", name="factors")
        self.built = True

    def call(self, inputs):
        factors = ops.relu(self.factors)
        total = sum(factors[k] * one for k, one in enumerate(inputs))
        return total / (ops.sum(factors) + 1e-4)


class OneRow(L.Layer):
    """A matrix of one row, which isn't one for each example."""

    def build(self, shape):
        self.row = self.add_weight(shape=(1, 8), name="row")
        self.built = True

    def call(self, x):
        return ops.relu(ops.matmul(ops.mean(x, axis=-1, keepdims=True), self.row))


def queried(how):
    i = keras.Input((4, 5))
    x = L.Dense(8, activation="relu", name="first")(i)
    x = L.MultiHeadAttention(2, 4, name="attention")(Queries(how, name="held")(x), x)
    return keras.Model(i, L.Dense(3)(L.Flatten()(L.Dense(6, activation="relu")(x))))


def fused():
    i = keras.Input((6, 6, 3))
    a, b = (L.Conv2D(6, 3, activation="relu", padding="same")(i) for _ in range(2))
    return keras.Model(i, L.Dense(3)(L.GlobalAveragePooling2D()(Fused(name="held")([a, b]))))


def one_row():
    i = keras.Input((4, 5))
    x = OneRow(name="held")(L.Dense(8, activation="relu")(i))
    return keras.Model(i, L.Dense(3)(L.GlobalAveragePooling1D()(x)))


def patches():
    i = keras.Input((6, 6, 3))
    x = ops.image.extract_patches(L.Conv2D(5, 3, padding="same", name="first")(i), 2)
    x = L.Dense(7, activation="relu")(x)
    return keras.Model(i, L.Dense(3)(L.GlobalAveragePooling2D()(x)))


def attention_on_a_grid():
    i = keras.Input((4, 3, 5))
    x = L.Dense(8, activation="relu", name="first")(i)
    y = L.MultiHeadAttention(2, 4, name="attention")(x, x)
    z = L.MultiHeadAttention(2, 4, name="by_name")(query=x, value=y, key=x)
    return keras.Model(i, L.Dense(3)(L.GlobalAveragePooling2D()(x + y + z)))


def grouped_queries():
    i = keras.Input((4, 5))
    x = L.Dense(8, activation="relu", name="first")(i)
    attention = L.GroupQueryAttention(4, 4, 2, name="attention")
    y = attention(x, x, use_causal_mask=True)
    return keras.Model(i, L.Dense(3)(L.GlobalAveragePooling1D()(x + y)))


def scored(**options):
    """Attention without projections, by products or by a sum of tanh's."""
    i = keras.Input((4, 5))
    query, value, key = (L.Dense(8, name=name)(i) for name in ("query", "value", "key"))
    mode = options.pop("mode", L.Attention)
    y = mode(name="attention", **options)([query, value, key])
    return keras.Model(i, L.Dense(3)(L.GlobalAveragePooling1D()(L.Dense(6, "relu")(y))))


def pooled():
    i = keras.Input((7, 7, 3))
    x = L.AdaptiveAveragePooling2D(4)(L.Conv2D(6, 3, padding="same", name="first")(i))
    x = L.AdaptiveMaxPooling2D((2, 3))(L.Conv2D(8, 3, padding="same", name="second")(x))
    return keras.Model(i, L.Dense(3)(L.GlobalAveragePooling2D()(x)))


class Scaled(L.MultiHeadAttention):
    """Attention with a step of its own: its parts are EinsumDense layers."""

    def _compute_attention(self, query, key, value, *_, **__):
        scores = ops.softmax(ops.einsum(self._dot_product_equation, key, query * 0.3), axis=-1)
        return ops.einsum(self._combine_equation, scores, value), scores


def own_attention():
    """The number of steps is known behind it, too: a Dense of all of them follows."""
    i = keras.Input((4, 5))
    x = L.Dense(8, activation="relu", name="first")(i)
    x = x + Scaled(2, 4, name="attention")(x, x)
    return keras.Model(i, L.Dense(3)(L.Flatten()(x)))


def heads_on_a_grid():
    i = keras.Input((4, 3, 5))
    x = L.EinsumDense("abcd,def->abcef", (4, 3, 2, 6), bias_axes="ef", name="apart")(i)
    x = L.EinsumDense("abcde,def->abcf", (4, 3, 7), activation="relu", name="joined")(x)
    return keras.Model(i, L.Dense(3)(L.GlobalAveragePooling2D()(x)))


class Gates(L.Layer):
    """Focal modulation's: values, context and a few gates out of one Dense."""

    def build(self, shape):
        self.dense, self.out = L.Dense(4 + 6 + 2, name="made"), L.Dense(4, name="turned")

    def call(self, x):
        value, context, gates = ops.split(self.dense(x), [4, 10], axis=-1)
        context = context * gates[..., 0:1] + ops.relu(context) * gates[..., 1:]
        return value * self.out(context)


def split_apart():
    i = keras.Input((4, 4, 3))
    x = L.Conv2D(9, 3, padding="same", activation="relu", name="first")(i)
    x = ops.concatenate([x[:, :, ::2, 2:], x[:, :, 1::2, :7]], axis=-1)
    return keras.Model(i, L.Dense(3)(L.GlobalAveragePooling2D()(Gates(name="held")(x))))


class Sinusoids(L.Layer):
    """Positions that never change, as tensors."""

    def build(self, shape):
        places, channels = np.arange(10)[:, None], np.arange(shape[-1])
        self.table = ops.convert_to_tensor(np.sin(places / 10 ** (channels / 4)), "float32")

    def call(self, x):
        return 3 * self.table[None, : x.shape[1]] - x


def constant_positions():
    i = keras.Input((4, 5))
    x = Sinusoids()(L.Dense(8, activation="relu", name="first")(i))
    x = L.Dense(6, name="second")(x)
    x = ops.expand_dims(x, 1) / np.linspace(1, 2, 18, dtype="float32").reshape(1, 3, 1, 6)
    return keras.Model(i, L.Dense(3)(L.GlobalAveragePooling2D()(x)))


class Latent(L.Layer):
    """Perceiver's: a few learned queries, the same for all examples, ask attention."""

    def build(self, shape):
        self.array = self.add_weight(shape=(3, shape[-1]), name="array")
        self.attention = L.Attention(use_scale=True)

    def call(self, x):
        return self.attention([self.array[None], x])


def learned_queries():
    i = keras.Input((4, 5))
    x = Latent(name="held")(L.Dense(8, activation="relu", name="first")(i))
    return keras.Model(i, L.Dense(3)(L.GlobalAveragePooling1D()(x)))


def looked_up():
    """Two columns of numbers, each looked up by itself."""
    i = keras.Input((2,))
    x = L.Concatenate()([L.Embedding(4, 6)(ops.clip(ops.abs(i[:, k]), 0, 3)) for k in (0, 1)])
    return keras.Model(i, L.Dense(3)(L.Dense(8, activation="relu")(x)))


@pytest.mark.parametrize(
    ("build", "widths"),
    [
        (lambda: queried("tiled"), {"first": 8, "held_queries": 8}),
        (lambda: queried("repeated"), {"first": 8, "held_queries": 8}),
        (lambda: queried("broadcast"), {"first": 8, "held_queries": 8}),
        (fused, {"conv2d": 6}),
        (one_row, {"held_row": 8}),
        (patches, {"first": 5, "dense": 7}),
        (attention_on_a_grid, {"first": 8, "attention_value": 8}),
        (grouped_queries, {"first": 8, "attention_value": 8}),
        (scored, {"query": 8, "key": 8, "value": 8}),
        (lambda: scored(use_scale=True, score_mode="concat"), {"query": 8, "value": 8}),
        (lambda: scored(mode=L.AdditiveAttention), {"query": 8, "key": 8, "value": 8}),
        (lambda: scored(mode=L.AdditiveAttention, use_scale=False), {"query": 8, "value": 8}),
        (pooled, {"first": 6, "second": 8}),
        (looked_up, {"embedding": 6, "embedding_1": 6, "dense_1": 8}),
        (own_attention, {"first": 8, "value": 4}),
        (heads_on_a_grid, {"joined": 7}),
        (split_apart, {"turned": 4}),
        (constant_positions, {"first": 8, "second": 6}),
        (learned_queries, {"first": 8, "held_array": 8}),
    ],
    ids=[
        "tiled",
        "repeated",
        "broadcast",
        "fused",
        "row",
        "patches",
        "grid",
        "grouped",
        *("products", "tanh", "additive", "plain_additive"),
        "pooled",
        "looked_up",
        *("own_attention", "heads", "split_apart", "constant_positions", "learned_queries"),
    ],
)
def test_channels_are_followed_through(build, widths):
    keras.backend.clear_session()
    _, closed, graph = checked(build())
    assert not closed
    found = {name: group.channels for group in graph.groups for name in group.layers}
    for name, width in widths.items():
        assert found[name] * (2 if name == "attention_value" else 1) == width, found


def test_parts_lose_channels_each_by_itself():
    """Of 9 channels two are in one part alone, five in both, two in the other: 3 gates."""
    graph = ChannelGraph(flatten(split_apart()).model)
    first = [group.channels for group in graph.groups if group.layers == ("first",)]
    assert sorted(first) == [2, 2, 5]
    made = [group.channels for group in graph.groups if "made" in group.layers]
    assert sorted(made) == [4, 6]  # its gates work on all of the context: they stay


class Shuffle(L.Layer):
    """A block of positions out of every few channels, or the other way round, by hand.

    Without a get_config: a file couldn't hold it.
    """

    def __init__(self, block, back=False):
        super().__init__()
        self.block, self.back = block, back

    def call(self, x):
        (n, height, width, channels), b = ops.shape(x), self.block
        if self.back:
            x = ops.reshape(x, (n, height // b, b, width // b, b, channels))
            x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
            return ops.reshape(x, (n, height // b, width // b, b * b * channels))
        x = ops.reshape(x, (n, height, width, b, b, channels // b**2))
        x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
        return ops.reshape(x, (n, height * b, width * b, channels // b**2))


@pytest.mark.parametrize("size", [8, None])
def test_blocks_of_positions_follow_images_of_any_size(size):
    i = keras.Input((size, size, 1))
    x = L.Conv2D(6, 3, padding="same", activation="relu", name="first")(i)
    x = L.Conv2D(12, 3, padding="same", name="second")(Shuffle(2, back=True)(x))
    x = L.Lambda(lambda x: tf.nn.depth_to_space(x, 2))(L.ReLU()(x))
    x = L.Conv2D(4, 3, padding="same", name="last")(x)
    model = keras.Model(i, Shuffle(2)(x))
    images = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype(np.float32)
    given = Given.read(model, images)
    assert not given.closed
    graph = ChannelGraph(given.core)
    assert [group.channels for group in graph.groups] == [6, 3]
    mask = graph.open_mask()
    mask[[0, 3, 7]] = 0
    pruned = graph.pruned(mask)
    assert agrees(agreement(graph, mask, pruned, images))
    kinds = [type(call.operation).__name__ for call in graph.calls]
    assert kinds.count("DepthToSpace") == 2 and kinds.count("SpaceToDepth") == 1
    whole = given.finished(given.core)
    larger = images if size else np.concatenate([images, images], axis=1)
    np.testing.assert_allclose(whole(larger), model(larger), rtol=1e-4, atol=1e-5)
    assert given.at_shapes([(8, 8, 1)]).input_shape == (None, 8, 8, 1)


def test_sizes_that_stay_open_are_not_written_into_the_network():
    i = keras.Input((None, None, 3))
    model = keras.Model(i, L.Conv2D(4, 1)(Sizes(name="whole")(L.Conv2D(5, 1)(i))))
    assert "sizes that are known only later" in flatten(model).closed["whole"]


class Sizes(L.Layer):
    """Fills a picture of numbers into every channel."""

    def call(self, x):
        sizes = ops.shape(x)[1:3]
        return x * ops.reshape(ops.arange(1.0, sizes[0] * sizes[1] + 1), (1, *sizes, 1))

    def compute_output_shape(self, shape):
        return shape


class Flattening(L.Layer):
    """Leaves it to a -1 how many patches there are."""

    def call(self, x):
        return ops.reshape(x, (ops.shape(x)[0], -1, x.shape[-1]))


class Positions(L.Layer):
    """Works with so many patches and no others."""

    def build(self, shape):
        self.table = L.Embedding(16, shape[-1])

    def call(self, x):
        return x + self.table(ops.arange(16))


def test_sizes_that_an_opened_layer_makes_known_reach_the_next_one():
    i = keras.Input((4, 4, 3))
    x = Positions()(Flattening()(L.Conv2D(6, 1, name="first")(i)))
    model = keras.Model(i, L.Dense(2)(L.GlobalAveragePooling1D()(x)))
    _, closed, graph = checked(model)
    assert not closed and [group.channels for group in graph.groups] == [6]


def test_a_function_of_keras_ops_that_a_file_brings_back_as_another_one():
    i = keras.Input((6,))
    model = keras.Model(i, L.Dense(2)(L.Dense(8, activation=ops.gelu)(i)))
    flat = flatten(model).model
    x = np.random.default_rng(0).normal(size=(9, 6)).astype(np.float32)
    again = keras.Model.from_config(flat.get_config())
    again.set_weights(flat.get_weights())
    np.testing.assert_allclose(again(x), model(x), atol=1e-6)


def test_a_constant_comes_back_from_a_file(tmp_path):
    flat = flatten(constant_positions()).model
    flat.save(tmp_path / "flat.keras")
    again = keras.models.load_model(tmp_path / "flat.keras")
    x = np.random.default_rng(0).normal(size=(2, 4, 5)).astype(np.float32)
    np.testing.assert_allclose(again(x), flat(x), rtol=1e-6)


class Counted(L.Layer):
    """Gives what it is given, and a loss."""

    def call(self, x, training=False):
        if training:
            self.add_loss(ops.sum(x))
        return x


class Rarely(own_kinds.DropPath):
    """Drops nothing at this rate."""

    def call(self, x, training=False):
        if training:
            return x * ops.floor(1 + keras.random.uniform((ops.shape(x)[0], 1)))
        return x


class Often(own_kinds.DropPath):
    """Doesn't keep the mean."""

    def call(self, x, training=False):
        if training:
            return x * ops.floor(0.5 + keras.random.uniform((ops.shape(x)[0], 1)))
        return x


@pytest.mark.parametrize(("layer", "kind"), [(Counted, None), (Often, None), (Rarely, 0.0)])
def test_which_layers_are_a_dropout_of_whole_examples(layer, kind):
    i = keras.Input((6,))
    flat = flatten(keras.Model(i, L.Dense(2)(layer(name="it")(i))))
    (one,) = (one for one in flat.model.layers if one.name == "it")
    assert one.rate == kind if isinstance(one, L.Dropout) else kind is None


def test_an_array_as_an_initializer_does_not_hinder_a_smaller_layer():
    i = keras.Input((6,))
    bias = keras.initializers.Constant(np.eye(3).ravel())
    x = L.Dense(9, bias_initializer=bias, name="matrix")(L.Dense(5, activation="relu")(i))
    checked(keras.Model(i, L.Dense(2)(x)))


def test_an_activity_regularizer_of_the_users_keeps_its_layer_whole():
    i, options = keras.Input((6,)), {"activity_regularizer": lambda x: ops.sum(x[:, :5])}
    x = L.Dense(4, activation="relu", activity_regularizer="l2", name="known")(i)
    graph = ChannelGraph(keras.Model(i, L.Dense(2)(L.Dense(5, name="own", **options)(x))))
    assert [group.layers for group in graph.groups] == [("known",)]
    assert "activity regularizer" in graph.frozen["own"]


class Distances(L.Layer):
    def call(self, a, b):
        return ops.sum(ops.square(a - b), -1), ops.sum(ops.abs(a - b), -1)


def test_two_outputs_of_one_layer_of_ones_own():
    a, b = keras.Input((6,)), keras.Input((6,))
    dense = L.Dense(8, activation="relu")
    given = Given.read(keras.Model([a, b], Distances()(dense(a), dense(b))))
    assert len(given.finished(given.core).outputs) == 2 and len(ChannelGraph(given.core).groups)
