"""The importance pass in little memory: every segment is run again when its gradient is due.

`ImportancePass` holds all that the backward pass needs of the whole network. Here only the
activations at the cuts stay, and of one segment at a time what its own backward pass needs (Chen et
al., Training Deep Nets with Sublinear Memory Cost, 2016). It costs one more forward pass. The same
operations meet the same numbers in the same order.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ...nets.keras_graph import sums_across
from ...utils.trees import mapped, parts_of, tree_of
from ..worth.rewards import Reward
from .cuts import bound, run_calls, taken
from .importance import signed_scores, sites, term_specs, unit_scores
from .segments import LayerWeights, Segments


class RecomputedPass:
    """As `ImportancePass`, of which it has the arguments and `run`."""

    def __init__(
        self, segments: Segments, cuts: list[int], reward: Reward, sloped: Sequence[int] = ()
    ):
        self._segments = segments
        self._cuts, self._sloped = cuts, sloped
        self._sites = sites(segments)
        self._runs = self._runs_of_segments()
        self._made = [self._made_in(*run) for run in self._runs]
        self._functions = [
            self._trace(*run, made, reward)
            for run, made in zip(self._runs, self._made, strict=True)
        ]

    def _runs_of_segments(self) -> list[tuple[int, int]]:
        """(first, last + 1) of the segments that are run again together: one by one, but for those
        between which sums of gradients would be cut in two."""
        graph, bounds = self._segments.graph, self._segments.bounds
        inner = range(1, len(bounds) - 1)
        cut = [n for n in inner if not sums_across(graph.calls, graph.model, bounds[n])]
        return list(itertools.pairwise([0, *cut, len(bounds) - 1]))

    def _made_in(self, first: int, last: int) -> tuple[list, list]:
        """(the sites, the tensors at `sloped` cuts), KerasTensors, that a run of segments makes;
        the first one has the network's inputs, too. A tensor's whole gradient is known there: all
        that reads it is behind it."""
        parts = self._segments
        calls = parts.graph.calls[parts.bounds[first] : parts.bounds[last]]
        made = {id(one) for call in calls for one in call.outputs}
        if first == 0:
            made |= {id(one) for one in parts.inputs}
        sloped = {id(one): one for cut in self._sloped for one in parts.cuts[cut]}
        own = [one for one in self._sites if id(one) in made]
        return own, [one for key, one in sloped.items() if key in made]

    def _trace(
        self, first: int, last: int, made: tuple[list, list], reward: Reward
    ) -> tf.types.experimental.ConcreteFunction:
        """(activations at the cut before the segments, the gradient at their end or, in the last
        ones, the reward's terms, weights) -> (gradient at that cut, scores of the sites that they
        make, slopes of the tensors that they make). Gradients are of the floats at a cut alone."""
        parts, losses_on = self._segments, reward.losses_on
        edges = parts.bounds[first], parts.bounds[last]
        calls, names = parts.graph.calls[slice(*edges)], parts.names(*edges)
        ends = [*parts.cuts, parts.outputs]
        start, end = ends[first], ends[last]
        at_end = last == len(parts.segments)
        sites_here, sloped_here = made

        @tf.function(jit_compile=parts.compile, autograph=False)
        def backward(x, slope, weights):
            floats = [one for one in parts_of(x) if one.dtype.is_floating]
            with tf.GradientTape() as tape:
                tape.watch(floats)
                # What goes straight through has a gradient of its own at either end.
                values = bound(start, mapped(tf.identity, x))
                by_name = dict(zip(names, weights, strict=True))
                run_calls(parts.graph, calls, parts.layers, values, by_name)
                if at_end:
                    losses = losses_on(taken(end, values), slope)
                    targets, slope = [tf.reduce_sum(losses)], None
                else:
                    targets = [values[id(one)] for one in _floats(end)]
            places = [values[id(one)] for one in sites_here]
            before, slopes, own = tape.gradient(
                targets,
                (floats, places, [values[id(one)] for one in sloped_here]),
                output_gradients=slope,
                # A loss of one's own may leave an output out.
                unconnected_gradients="zero",
            )
            scores = [signed_scores(*pair) for pair in zip(slopes, places, strict=True)]
            return before, scores, own

        slope = term_specs(reward) if at_end else [parts.specs((one,)) for one in _floats(end)]
        weights = parts.weight_specs(names)
        return backward.get_concrete_function(parts.specs(start), slope, weights)

    def run(self, inputs: Any, terms: Any, weights: LayerWeights, mask: np.ndarray) -> tuple:
        """As `ImportancePass.run`."""
        parts = self._segments
        x = mapped(tf.convert_to_tensor, inputs)
        wanted, starts = {0: x}, {0: x}
        for cut, outputs in enumerate(parts.activations(x, weights), start=1):
            if cut in self._cuts:
                wanted[cut] = outputs
            if any(cut == first for first, _ in self._runs):
                starts[cut] = outputs
        cuts = [wanted[cut] for cut in self._cuts]
        slope, scores, slopes = terms, {}, {}
        for number in reversed(range(len(self._runs))):
            names = parts.names(*(parts.bounds[one] for one in self._runs[number]))
            # The last reference to the activations, where they aren't wanted.
            x = starts.pop(self._runs[number][0])
            layer_weights = [weights[name] for name in names]
            slope, found, own = self._functions[number](x, slope, layer_weights)
            sites_here, sloped_here = self._made[number]
            scores |= {id(one): value for one, value in zip(sites_here, found, strict=True)}
            slopes |= {id(one): value for one, value in zip(sloped_here, own, strict=True)}
        pairs = [(site, scores[id(site)]) for site in self._sites]
        at_cuts = [tree_of(slopes[id(one)] for one in parts.cuts[cut]) for cut in self._sloped]
        return cuts, outputs, unit_scores(parts, pairs, mask), at_cuts


def _floats(tensors: Sequence[keras.KerasTensor]) -> list[keras.KerasTensor]:
    return [one for one in tensors if keras.backend.is_float_dtype(one.dtype)]
