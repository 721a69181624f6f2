"""The least width of every group: what is excluded keeps all its filters (docs/control.md)."""

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from types import MappingProxyType

import keras
import numpy as np

from ...nets.gates import Group
from ...nets.graph import ChannelGraph
from ...nets.keras_graph import calls_of
from ...options.control import Control
from ...utils.errors import UserError

NEAR = 3  # names that are suggested for a pattern without a match


def excluded(graph: ChannelGraph, patterns: Sequence[str]) -> dict[int, list[str]]:
    """The groups that some layers belong to: those whose channels they give.

    A normalisation or an activation belongs to the group that passes through it.

    Args:
        patterns: names of layers, or shell patterns of them (`*`, `?`, `[...]`).

    Returns:
        {number of a group: names of the layers that exclude it}, in the order of the groups. A
        layer without a prunable channel excludes none.

    Raises:
        UserError: a pattern that matches no layer; near names are suggested.
    """
    if not patterns:
        return {}
    names = list(dict.fromkeys(call.operation.name for call in graph.calls))
    matched = {name for pattern in patterns for name in _matching(pattern, names)}
    gate_of = np.repeat(np.arange(len(graph.groups)), [one.channels for one in graph.groups])
    found: dict[int, list[str]] = {}
    for call in graph.calls:
        name = call.operation.name
        if name not in matched:
            continue
        for tensor in call.outputs:
            units = graph.tensor_units(tensor)
            for number in np.unique(gate_of[units[units < graph.num_units]]).tolist():
                layers = found.setdefault(number, [])
                if name not in layers:
                    layers.append(name)
    return dict(sorted(found.items()))


def located(control: Control, model: keras.Model, places: Mapping[str, str]) -> Control:
    """The limits with the layers to exclude by their names in the core.

    Args:
        model: the core of a given network.
        places: of `Given`: a pattern may name a layer by its place, such as "backbone/conv1", or
            a model or layer that it is inside of, which excludes all its parts.

    Raises:
        UserError: as `excluded`.
    """
    if not control.exclude:
        return control
    names = list(dict.fromkeys(call.operation.name for call in calls_of(model)))
    found = (_matching(pattern, names, places) for pattern in control.exclude)
    return replace(control, exclude=tuple(dict.fromkeys(name for some in found for name in some)))


def _matching(
    pattern: str, names: Sequence[str], places: Mapping[str, str] = MappingProxyType({})
) -> list[str]:
    """The layers among `names` that a pattern means."""
    known = {name: [name, *_around(places.get(name))] for name in names}
    exactly = [name for name in names if pattern in known[name]]
    if found := exactly or [
        name for name in names if any(fnmatchcase(one, pattern) for one in known[name])
    ]:
        return found
    every = list(dict.fromkeys(one for some in known.values() for one in some))
    near = difflib.get_close_matches(pattern.strip("*?"), every, NEAR, 0.5)
    words = f"did you mean {', '.join(near)}?" if near else f"they are {', '.join(names[:NEAR])}..."
    raise UserError(
        f"exclude {pattern!r} matches none of the network's {len(names)} layers: {words} "
        "`inspect` lists them"
    )


def _around(place: str | None) -> list[str]:
    """ "a/b/c" -> ["a", "a/b", "a/b/c"]"""
    parts = place.split("/") if place else []
    return ["/".join(parts[: count + 1]) for count in range(len(parts))]


def lowest_width(channels: int, least: int, round_to: int) -> int:
    """The least width that a group can come to have.

    Args:
        channels: its own width. least: filters that must stay, at most `channels`.
        round_to: every width but the original one is a multiple of this.
    """
    # 64 channels, 10 must stay, by 8 -> 16; 20 channels, 17 must stay, by 8 -> 20
    return min(channels, math.ceil(max(least, 1) / round_to) * round_to)


def least_widths(graph: ChannelGraph, control: Control) -> list[int]:
    """How many filters every group has to keep, 1 .. its width.

    Raises:
        UserError: as `excluded`.
    """
    whole = excluded(graph, control.exclude)
    return [
        group.channels if number in whole else _least(group, control)
        for number, group in enumerate(graph.groups)
    ]


def _least(group: Group, control: Control) -> int:
    wanted = max(control.min_width, math.ceil(control.min_share * group.channels - 1e-9), 1)
    return min(group.channels, wanted)


def check_something_is_left(graph: ChannelGraph, least: Sequence[int]) -> None:
    """Refuses limits under which no filter can leave.

    Args:
        least: as `least_widths` gives it.

    Raises:
        UserError: no group at all, or none that is wider than it must stay.
    """
    if not graph.groups:
        reasons = list(dict.fromkeys((*graph.left.values(), *graph.frozen.values())))
        first = f" ({reasons[0]}{', and more' if len(reasons) > 1 else ''})" if reasons else ""
        raise UserError(
            f"{graph.model.name} has no group of filters that can be pruned{first}: `inspect` says "
            "why of every layer"
        )
    if all(width >= group.channels for width, group in zip(least, graph.groups, strict=True)):
        raise UserError(
            f"exclude, min_width and min_share leave all {len(graph.groups)} groups of "
            f"{graph.model.name} whole: nothing can be pruned"
        )


def smallest_in_words(graph: ChannelGraph, control: Control, round_to: int) -> str:
    """What is left of the smallest network, for `check_reachable`."""
    if control.narrows:
        return "the least widths that exclude, min_width and min_share allow"
    return f"{round_to} filter(s) in each of {len(graph.groups)} groups"


def heaviest_in_words(graph: ChannelGraph) -> str:
    """What hinders most, for `check_reachable`; "" where it is no layer that stays whole."""
    name, share, why = graph.heaviest_left()
    return f"{name} stays whole with {share:.4f} ({why})" if why else ""


def announcement(graph: ChannelGraph, control: Control) -> list[str]:
    """A line for every group that is excluded: whose it is and why, whole."""
    lines = []
    for number, names in excluded(graph, control.exclude).items():
        group = graph.groups[number]
        shared = f", shared by {len(group.layers)} layers," if len(group.layers) > 1 else ""
        lines.append(
            f"excluded: {', '.join(names[:NEAR])}{' ...' if len(names) > NEAR else ''}; the group "
            f"of {group.layers[0]}{shared} keeps its {group.channels} filters"
        )
    return lines
