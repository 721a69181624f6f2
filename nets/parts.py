"""Channels taken apart at fixed places, as a layer: where channels go, the places follow.

`keras.ops.split(x, [8, 16], axis=-1)` and `x[..., 8:16]` of the user's are `Parts` in the core and
a split at the places of what is left in what comes back.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import keras

from .keras_graph import Call, Split
from .op_rules import channels_taken


@keras.saving.register_keras_serializable("ekg_tf")
class Parts(keras.layers.Layer):
    """A split of the last axis.

    Args:
        places: where it is cut, rising.
    """

    def __init__(self, places: Sequence[int], **options: Any):
        super().__init__(**options)
        self.places = tuple(places)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"places": self.places}

    def call(self, x: Any) -> Any:
        """x [n, ..., c] -> a list of [n, ..., channels between two places]."""
        return keras.ops.split(x, list(self.places), axis=-1)

    def operation(self, rank: int) -> keras.Operation:
        """The operation of `keras.ops` that it stands for; `rank` is unused."""
        return Split(list(self.places), axis=-1, name=self.name)


def fixed_parts(call: Call, name: str) -> Callable | None:
    """What a call does where it takes channels apart at fixed places, in place of its operation;
    None for another call."""
    operation, kind = call.operation, type(call.operation).__name__
    if kind not in ("Split", "GetItem") or not call.inputs[0].shape:
        return None
    rank, width = len(call.inputs[0].shape), call.inputs[0].shape[-1]
    if kind == "Split":
        places = operation.indices_or_sections
        if isinstance(places, int) or operation.axis % rank != rank - 1 or not width:
            return None
        rising = [0, *map(int, places), width]
        return Parts(rising[1:-1], name=name, dtype="float32") if _is_rising(rising) else None
    if (taken := channels_taken(call)) is None:
        return None
    (start, stop), others = taken
    places = [place for place in (start, stop) if 0 < place < width]
    if not places:
        return None
    parts, number = Parts(places, name=name, dtype="float32"), int(start > 0)
    whole = all(one == slice(None) for one in others)

    def part(x: Any, _: Any) -> Any:
        made = parts(x)[number]
        return made if whole else made[(*others, slice(None))]

    return part


def _is_rising(places: Sequence[int]) -> bool:
    return all(a < b for a, b in itertools.pairwise(places))
