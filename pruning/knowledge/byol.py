"""A baseline's self-supervised teacher, after BYOL (docs/method.md 3, "EKG-BYOL").

The teacher is an exponential moving average of the network that is trained. The network foretells
from one view of an example what the teacher says of the other one. Both have two more heads while
training, which are dropped afterwards.
"""

from __future__ import annotations

import keras
import tensorflow as tf

from ...training.task import Task
from ...utils.trees import parts_of, tree_of
from ..engine import features
from .distill import LossFunction, task_loss

HEADS = 2  # outputs behind the task's: the projection and its prediction
HIDDEN = 4  # times as wide as the features
L = keras.layers


def with_heads(model: keras.Model, seed: int) -> keras.Model:
    """A model that shares the layers of `model` and has a projector and a predictor.

    Args:
        model: functional, without nesting.
        seed: of the heads' weights.

    Returns:
        inputs -> (the outputs of `model`, in order; projection and prediction, float [n, width of
        the penultimate features]).
    """
    projected = _head(features.pooled(features.penultimate(model)), "byol_projection", seed)
    predicted = _head(projected, "byol_prediction", seed + 1)
    return keras.Model(tree_of(model.inputs), (*model.outputs, projected, predicted))


def _head(x: keras.KerasTensor, name: str, seed: int) -> keras.KerasTensor:
    """Two dense layers, batch norm and ReLU between them, as wide as their input."""
    width = int(x.shape[-1])
    first, second = (keras.initializers.GlorotUniform(2 * seed + number) for number in (0, 1))
    x = L.Dense(HIDDEN * width, use_bias=False, kernel_initializer=first, name=f"{name}_1")(x)
    x = L.ReLU(name=f"{name}_relu")(L.BatchNormalization(name=f"{name}_bn")(x))
    return L.Dense(width, kernel_initializer=second, name=f"{name}_2")(x)


def byol_loss(task: Task, weight: float, *, viewed: bool = False) -> LossFunction:
    """L = the task's loss + weight (2 - 2 cos(p_a, z'_b)), mean over views a, b the other view.

    p is the network's prediction, z' the teacher's projection. Of one view, b is a.

    Args:
        weight: lambda. viewed: as of `distill.task_loss`.
    """

    def loss_fn(outputs, batch, taught):
        *own, _, predicted = parts_of(outputs)
        label_loss, metrics = task_loss(task, tree_of(own), batch, viewed=viewed)
        projected = tf.stop_gradient(parts_of(taught[0])[-HEADS])
        byol = apart(predicted, projected[::-1])
        metrics |= {"label_loss": label_loss, "byol_loss": byol}
        return label_loss + weight * byol, metrics

    return loss_fn


def apart(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """2 - 2 cos(a, b) along the last axis, mean over the others: a scalar from 0 to 4."""
    a, b = (tf.math.l2_normalize(tf.cast(one, tf.float32), -1) for one in (a, b))
    return tf.reduce_mean(2 - 2 * tf.reduce_sum(a * b, -1))
