"""The charts of a page as pictures that need no script: SVG by matplotlib."""

from __future__ import annotations

import base64
import io
import warnings
from typing import Any

from ..plots import COLOURS
from .charts import Chart, Drawing, Lines, Map, Series

KEPT, REMOVED, LINE = "#0B4F7D", "#C9DCE9", "#8A8A8A"
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
SHARES = "cividis"  # made for the colour-blind; from little to all
SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "ekg-tf",
    "text.parse_math": False,  # a name may hold a $
    "font.family": "sans-serif",
    "font.size": 10,
}


def picture(chart: Chart) -> str:
    """A chart as a data URI of an SVG, which can't run anything in an <img>."""
    import matplotlib

    draw = {Lines: _lines, Map: _map, Drawing: _drawing}[type(chart)]
    with matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the browser has the font that is missing here
        figure = draw(chart)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def colour_of(series: Series) -> str:
    """The colour of a line, of those that everyone can tell apart."""
    return COLOURS[series.colour % len(COLOURS)]


def _lines(chart: Lines) -> Any:
    figure, axes = _figure(7.2, 3.4 + 0.2 * min(8, len(chart.series)))
    axes.grid(color="#DDDDDD", linewidth=0.7)
    for series in chart.series:
        style = {
            "color": colour_of(series),
            "linestyle": "--" if series.dashed else "-",
            "label": series.label,
            "linewidth": 1.5,
        }
        if series.points:
            style["marker"] = MARKERS[(2 * series.colour + series.dashed) % len(MARKERS)]
        axes.plot(series.x, series.y, **style)
        if series.low and series.points:
            axes.vlines(series.x, series.low, series.high, color=style["color"], linewidth=1)
        elif series.low:
            band = {"color": style["color"], "alpha": 0.2, "linewidth": 0}
            axes.fill_between(series.x, series.low, series.high, **band)
    if chart.mark:
        axes.axvline(chart.mark[0], color=LINE, linestyle=":", label=chart.mark[1])
    axes.set_xlabel(chart.x_label)
    axes.set_ylabel(chart.y_label)
    if chart.logarithmic:
        axes.set_yscale("log")
        for which in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            which(_decimal)
    if chart.falling:
        axes.invert_xaxis()
    if chart.whole:
        axes.xaxis.get_major_locator().set_params(integer=True)
    if chart.has_legend or chart.mark:
        figure.legend(loc="outside lower left", ncols=1, frameon=False, fontsize=9)
    return figure


def _decimal(value: float, place: int) -> str:
    """Labels of a logarithmic axis: 1, 2 and 5 times a power of ten."""
    text = f"{value:g}"
    digit = f"{value:e}"[0]
    return text if digit in "125" else ""


def _map(chart: Map) -> Any:
    from matplotlib.cm import ScalarMappable

    figure, axes = _figure(7.2, 1.4 + 0.17 * len(chart.rows))
    shares = ScalarMappable(cmap=SHARES)
    shares.set_clim(0, 100)
    for row, begin, end, share, _ in chart.cells:
        axes.barh(row, end - begin, 0.92, left=begin, color=shares.to_rgba(100 * share))
    axes.set_ylim(len(chart.rows) - 0.4, -0.6)
    axes.set_xlim(0, chart.end)
    axes.set_yticks(range(len(chart.rows)), [_cut(name) for name in chart.rows], fontsize=8)
    axes.set_xlabel(chart.x_label)
    axes.xaxis.get_major_locator().set_params(integer=True)
    figure.colorbar(shares, ax=axes, label="filters kept [%]", pad=0.01, aspect=30)
    return figure


def _cut(name: str, most: int = 28) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _drawing(chart: Drawing) -> Any:
    from matplotlib.patches import Rectangle

    width = max(7.2, chart.width / 90)
    figure, axes = _figure(width, max(1.5, width * chart.height / max(chart.width, 400)))
    axes.set_axis_off()
    for points in chart.edges:
        axes.plot(*zip(*points, strict=True), color=LINE, linewidth=0.8, zorder=1)
    for left, top, right, bottom, share, _ in chart.boxes:
        size = right - left, bottom - top
        axes.add_patch(Rectangle((left, top), *size, facecolor=REMOVED, edgecolor=KEPT, lw=0.6))
        kept = size[1] * share
        axes.add_patch(Rectangle((left, bottom - kept), size[0], kept, facecolor=KEPT, lw=0))
    if chart.joins:
        x, y, _ = zip(*chart.joins, strict=True)
        axes.plot(x, y, "o", color="white", markeredgecolor=LINE, markersize=4, zorder=3)
    for x, y, text in chart.levels:
        axes.text(x, y, text, fontsize=9, color="#444444")
    for x, y, text in chart.labels:
        axes.text(x, y, text, fontsize=7, ha="center", color="#444444")
    axes.set_xlim(-4, max(chart.width, 400))
    axes.set_ylim(chart.height, 0)
    return figure
