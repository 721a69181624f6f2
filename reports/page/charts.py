"""What a page shows as pictures, as plain data that `static` and `interactive` draw alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...options.budgets import LABELS
from . import figures
from .runs import PLACES, SEEDS, Row, Run, number

HELD_OUT = "on examples held out of the training set (D_val)"
MOST_COLUMNS = 400  # steps of a search that its map of widths tells apart


@dataclass(frozen=True)
class Series:
    """One line: x and y of one length.

    Attributes:
        low, high: ends of a band, or of bars where there are `points`; empty without.
        notes: what is said of a point when it is pointed at; empty without.
        dashed: drawn dashed. points: points without a line between them.
        colour: number of its colour.
    """

    label: str
    x: list[float]
    y: list[float]
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    dashed: bool = False
    points: bool = False
    colour: int = 0


@dataclass(frozen=True)
class Lines:
    """Lines over a common axis; `mark`: a place on x with its name."""

    key: str
    title: str
    x_label: str
    y_label: str
    series: list[Series]
    falling: bool = False  # x from high to low
    whole: bool = False  # x counts something
    logarithmic: bool = False  # y
    mark: tuple[float, str] | None = None

    @property
    def has_legend(self) -> bool:
        """Whether there is more than one line to tell apart."""
        return len(self.series) > 1


@dataclass(frozen=True)
class Map:
    """Which share of every row is left from which x on.

    Attributes:
        cells: (row, from x, to x, share 0 .. 1, note).
    """

    key: str
    title: str
    x_label: str
    rows: list[str]
    cells: list[tuple[int, float, float, float, str]]
    end: float  # of x


@dataclass(frozen=True)
class Drawing:
    """A network: boxes and the lines between them, in units of x to the right and y downwards.

    Attributes:
        boxes: (left, top, right, bottom, share kept 0 .. 1, note).
        joins: (x, y, note) of what joins several.
        edges: points (x, y) of a line.
        levels: (x, y, text) of captions.
        labels: (x, y, text) below boxes, where there is room.
    """

    key: str
    title: str
    width: float
    height: float
    boxes: list[tuple[float, float, float, float, float, str]]
    joins: list[tuple[float, float, str]]
    edges: list[list[tuple[float, float]]]
    levels: list[tuple[float, float, str]]
    labels: list[tuple[float, float, str]]


Chart = Lines | Map | Drawing


# ---------------------------------------------------------------- the search


def budget_label(run: Run) -> str:
    """What the search of a run had to save."""
    return LABELS.get(str(run.args.get("budget")), "FLOPs")


def search_lines(runs: Sequence[Run]) -> list[Lines]:
    """FLOPs (or what else was saved) against what decided, and against accuracy where it was."""
    searched = [run for run in runs if len(run.history) > 1]
    if not searched:
        return []
    labels = list(dict.fromkeys(map(budget_label, searched)))
    targets = {number(run.args.get("search_target_rate")) for run in searched}
    target = targets.pop() if len(targets) == 1 else None
    wanted = (
        ("val_loss", "search-loss", f"Loss along the search, {HELD_OUT}", "loss"),
        ("val_accuracy", "search-accuracy", f"Accuracy along the search, {HELD_OUT}", "top-1 [%]"),
        ("score", "search-score", "Score along the search", "score"),
    )
    charts = []
    for column, key, title, y_label in wanted:
        series = [
            _search_series(run, column, colour)
            for colour, run in enumerate(searched)
            if any(number(row.get(column)) is not None for row in run.history)
        ]
        if series:
            charts.append(
                Lines(
                    key,
                    title,
                    f"{' / '.join(labels)} kept [%]",
                    y_label,
                    series,
                    falling=True,
                    mark=None if target is None else (100 * target, "target"),
                )
            )
    return charts


def _search_series(run: Run, column: str, colour: int) -> Series:
    rows = [row for row in run.history if None not in (number(row.get(column)), rate_of(row))]
    return Series(
        run.name,
        [100 * rate_of(row) for row in rows],
        [float(row[column]) for row in rows],
        notes=[_told(row, before) for row, before in zip(rows, [None, *rows], strict=False)],
        colour=colour,
    )


def rate_of(row: Row) -> float | None:
    """The share of the budget that a step leaves; rows of old versions have the FLOPs' alone."""
    return number(row.get("rate", row.get("flops_rate")))


def _told(row: Row, before: Row | None) -> str:
    if before is None:
        return "start: the given network, adapted to the search's examples"
    removed = len(row.get("removed_units", ()))
    restored = len(row.get("restored_units", ()))
    back = f", {restored} taken back" if restored else ""
    where = f" of {row['name']}" if "name" in row else ""
    return f"step {row['step']}: {removed} filters{where} removed{back}"


def group_names(run: Run) -> list[str]:
    """The names of a search's groups of channels, in order."""
    if run.search is not None:
        return [str(one) for one in run.search["gates"]]
    named = {row["gate"]: str(row["name"]) for row in run.history if "name" in row}
    return [named.get(gate, f"group {gate}") for gate in range(len(run.history[0]["widths"]))]


def removal_map(run: Run, key: str) -> Map | None:
    """What was removed when; None for a search of one step."""
    if len(run.history) < 3:
        return None
    full, last = run.history[0]["widths"], len(run.history) - 1
    names = _told_apart(group_names(run))
    stride = max(1, -(-last // MOST_COLUMNS))
    shown = [*range(0, last, stride), last]
    cells = []
    for gate, name in enumerate(names):
        begin, width = 0, full[gate]
        for step in shown[1:]:
            now = run.history[step]["widths"][gate]
            if now != width:
                cells.append(_cell(gate, begin, step, width, full[gate], name))
                begin, width = step, now
        cells.append(_cell(gate, begin, last + 1, width, full[gate], name))
    return Map(key, "What was removed when", "step of the search", names, cells, last + 1)


def _told_apart(names: Sequence[str]) -> list[str]:
    """Names of which no two are alike."""
    found: list[str] = []
    for name in names:
        while name in found:
            name += "'"
        found.append(name)
    return found


def _cell(
    gate: int, begin: int, end: int, width: int, full: int, name: str
) -> tuple[int, float, float, float, str]:
    note = f"{name}: {width} of {full} filters, steps {begin} to {end - 1}"
    return gate, begin, end, width / max(1, full), note


# ---------------------------------------------------------------- trainings


def groups_of_seeds(runs: Iterable[Run]) -> list[tuple[str, list[Run]]]:
    """Runs that differ in their seed alone, together; each under a name that tells it apart."""
    found: list[tuple[Row, list[Run]]] = []
    for run in runs:
        for settings, members in found:
            if settings == run.settings:
                members.append(run)
                break
        else:
            found.append((run.settings, [run]))
    return [(group_name(members), members) for _, members in found]


def group_name(runs: Sequence[Run]) -> str:
    """A run's name, or those of several seeds."""
    if len(runs) == 1:
        return runs[0].name
    return f"{runs[0].name} and {len(runs) - 1} more seed{'s' if len(runs) > 2 else ''}"


def training_lines(runs: Sequence[Run], phase: str, title: str) -> list[Lines]:
    """Loss and metrics by epoch of one phase; bands of a standard deviation over seeds."""
    trained = [run for run in runs if any(row["phase"] == phase for row in run.metrics)]
    groups = groups_of_seeds(trained)
    columns = _columns(trained, phase)
    charts = []
    for y_label, wanted in columns.items():
        series = [
            made
            for colour, (name, members) in enumerate(groups)
            for column, kind in wanted
            for label in [f"{name}, {kind}" if len(groups) > 1 else kind]
            if (made := _trained(members, phase, column, label, kind, colour))
        ]
        if series:
            key = f"{phase}-{len(charts)}"
            logarithmic = "loss" in y_label and all(min(one.y) > 0 for one in series)
            text = f"{title}: {y_label.removesuffix(' [%]')}"
            charts.append(
                Lines(key, text, "epoch", y_label, series, whole=True, logarithmic=logarithmic)
            )
    return charts


def _columns(runs: Sequence[Run], phase: str) -> dict[str, list[tuple[str, str]]]:
    """{label of y: [(column, kind of line)]} of what the rows of a phase hold."""
    rows = [row for run in runs for row in run.metrics if row["phase"] == phase]
    found = {"loss": [("loss", "training"), ("test_loss", "test")]}
    if any("test_top1" in row for row in rows):
        found["top-1 [%]"] = [("accuracy", "training"), ("test_top1", "test")]
    names = dict.fromkeys(name for row in rows for name in row.get("test_metrics", {}))
    return found | {str(name): [(f"test_metrics/{name}", "test")] for name in names}


def _trained(
    runs: Sequence[Run], phase: str, column: str, label: str, kind: str, colour: int
) -> Series | None:
    values: dict[int, list[float]] = {}
    for run in runs:
        for row in run.metrics:
            value = number(_entry(row, column)) if row["phase"] == phase else None
            if value is not None:
                values.setdefault(int(row["epoch"]), []).append(value)
    epochs = sorted(epoch for epoch in values if len(values[epoch]) == len(runs))
    if not epochs:
        return None
    means, errors = zip(*(mean_and_deviation(values[epoch]) for epoch in epochs), strict=True)
    several = len(runs) > 1
    low = [mean - error for mean, error in zip(means, errors, strict=True)] if several else []
    high = [mean + error for mean, error in zip(means, errors, strict=True)] if several else []
    return Series(
        label,
        [float(epoch) for epoch in epochs],
        list(means),
        low,
        high,
        dashed=kind == "training",
        colour=colour,
    )


def _entry(row: Row, column: str) -> Any:
    head, _, name = column.partition("/")
    return row.get(head, {}).get(name) if name else row.get(column)


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation, 0 of one value."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, 0.0
    return mean, (sum((one - mean) ** 2 for one in values) / (len(values) - 1)) ** 0.5


# ---------------------------------------------------------------- several budgets

OF_BUDGET = ("search_target_rate", "budgets", "rate", *SEEDS, *PLACES)


def front_lines(runs: Sequence[Run]) -> list[Lines]:
    """What networks of several sizes are worth, of one search or of several runs."""
    ended = [run for run in runs if run.sides]
    if len(ended) < 2 and not any(_kept_on_the_way(run) for run in ended):
        return []
    charts = []
    for figure in _common_figures(ended):
        for axis, x_label in (("flops", "FLOPs kept [%]"), ("latency", "ms per example, batch 1")):
            series = _front_series(ended, figure, axis)
            if sum(len(one.x) for one in series) > 1:
                charts.append(
                    Lines(
                        f"front-{len(charts)}",
                        f"{figure.title} against {'FLOPs' if axis == 'flops' else 'latency'}",
                        x_label,
                        figure.label,
                        series,
                        falling=True,
                    )
                )
        if charts:
            break
    return charts


def _kept_on_the_way(run: Run) -> list[Row]:
    return [one for one in (run.search or {}).get("front", []) if "test" in one]


def _common_figures(runs: Sequence[Run]) -> list[figures.Figure]:
    """The figures by which the runs can be compared, the most telling first."""
    return [
        one
        for one in figures.of_test(runs[0].sides[1])
        if all(one.value(run.sides[1]) is not None for run in runs)
    ]


def _front_series(runs: Sequence[Run], figure: figures.Figure, axis: str) -> list[Series]:
    found = []
    without_budget = [(_without(run.args, OF_BUDGET), run) for run in runs]
    groups: list[tuple[Row, list[Run]]] = []
    for settings, run in without_budget:
        same = next((members for known, members in groups if known == settings), None)
        if same is None:
            groups.append((settings, [run]))
        else:
            same.append(run)
    for colour, (_, members) in enumerate(groups):
        alone = len(groups) == 1
        name = group_name(members) if len(members) == 1 else f"{members[0].name} and like it"
        searched = [point for run in members for point in _search_points(run, figure, axis)]
        tuned = [point for run in members for point in _tuned_points(run, figure, axis)]
        given = [_given_point(members[0], figure, axis)]
        for label, points, dashed in (
            ("not fine-tuned", searched, True),
            ("fine-tuned", tuned, False),
        ):
            if points:
                whole = sorted(point for point in given + points if point)
                told = label if alone else f"{name}, {label}"
                found.append(_point_series(told, whole, dashed, colour))
    return found


# x, y, low, high, note
_Point = tuple[float, float, float, float, str]


def _point_series(label: str, points: list[_Point], dashed: bool, colour: int) -> Series:
    x, y, low, high, notes = (list(one) for one in zip(*points, strict=True))
    bars = (low, high) if any(a < b for a, b in zip(low, high, strict=True)) else ([], [])
    return Series(label, x, y, *bars, notes=notes, dashed=dashed, points=True, colour=colour)


def _search_points(run: Run, figure: figures.Figure, axis: str) -> list[_Point]:
    full = run.sides[0].get("flops")
    kept = [
        _point(one, full, figure, axis, f"{run.name}: kept at {one['wanted']:g} on the way")
        for one in _kept_on_the_way(run)
    ]
    if run.search is None or "test" not in run.search:
        side = None if run.finetuned else run.sides[1]
    else:
        side = {"flops": run.search["flops"]["after"], "test": run.search["test"]["after"]}
    if side:
        kept.append(_point(side, full, figure, axis, f"{run.name}: end of the search"))
    return [one for one in kept if one]


def _tuned_points(run: Run, figure: figures.Figure, axis: str) -> list[_Point]:
    if not run.finetuned:
        return []
    side, full = run.sides[1], run.sides[0].get("flops")
    point = _point(side, full, figure, axis, f"{run.name}: fine-tuned")
    return [point] if point else []


def _given_point(run: Run, figure: figures.Figure, axis: str) -> _Point | None:
    before = run.sides[0]
    return _point(before, before.get("flops"), figure, axis, "the network as given")


def _point(
    side: Row, full: float | None, figure: figures.Figure, axis: str, note: str
) -> _Point | None:
    value = figure.value(side)
    flops = number(side.get("flops"))
    if axis == "flops":
        x = 100 * flops / full if flops is not None and full else None
    else:
        x = number(side.get("latency_ms", {}).get("1"))
    if value is None or x is None:
        return None
    error = figure.error(side) or 0.0
    return x, value, value - error, value + error, note


def _without(settings: Row, keys: Iterable[str]) -> Row:
    return {key: one for key, one in settings.items() if key not in keys}
