"""What is printed of figures: the before -> after block, Markdown tables, means over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ..utils.columns import aligned

NOT_MEASURED = "not measured"
Row = tuple[str, float | None, float | None, str]


def before_after(
    rows: Sequence[Row], ratios: Mapping[str, Sequence[float] | None] | None = None
) -> str:
    """An aligned table with the columns name, before, after and after / before.

    Each row is (name, before, after, format spec of both numbers, e.g. ",.0f" or ".2%");
    None stands for a number that was not measured. `ratios` has for the names of noisy figures the
    (lowest, highest) ratio that their measurement admits. Example:

                      before       after   ratio
        parameters   855,770     402,212   0.470
    """
    cells = [["", "before", "after", "ratio"]]
    for name, before, after, spec in rows:
        ratio = _ratio(before, after, (ratios or {}).get(name))
        cells.append([name, _number(before, spec), _number(after, spec), ratio])
    return aligned(cells, right=(1, 2, 3))


def _number(value: float | None, spec: str) -> str:
    return NOT_MEASURED if value is None else format(value, spec)


def _ratio(before: float | None, after: float | None, bounds: Sequence[float] | None = None) -> str:
    if before is None or after is None or before == 0:
        return "-"
    if bounds:
        low, high = bounds
        if low <= 1 <= high:
            return "1.00 (no measurable change)"
        return f"{after / before:.2f} ({low:.2f} to {high:.2f})"
    return f"{after / before:.3f}"


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    lines = [list(header), ["---"] * len(list(header)), *map(list, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def spread(values: list[float], spec: str = ".2f") -> str:
    """Mean ± standard deviation (n - 1) and the number of values; "not measured" for none."""
    text = plus_minus(values, spec)
    return f"{text} (n = {len(values)})" if values else text


def plus_minus(values: Sequence[float], spec: str = ".2f") -> str:
    """Mean ± standard deviation (n - 1), without the number of values, as of `spread`."""
    if not values:
        return NOT_MEASURED
    mean = format(float(np.mean(values)), spec)
    if len(values) == 1:
        return mean
    return f"{mean} ± {format(float(np.std(values, ddof=1)), spec)}"


def two_digits(values: Sequence[float]) -> str:
    """The format spec that shows the mean of positive numbers with two digits, e.g. ".3f"."""
    mean = float(np.mean(values)) if len(values) else 0.0
    return f".{max(0, 1 - math.floor(math.log10(mean)))}f" if mean > 0 else ".2f"
