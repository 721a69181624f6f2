"""The outputs of a network and their losses, taken for every example."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ..nets.given import Given
from ..nets.outputs import UNEQUAL, Output, ignored_class, is_own, loss_name
from ..options.kinds import CLASSES, COLUMN, LABELS, ONE_HOT, PLAIN, SIGMOIDS
from ..utils.errors import UserError

# Losses that can't be below zero, by Keras's name and class; of others no bound is known.
NOT_NEGATIVE = frozenset(
    """
    sparse_categorical_crossentropy SparseCategoricalCrossentropy categorical_crossentropy
    CategoricalCrossentropy binary_crossentropy BinaryCrossentropy BinaryFocalCrossentropy
    binary_focal_crossentropy CategoricalFocalCrossentropy categorical_focal_crossentropy
    mse MSE mean_squared_error MeanSquaredError mae MAE mean_absolute_error MeanAbsoluteError
    mape MAPE mean_absolute_percentage_error MeanAbsolutePercentageError msle MSLE
    mean_squared_logarithmic_error MeanSquaredLogarithmicError huber Huber log_cosh LogCosh hinge
    Hinge squared_hinge SquaredHinge categorical_hinge CategoricalHinge
    """.split()
)
# Options of Keras's cross-entropies that make them another loss.
OPTIONS = {"label_smoothing": 0.0, "axis": -1}

# (targets, outputs) -> the loss of every example, or of every pixel of every example
Unreduced = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Head:
    """One output of the core and its loss.

    Attributes:
        output: what it means.
        loss: (targets, outputs) -> float32 [n] or [n, ...]; None: the output has no loss.
        weight: of the loss among those of all outputs.
        least: what an example's loss can't be below; -inf: unknown.
        form: how the user's loss and metrics take targets (`options.kinds`).
        class_weights: float32 [classes] or None.
        plain: the papers' case: cross-entropy of logits [n, classes] and integers [n].
        rank: of the output, the batch counted.
        variance: of the given network's numbers, float32 [size of the last axis].
        masked: whether steps of weight 0 are those that a mask of Keras's excludes: its metrics
            leave them out as well.
        ignored: label of pixels or steps that losses and metrics leave out; None: there is none.
    """

    output: Output
    loss: Unreduced | None
    weight: float = 1.0
    least: float = 0.0
    form: str = PLAIN
    class_weights: np.ndarray | None = None
    plain: bool = False
    rank: int = 2
    variance: np.ndarray | None = None
    masked: bool = False
    ignored: int | None = None

    def given_targets(self, targets: Any, classes: int | None) -> Any:
        """Targets [n, ...] as the user's loss and metrics take them.

        Args:
            classes: size of the output's last axis.
        """
        if not targets.dtype.is_integer:
            return targets
        if self.form == ONE_HOT:
            return tf.one_hot(targets, classes)
        return targets[..., None] if self.form == COLUMN else targets

    def losses(self, outputs: Any, targets: Any, weights: Any = None) -> Any:
        """The loss of every example, float32 [n]; mean over its pixels that count."""
        counts = self.counting(targets)
        if counts is not None:
            targets = tf.where(counts, targets, tf.zeros_like(targets))
        values = self.loss(targets, outputs)
        if self.class_weights is not None:
            of_class = tf.gather(tf.constant(self.class_weights), tf.cast(targets, tf.int32))
            values *= _alike(of_class, values)
        if weights is not None:
            values *= _alike(tf.cast(weights, tf.float32), values)
        if counts is None:
            return per_example(values)
        used = per_example(tf.cast(counts, tf.float32))
        return tf.math.divide_no_nan(per_example(tf.where(counts, values, 0.0)), used)

    def counting(self, targets: Any) -> Any:
        """Which pixels or steps count, bool [n, ...]; None: all."""
        if self.ignored is None or not targets.dtype.is_integer:
            return None
        return tf.not_equal(targets, tf.cast(self.ignored, targets.dtype))


def default_loss(given: Given, output: Output) -> Any:
    """Cross-entropy, where a network was compiled with nothing and its output is classes.

    Raises:
        UserError: the output isn't.
    """
    if output.kind == CLASSES:
        return keras.losses.SparseCategoricalCrossentropy(from_logits=not output.applied)
    raise UserError(
        f"{given.model.name} isn't compiled, and its output {output.name} isn't one of classes: "
        "compile it with the loss that it was trained with, or give that loss"
    )


def head_of(
    given: Given, output: Output, loss: Any, rank: int, labels: bool, form: str | None = None
) -> Head:
    """An output with its loss.

    Args:
        loss: as Keras takes it; None: none. rank: of the output, the batch counted.
        labels: whether the targets are integers [n].
        form: how the user gave the targets (`options.kinds`); None: unknown.

    Raises:
        UserError: no loss that Keras knows.
    """
    if loss is None:
        return Head(output, None, rank=rank)
    name = loss_name(loss)
    if name in ("crossentropy", "ce"):
        several = "sparse_categorical_crossentropy"
        loss = name = "binary_crossentropy" if output.kind == SIGMOIDS else several
    try:
        found = keras.losses.get(loss)
    except (ValueError, TypeError):
        found = None
    if not callable(found):
        raise UserError(
            f"loss {loss!r} of output {output.name} of {given.model.name} is none that Keras knows"
        )
    options = found.get_config() if isinstance(found, keras.losses.Loss) else {}
    usual = all(options.get(key, value) == value for key, value in OPTIONS.items())
    usual &= bool(options.get("from_logits", False)) != output.applied
    stock = not is_own(found)
    ignored = ignored_class(found) if rank > 2 else None
    form = _form(output, name, form, stock=stock)
    least = 0.0 if stock and name in NOT_NEGATIVE else -np.inf
    if usual and stock and output.kind == CLASSES and name in _CROSS_ENTROPIES:
        plain = labels and rank == 2
        head = Head(output, _cross_entropy, least=0.0, form=form, plain=plain, rank=rank)
        return replace(head, ignored=ignored)
    if usual and stock and output.kind == SIGMOIDS and name in _SIGMOID_ENTROPIES:
        return Head(output, _sigmoid_entropy, least=0.0, rank=rank)
    head = Head(output, None, least=least, form=form, rank=rank, ignored=ignored)
    return replace(head, loss=_in_given_terms(found, head))


def _form(output: Output, loss: str, given: str | None, *, stock: bool) -> str:
    """How a loss takes the targets: as the user gives them, for Keras takes those as they are.

    Where it isn't known how, as for classes that are folders, and for Keras's own losses, the name
    tells: those of whole numbers are called sparse.
    """
    if output.kind != CLASSES:
        return PLAIN
    if given is not None and not stock:
        return given
    if "sparse" not in loss.lower() and loss.lower() not in UNEQUAL:
        return ONE_HOT
    return COLUMN if given == COLUMN else LABELS


_CROSS_ENTROPIES = (
    *("sparse_categorical_crossentropy", "SparseCategoricalCrossentropy"),
    *("categorical_crossentropy", "CategoricalCrossentropy"),
)
_SIGMOID_ENTROPIES = ("binary_crossentropy", "BinaryCrossentropy")


def sparse(targets: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Cross-entropy of logits [n, ..., classes] against labels int32 [n, ...]: [n, ...]."""
    return tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits)


def _cross_entropy(targets: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Targets: int [n, ...], or probabilities float [n, ..., classes]."""
    if targets.dtype.is_integer:
        return sparse(targets, logits)
    if len(targets.shape) < len(logits.shape):
        return sparse(tf.cast(targets, tf.int32), logits)
    return tf.nn.softmax_cross_entropy_with_logits(targets, logits)


def _sigmoid_entropy(targets: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    targets = _same_rank(tf.cast(targets, tf.float32), logits)
    return tf.nn.sigmoid_cross_entropy_with_logits(targets, logits)


def _in_given_terms(loss: Any, head: Head) -> Unreduced:
    """A loss that is computed on what the network gives, not on its core's logits."""
    call = loss.call if isinstance(loss, keras.losses.Loss) else loss

    def losses(targets: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        given = head.output.given(outputs)
        # Keras casts targets to float32, whole numbers as well.
        targets = tf.cast(head.given_targets(targets, given.shape[-1]), tf.float32)
        if head.form not in (LABELS, COLUMN):
            targets = _same_rank(targets, given)
        values = tf.cast(call(targets, given), tf.float32)
        if values.shape.rank:
            return values
        # The loss is one number for a batch: each example is a batch of its own.
        return tf.map_fn(
            lambda pair: tf.cast(call(pair[0][None], pair[1][None]), tf.float32),
            (targets, given),
            fn_output_signature=tf.TensorSpec([], tf.float32),
        )

    return losses


def per_example(values: tf.Tensor) -> tf.Tensor:
    """float [n, ...] -> [n], the mean over the other axes."""
    rank = len(values.shape)
    return values if rank == 1 else tf.reduce_mean(values, list(range(1, rank)))


def _same_rank(targets: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
    """Targets with the last axis of one that Keras's losses let users leave out."""
    if len(targets.shape) == len(outputs.shape) - 1 and outputs.shape[-1] == 1:
        return targets[..., None]
    if len(targets.shape) == len(outputs.shape) + 1 and targets.shape[-1] == 1:
        return targets[..., 0]
    return targets


def _alike(weights: tf.Tensor, losses: tf.Tensor) -> tf.Tensor:
    """Weights with axes of one behind them, to multiply losses of a higher rank."""
    while len(weights.shape) > len(losses.shape) and weights.shape[-1] == 1:
        weights = weights[..., 0]
    missing = len(losses.shape) - len(weights.shape)
    return tf.reshape(weights, [*tf.unstack(tf.shape(weights)), *[1] * missing])
