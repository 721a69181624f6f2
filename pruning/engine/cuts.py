"""Where a network can be cut in two, and how a part of it is run on given weights."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from ...nets.graph import ChannelGraph
from ...nets.keras_graph import Call, live_tensors, takes_training, tell_query_mask
from ...nets.tcl import Gated
from ...utils.trees import parts_of, tree_of

Tensors = tuple[keras.KerasTensor, ...]

MAX_LIVE = 4  # tensors that a cut may pass through: an inception block's branches, a U-Net's skips
LONG = 6  # kernels between two cuts of one tensor: more are cut where several tensors are live


def find_cuts(graph: ChannelGraph, layers: Mapping[str, Gated]) -> tuple[list[int], list[Tensors]]:
    """The cuts: places where a few tensors hold all that the rest of the network needs.

    A cut is worth its memory only where a kernel lies before it. Every such place with a single
    tensor is one. Where more than `LONG` kernels lie between two of them (and the ends), there are
    further ones of at most `MAX_LIVE` tensors, one behind every kernel where that can be, each
    where its tensors are smallest. Inputs that are needed later and outputs that were made early
    count as well.

    Args:
        layers: {name: mask-aware layer} for all of `graph.units`.

    Returns:
        (bounds: the number of the first call of every segment, and the number of all calls; cuts:
        the KerasTensors at the start of every segment, the network's inputs first).
    """
    calls, live = graph.calls, live_tensors(graph.calls, graph.model)
    reads = [_reads(call, layers) for call in calls]
    bounds, kernel = [0], False
    for number in range(1, len(calls)):
        kernel |= reads[number - 1]
        if len(live[number]) == 1 and kernel:
            bounds.append(number)
            kernel = False
    bounds = [
        place
        for first, last in itertools.pairwise([*bounds, len(calls)])
        for place in (first, *_places_inside(graph, live, reads, first, last))
    ]
    return [*bounds, len(calls)], [tuple(graph.model.inputs), *(live[one] for one in bounds[1:])]


def _reads(call: Call, layers: Mapping[str, Gated]) -> bool:
    return bool(getattr(layers.get(call.operation.name), "reads", False))


def _places_inside(
    graph: ChannelGraph, live: list[Tensors], reads: list[bool], first: int, last: int
) -> Iterator[int]:
    """The cuts of several tensors in a run of calls, by the numbers of the calls behind them."""
    if sum(reads[first:last]) <= LONG:
        return
    kernels = [number for number in range(first, last) if reads[number]]
    for one, following in itertools.pairwise(kernels):
        places = [n for n in range(one + 1, following + 1) if _can_be_cut(live[n])]
        if places:  # of equally small ones the last, so that fewest calls are run again
            yield min(reversed(places), key=lambda n: sum(size_of(graph, t) for t in live[n]))


def _can_be_cut(tensors: Tensors) -> bool:
    """Few enough, and each with one row per example."""
    return len(tensors) <= MAX_LIVE and all(one.shape[:1] == (None,) for one in tensors)


def size_of(graph: ChannelGraph, tensor: keras.KerasTensor) -> int:
    """Numbers that one of the network's tensors has for one example."""
    return math.prod(graph.shape_of(tensor)[1:])


# ---------------------------------------------------------------- running


def bound(tensors: Tensors, tree: Any) -> dict[int, Any]:
    """{id of KerasTensor: tensor}, as `run_calls` takes it, from a tree of them."""
    pairs = zip(tensors, parts_of(tree), strict=True)
    return {id(tensor): value for tensor, value in pairs}


def taken(tensors: Tensors, values: Mapping[int, Any]) -> Any:
    """The tree of the values of some KerasTensors: one as it is, several as a tuple."""
    return tree_of(values[id(tensor)] for tensor in tensors)


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
            more = layers[name].further(*call.arguments.fill_in(values))
            result = layers[name].apply(x, weights[name], training=training, **more)
        else:
            _tell_channels(graph, call, values)
            args, kwargs = call.arguments.fill_in(values)
            tell_query_mask(args, kwargs)
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
