"""What can be pruned in a network, before any search."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..nets.graph import ChannelGraph
from ..nets.layer_rules import DEPTHWISE, KERNEL_LAYERS, is_depthwise
from ..utils.columns import aligned

LARGEST_LIST = 4  # layers named per group


def filters(graph: ChannelGraph) -> tuple[int, int]:
    """(filters in prunable groups, all filters).

    Counted are the output channels of convolutions and dense layers but for depthwise ones, whose
    channels are their input's.
    """
    prunable = total = 0
    for layer in {id(call.operation): call.operation for call in graph.calls}.values():
        if type(layer) not in KERNEL_LAYERS or type(layer) in DEPTHWISE:
            continue
        in_units, units = graph.units.get(layer.name, ((), None))
        if is_depthwise(layer, len(in_units)) if hasattr(layer, "kernel_size") else False:
            continue
        if units is None:  # no rule: never pruned
            total += getattr(layer, "filters", 0)
        else:
            total += len(units)
            prunable += int(np.count_nonzero(units < graph.num_units))
    return prunable, total


def inspection(graph: ChannelGraph) -> dict[str, Any]:
    """All that is known about a network before a search, as plain data.

    Returns:
        {"network", "flops", "parameters", "filters", "prunable_filters", "lowest_rate": FLOPs left
        with one filter per group, "lowest_parameters": likewise, "groups": [{"layers", "width",
        "prunable", "reason"}]}; layers
        that aren't prunable are listed one by one.
    """
    prunable, total = filters(graph)
    groups = [
        {"layers": list(gate.layers), "width": gate.channels, "prunable": True, "reason": None}
        for gate in graph.groups
    ]
    for name, reason in graph.frozen.items():
        layer = graph.model.get_layer(name)
        width = getattr(layer, "filters", None) or getattr(layer, "units", None)
        width = width or len(graph.units[name][1])
        groups.append({"layers": [name], "width": width, "prunable": False, "reason": reason})
    return {
        "network": graph.model.name,
        "flops": graph.flops(),
        "parameters": graph.parameters(),
        "filters": total,
        "prunable_filters": prunable,
        "lowest_rate": graph.lowest_rate(),
        "lowest_parameters": graph.parameters(graph.least_mask()) / max(1, graph.parameters()),
        "groups": groups,
    }


def text(result: dict[str, Any]) -> str:
    """An `inspection` to be read."""
    rows = []
    for number, group in enumerate(result["groups"]):
        shown = group["layers"][:LARGEST_LIST]
        names = ", ".join(shown)
        if len(group["layers"]) > len(shown):
            names += f" and {len(group['layers']) - len(shown)} more"
        state = "prunable" if group["prunable"] else f"not prunable: {group['reason']}"
        rows.append((str(number), str(group["width"]), names, state))
    lines = [aligned([("group", "width", "layers", ""), *rows], right=(0, 1), gap="  ")]
    share = 100 * result["prunable_filters"] / max(1, result["filters"])
    count = sum(group["prunable"] for group in result["groups"])
    lines += [
        "",
        f"{result['network']}: {result['parameters']:,} parameters, {result['flops']:,} FLOPs "
        "(multiply-accumulates) per image",
        f"{result['prunable_filters']:,} of {result['filters']:,} filters ({share:.1f} %) are in "
        f"{count} prunable groups",
        f"smallest FLOPs rate (one filter per group): {result['lowest_rate']:.4f}, "
        f"of the parameters {result['lowest_parameters']:.4f}",
    ]
    return "\n".join(lines)
