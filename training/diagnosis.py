"""What was NaN first, where a loss became NaN: the batch, the loss itself, or the weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np
import tensorflow as tf

GREW = 10  # times the first loss: a training that diverges
NOUNS = {"inputs": "inputs", "targets": "targets", "weights": "sample weights"}


def first_cause(batches: Iterable[dict], place: int, losses: Sequence[float], steps: int) -> str:
    """What to look at, in words.

    Args:
        batches: those that the training got, from their beginning. place: number in them of the
            batch whose loss isn't finite.
        losses: of the batches before it, all finite. steps: of the training before `batches`.
    """
    batch = next(islice(batches, place, None), {})
    for key, tree in batch.items():
        if found := _bad_examples(tree):
            rows, index = found, batch.get("index")
            named = rows if index is None else [int(index[row]) for row in rows]
            return (
                f"the {NOUNS.get(key, key)} of that batch hold NaN or infinite numbers, those of "
                f"training example {', '.join(map(str, named[:3]))} first: check the data and what "
                "augments it"
            )
    if not len(losses) and not steps:
        return (
            "the weights and the batch are finite, so the loss itself gives it: look for a "
            "logarithm or a division of zero in the loss, and at the scale of the targets"
        )
    last = losses[-1] if len(losses) else np.nan
    if len(losses) and last > GREW * abs(losses[0]):
        return (
            f"the batch is finite; the loss had grown from {losses[0]:.3g} to {last:.3g}, so the "
            "weights have left all bounds: try a lower learning rate"
        )
    return (
        f"the batch is finite, and the loss of the step before was {last:.3g}, so it is either the "
        "weights after that step (a lower learning rate, or float32 instead of mixed precision) or "
        "the loss itself on this batch (a logarithm or a division of zero in it)"
    )


def _bad_examples(tree: object) -> list[int]:
    """Rows of a batch in which some number isn't finite."""
    for leaf in tf.nest.flatten(tree):
        array = np.asarray(leaf)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            return np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(1)).tolist()
    return []
