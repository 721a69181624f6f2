"""The pictures of the README and of docs/how_it_works.md, drawn from result files.

python -m ekg_tf.pages.pictures   # -> docs/pictures/*.png
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ..cli import manners
from ..reports.plots import COLOURS, DARK, DPI, LIGHT
from ..utils.files import atomic_write
from ..utils.jsonl import read_json
from .files import RESULTS, ROOT
from .readme import resnet_litert, resnet_results

PICTURES = ROOT / "docs" / "pictures"
GREY, PAPER = "#555555", "#F4F6F8"


def figure_of(width: float, height: float) -> Any:
    """A matplotlib figure in inches that belongs to no window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Any, path: Path) -> None:
    """Writes a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, lambda temporary: figure.savefig(temporary, format="png"))


# ---------------------------------------------------------------- README


def gains(folder: Path = RESULTS) -> list[tuple[str, float, str]]:
    """(what, share that is left in percent, "before → after") of ResNet-56."""
    runs, litert = resnet_results(folder), resnet_litert(folder)
    before, after = runs[0]["before"], runs[0]["after"]
    top1 = [run["after"]["test"]["top1"] for run in runs]
    mean, deviation = float(np.mean(top1)), float(np.std(top1, ddof=1))
    plain = [
        ("FLOPs", before["flops"] / 1e6, after["flops"] / 1e6, "{:.0f} → {:.0f} M"),
        ("parameters", before["parameters"] / 1e3, after["parameters"] / 1e3, "{:.0f} → {:.0f} k"),
        (
            "LiteRT file",
            litert["reference_bytes"] / 2**20,
            litert["bytes"] / 2**20,
            "{:.1f} → {:.1f} MiB",
        ),
        (
            "LiteRT latency",
            litert["reference_latency_ms"],
            litert["latency_ms"],
            "{:.1f} → {:.1f} ms",
        ),
    ]
    rows = [(name, 100 * new / old, text.format(old, new)) for name, old, new, text in plain]
    old = before["test"]["top1"]
    words = f"{old:.1f} → {mean:.1f} ± {deviation:.1f} % (n = {len(top1)})"
    return [*rows, ("top-1 accuracy", 100 * mean / old, words)]


def draw_gain(path: Path, folder: Path = RESULTS) -> None:
    """What the pruning of ResNet-56 removes (left) and what is gained and lost by it (right)."""
    widths = read_json(folder / "search_taylor_ensemble" / "search.json")["widths"]
    figure = figure_of(9.6, 3.6)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.1))
    places = range(len(widths["before"]))
    left.bar(places, widths["before"], 0.8, color=LIGHT, label="before")
    left.bar(places, widths["after"], 0.8, color=DARK, label="after")
    left.set_title("Filters in each group of layers", fontsize=13, loc="left")
    left.set_xlabel("from the input to the output", fontsize=11)
    left.set_xticks([])
    left.legend(frameon=False, fontsize=11, loc="upper left")
    rows = gains(folder)
    right.barh(range(len(rows)), [100] * len(rows), 0.62, color=LIGHT)
    right.barh(range(len(rows)), [share for _, share, _ in rows], 0.62, color=DARK)
    for row, (_, share, words) in enumerate(rows):
        right.text(103, row, words, va="center", fontsize=11)
        right.text(share - 2, row, f"{share:.0f} %", va="center", ha="right", color="white")
    right.set_yticks(range(len(rows)), [name for name, _, _ in rows], fontsize=12)
    right.set_ylim(len(rows) - 0.5, -0.5)
    right.set_xlim(0, 208)
    right.set_xticks([])
    right.set_title("What is left of the whole", fontsize=13, loc="left")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    right.spines["bottom"].set_visible(False)
    save(figure, path)


# ---------------------------------------------------------------- docs/how_it_works.md


def _box(axes: Any, x: float, y: float, text: str, *, width: float, colour: str = PAPER) -> None:
    from matplotlib.patches import FancyBboxPatch

    shape = {"boxstyle": "round,pad=0.02,rounding_size=0.06", "edgecolor": GREY, "linewidth": 1}
    axes.add_patch(
        FancyBboxPatch((x - width / 2, y - 0.32), width, 0.64, facecolor=colour, **shape)
    )
    dark = colour == DARK
    axes.text(
        x, y, text, ha="center", va="center", fontsize=10.5, color="white" if dark else "black"
    )


def _arrow(
    axes: Any, start: tuple[float, float], end: tuple[float, float], bend: float = 0
) -> None:
    style = {"arrowstyle": "-|>", "color": GREY, "linewidth": 1.4, "shrinkA": 0, "shrinkB": 0}
    style["connectionstyle"] = f"arc3,rad={bend}"
    axes.annotate("", xy=end, xytext=start, arrowprops=style)


def _canvas(width: float, height: float) -> tuple[Any, Any]:
    """A figure with axes in inches, without ticks."""
    figure = figure_of(width, height)
    axes = figure.subplots()
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    axes.axis("off")
    return figure, axes


def draw_way(path: Path) -> None:
    """The phases from the given network to pruned.keras."""
    figure, axes = _canvas(11.0, 3.1)
    top, low, width = 2.45, 0.75, 1.75
    columns = [1.0, 3.2, 5.4, 7.6, 9.9]
    phases = [
        ("your network", PAPER),
        ("search", DARK),
        ("smaller network", PAPER),
        ("fine-tuning", DARK),
        ("pruned.keras", PAPER),
    ]
    for x, (text, colour) in zip(columns, phases, strict=True):
        _box(axes, x, top, text, width=width, colour=colour)
    for start, end in pairwise(columns):
        _arrow(axes, (start + width / 2 + 0.05, top), (end - width / 2 - 0.05, top))
    _box(axes, 5.4, low, "memory bank: outputs of\nfive interim networks", width=2.5)
    _arrow(axes, (3.2, top - 0.38), (4.1, low + 0.1), bend=0.25)
    _arrow(axes, (6.7, low + 0.1), (7.6, top - 0.38), bend=0.25)
    axes.text(
        3.0,
        1.5,
        "decides on D_val,\npart of the\ntraining set",
        fontsize=9.5,
        ha="right",
        va="center",
        color=GREY,
    )
    axes.text(
        7.8,
        1.5,
        "labels, and the teachers that\nare as good as the student",
        fontsize=9.5,
        va="center",
        color=GREY,
    )
    save(figure, path)


def _channels(
    axes: Any, x: float, y: float, removed: Sequence[int], colour: str, words: str
) -> None:
    """A column of eight channels, some of them crossed out."""
    from matplotlib.patches import Rectangle

    for channel in range(8):
        gone = channel in removed
        face = "white" if gone else colour
        at = (x - 0.2, y + 0.17 * (4 - channel) - 0.17)
        axes.add_patch(Rectangle(at, 0.4, 0.15, facecolor=face, edgecolor=GREY, linewidth=0.8))
        if gone:
            axes.plot([x - 0.2, x + 0.2], [at[1], at[1] + 0.15], color=GREY, linewidth=0.8)
    axes.text(x, y - 0.95, words, ha="center", va="top", fontsize=10)


def draw_groups(path: Path) -> None:
    """Which channels of a residual block go together: two groups, each in one colour."""
    figure, axes = _canvas(11.0, 3.4)
    y, stream, inner = 1.75, COLOURS[0], COLOURS[4]
    gone_stream, gone_inner = (2, 5), (0, 3, 4, 6)
    columns = [1.0, 3.4, 5.8, 8.0, 10.1]
    shown = [
        (gone_stream, stream, "output of the\nblock before"),
        (gone_inner, inner, "convolution 1"),
        (gone_stream, stream, "convolution 2"),
        (gone_stream, stream, "sum"),
        (gone_stream, stream, "input of the\nnext block"),
    ]
    for x, (gone, colour, words) in zip(columns, shown, strict=True):
        _channels(axes, x, y, gone, colour, words)
    for start, end in pairwise(columns):
        _arrow(axes, (start + 0.3, y), (end - 0.3, y))
    _arrow(axes, (1.0, y + 0.8), (8.0, y + 0.8), bend=-0.16)
    axes.text(4.5, 3.22, "shortcut", ha="center", fontsize=10, color=GREY)
    save(figure, path)


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    manners.Parser(description="Draws the pictures of README and docs.").parse_args(argv)
    draw_gain(PICTURES / "gain.png")
    draw_way(PICTURES / "way.png")
    draw_groups(PICTURES / "groups.png")


if __name__ == "__main__":
    manners.run(main)
