"""Small networks for the tests of nets/ and pruning/, weights that show mistakes, and masks."""

import keras
import numpy as np
from ekg_tf.nets.graph import ChannelGraph
from ekg_tf.nets.proof import agreement, agrees, sentence

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
    """Every layer reads the concatenation of all before it; batch norm and ReLU come first."""
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
    x = L.Softmax(name="soft")(L.Conv2D(5, 3, name="before_norm")(x))
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


def calibrate(model, inputs=None):
    """Sets the moving statistics to those of a batch, by default of images."""
    inputs = images_for(model, 16, seed=4) if inputs is None else inputs
    momenta = [layer.momentum for layer in batch_norms(model)]
    for layer in batch_norms(model):
        layer.momentum = 0.0
    model(inputs, training=True)
    for layer, momentum in zip(batch_norms(model), momenta, strict=True):
        layer.momentum = momentum


def shaken(model, seed=1, mask=None, inputs=None):
    """Gives a network biases and batch norms that are not fresh, which would hide mistakes.

    The moving statistics stay near those of real activations, of the network under `mask` where one
    is given: so the logits keep a moderate size however deep the network is.
    """
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        if variable.name == "gamma":
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        elif variable.name in ("beta", "bias"):
            variable.assign(rng.uniform(-0.4, 0.4, variable.shape))
    calibrate(model, inputs)
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
    mask = graph.open_mask()
    for gate in graph.groups:
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


def assert_a_third_can_go(graph, inputs, rng):
    """A network without a third of its filters computes what the masked one computes.

    Args:
        rng: that draws them; the first one of every group stays.
    """
    mask = graph.open_mask()
    mask[rng.permutation(graph.num_units)[: graph.num_units // 3]] = 0
    mask[[group.start for group in graph.groups]] = 1
    proof = agreement(graph, mask, graph.pruned(mask), inputs)
    assert agrees(proof), sentence(proof)


def groups(graph):
    return [(tuple(sorted(gate.layers)), gate.channels) for gate in graph.groups]
