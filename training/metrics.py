"""The metrics that a network is compiled with, computed by Keras on what the network gives."""

from __future__ import annotations

from typing import Any

import keras

from ..nets.given import fresh
from ..nets.keras_graph import larger_is_better
from .task import Task


class UserMetrics:
    """Keras's metrics of a task, fed with the core's outputs batch by batch.

    Keras itself decides what "accuracy" means for an output and how a metric is called: they are
    those of a network that does nothing but pass on outputs of the same names and structure.
    """

    def __init__(self, task: Task):
        self._task = task
        self._model: keras.Model | None = None

    @property
    def any(self) -> bool:
        """Whether the task has metrics."""
        aims = self._task.aims
        given = keras.tree.flatten((aims.metrics, aims.weighted_metrics))
        return any(one is not None for one in given)

    def update(self, outputs: Any, targets: Any, weights: Any = None) -> None:
        """Takes in a batch.

        Args:
            outputs: of the core, float32 [b, ...]. targets, weights: [b, ...]; tuples where there
                are several.
        """
        given = self._task.given(outputs)
        if self._model is None:
            self._model = self._passing(keras.tree.flatten(given))
        sizes = [one.shape[-1] for one in keras.tree.flatten(given)]
        wanted = self._task.given_targets(targets, sizes)
        if isinstance(weights, tuple):
            weights = keras.tree.pack_sequence_as(self._task.structure, list(weights))
        self._model.compute_metrics(None, wanted, given, weights)

    def result(self) -> dict[str, float]:
        """{name: value} over all batches since the last call, which is then forgotten."""
        if self._model is None:
            return {}
        values = self._model.get_metrics_result()
        self._model.reset_metrics()
        return {name: float(value) for name, value in values.items() if name != "loss"}

    def directions(self) -> dict[str, bool | None]:
        """{name: whether larger is better; None where Keras doesn't know}, once there was a batch,
        in the order of `result`."""
        if self._model is None:
            return {}
        names = [name for name in self._model.get_metrics_result() if name != "loss"]
        parts = [one for own in self._model.metrics for one in getattr(own, "metrics", ())]
        return {name: larger_is_better(one) for name, one in zip(names, parts, strict=True)}

    def _passing(self, given: list) -> keras.Model:
        structure, aims = self._task.structure, self._task.aims
        inputs = [keras.Input(one.shape[1:], dtype=one.dtype.name) for one in given]
        names = keras.tree.flatten(structure)
        ends = [
            keras.layers.Identity(name=name)(one) for name, one in zip(names, inputs, strict=True)
        ]
        model = keras.Model(inputs, keras.tree.pack_sequence_as(structure, ends))
        model.compile(
            loss=None,
            metrics=fresh(aims.metrics),
            weighted_metrics=fresh(aims.weighted_metrics),
            run_eagerly=True,
        )
        return model
