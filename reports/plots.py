"""PNG figures of a run. matplotlib is imported inside the functions: runs do not need it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from ..utils.files import atomic_write

DPI = 120  # dots per inch
# Okabe and Ito's colours, told apart with any kind of colour vision
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LIGHT, DARK = "#B9D6EA", "#0B4F7D"
_MOST_ROWS = 24  # more layers than this are drawn as columns, to fit a screen


def widths(
    path: str | os.PathLike,
    names: Sequence[str],
    before: Sequence[int],
    after: Sequence[int],
    *,
    title: str = "Filters kept in each layer",
) -> None:
    """Draws the filters of every layer before (light) and after (dark) as a PNG.

    `names`, `before` and `after` have one entry per layer. Raises ValueError when they differ
    in length, UserError when the file cannot be written.
    """
    count = len(names)
    if not count == len(before) == len(after):
        raise ValueError(f"{count} names, {len(before)} and {len(after)} widths")
    upright = count > _MOST_ROWS
    size = (max(9.0, 0.21 * count + 1.6), 4.8) if upright else (8.0, 0.3 * count + 1.7)
    figure, axes = _axes(size, title, grid="y" if upright else "x")
    bars = axes.bar if upright else axes.barh
    bars(range(count), before, 0.8, color=LIGHT, label="before")
    bars(range(count), after, 0.8, color=DARK, label="after")
    if upright:
        axes.set_xticks(range(count), names, rotation=90, fontsize=8)
        axes.set_xlim(-0.8, count - 0.2)
        axes.set_ylabel("filters")
    else:
        axes.set_yticks(range(count), names, fontsize=9)
        axes.set_ylim(count - 0.4, -0.6)
        axes.set_xlabel("filters")
        room = 0.01 * max(before, default=1)
        for row, (full, kept) in enumerate(zip(before, after, strict=True)):
            axes.text(full + room, row, f"{kept} / {full}", va="center", fontsize=8)
        axes.set_xlim(0, 1.13 * max(before, default=1))
    _legend(axes)
    _save(figure, path)


def search_curve(
    path: str | os.PathLike,
    rate: Sequence[float],
    val_loss: Sequence[float | None],
    *,
    val_accuracy: Sequence[float | None] | None = None,
    target: float | None = None,
    budget: str = "FLOPs",
    title: str = "Search: loss while filters are removed",
) -> None:
    """Draws validation loss against the part of the budget that is kept, one point per step.

    `rate` and `target` are fractions in (0, 1] of the unpruned network's `budget` (a label);
    `val_accuracy`, also a fraction, adds a panel below. Time runs from left to right.
    """
    panels = [("validation loss", val_loss, 1)]
    if val_accuracy is not None:
        panels.append(("validation accuracy [%]", val_accuracy, 100))
    figure, grid = _axes((8.0, 1.6 + 2.9 * len(panels)), title, rows=len(panels))
    kept = [100 * one for one in rate]
    axes_list = list(grid) if len(panels) > 1 else [grid]
    for axes, (label, values, scale), colour in zip(axes_list, panels, COLOURS, strict=False):
        axes.plot(kept, _numbers(values, scale), color=colour, linewidth=1.6, label=label)
        axes.plot(kept[-1:], _numbers(values, scale)[-1:], "o", color=colour, markersize=5)
        axes.set_ylabel(label)
        if target is not None:
            axes.axvline(
                100 * target, color="#555555", linestyle="--", linewidth=1, label=f"{budget} target"
            )
    axes_list[-1].set_xlabel(f"{budget} kept [% of the unpruned network]")
    lowest = min([*kept, 100 * target if target is not None else 100.0], default=0.0)
    margin = 0.03 * (100 - lowest) or 1.0
    axes_list[-1].set_xlim(100 + margin, lowest - margin)
    figure.align_ylabels()
    _legend(axes_list[0], more=axes_list[1:])
    _save(figure, path)


def front(path: str | os.PathLike, rows: Sequence[dict]) -> None:
    """Draws the networks that a search wrote on its way: accuracy against FLOPs and latency.

    Every row has flops_rate (a fraction), latency_ms {batch: ms per example} and test {"top1",
    "batch_top1"} in percent or, of other tasks than classification, {"loss", "batch_loss"}; a
    network without batch norms has the first of each alone.
    """
    drawn = "top1" if "top1" in rows[0]["test"] else "loss"
    figure, (upper, lower) = _axes((8.0, 6.4), "Networks along the search, not fine-tuned", rows=2)
    kept = [100 * row["flops_rate"] for row in rows]
    modes = [(drawn, "moving statistics"), (f"batch_{drawn}", "batch statistics")]
    if f"batch_{drawn}" not in rows[0]["test"]:
        modes = [(drawn, "test split")]
    for (key, label), colour in zip(modes, COLOURS, strict=False):
        accuracy = [row["test"][key] for row in rows]
        upper.plot(kept, accuracy, "o-", color=colour, label=label)
    for batch, colour in zip(rows[0]["latency_ms"], COLOURS[2:], strict=False):
        times = [row["latency_ms"][batch] for row in rows]
        lower.plot(kept, times, "o-", color=colour, label=f"batch {batch}")
    upper.set_ylabel("test top-1 [%]" if drawn == "top1" else "test loss")
    lower.set_ylabel("latency [ms per example]")
    lower.set_xlabel("FLOPs kept [% of the unpruned network]")
    upper.invert_xaxis()
    figure.align_ylabels()
    _legend(upper)
    _legend(lower)
    _save(figure, path)


def training_curves(
    path: str | os.PathLike,
    series: dict[str, dict[str, Sequence[float | None]]],
    *,
    title: str = "Training",
) -> None:
    """Draws loss and accuracy (or the user's metrics) against the epoch for one or several runs.

    `series` is {run: {quantity: one value per epoch, from epoch 1}}; a quantity with "loss" in
    its name goes to the upper panel; those with "acc" (a fraction) or, where there is none, all
    others to a lower one. "epoch" itself (the epochs, where they do not count from 1) isn't drawn.
    The first quantity of a panel is solid, the next ones dashed and dotted.
    """
    names = {name for values in series.values() for name in values} - {"epoch"}
    losses = {name for name in names if "loss" in name}
    accuracies = {name for name in names - losses if "acc" in name}
    below = accuracies or names - losses
    figure, axes = _axes((8.5, 6.4 if below else 3.8), title, rows=2 if below else 1)
    upper, lower = axes if below else (axes, axes)
    panels = [(upper, losses, 1), (lower, below, 100 if accuracies else 1)]
    for (run, values), colour in zip(series.items(), _repeat(COLOURS, len(series)), strict=True):
        for axes, wanted, scale in panels:
            quantities = [name for name in values if name in wanted]
            lines = _repeat(("-", "--", ":", "-."), len(quantities))
            for name, line in zip(quantities, lines, strict=True):
                numbers = _numbers(values[name], scale)
                epochs = values.get("epoch", range(1, len(numbers) + 1))
                label = f"{run}, {name}" if len(series) > 1 else name
                axes.plot(epochs, numbers, line, color=colour, linewidth=1.5, label=label)
    upper.set_yscale("log")  # the first epochs of a baseline would flatten all the others
    upper.set_ylabel("loss")
    if below:
        lower.set_ylabel("accuracy [%]" if accuracies else "metrics")
    lower.set_xlabel("epoch")
    lower.xaxis.get_major_locator().set_params(integer=True)
    figure.align_ylabels()
    _legend(upper)
    if below:
        _legend(lower)
    _save(figure, path)


def accuracies(
    path: str | os.PathLike,
    names: Sequence[str],
    values: Sequence[Sequence[float]],
    *,
    published: Sequence[float | None] | None = None,
    title: str = "Accuracy",
) -> None:
    """Draws test accuracies in percent, one row per name: every run, their mean and deviation.

    `values` has a list of runs per name, perhaps empty; two runs or more get a bar of one sample
    standard deviation to either side. `published` adds one figure per name, None for none. Raises
    ValueError when they differ in length, UserError when the file cannot be written.
    """
    published = [None] * len(names) if published is None else published
    if not len(names) == len(values) == len(published):
        raise ValueError(f"{len(names)} names, {len(values)} values, {len(published)} published")
    figure, axes = _axes((8.0, 0.42 * len(names) + 1.7), title, grid="x")
    for row, runs in enumerate(values):
        rows = [row] * len(runs)
        axes.plot(runs, rows, "o", color=LIGHT, markeredgecolor=DARK, label="run", zorder=4)
        if len(runs) > 1:
            mean = sum(runs) / len(runs)
            deviation = (sum((one - mean) ** 2 for one in runs) / (len(runs) - 1)) ** 0.5
            axes.errorbar(
                mean,
                row,
                xerr=deviation,
                fmt="D",
                color=DARK,
                capsize=4,
                linewidth=1.5,
                label="mean ± standard deviation",
                zorder=3,
            )
    for row, value in enumerate(published):
        if value is not None:
            axes.plot(value, row, "x", color=COLOURS[1], label="published", zorder=5)
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel("test top-1 [%]")
    _legend(axes)
    _save(figure, path)


def heat_map(
    path: str | os.PathLike,
    names: Sequence[str],
    columns: Sequence[float],
    values: Any,
    *,
    beside: Sequence[float],
    title: str,
    labels: tuple[str, str, str],
) -> None:
    """Draws one row per name and one column per number; colours are logarithmic.

    The palest colour is that of the least tenth of the values above zero, and of all below; colours
    span six decades at most. Beside the rows stand bars.

    Args:
        names, beside: one per row, from the top. columns: rising, evenly spaced.
        values: float [names, columns]; NaN is grey.
        labels: of the columns, of the colours, of the bars.

    Raises:
        UserError: the file can't be written.
    """
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    rows = len(names)
    figure = Figure(figsize=(9.5, 0.19 * rows + 2.2), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes, bars = figure.subplots(1, 2, sharey=True, gridspec_kw={"width_ratios": (5, 1)})
    positive = sorted(float(one) for row in values for one in row if one > 0) or [1e-3, 1.0]
    largest = positive[-1]
    least = max(min(positive[len(positive) // 10], largest / 10), largest / 1e6)
    shown = [[max(float(one), least) for one in row] for row in values]
    colours = colormaps["cividis_r"].with_extremes(bad="#BBBBBB")
    image = axes.imshow(
        shown,
        aspect="auto",
        cmap=colours,
        norm=LogNorm(least, largest),
        interpolation="none",
    )
    axes.set_xticks(range(len(columns)), [f"{one:g}" for one in columns])
    axes.set_yticks(range(rows), names, fontsize=8)
    axes.set_xlabel(labels[0])
    bars.barh(range(rows), beside, 0.8, color=DARK)
    bars.set_xlabel(labels[2])
    bars.tick_params(axis="y", left=False)
    bars.grid(axis="x", color="#DDDDDD", linewidth=0.7)
    bars.set_axisbelow(True)
    bars.spines[["top", "right"]].set_visible(False)
    figure.colorbar(image, ax=[axes, bars], label=labels[1], fraction=0.04, pad=0.02)
    figure.suptitle(title, fontsize=12, fontweight="bold")
    _save(figure, path)


# ---------------------------------------------------------------- shared by the figures


def _numbers(values: Sequence[float | None], scale: float) -> list[float]:
    return [float("nan") if value is None else scale * value for value in values]


def _repeat(items: Sequence[str], count: int) -> list[str]:
    return [items[index % len(items)] for index in range(count)]


def _axes(size: tuple[float, float], title: str, rows: int = 1, grid: str = "both") -> Any:
    # not pyplot: it chooses a window toolkit and keeps every figure alive
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, 1, sharex=True)
    for one in axes if rows > 1 else [axes]:
        one.grid(axis=grid, color="#DDDDDD", linewidth=0.7)
        one.set_axisbelow(True)
        one.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=12, fontweight="bold")
    return figure, axes


def _legend(axes: Any, more: Sequence[Any] = ()) -> None:
    found: dict[str, Any] = {}
    for one in (axes, *more):
        for handle, label in zip(*one.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if found:
        axes.legend(
            list(found.values()),
            list(found),
            loc="upper left",
            bbox_to_anchor=(1.01, 1),
            borderaxespad=0,
            frameon=False,
            fontsize=9,
        )


def _save(figure: Any, path: str | os.PathLike) -> None:
    atomic_write(path, lambda temporary: figure.savefig(temporary, format="png"))
