"""What can be pruned in a network, before any search."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..nets.graph import ChannelGraph
from ..nets.layer_rules import DEPTHWISE, KERNEL_LAYERS, is_depthwise
from ..options.control import Control
from ..pruning.space.candidates import lowest_mask
from ..pruning.space.limits import excluded, least_widths
from ..utils.columns import aligned

LARGEST_LIST = 4  # layers named per group
NO_LIMITS = Control()


def filters(graph: ChannelGraph, excluded: Iterable[int] = ()) -> tuple[int, int]:
    """(filters in prunable groups, all filters).

    Counted are the output channels of convolutions and dense layers but for depthwise ones, whose
    channels are their input's.

    Args:
        excluded: numbers of groups that don't count as prunable.
    """
    free = graph.open_mask()
    free[-1] = 0
    for number in excluded:
        free[graph.groups[number].units] = 0
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
            prunable += int(np.count_nonzero(free[units]))
    return prunable, total


def inspection(graph: ChannelGraph, control: Control = NO_LIMITS) -> dict[str, Any]:
    """All that is known about a network before a search, as plain data.

    Args:
        control: what is excluded, and what groups must keep.

    Returns:
        {"network", "flops", "parameters", "filters", "prunable_filters", "lowest_rate": FLOPs left
        with the least filters in every group, "lowest_parameters": likewise, "groups": [{"layers",
        "width", "least": filters that must stay, "prunable", "reason"}]}; layers with weights that
        can't be pruned are listed one by one.

    Raises:
        UserError: a layer to exclude that isn't there.
    """
    whole, least = excluded(graph, control.exclude), least_widths(graph, control)
    prunable, total = filters(graph, whole)
    groups = [
        {
            "layers": list(group.layers),
            "width": group.channels,
            "least": least[number],
            "prunable": number not in whole,
            "reason": f"excluded by {', '.join(whole[number])}" if number in whole else None,
        }
        for number, group in enumerate(graph.groups)
    ]
    smallest = lowest_mask(graph, 1, least)
    for name, reason in graph.frozen.items():
        layer = graph.model.get_layer(name)
        width = getattr(layer, "filters", None) or getattr(layer, "units", None)
        width = width or len(graph.units[name][1])
        frozen = {"layers": [name], "width": width, "least": width}
        groups.append(frozen | {"prunable": False, "reason": reason})
    shapes = {call.operation.name: call.outputs[0].shape for call in graph.calls}
    for layer in graph.model.layers:
        if layer.name in graph.left and layer.name not in graph.frozen and layer.weights:
            width = shapes[layer.name][-1] if shapes[layer.name] else 1
            left = {"layers": [layer.name], "width": width, "least": width}
            groups.append(left | {"prunable": False, "reason": graph.left[layer.name]})
    return {
        "network": graph.model.name,
        "flops": graph.flops(),
        "parameters": graph.parameters(),
        "filters": total,
        "prunable_filters": prunable,
        "lowest_rate": graph.flops(smallest) / max(1, graph.flops()),
        "lowest_parameters": graph.parameters(smallest) / max(1, graph.parameters()),
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
        state = f"prunable, down to {group['least']}" if group["least"] > 1 else "prunable"
        if not group["prunable"]:
            state = f"not prunable: {group['reason']}"
        rows.append((str(number), str(group["width"]), names, state))
    lines = [aligned([("group", "width", "layers", ""), *rows], right=(0, 1), gap="  ")]
    share = 100 * result["prunable_filters"] / max(1, result["filters"])
    count = sum(group["prunable"] for group in result["groups"])
    lines += [
        "",
        f"{result['network']}: {result['parameters']:,} parameters, {result['flops']:,} FLOPs "
        "(multiply-accumulates) per example",
        f"{result['prunable_filters']:,} of {result['filters']:,} filters ({share:.1f} %) are in "
        f"{count} prunable groups",
        f"smallest FLOPs rate ({_left(result)} per group): {result['lowest_rate']:.4f}, "
        f"of the parameters {result['lowest_parameters']:.4f}",
    ]
    return "\n".join(lines)


def _left(result: dict[str, Any]) -> str:
    """What is left of a group in the smallest network, in words."""
    limited = any(group["prunable"] and group["least"] > 1 for group in result["groups"])
    return "the least filters" if limited else "one filter"
