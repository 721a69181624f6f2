"""A network in outline, for its drawing: layers with a kernel and what joins their outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from ..nets.graph import ChannelGraph
from ..nets.keras_graph import is_op
from ..nets.layer_rules import KERNEL_LAYERS

Node = dict[str, Any]
Width = Callable[[keras.KerasTensor], int]


def outline(graph: ChannelGraph, kept: Width) -> list[Node]:
    """The nodes of a network in an order in which they can be run.

    Args:
        graph: of the network before the pruning.
        kept: the channels that one of its KerasTensors has afterwards.

    Returns:
        A dict for each call of a layer with a kernel, or of anything that joins the outputs of
        several: {"name", "kind": class of the layer or operation, "joins": whether it has no kernel
        of its own, "size": [height, width] or whatever the output has between batch and channels,
        "channels": [before, after], "from": numbers of the nodes that it reads}.
    """
    nodes: list[Node] = []
    sources: dict[int, frozenset[int]] = {}
    for call in graph.calls:
        layer = call.operation
        read = [sources.get(id(tensor), frozenset()) for tensor in call.inputs]
        found = frozenset().union(*read)
        has_kernel = type(layer) in KERNEL_LAYERS or (
            layer.name in graph.left and not is_op(layer) and bool(layer.trainable_weights)
        )
        if has_kernel or len(found) > 1:
            tensor = call.outputs[0]
            nodes.append(
                {
                    "name": layer.name,
                    "kind": type(layer).__name__,
                    "joins": not has_kernel,
                    "size": list(graph.shape_of(tensor)[1:-1]),
                    "channels": [int(tensor.shape[-1] or 1), kept(tensor)],
                    "from": sorted(found),
                }
            )
            found = frozenset((len(nodes) - 1,))
        sources |= {id(tensor): found for tensor in call.outputs}
    return nodes


def of_mask(graph: ChannelGraph, mask: np.ndarray) -> list[Node]:
    """The outline of a network and what a unit mask, float32 [U + 1], keeps of it."""
    return outline(graph, lambda tensor: int(np.count_nonzero(mask[graph.tensor_units(tensor)])))


def of_pair(before: ChannelGraph, after: ChannelGraph) -> list[Node]:
    """The outline of a network beside what it was pruned to; empty where they don't correspond.

    A pruned network has the calls of the whole one in the same order.
    """
    kinds = [[type(call.operation) for call in graph.calls] for graph in (before, after)]
    if kinds[0] != kinds[1]:
        return []
    widths = {
        id(old): int(new.shape[-1] or 1)
        for one, other in zip(before.calls, after.calls, strict=True)
        for old, new in zip(one.outputs, other.outputs, strict=True)
    }
    return outline(before, lambda tensor: widths[id(tensor)])
