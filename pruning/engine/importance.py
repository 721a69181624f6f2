"""The importance pass: first-order Taylor scores of filters (docs/method.md 1, step a), and the
forward pass of the current network in the same go.
"""

import numpy as np
import tensorflow as tf

from ..worth.rewards import example_losses
from .cuts import run_calls
from .segments import LayerWeights, Segments


class ImportancePass:
    """Forward and backward pass: cut activations, logits and filter scores at once.

    A filter's score is |sum over n, h, w of (d loss / d y) * y| (first-order Taylor), where y is
    the gate's output: a tensor that a convolution or dense layer reads. Linear layers and pooling
    between the gate and its reader leave that sum as it is.

    Args:
        segments: the network.
        cuts: numbers of the cuts whose activations are wanted.
    """

    def __init__(self, segments: Segments, cuts: list[int]):
        self._segments = segments
        self._cuts = cuts
        graph = segments.graph
        readers = [
            call
            for call in graph.calls
            if getattr(segments.layers.get(call.operation.name), "reads", False)
        ]
        sites = {id(call.inputs[0]): call.inputs[0] for call in readers}
        self._num_units = graph.num_units
        self._sites = [
            tensor
            for tensor in sites.values()
            if (graph.tensor_units(tensor) < self._num_units).any()
        ]
        self._names = segments.names(0, len(graph.calls))
        self._function = self._trace()

    def _trace(self) -> tf.types.experimental.ConcreteFunction:
        parts = self._segments

        @tf.function(jit_compile=parts.compile, autograph=False)
        def gradient(images, labels, teacher, weights):
            values = {id(parts.input): images}
            with tf.GradientTape() as tape:
                tape.watch(images)
                by_name = dict(zip(self._names, weights, strict=True))
                run_calls(parts.graph, parts.graph.calls, parts.layers, values, by_name)
                logits = values[id(parts.output)]
                loss = tf.reduce_sum(example_losses(logits, labels, teacher))
            outputs = [values[id(site)] for site in self._sites]
            slopes = tape.gradient(loss, outputs)
            scores = [
                tf.reduce_sum(slope * y, list(range(len(y.shape) - 1)))
                for slope, y in zip(slopes, outputs, strict=True)
            ]
            return [values[id(parts.cuts[cut])] for cut in self._cuts], logits, scores

        return gradient.get_concrete_function(
            parts.tensor_spec(parts.input),
            tf.TensorSpec([None], tf.int32),
            tf.TensorSpec([None, parts.output.shape[-1]], tf.float32),
            parts.weight_specs(self._names),
        )

    def run(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        teacher: tf.Tensor,
        weights: LayerWeights,
        mask: np.ndarray,
    ) -> tuple:
        """One batch of the pass.

        Args:
            images: float32 [n, h, w, c]; labels: int32 [n]; teacher: probabilities, float32 [n,
                classes].
            weights: effective weights under `mask`, float32 [U + 1].

        Returns:
            (the activation at each of the wanted cuts; logits float32 [n, classes]; scores float64
            [U + 1], zero for removed units).
        """
        layer_weights = [weights[name] for name in self._names]
        cuts, logits, site_scores = self._function(images, labels, teacher, layer_weights)
        scores, stay = np.zeros(self._num_units + 1), self._segments.aligned(mask)
        for site, values in zip(self._sites, site_scores, strict=True):
            units = self._segments.graph.tensor_units(site)
            kept = units[stay[units] > 0]
            # A unit may have several channels here (flattened positions): they are summed first.
            signed = np.zeros_like(scores)
            np.add.at(signed, kept, values.numpy())
            scores += np.abs(signed)
        return cuts, logits, scores * (mask > 0)
