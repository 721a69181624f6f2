"""Our own architectures by name."""

from functools import partial

import keras

from ...utils.errors import UserError
from .imagenet import RESNETS, imagenet_resnet, mobilenet_v2
from .resnet import CIFAR_DEPTHS, cifar_resnet

BUILDERS = {
    **{f"ResNet-{depth}": partial(cifar_resnet, depth) for depth in CIFAR_DEPTHS},
    **{f"ResNet-{depth}": partial(imagenet_resnet, depth) for depth in RESNETS},
    "MobileNet-v2": mobilenet_v2,
}


def build(arch: str, num_classes: int, input_shape: tuple[int, ...]) -> keras.Model:
    """Builds a network by name with fresh weights.

    Args:
        arch: one of `BUILDERS`.
        num_classes: width of the logits.
        input_shape: (height, width, channels) of a normalised image.

    Raises:
        UserError: unknown name.
    """
    if arch not in BUILDERS:
        raise UserError(f"unknown architecture {arch!r}: choose one of {', '.join(BUILDERS)}")
    return BUILDERS[arch](num_classes, input_shape)
