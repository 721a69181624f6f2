"""The metrics that a network is compiled with, computed by Keras on what the network gives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ..nets.compiling import fresh
from ..nets.keras_graph import larger_is_better, set_mask
from ..utils.trees import parts_of
from .task import Task

# Metrics whose variables are sums over examples, with the classes that are derived from them.
SUMS = (
    *(keras.metrics.Mean, keras.metrics.Sum, keras.metrics.FBetaScore, keras.metrics.R2Score),
    *(keras.metrics.AUC, keras.metrics.Precision, keras.metrics.Recall, keras.metrics.IoU),
    *(keras.metrics.MeanIoU, keras.metrics.SensitivityAtSpecificity),
    *(keras.metrics.SpecificityAtSensitivity, keras.metrics.PrecisionAtRecall),
    keras.metrics.RecallAtPrecision,
)
BLOCKS = 8  # of examples that the first batches are cut into, each, for the jackknife
CUT_BATCHES = 8

States = list[list[np.ndarray]]  # of every metric, its variables


class UserMetrics:
    """Keras's metrics of a task, fed with the core's outputs batch by batch.

    Keras itself decides what "accuracy" means for an output and how a metric is called: they are
    those of a network that does nothing but pass on outputs of the same names and structure. A
    metric of several values gives each of its own name, an array its mean.

    Args:
        errors: keep what `errors` needs.
    """

    def __init__(self, task: Task, *, errors: bool = False):
        self._task, self._errors = task, errors
        self._model: keras.Model | None = None
        self._batches = 0
        self._blocks: list[tuple[int, States]] = []  # examples, and what they added
        self._before: States = []

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
        masks = self._masks(targets, weights)
        if isinstance(weights, tuple):
            weights = keras.tree.pack_sequence_as(self._task.structure, list(weights))
        examples = int(keras.tree.flatten(given)[0].shape[0])
        count = BLOCKS if self._errors and self._batches < CUT_BATCHES else 1
        self._batches += 1
        for rows in np.array_split(np.arange(examples), min(count, examples)):
            block = slice(int(rows[0]), int(rows[-1]) + 1)
            part = _rows((wanted, given, weights), block)
            for one, mask in zip(keras.tree.flatten(part[1]), masks, strict=True):
                if mask is not None:
                    set_mask(one, mask[block])
            self._model.compute_metrics(None, *part)
            if self._errors:
                self._note(len(rows))

    def _masks(self, targets: Any, weights: Any) -> list[Any]:
        """Of every output: the steps that its metrics look at, bool [b, steps]; None: all."""
        heads = self._task.heads
        each = weights if isinstance(weights, tuple) else [weights] * len(heads)
        return [
            weight > 0 if head.masked else head.counting(target)
            for head, target, weight in zip(heads, parts_of(targets), each, strict=True)
        ]

    def result(self) -> dict[str, float]:
        """{name: value} over all batches since the last call, which is then forgotten."""
        if self._model is None:
            return {}
        found = {name: value for name, _, value in self._named()}
        self._model.reset_metrics()
        self._batches, self._blocks, self._before = 0, [], []
        return found

    def directions(self) -> dict[str, bool | None]:
        """{name: whether larger is better; None where Keras doesn't know}, once there was a batch,
        in the order of `result`."""
        return {name: larger_is_better(one) for name, one, _ in self._named()}

    def errors(self) -> dict[str, float]:
        """{name: standard error} over the batches since the last `result`, before it is called.

        By the jackknife over blocks of examples of unequal sizes (Busing, Meijer and van der
        Leeden, 1999). Metrics are left out whose variables aren't known to be sums.
        """
        if len(self._blocks) < 2:
            return {}
        found, named = {}, list(self._named())
        for number, metric in enumerate(self._metrics()):
            if not isinstance(metric, SUMS):
                continue
            whole = [variable.numpy() for variable in metric.variables]
            names = [name for name, one, _ in named if one is metric]
            left = []
            for _, states in self._blocks:
                _assign(metric, [a - b for a, b in zip(whole, states[number], strict=True)])
                left.append([value for _, value in _values("", metric.result())])
            _assign(metric, whole)
            full = np.array([value for _, value in _values("", metric.result())])
            sizes = np.array([size for size, _ in self._blocks], np.float64)
            errors = jackknife(full, np.array(left), sizes)
            found |= {name: float(one) for name, one in zip(names, errors, strict=True)}
        return found

    def _note(self, examples: int) -> None:
        """Remembers what so many examples have added to each metric."""
        now = [[variable.numpy() for variable in one.variables] for one in self._metrics()]
        before = self._before or [[np.zeros_like(one) for one in some] for some in now]
        added = [
            [a - b for a, b in zip(some, others, strict=True)]
            for some, others in zip(now, before, strict=True)
        ]
        self._blocks.append((examples, added))
        self._before = now

    def _metrics(self) -> list[keras.metrics.Metric]:
        assert self._model is not None
        return [one for own in self._model.metrics for one in getattr(own, "metrics", ())]

    def _named(self) -> Iterator[tuple[str, keras.metrics.Metric, float]]:
        """(name, metric, value) in Keras's order, once there was a batch."""
        if self._model is None:
            return
        given = self._model.get_metrics_result()
        results = [(name, value) for name, value in given.items() if name != "loss"]
        for (name, value), metric in zip(results, self._metrics(), strict=True):
            for key, one in _values(name, value):
                yield key, metric, one

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


def _values(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """The numbers of a metric's result: one, the mean of an array, or those of a dict."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield from _values(key, one)
    else:
        yield name, float(np.mean(value))


def _assign(metric: keras.metrics.Metric, values: list[np.ndarray]) -> None:
    for variable, value in zip(metric.variables, values, strict=True):
        variable.assign(value)


def _rows(tree: Any, block: slice) -> Any:
    return keras.tree.map_structure(
        lambda one: one[block] if tf.is_tensor(one) or isinstance(one, np.ndarray) else one, tree
    )


def jackknife(full: np.ndarray, left: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Standard errors of figures by leaving out blocks of examples.

    Args:
        full: figures of all examples, [figures]. left: without each block, [blocks, figures].
        sizes: examples of each block, float64 [blocks].

    Returns:
        float64 [figures].
    """
    shares = (sizes.sum() / sizes)[:, None]
    pseudo = shares * full - (shares - 1) * left
    mean = len(left) * full - ((1 - 1 / shares) * left).sum(0)
    return np.sqrt((((pseudo - mean) ** 2) / (shares - 1)).mean(0))
