"""The importance pass: first-order Taylor scores of filters (docs/method.md 1, step a), and the
forward pass of the current network in the same go.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ...utils.trees import mapped
from ..worth.rewards import Reward
from .cuts import bound, run_calls, taken
from .segments import LayerWeights, Segments


def sites(segments: Segments) -> list[keras.KerasTensor]:
    """The tensors whose filters are scored: what a convolution or dense layer reads of a gate."""
    graph = segments.graph
    readers = [
        call
        for call in graph.calls
        if getattr(segments.layers.get(call.operation.name), "reads", False)
    ]
    found = {id(call.inputs[0]): call.inputs[0] for call in readers}
    return [
        tensor for tensor in found.values() if (graph.tensor_units(tensor) < graph.num_units).any()
    ]


def signed_scores(slope: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """sum over examples and positions of (d loss / d y) * y, float32 [channels]."""
    return tf.reduce_sum(slope * y, list(range(len(y.shape) - 1)))


def term_specs(reward: Reward) -> Any:
    """The specifications of a reward's terms for any number of examples."""
    return tf.nest.map_structure(
        lambda one: tf.TensorSpec([None, *one.shape[1:]], one.dtype), reward.terms(slice(0, 1))
    )


def unit_scores(
    segments: Segments,
    pairs: Iterable[tuple[keras.KerasTensor, tf.Tensor]],
    mask: np.ndarray,
) -> np.ndarray:
    """The scores of all units, float64 [U + 1], zero for removed ones.

    Args:
        pairs: every site with the `signed_scores` of the channels that `segments.aligned(mask)`
            leaves.
        mask: of the current network, float32 [U + 1].
    """
    scores, stay = np.zeros(len(mask)), segments.aligned(mask)
    for site, values in pairs:
        units = segments.graph.tensor_units(site)
        kept = units[stay[units] > 0]
        # A unit may have several channels here (flattened positions): they are summed first.
        signed = np.zeros_like(scores)
        np.add.at(signed, kept, values.numpy())
        scores += np.abs(signed)
    return scores * (mask > 0)


class ImportancePass:
    """Forward and backward pass: cut activations, outputs and filter scores at once.

    A filter's score is |sum over examples and positions of (d loss / d y) * y| (first-order
    Taylor), where y is the gate's output: a tensor that a convolution or dense layer reads. Linear
    layers and pooling between the gate and its reader leave that sum as it is.

    Args:
        segments: the network.
        cuts: numbers of the cuts whose activations are wanted.
        sloped: numbers of the cuts where the loss's gradient is wanted, too.
        reward: one of those whose terms `run` takes: all are of one kind and task.
    """

    def __init__(
        self, segments: Segments, cuts: list[int], reward: Reward, sloped: Sequence[int] = ()
    ):
        self._segments = segments
        self._cuts, self._sloped = cuts, sloped
        self._sites = sites(segments)
        self._names = segments.names(0, len(segments.graph.calls))
        self._function = self._trace(reward)

    def _trace(self, reward: Reward) -> tf.types.experimental.ConcreteFunction:
        parts, losses_on = self._segments, reward.losses_on

        @tf.function(jit_compile=parts.compile, autograph=False)
        def gradient(inputs, terms, weights):
            values = bound(parts.inputs, inputs)
            with tf.GradientTape() as tape:
                tape.watch(inputs)
                by_name = dict(zip(self._names, weights, strict=True))
                run_calls(parts.graph, parts.graph.calls, parts.layers, values, by_name)
                outputs = taken(parts.outputs, values)
                loss = tf.reduce_sum(losses_on(outputs, terms))
            places = [values[id(site)] for site in self._sites]
            sloped = [taken(parts.cuts[cut], values) for cut in self._sloped]
            # A loss of one's own may leave an output out.
            slopes, own = tape.gradient(loss, (places, sloped), unconnected_gradients="zero")
            scores = [signed_scores(*pair) for pair in zip(slopes, places, strict=True)]
            return [taken(parts.cuts[cut], values) for cut in self._cuts], outputs, scores, own

        return gradient.get_concrete_function(
            parts.specs(parts.inputs),
            term_specs(reward),
            parts.weight_specs(self._names),
        )

    def run(self, inputs: Any, terms: Any, weights: LayerWeights, mask: np.ndarray) -> tuple:
        """One batch of the pass.

        Args:
            inputs: tree of float32 [n, ...]. terms: of a `Reward`, for the same n examples.
            weights: effective weights under `mask`, float32 [U + 1].

        Returns:
            (the tree of activations at each of the wanted cuts; the tree of outputs, float32
            [n, ...]; scores float64 [U + 1], zero for removed units; the tree of the gradient of
            the summed loss at each of the `sloped` cuts).
        """
        layer_weights = [weights[name] for name in self._names]
        inputs = mapped(tf.convert_to_tensor, inputs)
        cuts, outputs, site_scores, slopes = self._function(inputs, terms, layer_weights)
        pairs = zip(self._sites, site_scores, strict=True)
        return cuts, outputs, unit_scores(self._segments, pairs, mask), slopes
