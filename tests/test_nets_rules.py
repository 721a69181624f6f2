"""Every rule on a tiny network: the groups it finds, masked = pruned, what is frozen and why."""

import keras
import numpy as np
import pytest
from ekg_tf.nets.channels import Ids
from ekg_tf.nets.flatten import flatten
from ekg_tf.nets.graph import ChannelGraph
from ekg_tf.nets.proof import agreement, agrees, sentence
from ekg_tf.nets.tcl import kernel_rule, slice_weights
from ekg_tf.utils.errors import UserError

from tests.helpers.networks import CLASSES, groups, head, random_mask
from tests.helpers.rule_networks import (
    CASES,
    NORMS,
    batch_of,
    between,
    conv,
    decoder,
    image,
    nested,
    shake,
)

L, ops = keras.layers, keras.ops


def check(model, keep=0.5):
    """Masked = pruned, counts by formula = counts of the pruned network; returns the graph."""
    model = shake(model)
    graph = ChannelGraph(flatten(model).model)
    mask = random_mask(graph, keep=keep)
    pruned = graph.pruned(mask)
    result = agreement(graph, mask, pruned, batch_of(model))
    assert agrees(result) and result["largest_output"] > 1e-3, sentence(result)
    assert pruned.count_params() == graph.parameters(mask) < model.count_params()
    assert ChannelGraph(pruned).flops() == graph.flops(mask) < graph.flops()
    whole = agreement(graph, graph.open_mask(), model, batch_of(model))
    assert agrees(whole), sentence(whole)
    return graph


@pytest.mark.parametrize("build", CASES)
def test_groups_and_masked_is_pruned(build):
    graph = check(build())
    assert sorted(groups(graph)) == CASES[build]


@pytest.mark.parametrize("layer", NORMS, ids=lambda one: type(one).__name__)
def test_layers_that_normalise_or_scale(layer):
    layer = type(layer).from_config(layer.get_config())
    tied = getattr(layer, "groups", 1) == 2
    graph = check(between(layer))
    assert sorted(groups(graph)) == [(("after",), 4), (("before",), 3 if tied else 6)]


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (L.LayerNormalization(axis=[1, 2, 3], name="it"), "works along axis"),
        (L.LayerNormalization(rms_scaling=True, name="it"), "has rms_scaling"),
        (L.BatchNormalization(axis=1, name="it"), "works along axis 1"),
        (L.BatchNormalization(renorm=True, name="it"), "renormalises"),
        (L.Softmax(name="it"), "runs over the channels"),
        (L.Permute((3, 1, 2), name="it"), "moves the channels to another axis"),
        (L.AveragePooling2D(2, data_format="channels_first", name="it"), "channels_first"),
        (lambda x: ops.softmax(x), "runs over the channels"),
        (lambda x: x * np.arange(6, dtype="float32"), "has a constant per channel"),
        (lambda x: ops.mean(x, -1, keepdims=True), "runs over the channels"),
        (lambda x: ops.transpose(x, (0, 3, 1, 2)), "moves the channels"),
        (lambda x: ops.reshape(x, (-1, 4, 16, 6)), "fixed number of channels"),
        (lambda x: ops.pad(x, [[0, 0], [0, 0], [0, 0], [0, 1]]), "pads the channels"),
        (lambda x: x[..., ::3], "takes some of the channels"),
        (lambda x: ops.squeeze(x[..., None], -1), "moves the channels"),
        (L.Rescaling([0.5] * 6, name="it"), "has constants per channel"),
    ],
)
def test_what_cannot_be_followed_is_frozen_with_a_reason(layer, why):
    if isinstance(layer, L.BatchNormalization) and layer.axis == 1:
        x = image()
        model = keras.Model(x, head(conv(4, "after")(layer(conv(6, "before")(x)))))
    else:
        model = between(layer)
    graph = ChannelGraph(model)
    assert groups(graph) == [(("after",), 4)]
    assert why in graph.frozen["before"]
    mask = random_mask(graph)
    assert agrees(agreement(graph, mask, graph.pruned(mask), batch_of(model)))


def test_concatenation_along_another_axis_ties():
    x = image()
    y = L.Concatenate(axis=1)([conv(5, "a")(x), conv(5, "b")(x)])
    assert groups(check(keras.Model(x, head(y)))) == [(("a", "b"), 5)]


def test_several_inputs_and_outputs():
    left, right = image(), image(4)
    y = conv(6, "conv", activation="relu")(left)
    y = L.Multiply()([y, L.Dense(6, activation="sigmoid", name="gate")(right)])
    outputs = [head(y), head(conv(4, "deep")(y), name="fc2")]
    model = shake(keras.Model([left, right], outputs))
    graph = ChannelGraph(model)
    assert groups(graph) == [(("conv", "gate"), 6), (("deep",), 4)]
    mask = random_mask(graph)
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(5, *one.shape[1:])).astype(np.float32) for one in model.inputs]
    assert agrees(agreement(graph, mask, graph.pruned(mask), arrays))


def test_a_pruned_nested_model_is_flat_and_of_stock_layers():
    graph = ChannelGraph(flatten(nested()).model)
    pruned = graph.pruned(graph.least_mask())
    assert not any(isinstance(layer, keras.Model) for layer in pruned.layers)
    assert all(type(layer).__module__.startswith("keras.src.layers") for layer in pruned.layers)
    names = [layer.name for layer in graph.model.layers]
    assert len(set(names)) == len(names) and "stack_conv" in names


def test_flops_by_hand():
    x = image()  # 8 x 8 x 3
    y = L.Conv2DTranspose(4, 3, strides=2, padding="same")(x)  # 8*8 inputs * 9 * 3 * 4
    y = L.SeparableConv2D(5, 3, padding="same", depth_multiplier=2)(y)  # 16*16*(9*8 + 8*5)
    y = L.Conv2D(10, 3, padding="same", groups=5)(y)  # 16*16*9*1*10
    y = L.Conv2D(8, 1, groups=2)(y)  # 16*16*5*8
    flops = 8 * 8 * 9 * 12 + 256 * (72 + 40) + 256 * 90 + 256 * 40 + 8 * CLASSES
    assert ChannelGraph(keras.Model(x, head(y))).flops() == flops


def test_separable_convolutions_keep_the_norm_of_both_kernels():
    graph = ChannelGraph(decoder())
    mask, layer = random_mask(graph), graph.model.get_layer("separable")
    axes = graph._axes()["separable"]
    full = {v.name: v.numpy() for v in layer.weights}
    rules = {v.name: kernel_rule(v, True) for v in layer.weights}
    sliced = slice_weights(axes, full, mask, mask, rules)
    for name in ("depthwise_kernel", "pointwise_kernel"):
        assert sliced[name].size < full[name].size
        norms = (np.linalg.norm(one[name]) for one in (sliced, full))
        np.testing.assert_allclose(*norms, rtol=1e-5)


def test_an_open_image_size_is_refused():
    x = L.Input((None, None, 3))
    with pytest.raises(UserError, match="open size"):
        ChannelGraph(keras.Model(x, head(conv(4, "conv")(x))))


def test_a_proof_that_fails_says_where():
    graph = ChannelGraph(shake(between(L.ReLU())))
    mask = random_mask(graph)
    pruned, images = graph.pruned(mask), batch_of(graph.model)
    fine = agreement(graph, mask, pruned, images)
    assert agrees(fine) and fine["first_layer"] is None
    wrong = pruned.get_layer("after")
    wrong.bias.assign(wrong.bias + 1)
    result = agreement(graph, mask, pruned, images)
    assert not agrees(result) and result["first_layer"] == "after"
    assert "DO NOT AGREE" in sentence(result) and "first in layer after" in sentence(result)


def test_a_difference_that_noise_in_the_input_causes_is_no_failure():
    result = {"relative_difference": 3e-4, "noise_difference": 1e-4}
    assert agrees(result) and not agrees(result | {"noise_difference": 1e-6})


def test_ties_reach_everything_that_is_connected():
    ids = Ids()
    a, b, c, d = (ids.fresh(3, name) for name in "abcd")
    ids.tie(d, c)
    ids.tie(b, d)
    ids.tie_rows(np.stack([a, b]))
    ids.freeze(c[1:2], "first")
    ids.freeze(a[1:2], "second")
    roots = ids.roots()
    assert roots.tolist() == [0, 1, 2] * 4
    assert ids.reasons(roots) == {1: "first"}
    assert ids.blocks().tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    with pytest.raises(ValueError, match="cannot tie"):
        ids.tie(a, b[:2])


def test_a_difference_is_seen():
    model = shake(decoder())
    graph = ChannelGraph(model)
    pruned = graph.pruned(graph.least_mask())
    pruned.layers[-1].bias.assign(pruned.layers[-1].bias + 1)
    result = agreement(graph, graph.least_mask(), pruned, batch_of(model))
    assert not agrees(result) and "DO NOT AGREE" in sentence(result)
    np.testing.assert_allclose(result["max_difference"], 1, rtol=1e-3)
    with pytest.raises(ValueError, match="no image"):
        agreement(graph, graph.least_mask(), pruned, batch_of(model)[:0])
