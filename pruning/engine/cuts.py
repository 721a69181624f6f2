"""Where a network can be cut in two, and how a part of it is run on given weights."""

from collections.abc import Mapping, Sequence

import keras
import tensorflow as tf

from ...nets.graph import ChannelGraph
from ...nets.keras_graph import Call, takes_training
from ...nets.tcl import Gated


def find_cuts(graph: ChannelGraph, layers: Mapping[str, Gated]) -> tuple[list[int], list]:
    """The single-tensor cuts: places where one tensor holds all that the rest of the network needs.

    A cut is worth its memory only where a kernel lies before it; others are left out.

    Args:
        graph: of a network with one input and one output.
        layers: {name: mask-aware layer} for all of `graph.units`.

    Returns:
        (bounds: the number of the first call of every segment, and the number of all calls; cuts:
        the KerasTensor at the start of every segment, the network's input first).
    """
    calls, source, output = graph.calls, graph.model.inputs[0], graph.model.outputs[0]
    last_use = {id(output): len(calls)}
    for number, call in enumerate(calls):
        for tensor in call.inputs:
            last_use[id(tensor)] = max(number, last_use.get(id(tensor), 0))
    live = {id(source): source}
    bounds, cuts, kernel = [0], [source], False
    for number, call in enumerate(calls[:-1], start=1):
        kernel |= getattr(layers.get(call.operation.name), "reads", False)
        live.update({id(tensor): tensor for tensor in call.outputs})
        live = {key: one for key, one in live.items() if last_use.get(key, -1) >= number}
        if len(live) == 1 and kernel:
            bounds.append(number)
            cuts.append(next(iter(live.values())))
            kernel = False
    return [*bounds, len(calls)], cuts


def run_calls(
    graph: ChannelGraph,
    calls: Sequence[Call],
    layers: Mapping[str, Gated],
    values: dict,
    weights: Mapping[str, dict],
) -> None:
    """Runs calls in order on `values` {id of KerasTensor: tensor}, in place.

    Batch norms use the statistics of the batch, but for those that the network runs by their moving
    ones; dropout and the like are off.

    Args:
        layers: {name: mask-aware layer}.
        weights: {name: effective weights} of the gated layers; the others run as they are.
    """
    for call in calls:
        name = call.operation.name
        if name in weights:
            x, training = values[id(call.inputs[0])], call.training is not False
            result = layers[name].apply(x, weights[name], training=training)
        else:
            _tell_channels(graph, call, values)
            args, kwargs = call.arguments.fill_in(values)
            if takes_training(call.operation):
                kwargs["training"] = False  # augmentation layers would take None for True
            result = call.operation(*args, **kwargs)
        for tensor, value in zip(call.outputs, keras.tree.flatten(result), strict=True):
            values[id(tensor)] = value


def _tell_channels(graph: ChannelGraph, call: Call, values: dict) -> None:
    """Puts back the static number of channels that sliced kernels lose, where none can go: a
    layer's own code may ask for it."""
    for tensor in call.inputs:
        value = values[id(tensor)]
        if value.shape.rank and value.shape[-1] is None and graph.is_whole(tensor):
            shape = [*value.shape[:-1], tensor.shape[-1]]
            values[id(tensor)] = tf.ensure_shape(value, shape)
