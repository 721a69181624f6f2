"""The channel graph of a functional model: groups, gates, costs, gated and pruned network.

Nothing here depends on a layer's name: channel dependencies are read off the functional graph by
the rules of `nets.layer_kinds` and `nets.op_rules`.
"""

import collections
import math
from collections.abc import Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf

from ..utils.errors import UserError
from . import channels, costs, layer_kinds, layer_rules, op_rules, tcl
from .gates import Group
from .keras_graph import Call, calls_of, has_graph, inference_only, is_op, regroups
from .products import product_of
from .rebuild import carry_equal_shapes, changed, rebuilt

L = keras.layers
# Linear, channel by channel, and the same factor for all: a common factor passes through.
PASSING = (L.Identity, L.Dropout, *layer_rules.LINEAR_POOLING)


class ChannelGraph:
    """Channel groups and costs of a functional model of stock layers.

    Attributes:
        model: the network that is read: flat, no models in it (`nets.flatten`).
        groups: the channel groups, in the order in which the network reaches them.
        num_units: of all groups together.
        units: {layer name: (in_units, out_units)}, int32 arrays, for every layer with a mask-aware
            twin.
        frozen: {layer name: reason} for kernel layers whose outputs are not prunable.
        scaled: names of the layers whose masked kernels keep their norm, see `nets.tcl`.

    Args:
        model: as above.
        closed: {layer name: why it wasn't opened} of layers that stay whole (`nets.flatten`).
        scale_all: all masked kernels keep their norm, also those that no batch norm follows (for
            `experiments.claims`, which measures what that costs).

    Raises:
        UserError: the model isn't functional, or takes images of open size.
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        closed: Mapping[str, str] | None = None,
        scale_all: bool = False,
    ):
        self.model, self._closed = model, closed or {}
        self.calls = calls_of(model)
        if any(has_graph(call.operation) for call in self.calls):
            raise ValueError(f"{model.name} contains models: flatten it first")
        self.frozen: dict[str, str] = {}
        self._ids = channels.Ids()
        self._tensor_ids: dict[int, np.ndarray] = {}
        self._layer_ids: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.left: dict[str, str] = {}  # layers that can't be followed, and why
        self._follow()
        self._number_units()
        self.scaled = frozenset(self.units) if scale_all else norm_keeping(self.calls)
        self._inference = inference_only(self.calls)
        self._shapes: dict[int, tuple] = {}
        self._regroups = any(map(regroups, self.calls))
        self._costs = [cost for call in self.calls for cost in self.costs_of(call)]

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
        try:
            outputs = self._output_ids(call, inputs)
        except channels.NoRule as problem:
            why = f"{type(layer).__name__} {layer.name} {self._closed.get(layer.name, problem)}"
            for one in inputs:
                ids.freeze(one, why)
            for tensor in call.outputs:
                fresh = ids.fresh(_width(tensor), layer.name)
                ids.freeze(fresh, why)
                self._tensor_ids[id(tensor)] = fresh
            # A shared layer that can't be followed in one call is left whole in all of them.
            for one in self._layer_ids.pop(layer.name, ()):
                ids.freeze(one, why)
            self.left[layer.name] = why
            if type(layer) in layer_rules.KERNEL_LAYERS:
                self.frozen[layer.name] = why
            return
        if layer_kinds.follows_channels(layer):
            if layer.name in self.left:
                for one in (inputs[0], outputs[0]):
                    ids.freeze(one, self.left[layer.name])
            elif layer.name in self._layer_ids:  # a shared layer: all its calls agree
                seen_in, seen_out = self._layer_ids[layer.name]
                if len(seen_in) == len(inputs[0]):  # not of tokens, in texts of several lengths
                    ids.tie(seen_in, inputs[0])
                ids.tie(seen_out, outputs[0])
            else:
                self._layer_ids[layer.name] = (inputs[0], outputs[0])
        for tensor, output in zip(call.outputs, outputs, strict=True):
            self._tensor_ids[id(tensor)] = output

    def _output_ids(self, call: Call, inputs: list[np.ndarray]) -> list[np.ndarray]:
        site = channels.Site(
            call.operation,
            inputs,
            [tuple(tensor.shape) for tensor in call.inputs],
            tuple(call.outputs[0].shape),
            call.constants,
            call.values,
            call.inputs,
        )
        rules = op_rules if is_op(call.operation) else layer_kinds
        if not all(map(len, inputs)) and not rules.takes_plain_numbers(call.operation):
            raise channels.NoRule("reads channels of an open number")
        output = rules.follow(self._ids, site)
        outputs = output if isinstance(output, list) else [output]
        widths = [_width(tensor) for tensor in call.outputs]
        if [len(one) for one in outputs] != widths:
            raise channels.NoRule("changes the number of channels")
        return outputs

    def _number_units(self) -> None:
        """Ties -> units -> gates: units written by the same layers form one gate."""
        ids = self._ids
        roots, blocks = ids.roots(), ids.blocks()
        reason = ids.reasons(roots)
        free = ~np.isin(roots, np.fromiter(reason, np.int64, len(reason)))
        # Every free root with the blocks that its ids come from, both in rising order.
        pairs = np.unique(np.stack([roots[free], blocks[free]], 1), axis=0)
        starts = np.flatnonzero(np.diff(pairs[:, 0], prepend=-1))
        signatures = [tuple(part) for part in np.split(pairs[:, 1], starts[1:]) if len(part)]
        groups = collections.defaultdict(list)
        for root, signature in zip(pairs[starts, 0], signatures, strict=True):
            groups[signature].append(root)
        found, unit_of, start = [], np.full(len(roots), -1), 0
        for signature, members in groups.items():
            # A shared layer makes a block per call.
            names = tuple(dict.fromkeys(filter(None, (ids.block_names[one] for one in signature))))
            found.append(Group(start, len(members), names))
            unit_of[members] = np.arange(start, start + len(members))
            start += len(members)
        self.groups, self.num_units = tuple(found), start
        unit = unit_of[roots]
        self._unit = np.where(unit < 0, start, unit).astype(np.int32)
        self._sides = {
            name: (self._unit[inputs], self._unit[outputs])
            for name, (inputs, outputs) in self._layer_ids.items()
        }
        self.units = {
            name: sides
            for name, sides in self._sides.items()
            if layer_kinds.twin_of(self.model.get_layer(name))
        }
        self.frozen |= {
            name: reason[int(roots[outputs[0]])]
            for name, (_, outputs) in self._layer_ids.items()
            if self._has_kernel(name) and int(roots[outputs[0]]) in reason
        }

    def _has_kernel(self, name: str) -> bool:
        return type(self.model.get_layer(name)) in layer_rules.KERNEL_LAYERS

    def tensor_units(self, tensor: keras.KerasTensor) -> np.ndarray:
        """The unit of every channel of one of the model's KerasTensors, int32 [channels]."""
        return self._unit[self._tensor_ids[id(tensor)]]

    def is_whole(self, tensor: keras.KerasTensor) -> bool:
        """Whether no channel of one of the model's KerasTensors can be removed."""
        return bool((self.tensor_units(tensor) == self.num_units).all())

    # ---------------------------------------------------------------- counting

    def shape_of(self, tensor: keras.KerasTensor) -> tuple[int, ...]:
        """The shape of one of the model's KerasTensors for one example; its first number isn't 1
        where an example has several rows of the batch, such as windows of an image.

        Sizes that Keras leaves open come from running the network once on zeros.

        Raises:
            UserError: the network takes inputs of open size.
        """
        if None not in tensor.shape[1:] and not self._regroups:
            return (1, *tensor.shape[1:])
        if not self._shapes:
            self._shapes = _measured_shapes(self.model, self.calls)
        return self._shapes[id(tensor)]

    def costs_of(self, call: Call) -> list[costs.Cost]:
        """The costs of one of the network's calls."""
        if (product := product_of(call.operation, call.values)) is not None:
            return costs.product_costs(product, self.tensor_units, self.num_units, self.shape_of)
        units = self.units.get(call.operation.name)
        return layer_kinds.call_costs(call, units, self.num_units, self.shape_of)

    def open_mask(self) -> np.ndarray:
        """The unit mask of the whole network, float32 [U + 1]."""
        return np.ones(self.num_units + 1, np.float32)

    def least_mask(self) -> np.ndarray:
        """The unit mask with one filter in every group, float32 [U + 1]."""
        mask = np.zeros(self.num_units + 1, np.float32)
        mask[[group.start for group in self.groups] + [-1]] = 1
        return mask

    def flops(self, mask: np.ndarray | None = None) -> int:
        """Multiply-accumulates of convolutions and dense layers for one image under a unit mask.

        Args:
            mask: float32 [U + 1]; None = the whole network.
        """
        return costs.total(self._costs, self.open_mask() if mask is None else mask)

    def lowest_rate(self) -> float:
        """The share of the FLOPs that one filter in every group leaves."""
        return self.flops(self.least_mask()) / max(1, self.flops())

    def heaviest_left(self) -> tuple[str, float, str | None]:
        """What hinders most where every group has one filter left: the layer with most of the
        FLOPs, its share of all that the whole network has, and why it stays whole (None: it
        doesn't)."""
        mask, macs = self.least_mask(), collections.Counter[str]()
        for call in self.calls:
            macs[call.operation.name] += costs.total(self.costs_of(call), mask)
        name, most = macs.most_common(1)[0]
        return name, most / max(1, self.flops()), self.left.get(name) or self.frozen.get(name)

    def parameters(self, mask: np.ndarray | None = None) -> int:
        """All parameters of the pruned network (moving statistics too), as Keras counts them."""
        mask = self.open_mask() if mask is None else mask
        total = self.model.count_params()
        for name, axes in self._axes().items():
            for variable in self.model.get_layer(name).weights:
                shape = tuple(variable.shape)
                total += tcl.sliced_size(axes.get(variable.name, {}), shape, mask)
                total -= math.prod(shape)
        return total

    def _axes(self) -> dict[str, tcl.Axes]:
        layers = ((self.model.get_layer(name), pair) for name, pair in self.units.items())
        return {one.name: layer_kinds.twin_of(one).axes(one, *pair) for one, pair in layers}

    def kernels(self) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """{layer: (kernel float32 [..., in, out], in_units, out_units)} of layers with filters.

        A separable convolution is given by its pointwise kernel; depthwise ones have no filters of
        their own. A unit of a recurrent layer has a column for each of its gates.
        """
        result = {}
        for name, axes in self._axes().items():
            key = "pointwise_kernel" if "pointwise_kernel" in axes else "kernel"
            if len(axes.get(key, {})) < 2:
                continue
            layer = self.model.get_layer(name)
            variable = next(one for one in layer.weights if one.name == key)
            kernel, sides = variable.numpy(), axes[key]
            if type(layer) in layer_rules.TRANSPOSED:
                result[name] = (np.swapaxes(kernel, -1, -2), sides[-1], sides[-2])
            else:
                result[name] = (kernel, sides[-2], sides[-1])
        return result

    # ---------------------------------------------------------------- networks

    def gated(self) -> tuple[keras.Model, tf.Variable]:
        """The same network and weights in mask-aware layers, and its unit mask variable."""
        mask = tf.Variable(self.open_mask(), trainable=False, name="unit_mask")

        def convert(layer: keras.Operation) -> keras.Operation:
            kind = layer_kinds.twin_of(layer) if layer.name in self.units else None
            return (kind or type(layer)).from_config(layer.get_config())

        gated = rebuilt(self.model, convert)
        for name, (in_units, out_units) in self.units.items():
            layer = gated.get_layer(name)
            layer.bind(mask, in_units, out_units, scaled=name in self.scaled)
            layer.by_moving = not layer.trainable or name in self._inference
        return gated, mask

    def pruned(self, mask: np.ndarray) -> keras.Model:
        """A smaller model of stock layers that computes what the masked network computes.

        Args:
            mask: unit mask, float32 [U + 1].
        """
        layers = {name: self.model.get_layer(name) for name in self._sides}
        changes = {
            name: layer_kinds.config_of(layer, *self._sides[name], mask)
            for name, layer in layers.items()
        }
        smaller = changed(self.model, changes, carry_equal_shapes)
        for name, axes in self._axes().items():
            old, new = layers[name].weights, smaller.get_layer(name).weights
            rules = {v.name: tcl.kernel_rule(v, name in self.scaled) for v in old}
            full = {v.name: v.numpy() for v in old}
            sliced = tcl.slice_weights(axes, full, mask, mask, rules)
            for variable, value in zip(new, sliced.values(), strict=True):
                variable.assign(value)
        return smaller


def norm_keeping(calls: Sequence[Call]) -> frozenset[str]:
    """Names of the kernel layers behind which a batch norm takes a common factor out again.

    docs/method.md 1, "Masking": a batch norm by batch statistics follows on every way, before
    anything that isn't linear and channel by channel.
    """
    readers = collections.defaultdict(list)
    for call in calls:
        for tensor in call.inputs:
            readers[id(tensor)].append(call)

    def normalised(tensor) -> bool:
        following = readers[id(tensor)]
        return bool(following) and all(map(takes_out, following))

    def takes_out(call: Call) -> bool:
        layer = call.operation
        if isinstance(layer, L.BatchNormalization):
            return layer.trainable and call.training is not False
        passing = type(layer) in PASSING or (
            type(layer) is L.Activation and layer_rules.is_linear(layer)
        )
        return passing and normalised(call.outputs[0])

    found: dict[str, bool] = {}
    for call in calls:
        layer = call.operation
        if type(layer) in layer_rules.KERNEL_LAYERS:
            keeps = layer_rules.is_linear(layer) and normalised(call.outputs[0])
            found[layer.name] = found.get(layer.name, True) and keeps
    return frozenset(name for name, keeps in found.items() if keeps)


def _measured_shapes(model: keras.Model, calls: Sequence[Call]) -> dict[int, tuple]:
    tensors = [tensor for call in calls for tensor in call.outputs]
    for one in model.inputs:
        if None in one.shape[1:]:
            raise UserError(
                f"{model.name} takes inputs of open size {tuple(one.shape)}: FLOPs can't be "
                "counted; give the shape of an input (input_shape=, --input_shape)"
            )
    zeros = [np.zeros((1, *one.shape[1:]), one.dtype) for one in model.inputs]
    values = keras.Model(model.inputs, tensors)(zeros, training=False)
    given = {id(one): (1, *one.shape[1:]) for one in model.inputs}
    return given | {id(a): tuple(b.shape) for a, b in zip(tensors, values, strict=True)}


def _width(tensor) -> int:
    return int(tensor.shape[-1]) if tensor.shape and tensor.shape[-1] else 0
