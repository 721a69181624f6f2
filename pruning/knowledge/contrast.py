"""FFP's contrastive knowledge transfer, CKT (docs/method.md 5).

The student's penultimate features go through one dense layer, the projection, which is there only
while training, and are compared with the bank's features of the same image.
"""

import keras
import tensorflow as tf

from ...training.task import Task
from ...utils.trees import parts_of, tree_of
from ..engine import features
from .distill import LossFunction, task_loss

TEMPERATURE = 0.1  # tau


def with_projection(model: keras.Model, width: int, seed: int) -> keras.Model:
    """A model that shares the layers of `model` and also gives its projected features.

    Args:
        model: functional, without nesting.
        width: of the projection: that of the bank's features.
        seed: of the projection's weights.

    Returns:
        inputs -> (the outputs of `model`, in order; features float [n, width]).
    """
    project = keras.layers.Dense(
        width,
        use_bias=False,
        kernel_initializer=keras.initializers.GlorotUniform(seed),
        name="ckt_projection",
    )
    projected = project(features.pooled(features.penultimate(model)))
    return keras.Model(tree_of(model.inputs), (*model.outputs, projected))


def info_nce(z: tf.Tensor, bank: tf.Tensor) -> tf.Tensor:
    """-log exp(z_n . m_n / tau) / sum_j exp(z_n . m_j / tau), mean over views and images: scalar.

    Args:
        z: projected features of every view, l2-normalised, float32 [views, b, d].
        bank: m, l2-normalised, float32 [b, d]. The b images of the (micro-)batch on one device are
            each other's negatives.
    """
    similarity = tf.einsum("vnd,jd->vnj", z, bank) / TEMPERATURE
    own = tf.range(tf.shape(bank)[0])
    labels = tf.broadcast_to(own, tf.shape(similarity)[:-1])
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, similarity))


def pull(z: tf.Tensor, bank: tf.Tensor) -> tf.Tensor:
    """|z_n - m_n|^2 = 2 - 2 z_n . m_n, mean over views and images: scalar, without negatives.

    Arguments as in `info_nce`.
    """
    return tf.reduce_mean(2 - 2 * tf.einsum("vnd,nd->vn", z, bank))


def ckt_loss(task: Task, kind: str, *, viewed: bool = False) -> LossFunction:
    """The task's loss plus contrast with the bank's features (batch["features"] float32 [b, d]).

    The model is one of `with_projection`.
    """
    contrast = {"infonce": info_nce, "pull": pull}[kind]

    def loss_fn(outputs, batch, taught):
        *own, z = parts_of(outputs)
        label_loss, metrics = task_loss(task, tree_of(own), batch, viewed=viewed)
        bank = tf.math.l2_normalize(batch["features"], -1)  # float16 rounds their norm
        contrast_loss = contrast(tf.math.l2_normalize(z, -1), bank)
        metrics |= {"label_loss": label_loss, "contrast_loss": contrast_loss}
        return label_loss + contrast_loss, metrics

    return loss_fn
