"""All that is known of each kind of layer, one entry per kind, registered together.

How channels pass (`nets.layer_rules`), the mask-aware twin (`nets.tcl`, `nets.tcl_norm`), what a
call costs (`nets.costs`). A kind that isn't registered has no rule: what it touches stays whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import keras
import numpy as np

from ..utils.errors import UserError
from . import constants, costs, layer_rules, parts, reductions, shuffles, tcl, tcl_norm, tcl_rnn
from .channels import Ids, NoRule, Site
from .keras_graph import Call, is_op, values_of
from .op_rules import FREE as FREE_OPS

L = keras.layers
Costs = Callable[[Call, "tuple | None", int, costs.ShapeOf], "list[costs.Cost]"]


@dataclass(frozen=True)
class LayerKind:
    """One kind of layer.

    Attributes:
        layer: its class; subclasses are kinds of their own.
        rule: channel ids of the output, from those of the inputs.
        twin: the mask-aware layer; None: the kind has no weights and needs none.
        cost: multiply-accumulates of a call; None: it has none that count.
        resize: for a kind without weights whose configuration holds a number of channels: (layer,
            in_units, out_units, mask) -> what changes in it under a unit mask.
    """

    layer: type[keras.Layer]
    rule: layer_rules.Rule
    twin: type[tcl.Gated] | None = None
    cost: Costs | None = None
    resize: Callable[..., dict] | None = None


KINDS: dict[type, LayerKind] = {}
# Of what a layer gives, that take any number of channels.
REGULARIZERS = (type(None), *(getattr(keras.regularizers, name) for name in ("L1", "L2", "L1L2")))


def register(kind: LayerKind) -> None:
    """Makes a kind known.

    Raises:
        UserError: a twin that is no mask-aware layer, or not one of this kind.
    """
    if kind.twin is not None and not (
        issubclass(kind.twin, tcl.Gated) and issubclass(kind.twin, kind.layer)
    ):
        raise UserError(
            f"{kind.twin.__name__} is no mask-aware {kind.layer.__name__}: make it a subclass of "
            "Gated and of the layer"
        )
    KINDS[kind.layer] = kind


def register_per_channel(
    layer: type[keras.Layer], weights: Mapping[str, int], sizes: Sequence[str] = ()
) -> None:
    """Makes a layer known that works channel by channel, whatever its channels are.

    Args:
        layer: its class; `call(x)` gives the shape of x, channels last, and no channel of it
            depends on another one.
        weights: {name of a weight: its axis that runs along the channels, negative}; others stay
            whole.
        sizes: entries of its configuration that hold the number of channels.

    Raises:
        UserError: not a layer class, or an axis that is not negative.
    """
    if not (isinstance(layer, type) and issubclass(layer, keras.Layer)):
        raise UserError(f"{layer!r} is no class of layers")
    if wrong := [name for name, axis in weights.items() if axis >= 0]:
        raise UserError(f"the axis of {wrong[0]} is counted from the end: -1 for the last one")
    axes, entries = dict(weights), tuple(sizes)

    class Twin(tcl.Gated, layer):  # type: ignore[misc, valid-type]
        """The layer on effective weights of either form."""

        @staticmethod
        def axes(layer, in_units, out_units) -> tcl.Axes:
            return {name: {axis: out_units} for name, axis in axes.items()}

        @staticmethod
        def config(layer, in_units, out_units, mask) -> dict:
            return dict.fromkeys(entries, int(np.count_nonzero(mask[out_units])))

        def apply(self, x, weights: tcl.Weights, training: bool = True):
            """x float [n, ..., c] -> the same shape; `training` is unused."""
            values = [(v, weights[v.name]) for v in self.weights if v.name in weights]
            with values_of(values):
                return layer.call(self, x)

    Twin.__name__ = Twin.__qualname__ = layer.__name__
    register(LayerKind(layer, layer_rules.same_rule, Twin))


def twin_of(layer: keras.Operation) -> type[tcl.Gated] | None:
    """The mask-aware layer of a layer's kind, if it has one."""
    kind = KINDS.get(type(layer))
    return kind.twin if kind else None


def follows_channels(layer: keras.Operation) -> bool:
    """Whether weights or configuration of the layer depend on its channels."""
    kind = KINDS.get(type(layer))
    return kind is not None and (kind.twin is not None or kind.resize is not None)


def config_of(
    layer: keras.Layer, in_units: np.ndarray, out_units: np.ndarray, mask: np.ndarray
) -> dict:
    """What changes in a layer's configuration under a unit mask, float32 [U + 1]."""
    kind = KINDS[type(layer)]
    change = kind.twin.config if kind.twin else kind.resize
    return _without_arrays(layer) | change(layer, in_units, out_units, mask)


def _without_arrays(layer: keras.Layer) -> dict:
    """Other initialisers in place of those that hold an array of one shape: a smaller layer gets
    its weights, but is made with these first."""
    return {
        key: "zeros"
        for key, value in vars(layer).items()
        if isinstance(value, keras.initializers.Constant) and np.size(value.value) > 1
    }


def call_costs(
    call: Call, units: tuple | None, num_units: int, shape_of: costs.ShapeOf
) -> list[costs.Cost]:
    """The costs of one call; none for a known kind without.

    Args:
        units: (in_units, out_units) of the layer; None: it is never pruned.
        num_units: the unit that is always kept.
        shape_of: KerasTensor -> its shape for one example.
    """
    kind = KINDS.get(type(call.operation))
    if kind is not None:
        return kind.cost(call, units, num_units, shape_of) if kind.cost else []
    if is_op(call.operation) and type(call.operation).__name__ in FREE_OPS:
        return []
    return costs.fixed_costs(call, num_units, shape_of)


def takes_plain_numbers(layer: keras.Layer) -> bool:
    """Whether an input may be a number for each example, without channels."""
    return isinstance(layer, L.Embedding)


def follow(ids: Ids, site: Site) -> np.ndarray:
    """Channel ids of a layer call's output.

    Raises:
        NoRule: the channels can't be followed.
    """
    layer = site.layer
    kind = KINDS.get(type(layer))
    if kind is None and not layer.weights:
        return layer_rules.tried_rule(ids, site)
    if kind is None:
        raise NoRule("has no rule")
    if kind.twin is None and layer.weights:
        raise NoRule("has weights that its kind doesn't know")
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        raise NoRule("works on channels_first: build it with data_format='channels_last'")
    output = kind.rule(ids, site)
    if type(getattr(layer, "activity_regularizer", None)) not in REGULARIZERS:
        why = f"{layer.name} has an activity regularizer that may need all channels"
        for one in output if isinstance(output, list) else [output]:
            ids.freeze(one, why)
    if mixing := layer_rules.mixing_activation(layer):
        ids.freeze(output, f"{layer.name} mixes channels by {mixing}")
    return output


def _resized_noise(layer, in_units, out_units, mask) -> dict:
    shape = layer.noise_shape
    if not shape or shape[-1] != len(out_units):
        return {}
    return {"noise_shape": (*shape[:-1], int(np.count_nonzero(mask[out_units])))}


def _register(
    rule: layer_rules.Rule,
    *layers: type,
    cost: Costs | None = None,
    resize: Callable[..., dict] | None = None,
) -> None:
    """Kinds with a rule in common; a twin has its layer's name, but for Keras's long ones."""
    for layer in layers:
        twin = _RENAMED.get(layer) or getattr(tcl, layer.__name__, None)
        register(LayerKind(layer, rule, twin, cost, resize))


_RENAMED = {
    L.Dense: tcl.FC,
    L.BatchNormalization: tcl_norm.BatchNorm,
    L.LayerNormalization: tcl_norm.LayerNorm,
    L.RMSNormalization: tcl_norm.RMSNorm,
    L.GroupNormalization: tcl_norm.GroupNorm,
    L.UnitNormalization: tcl_norm.UnitNorm,
    L.PReLU: tcl_norm.PReLU,
    L.Reshape: tcl_norm.Reshape,
    layer_rules.LayerScale: tcl_norm.LayerScale,
    reductions.OverChannels: tcl_norm.OverChannels,
    parts.Parts: tcl_norm.Parts,
    constants.WithConstant: tcl_norm.WithConstant,
    shuffles.Shuffled: tcl_norm.Shuffled,
    L.Embedding: tcl_norm.Embedding,
    **{one: getattr(tcl_rnn, one.__name__) for one in layer_rules.STATES},
}
_register(layer_rules.convolution_rule, *layer_rules.CONVOLUTIONS, cost=costs.kernel_costs)
_register(
    layer_rules.kernel_rule,
    *(*layer_rules.TRANSPOSED, *layer_rules.SEPARABLE, L.Dense),
    cost=costs.kernel_costs,
)
_register(layer_rules.depthwise_rule, *layer_rules.DEPTHWISE, cost=costs.kernel_costs)
_register(layer_rules.same_rule, *layer_rules.PER_CHANNEL)
_register(layer_rules.same_rule, L.Dropout, resize=_resized_noise)
_register(layer_rules.merge_rule, *layer_rules.MERGES)
_register(layer_rules.reshape_rule, L.Flatten, L.Reshape)
_register(layer_rules.scaling_rule, L.Rescaling, L.Normalization)
_register(layer_rules.batch_norm_rule, L.BatchNormalization)
_register(layer_rules.layer_norm_rule, L.LayerNormalization)
_register(layer_rules.rms_norm_rule, L.RMSNormalization)
_register(layer_rules.group_norm_rule, L.GroupNormalization)
_register(layer_rules.over_channels_rule, reductions.OverChannels)
_register(layer_rules.parts_rule, parts.Parts)
_register(layer_rules.same_rule, constants.WithConstant)
_register(layer_rules.shuffle_rule, shuffles.Shuffled)
_register(layer_rules.concatenate_rule, L.Concatenate)
_register(layer_rules.product_rule, L.Dot)
_register(layer_rules.permute_rule, L.Permute)
_register(layer_rules.off_channels_rule, L.Softmax)
_register(layer_rules.same_rule, L.UnitNormalization)
_register(layer_rules.same_rule, L.Resizing, L.CenterCrop)
_register(layer_rules.embedding_rule, L.Embedding)
_register(layer_rules.recurrent_rule, *layer_rules.STATES, cost=costs.recurrent_costs)
