"""A network as a picture: layers in order, one row per resolution, filled as far as they are kept.

A network that gets coarser goes down the stairs, a U-Net down and up again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from .charts import Drawing
from .runs import Row

STEP, JOIN_STEP = 16.0, 8.0  # to the right, from one layer to the next
BOX, LEAST_BOX, LARGEST_BOX = 11.0, 9.0, 64.0  # width of a box; heights
GAP = 34.0  # between rows, for their captions
LABELLED = 28  # layers that are few enough for numbers below them
LABELLED_STEP = 40.0
TIMES = " \N{MULTIPLICATION SIGN} "


def levels_of(nodes: Sequence[Row]) -> list[int]:
    """The row of every node, 0 for the largest resolution.

    What has one place only, such as squeeze-and-excitation or a head, stays where it comes from.
    """
    sizes = [tuple(node["size"]) for node in nodes]
    places = [math.prod(size) for size in sizes]
    ranks = {size: rank for rank, size in enumerate(sorted({*places} - {1}, reverse=True))}
    levels: list[int] = []
    for node, place in zip(nodes, places, strict=True):
        before = [levels[source] for source in node["from"]]
        levels.append(ranks[place] if place in ranks else max(before, default=0))
    return levels


def blocks_of(nodes: Sequence[Row]) -> list[int]:
    """The block of every node: a new one begins where a single tensor leads on and the resolution
    changes, or where what a single tensor led on to has been joined."""
    last_read = list(range(len(nodes)))
    for number, node in enumerate(nodes):
        for source in node["from"]:
            last_read[source] = number
    block, blocks, open_until = 0, [], 0
    for number, node in enumerate(nodes):
        blocks.append(block)
        alone = open_until <= number
        open_until = max(open_until, last_read[number])
        following = nodes[number + 1] if number + 1 < len(nodes) else None
        resized = following is not None and following["size"] != node["size"]
        if alone and (node["joins"] or resized):
            block += 1
    return blocks


def drawn(nodes: Sequence[Row], key: str, title: str) -> Drawing:
    """The picture of an outline (`reports.outline`)."""
    levels = levels_of(nodes)
    kernels = sum(not node["joins"] for node in nodes)
    labelled = kernels <= LABELLED
    step = LABELLED_STEP if labelled else STEP
    box = 2 * BOX if labelled else BOX
    most = max((node["channels"][0] for node in nodes), default=1)
    heights = [_height(node["channels"][0], most) for node in nodes]
    count = 1 + max(levels, default=0)
    tallest = [
        max((h for h, row in zip(heights, levels, strict=True) if row == level), default=0)
        for level in range(count)
    ]
    middles, y = [], 0.0
    for height in tallest:
        middles.append(y + GAP + height / 2)
        y += GAP + height
    places: list[tuple[float, float]] = []
    boxes, joins, labels = [], [], []
    x = step / 2
    for node, level, height in zip(nodes, levels, heights, strict=True):
        middle = middles[level]
        places.append((x, middle))
        before, after = node["channels"]
        note = f"{_words(node)}: {after} of {before} channels"
        if node["joins"]:
            joins.append((x, middle, note))
            x += max(JOIN_STEP, step / 2)
            continue
        share = after / max(1, before)
        left, top = x - box / 2, middle - height / 2
        boxes.append((left, top, left + box, top + height, share, note))
        if labelled:
            text = str(before) if before == after else f"{before}→{after}"
            labels.append((x, middle + height / 2 + 10, text))
        x += step
    edges = [
        _edge(places[source], places[number], number - source > 1, tallest[levels[source]])
        for number, node in enumerate(nodes)
        for source in node["from"]
    ]
    captions = _captions(nodes, levels, places, tallest)
    return Drawing(key, title, x, y + GAP / 2, boxes, joins, edges, captions, labels)


def _height(channels: int, most: int) -> float:
    """The root of the number of channels, so that the first layers can be seen beside the last."""
    return max(LEAST_BOX, LARGEST_BOX * math.sqrt(channels / max(1, most)))


def _edge(
    begin: tuple[float, float], end: tuple[float, float], skips: bool, tallest: float
) -> list[tuple[float, float]]:
    """From one node to another; what skips others goes above them."""
    if not skips:
        return [begin, end]
    top = begin[1] - tallest / 2 - 8
    return [begin, (begin[0], top), (end[0], top), end]


def _captions(
    nodes: Sequence[Row],
    levels: Sequence[int],
    places: Sequence[tuple[float, float]],
    tallest: Sequence[float],
) -> list[tuple[float, float, str]]:
    """The resolution of every row, above the first of its boxes."""
    found: dict[int, tuple[float, float, str]] = {}
    for node, level, (x, middle) in zip(nodes, levels, places, strict=True):
        if math.prod(node["size"]) != 1 and level not in found:
            found[level] = (x - BOX / 2, middle - tallest[level] / 2 - 11, size_text(node))
    return list(found.values())


def size_text(node: Row) -> str:
    """A resolution as it is written, height and width."""
    return TIMES.join(str(int(one)) for one in node["size"]) or "1"


def _words(node: Row) -> str:
    return f"{node['name']} ({node['kind']}, {size_text(node)})"
