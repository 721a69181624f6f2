"""Unit masks from numbers of filters, for searches that change many gates at once."""

from collections.abc import Callable, Mapping

import numpy as np

from ...nets.gates import Gates


def without(gates: Gates, counts: Mapping[int, int]) -> np.ndarray:
    """The unit mask, float32 [U + 1], after some gates have lost their weakest filters.

    Args:
        counts: {number of the gate: filters to remove}, each less than the gate's width.
    """
    mask = gates.mask()
    for number, count in counts.items():
        mask[gates[number].start + gates[number].weakest(count)] = 0
    return mask


def smallest(reached: Callable[[float], bool], precision: float) -> float | None:
    """The smallest x in (0, 1] at which a condition holds that never ceases to hold as x grows.

    Found by bisection, to `precision`; None if it doesn't hold at 1.
    """
    if not reached(1.0):
        return None
    low, high = 0.0, 1.0
    while high - low > precision:
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high


def relative_scores(gates: Gates, scores: np.ndarray) -> list[np.ndarray]:
    """Scores of each gate's kept filters in units of their root mean square (Molchanov et al. 2017,
    layer-wise l2-normalisation), rising: float64 [width] each.

    Args:
        scores: float64 [U + 1].
    """
    kept = [np.sort(scores[gate.units][gate.kept]) for gate in gates]
    return [one / max(np.sqrt(np.mean(one**2)), 1e-30) for one in kept]
