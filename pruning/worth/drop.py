"""How much worse than the given network a network of a search may get (docs/control.md).

What is compared is one figure on D_val, by batch statistics as the search computes everything:
top-1 of a classifier; of other tasks the first of the user's metrics of which Keras knows whether
larger is better; else the loss.
"""

from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from ...training.metrics import UserMetrics
from ...training.task import Task
from ...utils.errors import UserError
from ...utils.trees import mapped, rows_of
from ..engine.validation import Validation
from .rewards import loss_and_accuracy

TOP1, LOSS = "top-1 %", "loss"
ROUNDING = 1e-9  # of a share: 92.07 is 1 % below 93 in whatever way it is computed


@dataclass(frozen=True)
class Figure:
    """What one network is worth.

    Attributes:
        name: of the figure. larger: whether larger is better.
    """

    name: str
    value: float
    larger: bool


@dataclass(frozen=True)
class Drop:
    """How far a figure may fall.

    Attributes:
        name, larger: as of `Figure`.
        given: of the network as given, not 0.
        most: share of it that may be lost, 0 .. 1.
    """

    name: str
    larger: bool
    given: float
    most: float

    @property
    def limit(self) -> float:
        """The worst value that is allowed."""
        return self.given + (-1 if self.larger else 1) * self.most * abs(self.given)

    def lost(self, value: float) -> float:
        """How much worse a value is, as a share of the given network's; negative: better."""
        return (self.given - value if self.larger else value - self.given) / abs(self.given)

    def exceeded(self, value: float) -> bool:
        """Whether a value is worse than is allowed; NaN is."""
        return not self.lost(value) <= self.most + ROUNDING

    def __str__(self) -> str:
        bound = "at least" if self.larger else "at most"
        return (
            f"D_val {self.name}: {self.given:.4f} as given, {bound} {self.limit:.4f} "
            f"(max_drop {self.most:g})"
        )


def drop_from(figure: Figure, most: float) -> Drop:
    """The limit that the given network's figure makes.

    Raises:
        UserError: a figure of 0, or none that is finite: no share of it can be lost.
    """
    if figure.value == 0 or abs(figure.value) == float("inf") or figure.value != figure.value:
        raise UserError(
            f"max_drop is a share of the given network's {figure.name} on D_val, which is "
            f"{figure.value:g}: give a target rate instead, or other metrics"
        )
    return Drop(figure.name, figure.larger, figure.value, most)


def figure_of(task: Task, val: Validation, outputs: Any) -> Figure:
    """The figure of outputs on D_val.

    Args:
        outputs: tree of float32 arrays [n, ...].
    """
    if not task.is_classifier and (found := _of_metrics(task, val, outputs)):
        return found
    loss, accuracy = loss_and_accuracy(task, val, outputs)
    return Figure(LOSS, loss, False) if accuracy is None else Figure(TOP1, accuracy, True)


def values_of(task: Task, val: Validation, outputs: Any) -> dict[str, float]:
    """{name: value} of the user's metrics of outputs on D_val, none where there are none."""
    return _measured(task, val, outputs).result()


def _of_metrics(task: Task, val: Validation, outputs: Any) -> Figure | None:
    metrics = _measured(task, val, outputs)
    directions, values = metrics.directions(), metrics.result()
    for name, larger in directions.items():
        if larger is not None:
            return Figure(name, values[name], larger)
    return None


def _measured(task: Task, val: Validation, outputs: Any) -> UserMetrics:
    metrics = UserMetrics(task)
    if metrics.any:
        for rows in val.batches():
            parts = (outputs, val.targets, val.weights)
            metrics.update(*(mapped(tf.convert_to_tensor, rows_of(one, rows)) for one in parts))
    return metrics
