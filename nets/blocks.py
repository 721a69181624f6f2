"""Blocks of positions that become channels, and channels that become blocks of positions, written
by hand: a reshape, a transposition and a reshape are one operation of Keras's.

    reshape (n, h, w, b, b, c), transpose (0, 1, 3, 2, 4, 5), reshape (n, h b, w b, c)

is keras.ops.depth_to_space(x, b), the last step of many networks for super-resolution. Unlike the
three it names no sizes, so it fits images of any size and, where filters go, fewer channels. And

    reshape (n, h, w, g, c), transpose (0, 1, 2, 4, 3), reshape (n, h, w, g c)

puts the channels in another order (`nets.shuffles`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import keras
import numpy as np

from .keras_graph import Arguments, Call, DepthToSpace, SpaceToDepth, Take, is_op

L = keras.layers
EXCHANGED = [0, 1, 3, 2, 4, 5]


def with_blocks(calls: Sequence[Call], outputs: Sequence) -> list[Call]:
    """The calls, each such three as one.

    Args:
        calls: in an order in which they can be run.
        outputs: what else is read of what they give.
    """
    readers = Counter(id(one) for call in calls for one in call.inputs)
    readers.update(map(id, outputs))
    makers: dict[int, Call] = {}
    replaced: dict[int, Call] = {}
    left: set[int] = set()
    for call in calls:
        three = _three(call, makers)
        makers |= dict.fromkeys(map(id, call.outputs), call)
        if any(readers[id(one.outputs[0])] != 1 for one in three[:-1]):
            continue
        if three and (made := _as_one(*three)) is not None:
            replaced[id(call)] = made
            left |= {id(one) for one in three[:-1]}
    return [replaced.get(id(call), call) for call in calls if id(call) not in left]


def _three(last: Call, makers: dict[int, Call]) -> tuple[Call, ...]:
    """A reshape, what was transposed for it, and what was reshaped for that; else nothing."""
    found = (last,)
    for kinds in (("Reshape",), ("Transpose", "Permute"), ("Reshape",)):
        call = found[0]
        known = is_op(call.operation) or type(call.operation) in (L.Reshape, L.Permute)
        if not known or type(call.operation).__name__ not in kinds:
            return ()
        if len(found) < 3:
            before = makers.get(id(call.inputs[0]))
            if before is None:
                return ()
            found = (before, *found)
    return found


def _as_one(first: Call, second: Call, last: Call) -> Call | None:
    """One call that does what the three do; None where there is none."""
    source, rank = first.inputs[0], len(first.outputs[0].shape)
    axes = _axes_of(second.operation, rank)
    shapes = [tuple(one.shape) for one in (source, first.outputs[0], last.outputs[0])]
    examples = {shape[:1] for shape in shapes}
    if axes is None or len(examples) != 1 or any(None in shape[1:] for shape in shapes):
        return None
    before, given, after = (shape[1:] for shape in shapes)
    arguments: tuple = (source,)
    if axes == [*range(rank - 2), rank - 1, rank - 2]:
        if before != after or given[:-2] != before[:-1]:
            return None
        operation = Take(axis=-1)
        arguments = source, np.arange(before[-1]).reshape(given[-2:]).T.ravel()
    else:
        operation = _blocks(before, given, after) if axes == EXCHANGED else None
    if operation is None:
        return None
    return Call(operation, Arguments(arguments), (source,), last.outputs)


def _axes_of(operation: keras.Operation, rank: int) -> list[int] | None:
    """How a transposition orders the axes, that of the examples counted."""
    if isinstance(operation, L.Permute):
        return [0, *operation.dims]
    return None if operation.axes is None else [axis % rank for axis in operation.axes]


def _blocks(before: tuple, given: tuple, after: tuple) -> keras.Operation | None:
    """The operation between shapes [h, w, c], with [h, b, w, b, c] or so on the way."""
    if len(before) != 3:
        return None
    height, a, width, b, channels = given
    large, small = (height * a, width * a, channels), (height, width, a * a * channels)
    if a == b and (before, after) == (large, small):
        return SpaceToDepth(a, "channels_last")
    height, width, a, b, channels = given
    large, small = (height * a, width * a, channels), (height, width, a * a * channels)
    if a == b and (before, after) == (small, large):
        return DepthToSpace(a, "channels_last")
    return None
