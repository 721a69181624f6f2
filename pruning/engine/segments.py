"""A network cut into compiled segments that run on effective weights given as arguments.

A segment is the run of calls between two *cuts*: places where a single tensor, or a few, hold
everything that the rest of the network needs (the block outputs of a residual network). Because
weights are arguments of dynamic shape, one trace serves every sub-network: no setting of the gates
ever recompiles. Batch norm uses the statistics of the batch throughout, as the search does.

What passes through a cut, what the network takes and what it gives are trees (`utils.trees`): one
tensor, or a tuple of several.
"""

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ...nets.graph import ChannelGraph
from ...utils.trees import tree_of
from .cuts import Tensors, bound, find_cuts, run_calls, taken

# TensorFlow's CPU convolutions run best on multiples of 8 channels (AVX2: 8 floats): one of 7
# channels was seen to take twice as long as one of 8.
ALIGN = 8

LayerWeights = dict[str, dict[str, tf.Tensor]]


@dataclass(frozen=True)
class Segment:
    """A compiled run of calls; `layers` are the gated layers that it uses, in order."""

    layers: tuple[str, ...]
    function: tf.types.experimental.ConcreteFunction


class Segments:
    """The segments of a network and the effective weights to run them on.

    Args:
        graph: the channel graph of the stock network.
        compile: run by XLA on full-width masked weights (GPU) instead of sliced ones (CPU).

    Attributes:
        layers: {name: mask-aware layer} of the network's gated twin.
        bounds: the number of the first call of every segment, and the number of all calls.
        cuts: the live KerasTensors at the start of every segment, the network's inputs first.
        inputs, outputs: KerasTensors of the network.
        segments: the compiled runs between the cuts.
    """

    def __init__(self, graph: ChannelGraph, *, compile: bool = False):
        self.graph = graph
        self.compile = compile
        gated, _ = graph.gated()
        self.layers = {name: gated.get_layer(name) for name in graph.units}
        self._full = {name: layer.full() for name, layer in self.layers.items()}
        self.inputs, self.outputs = tuple(graph.model.inputs), tuple(graph.model.outputs)
        self.bounds, self.cuts = find_cuts(graph, self.layers)
        self.segments = [self._trace(number) for number in range(len(self.bounds) - 1)]
        self._runs: dict[tuple[int, int], Segment] = {}
        self._lock = threading.Lock()
        self._gate_layers = self._layers_of_gates()

    def names(self, first: int, last: int) -> tuple[str, ...]:
        """The gated layers of calls first .. last - 1, in order."""
        names = [call.operation.name for call in self.graph.calls[first:last]]
        return tuple(dict.fromkeys(name for name in names if name in self.graph.units))

    def _layers_of_gates(self) -> list[tuple[tuple[str, ...], int, int]]:
        """Of every gate: the layers whose weights it changes, the first and the last segment with
        one."""
        result = []
        for gate in self.graph.groups:
            names = tuple(
                name
                for name, pair in self.graph.units.items()
                if any(
                    ((one >= gate.start) & (one < gate.start + gate.channels)).any() for one in pair
                )
            )
            own = [i for i, one in enumerate(self.segments) if set(names) & set(one.layers)]
            result.append((names, own[0], own[-1]))
        return result

    def first_segment(self, gate: int) -> int:
        """Number of the first segment that a change of this gate touches."""
        return self._gate_layers[gate][1]

    def last_segment(self, gate: int) -> int:
        """Number of the last segment with a layer whose weights a change of this gate changes."""
        return self._gate_layers[gate][2]

    # ---------------------------------------------------------------- weights

    def aligned(self, mask: np.ndarray) -> np.ndarray:
        """The units that stay in the arrays, float32 [U + 1].

        When sliced: the kept ones and, in every gate, as many removed ones (zeros) as fill its
        width up to a multiple of ALIGN. When compiled: all.
        """
        if self.compile:
            return np.ones_like(mask)
        stay = mask.copy()
        for gate in self.graph.groups:
            removed = np.flatnonzero(mask[gate.units] == 0)
            stay[gate.start + removed[: -(gate.channels - len(removed)) % ALIGN]] = 1
        return stay

    def _layer_weights(self, name: str, mask: np.ndarray, stay: np.ndarray) -> dict[str, tf.Tensor]:
        layer = self.layers[name]
        form = layer.masked(mask) if self.compile else layer.sliced(mask, stay, self._full[name])
        return {
            key: tf.convert_to_tensor(value)
            for key, value in form.items()
            if key not in layer.moving
        }

    def weights(self, mask: np.ndarray) -> LayerWeights:
        """Effective weights of every gated layer under a unit mask, float32 [U + 1]."""
        return self.weights_of(self.graph.units, mask)

    def weights_of(self, names: Iterable[str], mask: np.ndarray) -> LayerWeights:
        """Effective weights of some gated layers under a unit mask, float32 [U + 1]."""
        stay = self.aligned(mask)
        return {name: self._layer_weights(name, mask, stay) for name in names}

    def changed_weights(self, current: LayerWeights, mask: np.ndarray, gate: int) -> LayerWeights:
        """`current` with the layers of one gate computed anew under `mask`."""
        return current | self.weights_of(self._gate_layers[gate][0], mask)

    # ---------------------------------------------------------------- compiled parts

    def specs(self, tensors: Tensors) -> Any:
        """The tree of the specifications of some of the network's tensors."""
        return tree_of(self._spec(tensor) for tensor in tensors)

    def _spec(self, tensor: keras.KerasTensor) -> tf.TensorSpec:
        shape = [None, *tensor.shape[1:]]
        prunable = self.graph.tensor_units(tensor) < self.graph.num_units
        if prunable.any() and not self.compile:
            shape[-1] = None
        given = any(tensor is one for one in self.inputs)  # always as float32
        whole = not given and not keras.backend.is_float_dtype(tensor.dtype)
        return tf.TensorSpec(shape, tensor.dtype if whole else tf.float32)

    def weight_specs(self, names: tuple[str, ...]) -> list[dict[str, tf.TensorSpec]]:
        everything = np.ones(self.graph.num_units + 1, np.float32)
        return [
            {
                key: tf.TensorSpec(self._weight_shape(name, key, value.shape), tf.float32)
                for key, value in self._layer_weights(name, everything, everything).items()
            }
            for name in names
        ]

    def _weight_shape(self, name: str, key: str, shape: tf.TensorShape) -> list:
        """The shape of an effective weight, open along the axes that lose channels."""
        sizes, layer = list(shape), self.layers[name]
        if not self.compile:
            axes = layer.axes(layer, layer.in_units, layer.out_units)
            for axis, units in axes.get(key, {-1: layer.out_units}).items():
                if (units < self.graph.num_units).any():
                    sizes[axis] = None
        return sizes

    def _trace(self, number: int) -> Segment:
        first, last = self.bounds[number : number + 2]
        names = self.names(first, last)
        start, end = [*self.cuts, self.outputs][number : number + 2]

        @tf.function(jit_compile=self.compile, autograph=False)
        def segment(x, weights):
            values = bound(start, x)
            by_name = dict(zip(names, weights, strict=True))
            run_calls(self.graph, self.graph.calls[first:last], self.layers, values, by_name)
            return taken(end, values)

        concrete = segment.get_concrete_function(self.specs(start), self.weight_specs(names))
        return Segment(names, concrete)

    def activations(self, x: Any, weights: LayerWeights) -> Iterator[Any]:
        """What every segment gives, one after the other.

        Args:
            x: tree of the network's inputs, float32 [n, ...].

        Yields:
            The tree of activations at each cut but the first; then that of the network's outputs.
        """
        for segment in self.segments:
            x = segment.function(x, [weights[name] for name in segment.layers])
            yield x

    def outputs_from(self, x: Any, weights: LayerWeights, first: int = 0) -> Any:
        """Tree of the network's outputs, float32 [n, ...], from that at the cut before `first`."""
        return self.run(x, weights, first, len(self.segments))

    def run(self, x: Any, weights: LayerWeights, first: int, last: int) -> Any:
        """What segment last - 1 gives, by a single call.

        Python's part of a call grows with its arguments and holds up the other threads; beside a
        narrow segment it is long.

        Args:
            x: tree of the activations at the cut before segment `first`, float32 [n, ...,
                channels] each.
            weights: of at least the gated layers in between.
        """
        with self._lock:
            if (first, last) not in self._runs:
                self._runs[first, last] = self._trace_run(first, last)
        run = self._runs[first, last]
        return run.function(x, [weights[name] for name in run.layers])

    def _trace_run(self, first: int, last: int) -> Segment:
        """Segments first .. last - 1 as one function."""
        segments = self.segments[first:last]
        names = self.names(self.bounds[first], self.bounds[last])

        @tf.function(autograph=False)
        def run(x, weights):
            by_name = dict(zip(names, weights, strict=True))
            for segment in segments:
                x = segment.function(x, [by_name[name] for name in segment.layers])
            return x

        specs = self.specs(self.cuts[first]), self.weight_specs(names)
        return Segment(names, run.get_concrete_function(*specs))
