"""What the channel graph finds in small networks, and masked = pruned in each of them."""

import keras
import numpy as np
import pytest
from ekg_tf.nets.graph import ChannelGraph
from ekg_tf.utils.errors import UserError

from tests.helpers.networks import (
    CLASSES,
    SHAPE,
    ZOO,
    assert_masked_is_pruned,
    dense_block,
    groups,
    head,
    images_for,
    mobile,
    random_mask,
    residual,
    shaken,
    shared,
    softmax,
    squeeze,
    unknown,
    vgg,
)

L = keras.layers


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
    first = graph.groups[2].start
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
    both = graph.groups[2].start
    assert graph.units["fc"][0].tolist() == [both, both + 1, both + 2] * 2


def test_a_softmax_head_leaves_its_inputs_prunable():
    graph = ChannelGraph(softmax())
    assert groups(graph) == [(("conv",), 4)]
    assert graph.frozen["fc"]


def test_what_has_no_rule_freezes_what_it_touches_and_says_so():
    graph = ChannelGraph(unknown())
    assert groups(graph) == [(("free1",), 4), (("free2",), 6), (("free3",), 5)]
    assert graph.frozen == {
        "before_norm": "Softmax soft runs over the channels",
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
    assert [g.channels for g in graph.groups] == [g.channels for g in other.groups]
    assert len(graph.frozen) == len(other.frozen)
    mask, images = random_mask(graph), images_for(model)
    assert graph.flops(mask) == other.flops(mask)
    first, second = (g.pruned(mask)(images, training=False) for g in (graph, other))
    np.testing.assert_array_equal(first, second)


def test_only_functional_networks_are_taken():
    class Subclass(keras.Model):
        pass

    with pytest.raises(UserError, match="is no functional Keras model"):
        ChannelGraph(Subclass())
    with pytest.raises(UserError, match="was never built and has no weights"):
        ChannelGraph(keras.Sequential([L.Dense(3)]))


def test_a_sequential_network_is_read_like_a_functional_one():
    layers = [L.Conv2D(4, 3, name="conv"), L.Flatten(), L.Dense(CLASSES, name="fc")]
    model = keras.Sequential([L.Input(SHAPE), *layers])
    graph = ChannelGraph(model)
    assert groups(graph) == [(("conv",), 4)]
    assert_masked_is_pruned(model, random_mask(graph), images_for(model))
