"""Stages combined under one budget (SWP, docs/method.md 6): dynamic programming over stages.

What is chosen in one stage changes nothing in the others: sizes saved and stage losses add up.
"""

from collections.abc import Sequence

import numpy as np

BINS = 5000  # that the savings needed are cut into


def pareto(saved: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """Numbers of the options that no other one beats in both respects, by rising savings.

    Args:
        saved: float [n], larger = better. losses: float [n], smaller = better.
    """
    front, best = [], np.inf
    for number in np.lexsort((losses, -saved)):
        if losses[number] < best:
            front.append(number)
            best = losses[number]
    return np.array(front[::-1], np.int64)


def combine(
    saved: Sequence[np.ndarray], losses: Sequence[np.ndarray], needed: float
) -> list[int] | None:
    """One option of every stage, with the least sum of losses that saves at least `needed`.

    Savings are rounded down to needed / BINS, so that a choice never saves too little.

    Args:
        saved, losses: of every stage's options, float [options]; savings at least 0.
        needed: more than 0.

    Returns:
        The number of every stage's option; None if all stages together can't save so much.
    """
    # least[b]: the least loss of the stages so far that saves at least b bins
    least = np.full(BINS + 1, np.inf)
    least[0] = 0
    choices, bins = [], np.arange(BINS + 1)
    steps = [np.minimum(BINS, np.floor(one * (BINS / needed) + 1e-9)).astype(int) for one in saved]
    for step, loss in zip(steps, losses, strict=True):
        # a row per option
        totals = least[np.maximum(0, bins[None] - step[:, None])] + loss[:, None]
        choices.append(np.argmin(totals, axis=0))
        least = np.min(totals, axis=0)
    if not np.isfinite(least[BINS]):
        return None
    result, place = [], BINS
    for step, choice in zip(reversed(steps), reversed(choices), strict=True):
        option = int(choice[place])
        result.append(option)
        place = max(0, place - step[option])
    return result[::-1]
