"""The loss on D_val as a pure function of a network's trainables.

It is the mean cross-entropy against labels; batch norms use the statistics of each batch, as in the
search, dropout is off. The batches are those of `Validation`, so the same network has the same loss
here as in the search's history.
"""

from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from ..nets import stateless
from ..pruning.engine.validation import Validation

Batches = list[tuple[tf.Tensor, tf.Tensor]]
LossSum = Callable[[Sequence[tf.Tensor], tf.Tensor, tf.Tensor], tf.Tensor]


def batches_of(val: Validation) -> Batches:
    """D_val as tensors: [(images float32 [b, h, w, c], labels int32 [b])]."""
    return [
        (tf.constant(val.inputs[rows]), tf.constant(val.targets[rows], tf.int32))
        for rows in val.batches()
    ]


def loss_sum(model: keras.Model) -> LossSum:
    """A function: values of the trainables, images, labels -> cross-entropy, summed.

    To be traced: the other variables' values are read when it runs, none is changed. The model
    gives logits [b, classes].

    Raises (the function):
        ValueError: a batch norm of the model is frozen.
    """
    places = {id(v): i for i, v in enumerate(model.variables)}
    trainable = [places[id(v)] for v in model.trainable_variables]

    def loss(weights, images, labels):
        values = stateless.read(model)
        for place, weight in zip(trainable, weights, strict=True):
            values[place] = weight
        with stateless.batch_statistics(model):
            logits, _ = stateless.call(model, values, images, training=True)
        return tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))

    return loss


def trainables(model: keras.Model) -> list[np.ndarray]:
    """The values of the trainables, in the order that `loss_sum` takes them."""
    return [variable.numpy() for variable in model.trainable_variables]


def make_mean_loss(model: keras.Model, val: Validation, *, compile: bool = False) -> Callable:
    """A function: values of the trainables -> mean loss over D_val, a float; traced once."""
    batches, total = batches_of(val), loss_sum(model)
    total = tf.function(total, jit_compile=compile, autograph=False, reduce_retracing=True)

    def mean_loss(weights: Sequence) -> float:
        tensors = [tf.convert_to_tensor(one) for one in weights]
        sums = [float(total(tensors, images, labels)) for images, labels in batches]
        return sum(sums) / len(val)

    return mean_loss
