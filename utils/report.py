"""The before -> after block that search, fine-tuning and test print."""

from __future__ import annotations

from collections.abc import Sequence

NOT_MEASURED = "not measured"
Row = tuple[str, float | None, float | None, str]


def before_after(rows: Sequence[Row]) -> str:
    """An aligned table with the columns name, before, after and after / before.

    Each row is (name, before, after, format spec of both numbers, e.g. ",.0f" or ".2%");
    None stands for a number that was not measured. Example:

                      before       after   ratio
        parameters   855,770     402,212   0.470
    """
    cells = [["", "before", "after", "ratio"]]
    for name, before, after, spec in rows:
        cells.append([name, _number(before, spec), _number(after, spec), _ratio(before, after)])
    widths = [max(len(row[column]) for row in cells) for column in range(4)]
    lines = []
    for name, *numbers in cells:
        right = [text.rjust(width) for text, width in zip(numbers, widths[1:], strict=True)]
        lines.append("   ".join([name.ljust(widths[0]), *right]))
    return "\n".join(lines)


def _number(value: float | None, spec: str) -> str:
    return NOT_MEASURED if value is None else format(value, spec)


def _ratio(before: float | None, after: float | None) -> str:
    if before is None or after is None or before == 0:
        return "-"
    return f"{after / before:.3f}"
