"""Small networks of other tasks than classes, compiled, with data of theirs."""

import keras
import numpy as np
from ekg_tf.nets.given import Given
from ekg_tf.nets.graph import ChannelGraph
from ekg_tf.pruning.engine.validation import Validation
from ekg_tf.training.task import task_of
from ekg_tf.utils.trees import mapped, tree_of

from tests.helpers.networks import conv_bn, shaken

L = keras.layers


def two_ends():
    """Two inputs, one of which waits, and two outputs, one of which is early: class and number."""
    image, vector = L.Input((8, 8, 3), name="image"), L.Input((6,), name="vector")
    x = L.ReLU()(conv_bn(image, 6, "stem"))
    y = L.ReLU()(conv_bn(x, 5, "a1"))
    x = L.ReLU()(L.Add()([conv_bn(y, 6, "a2"), x]))
    early = L.Dense(4, activation="softmax", name="kind")(L.GlobalAveragePooling2D()(x))
    x = L.ReLU()(conv_bn(x, 8, "b1", strides=2))
    x = L.ReLU()(conv_bn(x, 7, "b2"))
    x = L.ReLU()(conv_bn(x, 7, "b3"))
    x = L.Concatenate()([L.GlobalAveragePooling2D()(x), vector])
    x = L.Dense(9, activation="relu", name="hidden")(x)
    model = keras.Model((image, vector), (early, L.Dense(2, name="size")(x)))
    losses = ["sparse_categorical_crossentropy", "mse"]
    model.compile("sgd", loss=losses, loss_weights=[1.0, 0.5])
    return model


def unet(size=8):
    """Two levels of skips; classes per pixel."""
    image = L.Input((size, size, 3))
    x, skips = image, []
    for number, filters in enumerate((4, 6)):
        x = L.ReLU()(conv_bn(x, filters, f"down{number}a"))
        x = L.ReLU()(conv_bn(x, filters, f"down{number}b"))
        skips.append(x)
        x = L.MaxPooling2D()(x)
    x = L.ReLU()(conv_bn(x, 8, "middle1"))
    x = L.ReLU()(conv_bn(x, 8, "middle2"))
    for number, filters in reversed(list(enumerate((4, 6)))):
        x = L.Conv2DTranspose(filters, 2, strides=2, name=f"up{number}")(x)
        x = L.Concatenate()([x, skips[number]])
        x = L.ReLU()(conv_bn(x, filters, f"up{number}a"))
    model = keras.Model(image, L.Conv2D(3, 1, activation="softmax", name="pixels")(x))
    model.compile("sgd", loss="sparse_categorical_crossentropy")
    return model


def series():
    """A series' next values, 1-D convolutions without batch norm."""
    steps = L.Input((16, 2))
    x = L.Conv1D(6, 3, padding="causal", activation="relu", name="first")(steps)
    y = L.Conv1D(6, 3, padding="causal", dilation_rate=2, activation="relu", name="second")(x)
    x = L.Add()([x, y])
    x = L.Conv1D(5, 3, padding="causal", activation="relu", name="third")(x)
    model = keras.Model(steps, L.Conv1D(1, 1, name="next")(x))
    model.compile("sgd", loss="mae")
    return model


def sigmoid():
    """Yes or no: one unit."""
    image = L.Input((8, 8, 3))
    x = L.ReLU()(conv_bn(image, 6, "first"))
    x = L.ReLU()(conv_bn(x, 5, "second", strides=2))
    x = L.GlobalAveragePooling2D()(x)
    model = keras.Model(image, L.Dense(1, activation="sigmoid", name="yes")(x))
    model.compile("sgd", loss="binary_crossentropy")
    return model


def below_zero(targets, outputs):
    """A loss of one's own, without a bound, that is below zero throughout."""
    return keras.ops.mean(keras.ops.square(targets - outputs), -1) - 50.0


def regression():
    """Three numbers of a vector, dense layers alone, by a loss of one's own."""
    vector = L.Input((7,))
    x = L.Dense(8, activation="relu", name="first")(vector)
    x = L.Dense(6, activation="relu", name="second")(x)
    model = keras.Model(vector, L.Dense(3, name="numbers")(x))
    model.compile("sgd", loss=below_zero)
    return model


BUILDERS = [two_ends, unet, series, sigmoid, regression]


class Case:
    """A task: the graph of the network's core, `task`, and D_val.

    Args:
        build: one of BUILDERS.
        weighted: with sample weights.
    """

    def __init__(self, build, count=25, batch_images=10, weighted=False, **options):
        keras.utils.set_random_seed(2)
        random = np.random.default_rng(5)
        model = build()
        inputs = tree_of(
            random.normal(0.2, 1, (count, *one.shape[1:])).astype(np.float32)
            for one in model.inputs
        )
        self.given = Given.read(model, inputs)
        self.task = task_of(self.given, examples=inputs, **options)
        core = shaken(self.given.core, inputs=mapped(lambda one: one[:16], inputs))
        self.graph = ChannelGraph(core)
        targets = tree_of(
            random.integers(0, tensor.shape[-1], (count, *tensor.shape[1:-1]), np.int32)
            if output.kind == "classes"
            else self._numbers(random, output.kind, (count, *tensor.shape[1:]))
            for output, tensor in zip(self.given.outputs, core.outputs, strict=True)
        )
        weights = None
        if weighted:
            weights = mapped(lambda _: random.uniform(0, 2, count).astype(np.float32), targets)
        self.val = Validation(inputs, targets, batch_images, weights)

    @staticmethod
    def _numbers(random, kind, shape):
        numbers = random.normal(0, 1, shape)
        return (numbers > 0 if kind == "sigmoids" else numbers).astype(np.float32)

    def teacher(self, seed=6):
        """Some outputs that could be a teacher's."""
        random = np.random.default_rng(seed)
        return tree_of(
            random.normal(size=(len(self.val), *tensor.shape[1:])).astype(np.float32)
            for tensor in self.graph.model.outputs
        )
