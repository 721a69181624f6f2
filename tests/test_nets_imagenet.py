"""The ImageNet networks: published sizes, masked = pruned, PyTorch's paddings."""

import keras
import numpy as np
import pytest
from ekg_tf.nets.graph import ChannelGraph
from ekg_tf.nets.zoo.builders import build
from ekg_tf.nets.zoo.imagenet import imagenet_resnet, mobilenet_v2

from tests.helpers.networks import assert_masked_is_pruned, images_for, random_mask, shaken

SHAPE = (224, 224, 3)


@pytest.mark.parametrize(
    ("arch", "published_gflops", "flops", "parameters"),
    [  # published: torchvision's tables and the papers; trainable parameters are exact
        ("ResNet-18", 1.82, 1_814_073_344, 11_689_512),
        ("ResNet-34", 3.67, 3_663_761_408, 21_797_672),
        ("ResNet-50", 4.09, 4_089_184_256, 25_557_032),
        ("MobileNet-v2", 0.30, 300_774_272, 3_504_872),
    ],
)
def test_published_sizes(arch, published_gflops, flops, parameters):
    model = build(arch, 1000, SHAPE)
    graph = ChannelGraph(model)
    assert graph.flops() == flops
    assert flops == pytest.approx(published_gflops * 1e9, rel=0.01)
    assert sum(int(np.prod(v.shape)) for v in model.trainable_variables) == parameters
    assert set(graph.frozen) == {model.layers[-1].name}


def test_mobilenet_for_cifar_keeps_the_resolution():
    model = mobilenet_v2(10, (32, 32, 3))
    sides = [
        model.get_layer(f"features.{k}.conv{tail}").output.shape[1]
        for k, tail in ((1, "_2"), (2, "_3"), (4, "_3"), (7, "_3"), (14, "_3"), (17, "_3"))
    ]
    assert model.get_layer("features.0_0").output.shape[1] == 32
    assert sides == [32, 32, 16, 8, 4, 4]


def test_other_depths():
    with pytest.raises(ValueError, match=r"one of \[18, 34, 50\], not 101"):
        imagenet_resnet(101, 10, SHAPE)


@pytest.mark.parametrize(
    "arch",
    [
        "ResNet-18",
        pytest.param("ResNet-34", marks=pytest.mark.slow),
        pytest.param("ResNet-50", marks=pytest.mark.slow),
        "MobileNet-v2",
    ],
)
def test_masked_is_pruned(arch):
    side = 65 if arch == "MobileNet-v2" else 64  # above 64: the strides of the 224 version
    model = build(arch, 7, (side, side, 3))
    mask = random_mask(ChannelGraph(model), 1, 0.5)
    shaken(model, 1, mask)
    head = model.layers[-1]  # so that logits are of the size of a trained network's
    head.kernel.assign(head.kernel * 0.1)
    assert_masked_is_pruned(model, mask, images_for(model, count=3))


def test_strided_convolutions_pad_all_sides():
    # PyTorch's first window covers rows -1, 0, 1; that of Keras's "same" would cover rows 0, 1, 2.
    model = mobilenet_v2(2, (66, 66, 3))
    stem = keras.Model(model.input, model.get_layer("features.0_0").output)
    stem.layers[-1].set_weights([np.ones((3, 3, 3, 32), np.float32)])
    image = np.zeros((1, 66, 66, 3), np.float32)
    image[0, 2, 2, 0] = 1
    seen = stem(image)[0, :, :, 0].numpy()
    assert seen.shape == (33, 33) and np.argwhere(seen).tolist() == [[1, 1]]
