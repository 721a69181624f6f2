"""Small networks for the tests of nets/ and pruning/, and what the channel graph finds in each."""

import keras
import numpy as np
import pytest

from nets.graph import ChannelGraph

L = keras.layers
CLASSES = 5
SHAPE = (8, 8, 3)


def conv_bn(x, filters, name, kernel=3, strides=1, **options):
    """Convolution `name` without bias and batch norm `name`_bn."""
    options = {"padding": "same", "use_bias": False} | options
    x = L.Conv2D(filters, kernel, strides=strides, name=name, **options)(x)
    return L.BatchNormalization(name=f"{name}_bn")(x)


def head(x, name="fc", **options):
    return L.Dense(CLASSES, name=name, **options)(L.GlobalAveragePooling2D()(x))


def residual():
    """Two basic blocks of 6 channels, the first with a projection shortcut."""
    image = L.Input(SHAPE)
    x = L.ReLU()(conv_bn(image, 4, "stem"))
    y = L.ReLU()(conv_bn(x, 5, "a1", strides=2))
    y = conv_bn(y, 6, "a2")
    x = L.ReLU()(L.Add()([y, conv_bn(x, 6, "shortcut", kernel=1, strides=2)]))
    y = L.ReLU()(conv_bn(x, 7, "b1"))
    x = L.ReLU()(L.Add()([conv_bn(y, 6, "b2"), x]))
    return keras.Model(image, head(x))


def mobile():
    """An inverted residual block, then a depthwise convolution that doubles its channels."""
    image = L.Input(SHAPE)
    x = L.ReLU(6.0)(conv_bn(image, 4, "stem"))
    y = L.ReLU(6.0)(conv_bn(x, 8, "expand", kernel=1))
    y = L.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(y)
    y = L.ReLU(6.0)(L.BatchNormalization()(y))
    x = L.Add()([conv_bn(y, 4, "project", kernel=1), x])
    y = L.Conv2D(6, 1, activation="relu", name="wide")(x)
    y = L.DepthwiseConv2D(3, strides=2, depth_multiplier=2, activation="relu", name="double")(y)
    return keras.Model(image, head(y))


def squeeze():
    """Squeeze and excitation: the channels scaled by numbers computed from themselves."""
    image = L.Input(SHAPE)
    x = L.ReLU()(conv_bn(image, 6, "stem"))
    y = L.GlobalAveragePooling2D(keepdims=True)(x)
    y = L.Dense(4, activation="relu", name="reduce")(y)
    y = L.Dense(6, activation="sigmoid", name="excite")(y)
    x = L.Multiply()([x, y])
    return keras.Model(image, head(x))


def dense_block():
    """Every layer reads the concatenation of all before it; the batch norms stand before the ReLU."""
    image = L.Input(SHAPE)
    x = L.Conv2D(4, 3, padding="same", use_bias=False, name="stem")(image)
    for number in (1, 2):
        y = L.ReLU()(L.BatchNormalization(name=f"norm{number}")(x))
        y = L.Conv2D(3, 3, padding="same", use_bias=False, name=f"grow{number}")(y)
        x = L.Concatenate()([x, y])
    x = L.ReLU()(L.BatchNormalization(name="norm3")(x))
    x = L.AveragePooling2D(2)(L.Conv2D(5, 1, use_bias=False, name="transition")(x))
    return keras.Model(image, head(L.ReLU()(L.BatchNormalization(name="norm4")(x))))


def vgg():
    """Biases everywhere, Flatten before the dense layers, batch norm of a flat tensor."""
    image = L.Input(SHAPE)
    x = L.Conv2D(4, 3, padding="same", activation="relu", name="conv1")(image)
    x = L.MaxPooling2D()(x)
    x = L.Conv2D(6, 3, name="conv2")(x)
    x = L.ReLU()(L.BatchNormalization(scale=False, name="conv2_bn")(x))
    x = L.Flatten()(x)
    x = L.Dense(7, name="hidden")(x)
    x = L.Activation("relu")(L.BatchNormalization(center=False, name="hidden_bn")(x))
    return keras.Model(image, L.Dense(CLASSES, name="fc")(x))


def shared():
    """One convolution and one batch norm called twice in a row, a second one on two branches."""
    image = L.Input(SHAPE)
    again = L.Conv2D(4, 3, padding="same", use_bias=False, name="again")
    norm, relu = L.BatchNormalization(name="again_bn"), L.ReLU()
    x = L.ReLU()(conv_bn(image, 4, "stem"))
    x = relu(norm(again(x)))
    x = relu(norm(again(x)))
    both = L.Conv2D(3, 1, activation="relu", name="both")
    left = both(L.Conv2D(5, 3, activation="relu", name="left")(x))
    right = both(L.Conv2D(5, 1, strides=2, activation="relu", name="right")(x))
    pool = L.GlobalAveragePooling2D()
    return keras.Model(
        image, L.Dense(CLASSES, name="fc")(L.Concatenate()([pool(left), pool(right)]))
    )


def softmax():
    """A classifier that ends in a softmax."""
    image = L.Input(SHAPE)
    x = L.ReLU()(conv_bn(image, 4, "conv"))
    return keras.Model(image, head(x, activation="softmax"))


@keras.saving.register_keras_serializable("tests")
class Reverse(keras.layers.Layer):
    """A layer that the graph cannot know: it turns the order of the channels round."""

    def call(self, inputs):
        return inputs[..., ::-1]


def unknown():
    """Two operations without a rule between prunable convolutions."""
    image = L.Input(SHAPE)
    x = L.ReLU()(conv_bn(image, 4, "free1"))
    x = L.LayerNormalization(name="layer_norm")(L.Conv2D(5, 3, name="before_norm")(x))
    x = L.ReLU()(conv_bn(x, 6, "free2"))
    x = Reverse(name="reverse")(L.Conv2D(4, 3, activation="relu", name="before_reverse")(x))
    x = L.ReLU()(conv_bn(x, 5, "free3"))
    return keras.Model(image, head(x))


ZOO = [residual, mobile, squeeze, dense_block, vgg, shared, softmax, unknown]


def images_for(model, count=8, seed=3):
    shape = (count, *model.input_shape[1:])
    return np.random.default_rng(seed).normal(0.2, 1, shape).astype(np.float32)


def batch_norms(model):
    return [layer for layer in model.layers if isinstance(layer, L.BatchNormalization)]


def calibrate(model):
    """Sets the moving statistics to those of a batch."""
    momenta = [layer.momentum for layer in batch_norms(model)]
    for layer in batch_norms(model):
        layer.momentum = 0.0
    model(images_for(model, 16, seed=4), training=True)
    for layer, momentum in zip(batch_norms(model), momenta, strict=True):
        layer.momentum = momentum


def shaken(model, seed=1, mask=None):
    """Gives a network biases and batch norms that are not fresh, which would hide mistakes.

    The moving statistics stay near those of real activations, of the network under `mask` where one is
    given: so the logits keep a moderate size however deep the network is.
    """
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        if variable.name == "gamma":
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        elif variable.name in ("beta", "bias"):
            variable.assign(rng.uniform(-0.4, 0.4, variable.shape))
    calibrate(model)
    if mask is not None:
        _calibrate_kept(model, mask)
    for layer in batch_norms(model):
        deviation = np.sqrt(layer.moving_variance.numpy())
        shift = 0.3 * deviation * rng.normal(size=deviation.shape)
        layer.moving_mean.assign(layer.moving_mean + shift)
        layer.moving_variance.assign(deviation**2 * rng.uniform(0.7, 1.4, deviation.shape))
    return model


def _calibrate_kept(model, mask):
    graph = ChannelGraph(model)
    pruned = graph.pruned(mask)
    calibrate(pruned)
    for layer in batch_norms(model):
        kept = mask[graph.units[layer.name][1]] > 0
        for name in ("moving_mean", "moving_variance"):
            values = getattr(layer, name).numpy()
            values[kept] = getattr(pruned.get_layer(layer.name), name).numpy()
            getattr(layer, name).assign(values)


def random_mask(graph, seed=0, keep=0.6):
    """A unit mask with at least one filter kept and, of several, at least one removed per gate."""
    rng = np.random.default_rng(seed)
    mask = np.ones(graph.gates.num_units + 1, np.float32)
    for gate in graph.gates:
        kept = int(np.clip(round(keep * gate.channels), 1, max(1, gate.channels - 1)))
        mask[gate.start + rng.permutation(gate.channels)[kept:]] = 0
    return mask


def assert_masked_is_pruned(model, mask, images, sizes=(0.3, 30.0)):
    """Masked and pruned network: same logits in both batch-norm modes, same counts.

    Args:
        sizes: between them lies the largest logit, for equal zeros would prove nothing.

    Returns:
        The pruned network.
    """
    graph = ChannelGraph(model)
    gated, variable = graph.gated()
    variable.assign(mask)
    pruned = graph.pruned(mask)
    assert pruned.count_params() == graph.parameters(mask) < model.count_params()
    assert ChannelGraph(pruned).flops() == graph.flops(mask) < graph.flops()
    for training in (False, True):  # the stock network's moving statistics change in training mode
        masked = gated(images, training=training).numpy()
        expected = pruned(images, training=training).numpy()
        assert sizes[0] < np.abs(masked).max() < sizes[1]
        assert np.abs(masked - expected).max() <= 1e-4 * max(1, sizes[1] / 30)
    return pruned


def groups(graph):
    return [(tuple(sorted(gate.layers)), gate.channels) for gate in graph.gates]


def test_residual_sums_share_one_gate():
    assert groups(ChannelGraph(residual())) == [
        (("stem",), 4),
        (("a1",), 5),
        (("a2", "b2", "shortcut"), 6),
        (("b1",), 7),
    ]


def test_depthwise_convolutions_hand_their_channels_on():
    graph = ChannelGraph(mobile())
    assert groups(graph) == [(("project", "stem"), 4), (("expand",), 8), (("wide",), 6)]
    first = graph.gates[2].start
    assert graph.units["double"][0].tolist() == [first + i for i in range(6)]
    assert graph.units["double"][1].tolist() == [first + i // 2 for i in range(12)]


def test_channels_multiplied_with_each_other_share_one_gate():
    assert groups(ChannelGraph(squeeze())) == [(("excite", "stem"), 6), (("reduce",), 4)]


def test_concatenation_keeps_the_groups_of_its_parts():
    graph = ChannelGraph(dense_block())
    expected = [(("stem",), 4), (("grow1",), 3), (("grow2",), 3), (("transition",), 5)]
    assert groups(graph) == expected
    assert graph.units["norm3"][1].tolist() == list(range(10))
    assert graph.units["transition"][0].tolist() == list(range(10))


def test_flatten_repeats_the_channels_position_by_position():
    graph = ChannelGraph(vgg())
    assert groups(graph) == [(("conv1",), 4), (("conv2",), 6), (("hidden",), 7)]
    assert graph.units["hidden"][0].tolist() == [4, 5, 6, 7, 8, 9] * 4  # 2 x 2 positions


def test_shared_layers_tie_the_channels_of_all_their_calls():
    graph = ChannelGraph(shared())
    expected = [(("again", "stem"), 4), (("left", "right"), 5), (("both",), 3)]
    assert groups(graph) == expected
    both = graph.gates[2].start
    assert graph.units["fc"][0].tolist() == [both, both + 1, both + 2] * 2


def test_a_softmax_head_leaves_its_inputs_prunable():
    graph = ChannelGraph(softmax())
    assert groups(graph) == [(("conv",), 4)]
    assert graph.frozen["fc"]


def test_what_has_no_rule_freezes_what_it_touches_and_says_so():
    graph = ChannelGraph(unknown())
    assert groups(graph) == [(("free1",), 4), (("free2",), 6), (("free3",), 5)]
    assert graph.frozen == {
        "before_norm": "LayerNormalization layer_norm has no rule",
        "before_reverse": "Reverse reverse has no rule",
        "fc": "network output",
    }


def tanh_of_sums(x):
    return keras.ops.tanh(x - keras.ops.mean(x, axis=-1, keepdims=True))


@pytest.mark.parametrize(
    ("options", "frozen"),
    [
        ({"activation": tanh_of_sums}, True),
        ({"activation": L.Softmax()}, True),
        ({"activation": "softmax"}, True),
        ({"groups": 3}, True),
        ({"activation": "gelu"}, False),
        ({"activation": L.ReLU()}, False),
    ],
)
def test_convolutions_whose_channels_depend_on_each_other_are_frozen(options, frozen):
    image = L.Input(SHAPE)
    x = L.Conv2D(6, 3, name="conv", **options)(image)
    graph = ChannelGraph(keras.Model(image, head(x)))
    assert groups(graph) == ([] if frozen else [(("conv",), 6)])
    assert ("conv" in graph.frozen) == frozen
    assert graph.flops() == 6 * 6 * 9 * (1 if "groups" in options else 3) * 6 + 6 * CLASSES


def test_a_frozen_depthwise_convolution_is_counted():
    image = L.Input(SHAPE)
    x = L.DepthwiseConv2D(3, activation="softmax", name="mixing")(L.Conv2D(4, 1)(image))
    graph = ChannelGraph(keras.Model(image, head(x)))
    assert groups(graph) == []
    assert graph.flops() == 64 * 3 * 4 + 36 * 9 * 4 + 4 * CLASSES


@pytest.mark.parametrize("build", ZOO)
def test_masked_is_pruned_whatever_the_network(build):
    model = shaken(build())
    graph, images = ChannelGraph(model), images_for(model)
    sizes = (0.1, 1.0) if build is softmax else (0.3, 30.0)
    pruned = assert_masked_is_pruned(model, random_mask(graph), images, sizes)
    assert pruned(images, training=False).numpy().std(axis=0).max() > 0.01


@pytest.mark.parametrize("build", ZOO)
def test_masked_is_pruned_down_to_one_filter_in_every_group(build):
    model = shaken(build())
    mask = random_mask(ChannelGraph(model), seed=1, keep=0.0)
    assert_masked_is_pruned(model, mask, images_for(model), sizes=(0.1, 300.0))


@pytest.mark.parametrize("build", ZOO)
def test_open_gates_change_nothing(build):
    model = shaken(build())
    gated, _ = ChannelGraph(model).gated()
    images = images_for(model)
    for training in (False, True):
        ours, stock = gated(images, training=training), model(images, training=training)
        np.testing.assert_allclose(ours, stock, atol=2e-5)


@pytest.mark.parametrize("build", ZOO)
def test_layer_names_make_no_difference(build):
    model = shaken(build())
    names = iter(np.random.default_rng(0).permutation(len(model.layers)))

    def rename(layer):
        return type(layer).from_config(layer.get_config() | {"name": f"conv_bn_{next(names)}"})

    renamed = keras.models.clone_model(model, clone_function=rename)
    renamed.set_weights(model.get_weights())
    graph, other = ChannelGraph(model), ChannelGraph(renamed)
    assert [g.channels for g in graph.gates] == [g.channels for g in other.gates]
    assert len(graph.frozen) == len(other.frozen)
    mask, images = random_mask(graph), images_for(model)
    assert graph.flops(mask) == other.flops(mask)
    first, second = (g.pruned(mask)(images, training=False) for g in (graph, other))
    np.testing.assert_array_equal(first, second)


def test_only_functional_networks_are_taken():
    class Subclass(keras.Model):
        pass

    with pytest.raises(TypeError, match="is no functional Keras model"):
        ChannelGraph(Subclass())


def test_a_sequential_network_is_read_like_a_functional_one():
    layers = [L.Conv2D(4, 3, name="conv"), L.Flatten(), L.Dense(CLASSES, name="fc")]
    model = keras.Sequential([L.Input(SHAPE), *layers])
    graph = ChannelGraph(model)
    assert groups(graph) == [(("conv",), 4)]
    assert_masked_is_pruned(model, random_mask(graph), images_for(model))
