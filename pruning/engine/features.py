"""Penultimate features: what the last convolution or dense layer reads (docs/method.md 5)."""

import keras
import numpy as np
import tensorflow as tf

from ...nets.keras_graph import calls_of
from ...nets.layer_rules import KERNEL_LAYERS
from .cuts import run_calls
from .segments import LayerWeights, Segments


def penultimate(model: keras.Model) -> keras.KerasTensor:
    """The input of the last layer with filters of a functional model without nesting."""
    calls = [call for call in calls_of(model) if type(call.operation) in KERNEL_LAYERS]
    return calls[-1].inputs[0]


def width(model: keras.Model) -> int:
    """Number of penultimate features."""
    return int(penultimate(model).shape[-1])


def pooled(x: tf.Tensor) -> tf.Tensor:
    """float [n, ..., channels] -> [n, channels], the mean over positions if there are any."""
    return keras.ops.mean(x, list(range(1, len(x.shape) - 1))) if len(x.shape) > 2 else x


class FeaturePass:
    """Logits and penultimate features of sub-networks, from one compiled pass.

    Args:
        segments: of the whole network.
    """

    def __init__(self, segments: Segments):
        self._segments = segments
        self._feature = penultimate(segments.graph.model)
        self._units = segments.graph.tensor_units(self._feature)
        self._names = segments.names(0, len(segments.graph.calls))

        @tf.function(jit_compile=segments.compile, autograph=False)
        def forward(images, weights):
            values = {id(segments.input): images}
            by_name = dict(zip(self._names, weights, strict=True))
            run_calls(segments.graph, segments.graph.calls, segments.layers, values, by_name)
            return values[id(segments.output)], pooled(values[id(self._feature)])

        self._function = forward.get_concrete_function(
            segments.tensor_spec(segments.input), segments.weight_specs(self._names)
        )

    def run(
        self, images: tf.Tensor, weights: LayerWeights, mask: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """One batch of one sub-network.

        Args:
            images: float32 [n, h, w, c].
            weights: effective weights under `mask`, float32 [U + 1].

        Returns:
            (logits float32 [n, classes]; features float32 [n, width of the whole network], zero for
            removed filters).
        """
        logits, values = self._function(images, [weights[name] for name in self._names])
        features = np.zeros((len(values), len(self._units)), np.float32)
        features[:, self._segments.aligned(mask)[self._units] > 0] = values
        return logits.numpy(), features * (mask[self._units] > 0)
