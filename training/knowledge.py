"""What a teacher's output has to say of a student's, by kind of output (docs/method.md 3)."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from ..options.kinds import CLASSES, NUMBERS, SIGMOIDS
from .heads import Head, per_example


class Kind(Protocol):
    """Outputs of one kind; all float32, the first axis that of the examples."""

    def prepared(self, head: Head, teacher: Any, like: Any) -> tuple[tf.Tensor, ...]:
        """What `losses` needs of a teacher, None for none; the same shapes in both cases.

        Args:
            like: outputs of as many examples.
        """
        ...

    def losses(self, prepared: tuple[tf.Tensor, ...], outputs: tf.Tensor) -> tf.Tensor:
        """How far outputs are from the teacher, [n, ...]; zero without one."""
        ...

    def entropy(self, prepared: tuple[tf.Tensor, ...], count: int) -> np.ndarray:
        """The least that `losses` can be for each of `count` examples, float32 [count]."""
        ...

    def distilled(
        self, head: Head, teacher: tf.Tensor, student: tf.Tensor, temperature: float
    ) -> tf.Tensor:
        """The distillation term, a scalar; outputs broadcast together."""
        ...


class Classes:
    """Exclusive classes along the last axis, as logits."""

    def prepared(self, head: Head, teacher: Any, like: Any) -> tuple[tf.Tensor, ...]:
        # A distribution of zeros makes the cross-entropy, and its gradient, zero.
        return (tf.zeros(like.shape) if teacher is None else tf.nn.softmax(tf.constant(teacher)),)

    def losses(self, prepared: tuple[tf.Tensor, ...], outputs: tf.Tensor) -> tf.Tensor:
        # Not TensorFlow's softmax_cross_entropy: its gradient takes for granted that a row sums
        # to 1.
        return -tf.reduce_sum(prepared[0] * tf.nn.log_softmax(outputs), axis=-1)

    def entropy(self, prepared: tuple[tf.Tensor, ...], count: int) -> np.ndarray:
        teacher = prepared[0]
        return per_example(-tf.reduce_sum(tf.math.xlogy(teacher, teacher), axis=-1)).numpy()

    def distilled(
        self, head: Head, teacher: tf.Tensor, student: tf.Tensor, temperature: float
    ) -> tf.Tensor:
        teacher = teacher + tf.zeros_like(student)
        log_p = tf.nn.log_softmax(teacher / temperature)
        log_q = tf.nn.log_softmax(student / temperature)
        return temperature * tf.reduce_mean(tf.reduce_sum(tf.exp(log_p) * (log_p - log_q), -1))


class Sigmoids:
    """Independent units, as logits."""

    def prepared(self, head: Head, teacher: Any, like: Any) -> tuple[tf.Tensor, ...]:
        if teacher is None:
            return tf.zeros(like.shape), tf.zeros(like.shape)
        teacher = tf.constant(teacher)
        return tf.sigmoid(teacher), tf.sigmoid(-teacher)

    def losses(self, prepared: tuple[tf.Tensor, ...], outputs: tf.Tensor) -> tf.Tensor:
        yes, no = prepared
        return -(yes * tf.math.log_sigmoid(outputs) + no * tf.math.log_sigmoid(-outputs))

    def entropy(self, prepared: tuple[tf.Tensor, ...], count: int) -> np.ndarray:
        return per_example(-sum(tf.math.xlogy(one, one) for one in prepared)).numpy()

    def distilled(
        self, head: Head, teacher: tf.Tensor, student: tf.Tensor, temperature: float
    ) -> tf.Tensor:
        divergence = 0.0
        for sign in (1.0, -1.0):
            log_p = tf.math.log_sigmoid(sign * teacher / temperature)
            log_q = tf.math.log_sigmoid(sign * student / temperature)
            divergence += tf.exp(log_p) * (log_p - log_q)
        return temperature * tf.reduce_mean(divergence)


class Numbers:
    """Plain numbers, in units of the given network's variance."""

    def prepared(self, head: Head, teacher: Any, like: Any) -> tuple[tf.Tensor, ...]:
        variance = _variance(head)
        shape = [len(like), *[1] * (len(like.shape) - 2), len(variance)]
        weight = tf.zeros(shape) if teacher is None else tf.zeros(shape) + 1 / variance
        return tf.constant(like if teacher is None else teacher, tf.float32), weight

    def losses(self, prepared: tuple[tf.Tensor, ...], outputs: tf.Tensor) -> tf.Tensor:
        teacher, weight = prepared
        return weight * tf.math.squared_difference(teacher, outputs)

    def entropy(self, prepared: tuple[tf.Tensor, ...], count: int) -> np.ndarray:
        return np.zeros(count, np.float32)

    def distilled(
        self, head: Head, teacher: tf.Tensor, student: tf.Tensor, temperature: float
    ) -> tf.Tensor:
        return tf.reduce_mean(tf.math.squared_difference(teacher, student) / _variance(head))


def _variance(head: Head) -> np.ndarray:
    return np.ones(1, np.float32) if head.variance is None else head.variance


KINDS: dict[str, Kind] = {CLASSES: Classes(), SIGMOIDS: Sigmoids(), NUMBERS: Numbers()}
