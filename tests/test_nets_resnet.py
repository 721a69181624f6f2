"""The CIFAR residual networks: exact counts, and masked = pruned at full size."""

import keras
import numpy as np
import pytest
from ekg_tf.nets.graph import ChannelGraph
from ekg_tf.nets.zoo.builders import BUILDERS, build
from ekg_tf.nets.zoo.resnet import cifar_resnet
from ekg_tf.utils.errors import UserError

from tests.helpers.networks import assert_masked_is_pruned, images_for, random_mask, shaken

CIFAR = (32, 32, 3)


@pytest.mark.parametrize(
    ("depth", "flops"), [(20, 40_813_184), (56, 125_747_840), (110, 253_149_824)]
)
def test_flops_of_the_published_networks(depth, flops):
    graph = ChannelGraph(cifar_resnet(depth, 10, CIFAR))
    assert graph.flops() == flops
    assert len(graph.groups) == depth // 2 + 2  # a gate per block, 3 streams: 3 * (d - 2) / 6 + 3
    assert graph.parameters() == graph.model.count_params()


def test_gates_of_resnet20():
    graph = ChannelGraph(cifar_resnet(20, 10, CIFAR))
    streams = [(g.channels, len(g.layers)) for g in graph.groups if len(g.layers) > 1]
    assert streams == [(16, 4), (32, 4), (64, 4)]
    single = [g.channels for g in graph.groups if len(g.layers) == 1]
    assert single == [16] * 3 + [32] * 3 + [64] * 3
    assert set(graph.groups[0].layers) == {"conv"} | {f"BasicBlock0.{i}_conv2" for i in range(3)}
    assert graph.frozen == {"fc": "network output"}


def test_counts_of_two_layers_by_hand():
    image = keras.Input((5, 7, 3))
    x = keras.layers.Conv2D(4, 3, strides=2, padding="same", use_bias=False)(image)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    x = keras.layers.GlobalAveragePooling2D()(x)
    graph = ChannelGraph(keras.Model(image, keras.layers.Dense(6)(x)))
    # 3 x 4 positions of 3 x 3 kernels from 3 to 4 channels, then 4 x 6
    assert graph.flops() == 12 * 9 * 3 * 4 + 4 * 6 == 1320
    assert graph.parameters() == 9 * 3 * 4 + 4 * 4 + 4 * 6 + 6 == 154
    mask = np.array([1, 0, 0, 1, 1], np.float32)
    assert graph.flops(mask) == 12 * 9 * 3 * 2 + 2 * 6 == 660
    assert graph.parameters(mask) == 9 * 3 * 2 + 4 * 2 + 2 * 6 + 6 == 80
    pruned = graph.pruned(mask)
    assert pruned.count_params() == 80
    assert ChannelGraph(pruned).flops() == 660


@pytest.mark.parametrize(("depth", "keep"), [(20, 0.4), (56, 0.6)])
def test_masked_is_pruned(depth, keep):
    model = cifar_resnet(depth, 10, CIFAR)
    mask = random_mask(ChannelGraph(model), depth, keep)
    shaken(model, depth, mask)
    assert_masked_is_pruned(model, mask, images_for(model, count=4), sizes=(1.0, 20.0))


def test_names_of_networks():
    resnets = [f"ResNet-{depth}" for depth in (20, 32, 44, 56, 110, 18, 34, 50)]
    assert list(BUILDERS) == [*resnets, "MobileNet-v2"]
    model = build("ResNet-20", 7, (8, 8, 1))
    assert (model.input_shape, model.output_shape) == ((None, 8, 8, 1), (None, 7))
    with pytest.raises(UserError, match=r"unknown architecture 'ResNet-21': choose one of "):
        build("ResNet-21", 10, CIFAR)


@pytest.mark.parametrize("depth", [2, 18, 21])
def test_depths_that_no_cifar_resnet_has(depth):
    with pytest.raises(ValueError, match=rf"6n \+ 2, not {depth}"):
        cifar_resnet(depth, 10, CIFAR)
