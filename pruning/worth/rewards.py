"""The reward: validation loss and the ensemble's knowledge (docs/method.md 1, steps e and f)."""

import numpy as np
import tensorflow as tf

from ...options.methods import TEACHERS


class Knowledge:
    """The teacher logits T_i that the reward compares a sub-network with.

    `none`: no teacher; `single`: the logits of theta_0 throughout; `ensemble`: the mean of the
    logits of theta_0 .. theta_i.
    """

    def __init__(self, kind: str):
        if kind not in TEACHERS:
            raise ValueError(f"teacher {kind!r} is none of {TEACHERS}")
        self.kind = kind
        self._sum: np.ndarray | None = None
        self._count = 0

    def add(self, logits: np.ndarray) -> None:
        """Takes in the logits of the next accepted network, float32 [n, classes]."""
        if self.kind == "none" or (self.kind == "single" and self._count):
            return
        # Summed in float64: the running mean of a long search must not depend on rounding.
        self._sum = logits.astype(np.float64) + (0 if self._sum is None else self._sum)
        self._count += 1

    @property
    def logits(self) -> np.ndarray | None:
        """T_i, float32 [n, classes]; None without a teacher."""
        return None if self._sum is None else (self._sum / self._count).astype(np.float32)


class Reward:
    """R(theta) = -L(D_val; theta) - L(T; theta), both mean cross-entropies over the n examples.

    Args:
        labels: int32 [n].
        teacher: T, float32 [n, classes]; None leaves out the second term.
        num_classes: number of logits.
    """

    def __init__(self, labels: np.ndarray, teacher: np.ndarray | None, num_classes: int):
        self.targets = tf.constant(labels, tf.int32)
        # A distribution of zeros makes the second cross-entropy, and its gradient, zero.
        self.teacher = (
            tf.zeros([len(labels), num_classes])
            if teacher is None
            else tf.nn.softmax(tf.constant(teacher))
        )

    def losses(self, logits: tf.Tensor, rows: slice = slice(None)) -> tf.Tensor:
        """Minus the reward of each example in `rows`, float32 [rows]; logits [rows, classes]."""
        return example_losses(logits, self.targets[rows], self.teacher[rows])

    def least_losses(self) -> np.ndarray:
        """The least that `losses` can be for each example, float32 [n]: the entropy of the teacher
        distribution (Gibbs' inequality), for the cross-entropy against a label is at least zero."""
        return -tf.reduce_sum(tf.math.xlogy(self.teacher, self.teacher), axis=-1).numpy()


def example_losses(logits: tf.Tensor, labels: tf.Tensor, teacher: tf.Tensor) -> tf.Tensor:
    """Cross-entropy against labels plus cross-entropy against a distribution, float32 [n].

    Args:
        logits: float32 [n, classes].
        labels: int32 [n].
        teacher: probabilities, float32 [n, classes]; rows of zeros add nothing.
    """
    label_loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    # Not TensorFlow's softmax_cross_entropy: its gradient takes for granted that a row sums to 1.
    return label_loss - tf.reduce_sum(teacher * tf.nn.log_softmax(logits), axis=-1)


def label_loss_and_accuracy(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Mean cross-entropy and top-1 in percent of logits [n, classes] against labels [n]."""
    loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    return float(tf.reduce_mean(loss)), 100 * float(np.mean(logits.argmax(-1) == labels))
