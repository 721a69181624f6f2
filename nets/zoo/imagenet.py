"""ResNet-18, -34, -50 and MobileNet-v2 as stock Keras functional models.

Paddings are symmetric, as in PyTorch, and a layer's name is its torchvision name with "_" for the
dot before its last part, so that torchvision's weights fit without a table (`torch_weights`).
"""

import keras

RESNETS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}  # blocks per stage

# Expansion, filters, blocks, stride of every stage (Sandler et al. 2018, table 2).
MOBILENET_V2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
SMALL_SIDE = 64  # images up to this side keep the resolution in the stem and in MobileNet's stage 2


def _convolution(x, filters: int | None, kernel: int, stride: int, name: str):
    """A convolution without bias, depthwise where `filters` is None, padded alike on all sides."""
    padding = "same"  # symmetric at stride 1; at stride 2 Keras would pad below and right only
    if stride > 1 and kernel > 1:
        x = keras.layers.ZeroPadding2D(kernel // 2, name=f"{name}_pad")(x)
        padding = "valid"
    options = {"strides": stride, "padding": padding, "use_bias": False, "name": name}
    if filters is None:
        options["depthwise_initializer"] = "he_normal"
        return keras.layers.DepthwiseConv2D(kernel, **options)(x)
    return keras.layers.Conv2D(filters, kernel, kernel_initializer="he_normal", **options)(x)


def _conv_bn(x, filters: int | None, kernel: int, stride: int, conv: str, bn: str):
    x = _convolution(x, filters, kernel, stride, conv)
    return keras.layers.BatchNormalization(epsilon=1e-5, momentum=0.9, name=bn)(x)


def _relu_add(y, x, name: str):
    x = keras.layers.Add(name=f"{name}_add")([y, x])
    return keras.layers.ReLU(name=f"{name}_relu")(x)


def _shortcut(x, filters: int, stride: int, name: str):
    if stride == 1 and x.shape[-1] == filters:
        return x
    return _conv_bn(x, filters, 1, stride, f"{name}_downsample.0", f"{name}_downsample.1")


def _basic_block(x, filters: int, stride: int, name: str):
    y = _conv_bn(x, filters, 3, stride, f"{name}_conv1", f"{name}_bn1")
    y = keras.layers.ReLU(name=f"{name}_relu1")(y)
    y = _conv_bn(y, filters, 3, 1, f"{name}_conv2", f"{name}_bn2")
    return _relu_add(y, _shortcut(x, filters, stride, name), name)


def _bottleneck(x, filters: int, stride: int, name: str):
    y = _conv_bn(x, filters, 1, 1, f"{name}_conv1", f"{name}_bn1")
    y = keras.layers.ReLU(name=f"{name}_relu1")(y)
    y = _conv_bn(y, filters, 3, stride, f"{name}_conv2", f"{name}_bn2")
    y = keras.layers.ReLU(name=f"{name}_relu2")(y)
    y = _conv_bn(y, 4 * filters, 1, 1, f"{name}_conv3", f"{name}_bn3")
    return _relu_add(y, _shortcut(x, 4 * filters, stride, name), name)


def _head(x, num_classes: int, name: str):
    x = keras.layers.GlobalAveragePooling2D(name="avgpool")(x)
    return keras.layers.Dense(num_classes, kernel_initializer="he_normal", name=name)(x)


def imagenet_resnet(depth: int, num_classes: int, input_shape: tuple[int, int, int]) -> keras.Model:
    """The ImageNet ResNet of He et al. 2016 (table 1) with projection shortcuts.

    Bottlenecks have their stride in the 3x3 convolution ("v1.5"), as torchvision's.

    Args:
        depth: 18, 34 or 50.
        num_classes: width of the logits.
        input_shape: (height, width, channels) of a normalised image; 224 in the publications.

    Returns:
        A functional model, float32 [n, h, w, c] -> logits [n, num_classes].

    Raises:
        ValueError: another depth.
    """
    if depth not in RESNETS:
        raise ValueError(f"an ImageNet ResNet's depth is one of {list(RESNETS)}, not {depth}")
    block = _bottleneck if depth == 50 else _basic_block
    inputs = keras.Input(input_shape, name="image")
    x = _conv_bn(inputs, 64, 7, 2, "conv1", "bn1")
    x = keras.layers.ReLU(name="relu")(x)
    # Zeros are as good as PyTorch's minus infinity here: what is padded comes out of a ReLU.
    x = keras.layers.ZeroPadding2D(1, name="maxpool_pad")(x)
    x = keras.layers.MaxPooling2D(3, 2, name="maxpool")(x)
    for stage, blocks in enumerate(RESNETS[depth]):
        for number in range(blocks):
            stride = 2 if stage and not number else 1
            x = block(x, 64 * 2**stage, stride, f"layer{stage + 1}.{number}")
    return keras.Model(inputs, _head(x, num_classes, "fc"), name=f"resnet{depth}")


def _inverted_residual(x, expansion: int, filters: int, stride: int, name: str):
    """Expand (not by 1), depthwise, project; a shortcut where the shape stays."""
    y, number = x, 0
    if expansion > 1:
        y = _conv_bn(y, expansion * x.shape[-1], 1, 1, f"{name}.0_0", f"{name}.0_1")
        y = keras.layers.ReLU(6.0, name=f"{name}.0_relu")(y)
        number = 1
    y = _conv_bn(y, None, 3, stride, f"{name}.{number}_0", f"{name}.{number}_1")
    y = keras.layers.ReLU(6.0, name=f"{name}.{number}_relu")(y)
    y = _conv_bn(y, filters, 1, 1, f"{name}_{number + 1}", f"{name}_{number + 2}")
    if stride == 1 and x.shape[-1] == filters:
        y = keras.layers.Add(name=f"{name}_add")([x, y])
    return y


def mobilenet_v2(num_classes: int, input_shape: tuple[int, int, int]) -> keras.Model:
    """MobileNet-v2 of Sandler et al. 2018 (table 2), width 1, without the dropout of its head.

    For images up to 64 pixels (CIFAR) the stem and stage 2 have stride 1, as usual there.

    Args:
        num_classes: width of the logits.
        input_shape: (height, width, channels) of a normalised image; 224 in the publication.

    Returns:
        A functional model, float32 [n, h, w, c] -> logits [n, num_classes].
    """
    small = max(input_shape[:2]) <= SMALL_SIDE
    inputs = keras.Input(input_shape, name="image")
    x = _conv_bn(inputs, 32, 3, 1 if small else 2, "features.0_0", "features.0_1")
    x = keras.layers.ReLU(6.0, name="features.0_relu")(x)
    number = 1
    for stage, (expansion, filters, blocks, first_stride) in enumerate(MOBILENET_V2):
        if small and stage == 1:
            first_stride = 1
        for block in range(blocks):
            stride = 1 if block else first_stride
            x = _inverted_residual(x, expansion, filters, stride, f"features.{number}.conv")
            number += 1
    x = _conv_bn(x, 1280, 1, 1, f"features.{number}_0", f"features.{number}_1")
    x = keras.layers.ReLU(6.0, name=f"features.{number}_relu")(x)
    return keras.Model(inputs, _head(x, num_classes, "classifier_1"), name="mobilenet_v2")
