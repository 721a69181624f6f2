"""Markdown, CSV and a picture of a table's result, printed from its JSON alone.

    python -m ekg_tf.pages.tables   # docs/tables.md from docs/results/table*.json

Ours: mean ± sample standard deviation over n runs, n said once; beside it the published figure of
the same network and data. "not measured" is where there is no result.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from ...reports.tables import plus_minus, table, two_digits
from ...utils.files import atomic_write

# (figure, title, format)
TOP1 = ("top1", "top-1 %", ".2f")
TOP5 = ("top5", "top-5 %", ".2f")
BATCH = ("batch_top1", "top-1 %, batch statistics", ".2f")
LOSS = ("val_loss", "D_val loss", ".4f")
LEFT = ("flops_rate", "FLOPs left", ".4f")
HOURS = [("search_hours", "hours of search", ".2f"), ("training_hours", "of training", ".2f")]
COLUMNS = {
    "1": [LOSS, ("condition_number", "condition number", ".4f"), TOP1, BATCH, LEFT],
    "2": [TOP1, BATCH, *HOURS, LOSS, LEFT],
    "3": [
        TOP1,
        ("top1_change", "change", "+.2f"),
        TOP5,
        ("top5_change", "change", "+.2f"),
        ("flops_removed", "FLOPs removed %", ".1f"),
        *HOURS,
    ],
    "methods": [
        TOP1,
        BATCH,
        LOSS,
        LEFT,
        ("evaluations", "evaluations", ",.0f"),
        ("images", "images in the search", ",.0f"),
        ("search_seconds", "seconds of search", ",.0f"),
        ("training_hours", "hours of training", ".2f"),
    ],
}
LABELS = {
    "1": ["score"],
    "2": ["search teacher", "fine-tuning teacher"],
    "3": ["method"],
    "methods": ["search", "fine-tuning"],
}
TITLES = {
    "1": "Table 1, scores of filters",
    "2": "Table 2, teachers in the search and in fine-tuning",
    "3": "Table 3, ImageNet",
    "methods": "Methods at the same FLOPs",
}
# The figures whose number of values is a row's n, the first that there is
COUNTED = ("top1", "val_loss")


def _spec(key: str, values: Sequence[float], spec: str) -> str:
    return two_digits(values) if key.endswith("hours") else spec


def _published(known: dict, key: str, spec: str) -> str:
    """The published figure as it was printed, "" where there is none."""
    if known.get(key) is None:
        return ""
    text = format(known[key], spec)
    if f"{key}_std" in known:
        text += f" ± {known[f'{key}_std']:.2f}"
    if key == "top1" and "mflops" in known:
        text += f" (at {known['mflops']:.2f} MFLOPs)"
    return text


def markdown(result: dict) -> str:
    """The table in Markdown with a caption; of the same network, other methods' published rows
    stand above ours."""
    rows = _rows(result)
    number = result["table"]
    shown = [
        column
        for column in COLUMNS[number]
        if any(column[0] in row["figures"] or column[0] in row["published"] for row in rows)
    ]
    with_published = {
        column[0] for column in shown if any(column[0] in r["published"] for r in rows)
    }
    counts = {_count(row) for row in rows if row["figures"]}
    header = list(LABELS[number])
    for key, title, _ in shown:
        header += [title, "published"] if key in with_published else [title]
    lines = []
    for row in rows:
        line = list(row["labels"])
        if len(counts) > 1:
            line.append(_count(row) if row["ours"] else "")
        for key, _, spec in shown:
            values = row["figures"].get(key, [])
            line.append(plus_minus(values, _spec(key, values, spec)) if row["ours"] else "")
            if key in with_published:
                line.append(_published(row["published"], key, spec))
        lines.append(line)
    if len(counts) > 1:
        header.insert(len(LABELS[number]), "n")
    said = f" n = {next(iter(counts))}." if len(counts) == 1 else ""
    return caption(result) + said + "\n\n" + table(header, lines)


def _count(row: dict) -> str:
    """A row's number of runs: "3", or "1, searches 3" where several searches were made for it."""
    found = {key: len(row["figures"].get(key, [])) for key in COUNTED}
    if not found["top1"] or found["val_loss"] in (0, found["top1"]):
        return str(max(found.values()))
    return f"{found['top1']}, searches {found['val_loss']}"


def of_the_same_network(result: dict) -> bool:
    """Whether the published figures of a table are of the network and data that ours are of."""
    return result["published"]["network"] == result["network"]


def _rows(result: dict) -> list[dict]:
    """Our rows, with the published figures of the same network; for Table 3 the published rows of
    other methods before them."""
    ours = [row | {"ours": True} for row in result["rows"]]
    if not of_the_same_network(result):
        return [row | {"published": {}} for row in ours]
    if result["table"] != "3":
        return ours
    names = {row["name"] for row in ours}
    others = [
        {"name": name, "labels": [name], "published": known, "figures": {}, "ours": False}
        for name, known in result["published"]["rows"].items()
        if name not in names
    ]
    return [*others, *ours]


def as_published(result: dict) -> str:
    """The published figures alone, with the network that they are of, for tables of ours of
    another one."""
    number, known = result["table"], result["published"]
    if number == "3":
        rows = [([name], figures) for name, figures in known["rows"].items()]
    else:
        rows = [(row["labels"], row["published"]) for row in result["rows"] if row["published"]]
    shown = [column for column in COLUMNS[number] if any(column[0] in one for _, one in rows)]
    lines = [
        [*labels, *(_published(one, key, spec) for key, _, spec in shown)] for labels, one in rows
    ]
    header = [*LABELS[number], *(title for _, title, _ in shown)]
    return f"**{TITLES[number]}: {known['network']}, as published**\n\n{table(header, lines)}"


def caption(result: dict) -> str:
    """One paragraph: what was run, on what, and which published figures stand beside it."""
    text = f"**{TITLES[result['table']]}: {result['network']}** ({result['scale']}"
    text += "; the baseline was given" if result["baseline_given"] else ""
    text += f"; on {' / '.join(result['machines'])}" if result["machines"] else ""
    flags = result["flags"]
    more = [*flags["baseline"][1:], *flags["search"], *flags["finetune"]]
    text += f"; with {' '.join(more)}" if more else ""
    if flags["target_rate"]:
        text += f"; {flags['target_rate']:g} of the FLOPs left"
    text += "). Top-1 by moving statistics where nothing else is said."
    return f"{text} Published: the same." if of_the_same_network(result) else text


def comma_separated(result: dict) -> str:
    """The table as CSV: one line per row and figure, with every seed's value."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    header = ["row", "figure", "n", "mean", "std", "published", "published_std", "values"]
    writer.writerow(header)
    for row in _rows(result):
        keys = [*row["figures"], *(key for key in row["published"] if key not in row["figures"])]
        for key in keys:
            if key == "mflops" or key.endswith("_std"):
                continue
            values = row["figures"].get(key, [])
            mean = sum(values) / len(values) if values else ""
            std = ""
            if len(values) > 1:
                std = (sum((one - mean) ** 2 for one in values) / (len(values) - 1)) ** 0.5
            known = row["published"]
            published = [known.get(key, ""), known.get(f"{key}_std", "")]
            every = " ".join(map(str, values))
            writer.writerow([row["name"], key, len(values), mean, std, *published, every])
    return text.getvalue()


def draw(result: dict, path: Path) -> None:
    """The accuracies as a picture; the published ones only if they are of the same network."""
    from ...reports import plots

    rows = [row for row in _rows(result) if row["figures"].get("top1") or not row["ours"]]
    if not rows:
        return
    known = [row["published"].get("top1") for row in rows]
    plots.accuracies(
        path,
        [row["name"] for row in rows],
        [row["figures"].get("top1", []) for row in rows],
        published=known,
        title=f"{TITLES[result['table']]}: {result['network']}",
    )


def write(result: dict, root: Path) -> str:
    """table<name>.md, .csv and .png in a folder; returns the Markdown."""
    text, name = markdown(result), f"table{result['table']}"
    for suffix, content in ((".md", text + "\n"), (".csv", comma_separated(result))):
        _write_text(root / (name + suffix), content)
    draw(result, root / f"{name}.png")
    return text


def _write_text(path: Path, text: str) -> None:
    atomic_write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
