"""Residual networks as stock Keras functional models."""

import keras

CIFAR_DEPTHS = (20, 32, 44, 56, 110)


def _conv_bn(x, filters: int, kernel: int, stride: int, conv: str, bn: str):
    x = keras.layers.Conv2D(
        filters,
        kernel,
        strides=stride,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
        name=conv,
    )(x)
    return keras.layers.BatchNormalization(epsilon=1e-5, momentum=0.9, name=bn)(x)


def _basic_block(x, filters: int, stride: int, name: str):
    shortcut = x
    y = _conv_bn(x, filters, 3, stride, f"{name}_conv1", f"{name}_bn1")
    y = keras.layers.ReLU(name=f"{name}_relu1")(y)
    y = _conv_bn(y, filters, 3, 1, f"{name}_conv2", f"{name}_bn2")
    if shortcut.shape[-1] != filters:
        shortcut = _conv_bn(shortcut, filters, 1, stride, f"{name}_conv3", f"{name}_bn3")
    y = keras.layers.Add(name=f"{name}_add")([y, shortcut])
    return keras.layers.ReLU(name=f"{name}_relu2")(y)


def cifar_resnet(depth: int, num_classes: int, input_shape: tuple[int, int, int]) -> keras.Model:
    """The CIFAR ResNet of He et al. 2016 (section 4.2), projections where the width changes.

    Args:
        depth: 6n + 2; the published ones are 20, 32, 44, 56 and 110.
        num_classes: width of the logits.
        input_shape: (height, width, channels) of a normalised image.

    Returns:
        A functional model, float32 [n, h, w, c] -> logits [n, num_classes].

    Raises:
        ValueError: depth isn't 6n + 2.
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"a CIFAR ResNet's depth is 6n + 2, not {depth}")
    inputs = keras.Input(input_shape, name="image")
    x = _conv_bn(inputs, 16, 3, 1, "conv", "bn")
    x = keras.layers.ReLU(name="relu")(x)
    for stage, filters in enumerate((16, 32, 64)):
        for block in range((depth - 2) // 6):
            stride = 2 if stage and not block else 1
            x = _basic_block(x, filters, stride, f"BasicBlock{stage}.{block}")
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    outputs = keras.layers.Dense(num_classes, kernel_initializer="he_normal", name="fc")(x)
    return keras.Model(inputs, outputs, name=f"resnet{depth}")
