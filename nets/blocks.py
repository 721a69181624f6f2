"""Blocks of positions that become channels, and channels that become blocks of positions, written
by hand: a reshape, a transposition and a reshape are one operation of Keras's.

    reshape (n, h, w, b, b, c), transpose (0, 1, 3, 2, 4, 5), reshape (n, h b, w b, c)

is keras.ops.depth_to_space(x, b), the last step of many networks for super-resolution. Unlike the
three it names no sizes, so it fits images of any size and, where filters go, fewer channels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import keras

from .keras_graph import Arguments, Call, DepthToSpace, SpaceToDepth, is_op

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
        if three and (operation := _operation(*three)) is not None:
            inputs = (three[0].inputs[0],)
            replaced[id(call)] = Call(operation, Arguments(inputs), inputs, call.outputs)
            left |= {id(one) for one in three[:-1]}
    return [replaced.get(id(call), call) for call in calls if id(call) not in left]


def _three(last: Call, makers: dict[int, Call]) -> tuple[Call, ...]:
    """A reshape, what was transposed for it, and what was reshaped for that; else nothing."""
    found = (last,)
    for kind in ("Reshape", "Transpose", "Reshape"):
        call = found[0]
        if not is_op(call.operation) or type(call.operation).__name__ != kind:
            return ()
        if len(found) < 3:
            before = makers.get(id(call.inputs[0]))
            if before is None:
                return ()
            found = (before, *found)
    return found


def _operation(first: Call, second: Call, last: Call) -> keras.Operation | None:
    """The operation that does what the three do; None where there is none."""
    axes = second.operation.axes
    if axes is None or [axis % 6 for axis in axes] != EXCHANGED:
        return None
    source, given, made = first.inputs[0], tuple(first.outputs[0].shape), last.outputs[0]
    before, after = tuple(source.shape), tuple(made.shape)
    if None in (*before, *given, *after) or len(before) != 4:
        return None
    n, height, a, width, b, channels = given
    large, small = (n, height * a, width * a, channels), (n, height, width, a * a * channels)
    if a == b and (before, after) == (large, small):
        return SpaceToDepth(a, "channels_last")
    n, height, width, a, b, channels = given
    large, small = (n, height * a, width * a, channels), (n, height, width, a * a * channels)
    if a == b and (before, after) == (small, large):
        return DepthToSpace(a, "channels_last")
    return None
