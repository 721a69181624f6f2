"""The pretrained networks of keras.applications, rebuilt to take the images that we feed.

They expect images scaled in one of three ways; ours are (x - mean) / std of torchvision. A
Rescaling layer in front turns one into the other, so that the network's padding still means what it
meant; where BGR is expected the first kernel's input channels are turned round.
"""

from __future__ import annotations

import keras
import numpy as np

from ...utils.errors import UserError, line_of

PREFIX = "keras.applications:"
# How each wants its images: "caffe": BGR minus a mean, "tf": -1..1, "torch": as ours.
NETWORKS = {
    "ResNet50": "caffe",
    "ResNet101": "caffe",
    "ResNet50V2": "tf",
    "MobileNet": "tf",
    "MobileNetV2": "tf",
    "VGG16": "caffe",
    "DenseNet121": "torch",
}
# Of ImageNet in `dataloader`.
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
CAFFE_MEAN = (123.68, 116.779, 103.939)  # in RGB order


def application(
    name: str, input_shape: tuple[int, int, int], *, weights: str | None = "imagenet"
) -> keras.Model:
    """A network of keras.applications that takes images normalised by MEAN and STD.

    Args:
        name: one of NETWORKS.
        input_shape: (height, width, 3).
        weights: "imagenet", a file, or None for fresh ones.

    Returns:
        A functional model, float32 [n, h, w, 3] -> logits [n, 1000].

    Raises:
        UserError: unknown name, or weights that could not be downloaded.
    """
    if name not in NETWORKS:
        raise UserError(f"{PREFIX}{name} is unknown: choose one of {', '.join(NETWORKS)}")
    mode, inputs = NETWORKS[name], keras.Input(input_shape, name="image")
    x = keras.layers.Rescaling(*_rescaling(mode), name="as_expected")(inputs)
    try:
        # include_top fixes the number of classes: that of the published weights
        model = getattr(keras.applications, name)(
            input_tensor=x, weights=weights, classifier_activation=None
        )
    except Exception as error:  # urllib, ssl and keras each raise their own
        raise UserError(
            f"the weights of {PREFIX}{name} could not be downloaded "
            f"({line_of(error)}): give a file of weights instead"
        ) from error
    if mode == "caffe":
        first = next(one for one in model.layers if isinstance(one, keras.layers.Conv2D))
        first.kernel.assign(np.flip(first.kernel.numpy(), axis=2))
    # Made from a tensor, the model's input is a list of one, which Keras warns of at every call.
    return keras.Model(model.inputs[0], model.outputs[0], name=model.name)


def _rescaling(mode: str) -> tuple[list[float], list[float]]:
    """(scale, offset) per channel from our normalisation to the one that `mode` wants, in RGB."""
    mean, std = np.array(MEAN), np.array(STD)
    if mode == "torch":
        return [1.0] * 3, [0.0] * 3
    if mode == "tf":
        return (std / 127.5).tolist(), (mean / 127.5 - 1).tolist()
    return STD, (mean - CAFFE_MEAN).tolist()


def fresh_application(name: str, **options) -> keras.Model:
    """A network of keras.applications with random weights that gives logits.

    Args:
        options: of the builder, such as input_shape and classes; the default image size is the
            builder's own.

    Raises:
        UserError: there is no network of this name.
    """
    builder = getattr(keras.applications, name, None)
    if not callable(builder) or not name[:1].isupper():
        known = ", ".join(application_names())
        raise UserError(f"keras.applications has no {name!r}: choose one of {known}")
    if name.startswith("MobileNetV3"):  # the only ones whose default image size is open
        options.setdefault("input_shape", (224, 224, 3))
    return builder(weights=None, classifier_activation=None, **options)


def application_names() -> list[str]:
    """Names of the networks in keras.applications."""
    members = ((name, getattr(keras.applications, name)) for name in dir(keras.applications))
    return [name for name, one in members if name[:1].isupper() and callable(one)]
