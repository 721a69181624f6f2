"""The page of one or several runs, put together."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any

from . import charts, drawing, figures, interactive, layout, static
from .charts import Chart, Drawing
from .markup import Child, Element, table, tag, written
from .runs import Row, Run

GENERATOR = "ekg-tf report"
EXPLAINED = (
    "± is one standard error of the test figure. Before is the network as it was given. FLOPs are "
    "multiply-accumulates for one example."
)
NONE = "Not in this folder."
ARROW = " → "
HINT = (
    "Point at a line or a box for its figures; drag to move, Ctrl and the wheel to zoom, "
    "double-click to go back."
)
SECTIONS = {
    "figures": "Before and after",
    "network": "The network",
    "search": "The search",
    "finetuning": "Fine-tuning",
    "front": "Several budgets",
    "settings": "Settings and versions",
    "reproduce": "Run it again",
}


def page_of(runs: Sequence[Run]) -> str:
    """The page as text: one file that needs no network and runs nothing but its own script.

    Args:
        runs: at least one; several are shown side by side.

    Raises:
        UserError: a run whose files hold something else than a run writes.
    """
    script = interactive.script()
    parts = {
        "figures": _figures(runs),
        "network": _networks(runs),
        "search": _searches(runs),
        "finetuning": _trainings(runs),
        "front": _front(runs),
        "settings": _settings(runs),
        "reproduce": _commands(runs),
    }
    body = [
        *_heading(runs),
        tag("nav", *(tag("a", SECTIONS[key], href=f"#{key}") for key in parts)),
        tag("p", HINT, class_="hint") if script else None,
    ]
    specs: list[Element] = []
    for key, content in parts.items():
        shown = _side_by_side([_placed(one, specs, script) for one in content])
        body.append(tag("section", tag("h2", SECTIONS[key]), *(shown or [tag("p", NONE)]), id=key))
    foot = "Made by ekg-tf; this file is complete, it fetches nothing."
    body.append(tag("footer", tag("p", foot, class_="soft")))
    if script:
        body += [*specs, tag("script", script, type="module")]
    return written(tag("html", _head(runs, script), tag("body", *body), lang="en"))


def _head(runs: Sequence[Run], script: str | None) -> Element:
    code = "'none'"
    if script:
        digest = hashlib.sha256(script.encode()).digest()
        code = f"'sha256-{base64.b64encode(digest).decode()}'"
    policy = (
        f"default-src 'none'; script-src {code}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="generator", content=GENERATOR),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", f"{', '.join(run.name for run in runs)}: pruning report"),
        tag("style", layout.STYLE),
    )


# ---------------------------------------------------------------- charts in the page

Part = Element | Chart


def _side_by_side(parts: Sequence[Element]) -> list[Element]:
    """Figures that follow each other in pairs, where there is room for two."""
    found: list[Element] = []
    for one in parts:
        if one.tag != "figure" or "across" in one.get("class", ""):
            found.append(one)
        elif found and found[-1].get("class") == "pair":
            found[-1].append(one)
        else:
            found.append(tag("div", one, class_="pair"))
    return found


def _placed(chart: Part, specs: list[Element], script: str | None) -> Element:
    """A chart's figure; its specification joins `specs`, in which the script looks for it."""
    if not isinstance(chart, Chart):
        return chart
    key = f"chart-{chart.key}"
    kind = "network across" if isinstance(chart, Drawing) else None
    image = tag("img", class_="static", src=static.picture(chart), alt=chart.title)
    live = tag("div", class_="live", hidden="hidden") if script else None
    if script:
        text = interactive.as_json(interactive.spec_of(chart))
        specs.append(tag("script", text, type="application/json", data_figure=key))
    return tag("figure", tag("figcaption", chart.title), image, live, id=key, class_=kind)


# ---------------------------------------------------------------- sections


def _heading(runs: Sequence[Run]) -> list[Element]:
    if len(runs) > 1:
        found = [tag("h1", f"{len(runs)} runs side by side")]
        for run in runs:
            found.append(
                tag("p", tag("strong", run.name), f": {figures.verdict_of(run, advice=False)}")
            )
        return found
    run = runs[0]
    tiles = [tag("div", tag("dt", what), tag("dd", text)) for what, text in figures.brief(run)]
    return [
        tag("h1", run.name),
        tag("p", _subject(run), class_="soft"),
        tag("p", figures.verdict_of(run), class_="verdict"),
        *([tag("dl", *tiles, class_="tiles")] if tiles else []),
    ]


def _subject(run: Run) -> str:
    """What was pruned, in a line."""
    args = run.args
    words = [args.get("model") if "train_path" in args else None, args.get("trained_param")]
    words = [args.get("arch") if not words[0] else words[0], args.get("dataset")]
    method = (run.search or {}).get("method", args.get("method"))
    told = [str(one) for one in words if one] + [f"method {method}" if method else ""]
    return ", ".join(one for one in told if one)


def _figures(runs: Sequence[Run]) -> list[Part]:
    header = ["", *(run.name for run in runs)]
    if len(runs) == 1:
        header = ["", "before", "after", "ratio"]
        rows = [list(row) for row in figures.table_of(runs[0])]
    else:
        tables = [{row[0]: row[1:] for row in figures.table_of(run)} for run in runs]
        titles = list(dict.fromkeys(title for one in tables for title in one))
        rows = [[title, *(_pair(one.get(title)) for one in tables)] for title in titles]
    if not rows:
        return []
    told = [row for row in rows if figures.BY_BATCH not in row[0]]
    by_batch = [row for row in rows if figures.BY_BATCH in row[0]]
    found: list[Part] = [_numbers(header, told), tag("p", EXPLAINED, class_="soft")]
    if by_batch:
        note = tag(
            "p", "Every test batch is normalised by itself, as in the search.", class_="soft"
        )
        summary = tag("summary", "By batch statistics")
        found.append(tag("details", summary, note, _numbers(header, by_batch)))
    return found


def _numbers(header: list[str], rows: list[list[str]]) -> Element:
    return table(list[Child](header), [list[Child](row) for row in rows])


def _pair(cells: tuple[str, str, str] | None) -> str:
    if cells is None:
        return "-"
    before, after, ratio = cells
    return f"{before}{ARROW}{after}" + ("" if ratio == "-" else f" ({ratio})")


def _networks(runs: Sequence[Run]) -> list[Part]:
    found: list[Part] = []
    for number, run in enumerate(runs):
        if not run.network:
            continue
        if len(runs) > 1:
            found.append(tag("h3", run.name))
        title = (
            "Layers in order, one row per resolution; the filled part of a box is what is kept, "
            "its height the root of its channels."
        )
        found.append(drawing.drawn(run.network, f"network-{number}", title))
        found.append(_layers(run.network))
    return found


def _layers(nodes: Sequence[Row]) -> Element:
    """Every layer with a bar and its numbers."""
    items: list[Element] = []
    blocks, levels = drawing.blocks_of(nodes), drawing.levels_of(nodes)
    row, block = -1, -1
    for node, of_block, level in zip(nodes, blocks, levels, strict=True):
        if node["joins"]:
            continue
        if level != row and math.prod(node["size"]) != 1:
            row = level
            items.append(tag("li", drawing.size_text(node), class_="head"))
            block = of_block
        before, after = node["channels"]
        share = max(0.0, min(100.0, 100 * after / max(1, before)))
        bar = tag("span", tag("span", style=f"width:{share:.1f}%"), class_="bar")
        count = f"{before}{ARROW}{after}" if before != after else f"{before}"
        items.append(
            tag(
                "li",
                tag("span", node["name"], class_="name", title=f"{node['name']}, {node['kind']}"),
                bar,
                tag("span", count, class_="count"),
                class_="first" if of_block != block else None,
            )
        )
        block = of_block
    return tag("ul", *items, class_="layers")


def _searches(runs: Sequence[Run]) -> list[Part]:
    found: list[Part] = list(charts.search_lines(runs))
    for number, run in enumerate(runs):
        told = _search_words(run)
        if told:
            name = f"{run.name}: " if len(runs) > 1 else ""
            found.append(tag("p", f"{name}{told}"))
        shown = charts.removal_map(run, f"removed-{number}")
        if shown:
            found.append(shown)
    return found


def _search_words(run: Run) -> str:
    if not run.history:
        place = run.args.get("search_path")
        return f"The search is in another folder: {place}." if place else ""
    steps = len(run.history) - 1
    told = [f"{steps} step{'' if steps == 1 else 's'}"]
    for key, unit in (("evaluations", "evaluations"), ("images", "images")):
        count = sum(row.get(key, 0) for row in run.history)
        if count:
            told.append(f"{count:,} {unit}")
    seconds = sum(value for row in run.history for value in row.get("seconds", {}).values())
    told.append(f"{seconds:,.0f} seconds" if seconds >= 10 else f"{seconds:.1f} seconds")
    names = charts.group_names(run)
    return f"{', '.join(told)}; {len(names)} groups of channels that are removed together."


def _trainings(runs: Sequence[Run]) -> list[Part]:
    found: list[Part] = []
    lines = charts.training_lines(runs, "finetune", "Fine-tuning")
    if any(len(members) > 1 for _, members in charts.groups_of_seeds(runs)):
        found.append(tag("p", "Bands are one standard deviation over the seeds.", class_="soft"))
    found += lines
    before = [
        one
        for phase, title in (("baseline", "Baseline"), ("supernet", "Supernet"))
        for one in charts.training_lines(runs, phase, title)
    ]
    if before:
        found += [tag("h3", "Training before the search"), *before]
    return found


def _front(runs: Sequence[Run]) -> list[Part]:
    shown = charts.front_lines(runs)
    if shown:
        bars = tag("p", "Bars are one standard error.", class_="soft")
        return [bars, *shown]
    told = (
        "One budget only. --budgets keeps networks of several sizes on the way of one search; "
        "ekg-tf report with several folders compares runs."
    )
    return [tag("p", told)]


def _settings(runs: Sequence[Run]) -> list[Part]:
    found: list[Part] = []
    keys = list(dict.fromkeys(key for run in runs for key in sorted(run.args)))
    if len(runs) > 1:
        differing = [key for key in keys if len({_plain(run.args.get(key)) for run in runs}) > 1]
        found.append(_words(runs, differing, "args", "What differs"))
    rest = [key for key in keys if any(run.args.get(key) is not None for run in runs)]
    whole = tag("details", tag("summary", "All settings"), _words(runs, rest, "args"))
    versions = list(dict.fromkeys(key for run in runs for key in sorted(run.versions)))
    return [*found, whole, _words(runs, versions, "versions", "Versions")]


def _words(
    runs: Sequence[Run], keys: Sequence[str], part: str, caption: str | None = None
) -> Element:
    rows: list[list[Child]] = [
        [key, *(_plain(getattr(run, part).get(key)) for run in runs)] for key in keys
    ]
    header = ["", *(run.name for run in runs)] if len(runs) > 1 else ["", ""]
    found = table(list[Child](header), rows, caption=caption)
    found.set("class", "scroll words")
    return found


def _plain(value: Any) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else json.dumps(value)


def _commands(runs: Sequence[Run]) -> list[Part]:
    found: list[Part] = []
    for run in runs:
        if len(runs) > 1:
            found.append(tag("h3", run.name))
        if run.commands:
            found.append(tag("pre", "\n".join(run.commands)))
        else:
            told = "It was called from Python, with the settings above and these data and weights:"
            marks = [key for key in ("model", "data", "model_digest", "data_digest")]
            lines = [f"{key}: {run.args[key]}" for key in marks if key in run.args]
            found += [tag("p", told), tag("pre", "\n".join(lines))]
        git = run.versions.get("git")
        if isinstance(git, dict):
            changed = ", with local changes" if git.get("dirty") else ""
            found.append(tag("p", f"ekg-tf at commit {git.get('commit')}{changed}.", class_="soft"))
    return found
