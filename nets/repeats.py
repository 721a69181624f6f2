"""A number for every step, repeated for all channels, where a sum or product repeats it anyway.

    weights [n, t]    RepeatVector(c), Permute((2, 1))    [n, t, c]

is how attention over steps was written by hand for years. As [n, t, 1] it names no number of
channels, so these can be removed.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras

from .keras_graph import Arguments, Call, ExpandDims, is_op
from .layer_rules import MERGES as MERGE_LAYERS
from .op_rules import MERGES

L = keras.layers


def without_repeats(calls: Sequence[Call], outputs: Sequence) -> list[Call]:
    """The calls, each such two as one that only adds an axis.

    Args:
        calls: in an order in which they can be run.
        outputs: what else is read of what they give.
    """
    read_else = set(map(id, outputs))
    makers = {id(one): call for call in calls for one in call.outputs}
    found = []
    for call in calls:
        repeat = makers.get(id(call.inputs[0])) if type(call.operation) is L.Permute else None
        if repeat is not None and type(repeat.operation) is L.RepeatVector:
            (made,), source = call.outputs, repeat.inputs[0]
            readers = [one for one in calls if any(made is tensor for tensor in one.inputs)]
            if id(made) not in read_else and all(_stretches(one, made) for one in readers):
                call = Call(ExpandDims(-1), Arguments((source,)), (source,), call.outputs)
        found.append(call)
    return found


def _stretches(call: Call, tensor: keras.KerasTensor) -> bool:
    """Whether a call is a sum, product or the like of this tensor with others of its shape."""
    operation = call.operation
    known = is_op(operation) and type(operation).__name__ in MERGES
    others = [one for one in call.inputs if one is not tensor]
    merges = known or type(operation) in MERGE_LAYERS
    return merges and bool(others) and all(one.shape == tensor.shape for one in others)
