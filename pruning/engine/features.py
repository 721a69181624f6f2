"""Penultimate features: what the last convolution or dense layer reads (docs/method.md 5)."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ...nets.keras_graph import calls_of
from ...nets.layer_rules import KERNEL_LAYERS
from ...utils.trees import mapped
from .cuts import bound, run_calls, taken
from .segments import LayerWeights, Segments


def penultimate(model: keras.Model) -> keras.KerasTensor:
    """The input of the last layer with filters, in call order, of a flat functional model."""
    calls = [call for call in calls_of(model) if type(call.operation) in KERNEL_LAYERS]
    return calls[-1].inputs[0]


def width(model: keras.Model) -> int:
    """Number of penultimate features."""
    return int(penultimate(model).shape[-1])


def pooled(x: tf.Tensor) -> tf.Tensor:
    """float [n, ..., channels] -> [n, channels], the mean over positions if there are any."""
    return keras.ops.mean(x, list(range(1, len(x.shape) - 1))) if len(x.shape) > 2 else x


class FeaturePass:
    """Outputs and penultimate features of sub-networks, from one compiled pass.

    Args:
        segments: of the whole network.
    """

    def __init__(self, segments: Segments):
        self._segments = segments
        self._feature = penultimate(segments.graph.model)
        self._units = segments.graph.tensor_units(self._feature)
        self._names = segments.names(0, len(segments.graph.calls))

        @tf.function(jit_compile=segments.compile, autograph=False)
        def forward(inputs, weights):
            values = bound(segments.inputs, inputs)
            by_name = dict(zip(self._names, weights, strict=True))
            run_calls(segments.graph, segments.graph.calls, segments.layers, values, by_name)
            return taken(segments.outputs, values), pooled(values[id(self._feature)])

        self._function = forward.get_concrete_function(
            segments.specs(segments.inputs), segments.weight_specs(self._names)
        )

    def run(self, inputs: Any, weights: LayerWeights, mask: np.ndarray) -> tuple[Any, np.ndarray]:
        """One batch of one sub-network.

        Args:
            inputs: tree of float32 [n, ...].
            weights: effective weights under `mask`, float32 [U + 1].

        Returns:
            (outputs, tree of float32 [n, ...]; features float32 [n, width of the whole network],
            zero for removed filters).
        """
        outputs, values = self._function(inputs, [weights[name] for name in self._names])
        features = np.zeros((len(values), len(self._units)), np.float32)
        features[:, self._segments.aligned(mask)[self._units] > 0] = values
        return mapped(lambda one: one.numpy(), outputs), features * (mask[self._units] > 0)
