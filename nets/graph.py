"""The channel graph of a functional model: groups, gates, costs, gated and pruned network.

Nothing here depends on a layer's name: channel dependencies are read off the functional graph by
the rules of `nets.channels`.
"""

import collections
import math
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from nets import channels, tcl
from nets.gates import Gate, Gates

GATED = {
    keras.layers.Conv2D: tcl.Conv2D,
    keras.layers.DepthwiseConv2D: tcl.DepthwiseConv2D,
    keras.layers.Dense: tcl.FC,
    keras.layers.BatchNormalization: tcl.BatchNorm,
}


@dataclass(frozen=True)
class Call:
    """One call of one operation; tensors are named by the `id` of their KerasTensor."""

    operation: keras.Operation
    arguments: object  # has fill_in(values) -> args, kwargs
    inputs: tuple
    outputs: tuple


def calls_of(model: keras.Model) -> list[Call]:
    """The calls of a functional model in an order in which they can be run.

    Raises:
        TypeError: not a functional (or Sequential) model.
    """
    if isinstance(model, keras.Sequential):
        model = model._functional
    if not hasattr(model, "_nodes_by_depth"):
        raise TypeError(f"{model.name} is no functional Keras model: its graph can't be read")
    # Keras has no public view of a functional graph; this loop is how Function.call walks it.
    return [
        Call(node.operation, node.arguments, tuple(node.input_tensors), tuple(node.outputs))
        for depth in sorted(model._nodes_by_depth, reverse=True)
        for node in model._nodes_by_depth[depth]
        if not node.is_input
    ]


class ChannelGraph:
    """Channel groups and costs of a functional model of stock layers.

    Attributes:
        model: the network as given.
        gates: `Gates`, all open.
        units: {layer name: (in_units, out_units)}, int32 arrays, for every layer in `GATED`.
        frozen: {layer name: reason} for kernel layers whose outputs are not prunable.
    """

    def __init__(self, model: keras.Model):
        self.model = model
        self.calls = calls_of(model)
        self.frozen: dict[str, str] = {}
        self._ids = channels.Ids()
        self._tensor_ids: dict[int, np.ndarray] = {}
        self._layer_ids: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._follow()
        self._number_units()
        self._costs = [cost for call in self.calls if (cost := self._call_cost(call)) is not None]

    def _follow(self) -> None:
        """Gives every tensor its channel ids."""
        ids = self._ids
        for tensor in keras.tree.flatten(self.model.inputs):
            fresh = ids.fresh(_width(tensor), tensor.name)
            ids.freeze(fresh, "network input")
            self._tensor_ids[id(tensor)] = fresh
        for call in self.calls:
            self._follow_call(call)
        for tensor in keras.tree.flatten(self.model.outputs):
            ids.freeze(self._tensor_ids[id(tensor)], "network output")

    def _follow_call(self, call: Call) -> None:
        ids, layer = self._ids, call.operation
        inputs = [self._tensor_ids[id(tensor)] for tensor in call.inputs]
        rule = channels.rule_for(layer, len(call.inputs[0].shape))
        if rule is None:
            why = f"{type(layer).__name__} {layer.name} has no rule"
            for one in inputs:
                ids.freeze(one, why)
            for tensor in call.outputs:
                fresh = ids.fresh(_width(tensor), layer.name)
                ids.freeze(fresh, why)
                self._tensor_ids[id(tensor)] = fresh
            if hasattr(layer, "kernel"):
                self.frozen[layer.name] = why
            return
        output = rule(ids, layer, inputs, call.outputs[0].shape)
        if mixing := channels.mixing_activation(layer):
            ids.freeze(output, f"{layer.name} mixes channels by {mixing}")
        if type(layer) in GATED:
            if layer.name in self._layer_ids:  # a shared layer: all its calls agree
                seen_in, seen_out = self._layer_ids[layer.name]
                ids.tie(seen_in, inputs[0])
                ids.tie(seen_out, output)
            self._layer_ids[layer.name] = (inputs[0], output)
        self._tensor_ids[id(call.outputs[0])] = output

    def _number_units(self) -> None:
        """Ties -> units -> gates: units written by the same layers form one gate."""
        ids = self._ids
        roots = np.array([ids.root(index) for index in range(len(ids))])
        reason = {int(roots[index]): why for index, why in ids.frozen.items()}
        blocks = collections.defaultdict(set)
        for index, root in enumerate(roots):
            blocks[int(root)].add(ids.block[index])
        groups = collections.defaultdict(list)
        for root in np.unique(roots):
            if int(root) not in reason:
                groups[tuple(sorted(blocks[int(root)]))].append(int(root))
        gates, unit_of, start = [], {}, 0
        for signature, members in groups.items():
            # A shared layer makes a block per call.
            names = dict.fromkeys(ids.block_names[block] for block in signature)
            gates.append(Gate(start, len(members), names))
            unit_of.update({root: start + offset for offset, root in enumerate(members)})
            start += len(members)
        self.gates = Gates(gates)
        self._unit = np.array([unit_of.get(int(root), start) for root in roots], np.int32)
        self.units = {
            name: (self._unit[inputs], self._unit[outputs])
            for name, (inputs, outputs) in self._layer_ids.items()
        }
        self.frozen |= {
            name: reason[int(roots[outputs[0]])]
            for name, (_, outputs) in self._layer_ids.items()
            if int(roots[outputs[0]]) in reason
        }

    def tensor_units(self, tensor) -> np.ndarray:
        """The unit of every channel of one of the model's KerasTensors, int32 [channels]."""
        return self._unit[self._tensor_ids[id(tensor)]]

    def _call_cost(self, call: Call) -> tuple | None:
        """(multiply-accumulates per pair of channels, in_units or None, out_units) of a call."""
        layer = call.operation
        convolution = type(layer) in (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)
        if convolution and layer.name not in self.units:
            # No rule, so never pruned (a grouped convolution): every weight works at every
            # position.
            shape = call.outputs[0].shape
            positions = shape[2:] if layer.data_format == "channels_first" else shape[1:-1]
            weights = math.prod(positions) * math.prod(layer.kernel.shape)
            return (weights, None, np.array([self.gates.num_units]))
        if type(layer) is keras.layers.Conv2D:
            positions = math.prod(call.outputs[0].shape[1:-1]) * math.prod(layer.kernel_size)
            return (positions, *self.units[layer.name])
        if type(layer) is keras.layers.DepthwiseConv2D:
            positions = math.prod(call.outputs[0].shape[1:-1]) * math.prod(layer.kernel_size)
            return (positions, None, self.units[layer.name][1])
        if type(layer) is keras.layers.Dense:
            return (math.prod(call.outputs[0].shape[1:-1]), *self.units[layer.name])
        return None

    def flops(self, mask: np.ndarray | None = None) -> int:
        """Multiply-accumulates of convolutions and dense layers for one image under a unit mask.

        Args:
            mask: float32 [U + 1]; None = the whole network.
        """
        mask = np.ones(self.gates.num_units + 1) if mask is None else mask
        total = 0
        for positions, in_units, out_units in self._costs:
            inputs = 1 if in_units is None else np.count_nonzero(mask[in_units])
            total += positions * int(inputs) * np.count_nonzero(mask[out_units])
        return int(total)

    def parameters(self, mask: np.ndarray | None = None) -> int:
        """All parameters of the pruned network (moving statistics too), as Keras counts them."""
        mask = np.ones(self.gates.num_units + 1) if mask is None else mask
        total = self.model.count_params()
        for name, (in_units, out_units) in self.units.items():
            kept_in, kept_out = np.count_nonzero(mask[in_units]), np.count_nonzero(mask[out_units])
            for variable in self.model.get_layer(name).weights:
                now = _sliced_size(variable, len(in_units), len(out_units), kept_in, kept_out)
                total += now - math.prod(variable.shape)
        return int(total)

    def gated(self) -> tuple[keras.Model, tf.Variable]:
        """The same network and weights in mask-aware layers, and its unit mask variable."""
        mask = tf.Variable(self.gates.mask(), trainable=False, name="unit_mask")

        def convert(layer):
            kind = GATED.get(type(layer)) if layer.name in self.units else None
            return (kind or type(layer)).from_config(layer.get_config())

        gated = keras.models.clone_model(self.model, clone_function=convert)
        gated.set_weights(self.model.get_weights())
        for name, (in_units, out_units) in self.units.items():
            gated.get_layer(name).bind(mask, in_units, out_units)
        return gated, mask

    def pruned(self, mask: np.ndarray) -> keras.Model:
        """A smaller model of stock layers that computes what the masked network computes.

        Args:
            mask: unit mask, float32 [U + 1].
        """
        widths = {
            name: int(np.count_nonzero(mask[out_units]))
            for name, (_, out_units) in self.units.items()
        }
        smaller = resized(self.model, widths)
        gated, _ = self.gated()
        for name in self.units:
            sliced = gated.get_layer(name).sliced(mask)
            smaller.get_layer(name).set_weights(list(sliced.values()))
        return smaller


def resized(model: keras.Model, widths: dict[str, int]) -> keras.Model:
    """The model with other layer widths; weights of unchanged shape are copied, others fresh.

    Args:
        widths: {layer name: output channels}; layers without a width of their own (batch norm,
            depthwise convolutions) are ignored.
    """

    def convert(layer):
        config = layer.get_config()
        for key in ("filters", "units"):
            if key in config and layer.name in widths:
                config[key] = widths[layer.name]
        return type(layer).from_config(config)

    smaller = keras.models.clone_model(model, clone_function=convert)
    for new, old in zip(smaller.weights, model.weights, strict=True):
        if new.shape == old.shape:
            new.assign(old)
    return smaller


def to_policy(model: keras.Model, policy: str) -> keras.Model:
    """A functional model of the same layers and weights under a dtype policy ("mixed_bfloat16").

    Variables stay float32 and in the same order, so clone and model exchange weights by
    set_weights; the output layer computes float32 logits. Raises ValueError for nested models.
    """
    # not model.output: a Sequential read from a file has none
    last = model.outputs[0]._keras_history.operation
    if any(isinstance(layer, keras.Model) for layer in model.layers):
        raise ValueError("a model that contains models cannot change its dtype policy")

    def clone(layer):
        config = layer.get_config() | {"dtype": "float32" if layer is last else policy}
        return type(layer).from_config(config)

    converted = keras.models.clone_model(model, clone_function=clone)
    converted.set_weights(model.get_weights())
    return converted


def _width(tensor) -> int:
    return int(tensor.shape[-1]) if tensor.shape and tensor.shape[-1] else 0


def _sliced_size(variable, full_in: int, full_out: int, kept_in: int, kept_out: int) -> int:
    """Size of a variable of a gated layer after slicing: kernel [..., in, out] or vector [out]."""
    shape = variable.shape
    if len(shape) == 1:
        return kept_out
    positions = math.prod(shape[:-2])
    if shape[-1] == full_out:
        return positions * kept_in * kept_out
    return positions * kept_in * shape[-1]  # depthwise [kh, kw, in, multiplier]
