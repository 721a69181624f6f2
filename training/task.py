"""What a network is trained for: the losses of its outputs, and how two networks' outputs compare.

Everything that asks what a network is good for asks a `Task`: the search's reward, the evaluator's
bound, the memory bank's teachers, distillation, training and evaluation. The papers' case, one
output of exclusive classes, is `classification()`; docs/method.md 3, "Any other task", has the
rest.

Outputs are as the core of `nets.given.Given` gives them: a tensor float32 [n, ...], or a tuple
of them where there are several; targets and sample weights likewise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ..nets.given import Given
from ..nets.keras_graph import Compiled, compiled_with
from ..nets.outputs import Output
from ..options.kinds import CLASSES, NUMBERS
from ..utils.errors import UserError
from ..utils.trees import mapped, parts_of, tree_of
from .heads import Head, default_loss, head_of, per_example, sparse
from .knowledge import KINDS

LEAST_VARIANCE = 1e-12  # of numbers that all are alike
# (the teacher's outputs, the student's), both as the network gives them -> float32 [n]
Knowledge = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Task:
    """What a network is trained for.

    Attributes:
        heads: one for every output of the core, in order.
        knowledge: of the user's, in place of what `knowledge_losses` and `distillation` compute.
        aims: what the network is compiled with, or the user said instead.
        structure: of the outputs, of names, as `Given.structure`.
    """

    heads: tuple[Head, ...]
    knowledge: Knowledge | None = None
    aims: Compiled = field(default_factory=Compiled)
    structure: Any = "logits"

    @property
    def is_classifier(self) -> bool:
        """Whether this is the papers' case: one output of exclusive classes, cross-entropy."""
        return len(self.heads) == 1 and self.heads[0].plain

    @property
    def has_numbers(self) -> bool:
        """Whether an output with a loss is plain numbers: the loss has the size of their unit."""
        return any(head.loss is not None and head.output.kind == NUMBERS for head in self.heads)

    # ---------------------------------------------------------------- the network's own loss

    def example_losses(self, outputs: Any, targets: Any, weights: Any = None) -> tf.Tensor:
        """The loss of every example, float32 [n]: the weighted sum over the outputs.

        Args:
            weights: sample weights, float32 [n] or one per pixel; None: all are 1.
        """
        total = None
        for head, output, target, weight in self._each(outputs, targets, weights):
            if head.loss is None:
                continue
            losses = head.losses(output, target, weight)
            losses = losses if head.weight == 1 else head.weight * losses
            total = losses if total is None else total + losses
        return total

    def view_losses(
        self, outputs: Any, targets: Any, weights: Any = None, *, viewed: bool = False
    ) -> tf.Tensor:
        """The loss of every view of every example, float32 [views, n].

        Args:
            outputs: float32 [views, n, ...] each.
            viewed: targets and weights are [n, views, ...]: those of a view have moved with it.
        """
        views = parts_of(outputs)[0].shape[0]
        merged = mapped(lambda x: tf.reshape(x, [-1, *x.shape[2:]]), outputs)

        def flat(x: tf.Tensor) -> tf.Tensor:
            if viewed:
                x = tf.transpose(x, [1, 0, *range(2, len(x.shape))])
                return tf.reshape(x, [-1, *x.shape[2:]])
            return tf.reshape(tf.repeat(x[None], views, axis=0), [-1, *x.shape[1:]])

        targets, weights = (mapped(flat, one) for one in (targets, weights))
        return tf.reshape(self.example_losses(merged, targets, weights), [views, -1])

    def accuracy(self, outputs: Any, targets: Any) -> tf.Tensor | None:
        """Top-1 in percent over all leading axes, a scalar; None where the task isn't classes.

        Args:
            outputs: float32 [..., n, classes]. targets: int32 [n].
        """
        if not self.is_classifier:
            return None
        hits = tf.equal(tf.argmax(outputs, -1, tf.int32), targets)
        return 100 * tf.reduce_mean(tf.cast(hits, tf.float32))

    # ---------------------------------------------------------------- knowledge of a teacher

    def prepared(self, teacher: Any, like: Any) -> Any:
        """What `knowledge_losses` needs of a teacher.

        Args:
            teacher: its outputs, float32 [n, ...]; None: no teacher, which adds nothing.
            like: outputs of n examples, of any values (arrays or tensors).

        Returns:
            A tuple with a tuple of tensors for each output, their first axis the examples; the
            same structure with or without a teacher.
        """
        likes = parts_of(like)
        teachers = [None] * len(likes) if teacher is None else parts_of(teacher)
        if self.knowledge is not None:
            count = len(likes[0])
            used = tf.fill([count], 0.0 if teacher is None else 1.0)
            kept = likes if teacher is None else teachers
            return (*((tf.constant(one, tf.float32),) for one in kept), (used,))
        pairs = zip(self.heads, teachers, likes, strict=True)
        return tuple(KINDS[head.output.kind].prepared(head, *pair) for head, *pair in pairs)

    def knowledge_losses(self, prepared: Any, outputs: Any) -> tf.Tensor:
        """How far the outputs are from the teacher, float32 [n].

        Classes: cross-entropy against softmax(T); sigmoids: likewise against sigmoid(T), mean over
        the units; numbers: squared difference over the teacher's variance, mean over the units; all
        mean over pixels, weighted as the losses. An output without a loss has none.
        """
        if self.knowledge is not None:
            *teacher, (used,) = prepared
            teachers = tree_of([one[0] for one in teacher])
            return used * self._own_knowledge(teachers, outputs)
        total = None
        for head, one, output in zip(self.heads, prepared, parts_of(outputs), strict=True):
            if head.loss is None:
                continue
            losses = per_example(KINDS[head.output.kind].losses(one, output))
            losses = losses if head.weight == 1 else head.weight * losses
            total = losses if total is None else total + losses
        return total

    def least_losses(self, prepared: Any, count: int) -> np.ndarray:
        """The least that `example_losses` plus `knowledge_losses` can be, float32 [count].

        A cross-entropy is at least the teacher's entropy (Gibbs' inequality); -inf where nothing is
        known: a loss or a knowledge function of the user's.
        """
        least = sum(head.weight * head.least for head in self.heads if head.loss is not None)
        if self.knowledge is not None or not np.isfinite(least):
            return np.full(count, -np.inf, np.float32)
        if min(head.weight for head in self.heads) < 0:
            return np.full(count, -np.inf, np.float32)
        total = None
        for head, one in zip(self.heads, prepared, strict=True):
            if head.loss is None:
                continue
            bound = KINDS[head.output.kind].entropy(one, count)
            bound = bound if head.weight == 1 else head.weight * bound
            total = bound if total is None else total + bound
        return total if least == 0 else total + np.float32(least)

    def distillation(self, teacher: Any, student: Any, temperature: float) -> tf.Tensor:
        """The knowledge term of the fine-tuning (docs/method.md 3), a scalar: T * KL for classes
        and sigmoids, squared difference over the teacher's variance for numbers.

        The factor is T, as published, not T squared; mean over all but the outputs' own axes.

        Args:
            teacher, student: outputs float32 [..., n, ...], broadcast together.
        """
        if self.knowledge is not None:
            return tf.reduce_mean(self._own_distillation(parts_of(teacher), parts_of(student)))
        total = None
        for head, one, two in zip(self.heads, parts_of(teacher), parts_of(student), strict=True):
            if head.loss is None:
                continue
            value = KINDS[head.output.kind].distilled(head, one, two, temperature)
            value = value if head.weight == 1 else head.weight * value
            total = value if total is None else total + value
        return total

    def _own_distillation(self, teacher: list, student: list) -> tf.Tensor:
        merged: list[list] = [[], []]
        for head, one, two in zip(self.heads, teacher, student, strict=True):
            whole = one + tf.zeros_like(two)
            for values, side in zip((whole, two), merged, strict=True):
                several = len(values.shape) > head.rank  # views before the examples
                side.append(tf.reshape(values, [-1, *values.shape[2:]]) if several else values)
        return self._own_knowledge(tree_of(merged[0]), tree_of(merged[1]))

    def _own_knowledge(self, teacher: Any, student: Any) -> tf.Tensor:
        values = self.knowledge(self.given(teacher), self.given(student))
        return per_example(tf.cast(values, tf.float32))

    # ---------------------------------------------------------------- in the user's terms

    def given(self, outputs: Any) -> Any:
        """Outputs as the network gives them: probabilities instead of logits, in its structure."""
        values = [
            head.output.given(one) for head, one in zip(self.heads, parts_of(outputs), strict=True)
        ]
        return keras.tree.pack_sequence_as(self.structure, values)

    def given_targets(self, targets: Any, classes: Sequence[int | None]) -> Any:
        """Targets as the user's loss and metrics take them, in the outputs' structure.

        Args:
            classes: of every output: the size of its last axis.
        """
        values = [
            head.given_targets(one, count)
            for head, one, count in zip(self.heads, parts_of(targets), classes, strict=True)
        ]
        return keras.tree.pack_sequence_as(self.structure, values)

    def _each(self, outputs: Any, targets: Any, weights: Any) -> Any:
        outs, given = parts_of(outputs), parts_of(targets)
        several = isinstance(weights, tuple)
        each = list(weights) if several else [weights] * len(outs)
        return zip(self.heads, outs, given, each, strict=True)


def classification(weights: np.ndarray | None = None) -> Task:
    """The papers' task: logits [n, classes], labels int32 [n], cross-entropy."""
    output = Output("logits", CLASSES)
    return Task((Head(output, sparse, class_weights=weights, plain=True),))


def task_of(
    given: Given,
    *,
    aims: Compiled | None = None,
    class_weight: Mapping[int, float] | None = None,
    knowledge: Knowledge | None = None,
    examples: Any = None,
    labels: bool = True,
    forms: Sequence[str] = (),
) -> Task:
    """The task of a network.

    Args:
        aims: loss, loss weights and metrics; default: what the network was compiled with. Without
            a loss, outputs of exclusive classes have cross-entropy.
        class_weight: {class: weight of its examples' loss}, for a network with one output.
        knowledge: (teacher, student) -> float32 [n], both as the network gives its outputs.
        examples: inputs float32 [n, ...], a tuple where there are several, on which the variance of
            plain numbers is taken; needed where there are such outputs.
        labels: whether the targets are integers [n], one class for each example.
        forms: how the user gave the targets of each output (`options.kinds`); (): unknown.

    Raises:
        UserError: an output without a loss that isn't classes, a loss that is unknown, class
            weights for something else than classes.
    """
    aims = compiled_with(given.model) if aims is None else aims
    losses = given.by_output(aims.loss, "loss")
    factors = given.by_output(aims.loss_weights, "loss_weights")
    if all(one is None for one in losses):
        losses = [default_loss(given, output) for output in given.outputs]
    if all(one is None for one in losses):
        raise UserError(f"no output of {given.model.name} has a loss: compile it with one")
    weights = None if class_weight is None else _class_weights(given, class_weight)
    variances = _variances(given, examples)
    written = list(forms) or [None] * len(losses)
    heads = []
    for output, tensor, loss, form, factor, variance in zip(
        given.outputs, given.core.outputs, losses, written, factors, variances, strict=True
    ):
        head = head_of(given, output, loss, len(tensor.shape), labels, form)
        heads.append(
            replace(
                head,
                weight=1.0 if factor is None else float(factor),
                class_weights=weights,
                variance=variance,
                masked=len(heads) in given.masked,
            )
        )
    return Task(tuple(heads), knowledge, aims, given.structure)


def _class_weights(given: Given, weights: Mapping[int, float]) -> np.ndarray:
    """float32 [classes]; classes that aren't named weigh 1."""
    if len(given.outputs) > 1 or given.outputs[0].kind != CLASSES:
        raise UserError(
            "class_weight is for networks with one output of exclusive classes: give sample "
            "weights instead, as the third of (x, y, weights)"
        )
    count = given.core.outputs[0].shape[-1]
    values = np.ones(count, np.float32)
    for number, weight in weights.items():
        if not (isinstance(number, int | np.integer) and 0 <= number < count):
            raise UserError(f"class_weight names class {number!r}: there are 0..{count - 1}")
        if not (np.isfinite(weight) and weight >= 0):
            raise UserError(f"class_weight {weight!r} of class {number} is no number from 0 up")
        values[number] = weight
    return values


def _variances(given: Given, examples: Any) -> list[np.ndarray | None]:
    """Of every output that is plain numbers, float32 [size of the last axis], over examples and
    positions; None for the others."""
    if examples is None or all(one.kind != NUMBERS for one in given.outputs):
        return [None] * len(given.outputs)
    run = given.as_core()
    some = mapped(lambda x: tf.constant(x, tf.float32), examples)
    found: list[np.ndarray | None] = []
    for one, values in zip(given.outputs, parts_of(run(some)), strict=True):
        values = np.asarray(values, np.float64)
        variance = values.reshape(-1, values.shape[-1]).var(0)
        # Columns that hardly vary count as the others do on average.
        variance = np.maximum(variance, max(1e-3 * float(variance.mean()), LEAST_VARIANCE))
        found.append(variance.astype(np.float32) if one.kind == NUMBERS else None)
    return found
