"""The README's figures, printed from result files.

    python -m ekg_tf.pages.readme

Its picture comes from `pages/pictures.py`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..cli import manners
from ..reports.tables import NOT_MEASURED, plus_minus, table, two_digits
from ..utils.files import replace_between
from ..utils.jsonl import read_json
from .files import RESULTS, ROOT

README = ROOT / "README.md"
MARKS = {
    part: (f"<!-- {part}: begin (python -m ekg_tf.pages.readme) -->", f"<!-- {part}: end -->")
    for part in ("results", "install")
}
RESNET = "ResNet-56 on CIFAR-10"  # how its title in export.json begins
# {key of tasks.json: (network in a few words, metric, its name)}, those that were trained to an end
SHOWN = {
    "masks": ("U-Net, masks of photos", "iou", "IoU"),
    "series": ("1-D CNN, tones in a signal", "auc", "AUC"),
}


def results(folder: Path = RESULTS) -> str:
    """The table of results in Markdown: what is left, what it costs, what it brings in LiteRT."""
    header = ["network", "FLOPs left", "metric, before → after", "LiteRT, ms", "LiteRT, KiB"]
    rows = [_resnet(folder), *(_task(folder, name) for name in SHOWN)]
    return table(header, rows)


def resnet_litert(folder: Path) -> dict:
    """The LiteRT figures of ResNet-56: one of the "exports" of docs/results/export.json."""
    runs = read_json(folder / "export.json")
    run = next(one for title, one in runs.items() if title.startswith(RESNET))
    found: dict = next(one for one in run["exports"] if one["format"] == "litert")
    return found


def resnet_results(folder: Path) -> list[dict]:
    """result.json of ResNet-56's fine-tunings with the ensemble, one per seed."""
    return [read_json(path) for path in sorted(folder.glob("tune_ensemble_*/result.json"))]


def _resnet(folder: Path) -> list[str]:
    found = resnet_results(folder)
    before, after = found[0]["before"], [one["after"] for one in found]
    top1 = plus_minus([one["test"]["top1"] for one in after], ".1f")
    share = after[0]["flops"] / before["flops"]
    metric = f"top-1 {before['test']['top1']:.1f} → {top1} %"
    return [RESNET, f"{100 * share:.0f} %", metric, *_litert(resnet_litert(folder))]


def _task(folder: Path, name: str) -> list[str]:
    words, metric, shown = SHOWN[name]
    runs = [
        run
        for key, run in read_json(folder / "tasks.json")["runs"].items()
        if key.split()[0] == name
    ]
    assert runs, f"tasks.json has no run of {name}"
    before, after = (
        plus_minus([run[side]["metrics"][metric] for run in runs], ".3f")
        for side in ("before", "ekg")
    )
    share = np.mean([run["ekg"]["flops"] / run["before"]["flops"] for run in runs])
    measured = next((run["litert"] for run in runs if "litert" in run), None)
    litert = [NOT_MEASURED] * 2 if measured is None else _litert(measured)
    return [words, f"{100 * share:.0f} %", f"{shown} {before} → {after}", *litert]


def _litert(one: dict) -> list[str]:
    before, after = one["reference_latency_ms"], one["latency_ms"]
    spec = two_digits([before])
    return [
        f"{before:{spec}} → {after:{spec}}",
        f"{one['reference_bytes'] / 1024:,.0f} → {one['bytes'] / 1024:,.0f}",
    ]


def install(folder: Path = RESULTS) -> str:
    """A sentence on the disk space of an installation."""
    found = read_json(folder / "install.json")
    sizes = {one["name"]: f"{one['bytes'] / 1e9:.1f} GB" for one in found["sets"]}
    about = f"{found['system']} {found['machine']}, Python {found['python']}"
    return (
        f"A fresh environment takes {sizes['core']} on disk, nearly all of it TensorFlow. With "
        f"data sets by name and\nTensorBoard it takes {sizes['full']}, with LiteRT and ONNX as "
        f"well {sizes['export']} ({about})."
    )


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    manners.Parser(description="Writes the README's figures.").parse_args(argv)
    for part, text in (("results", results()), ("install", install())):
        replace_between(README, *MARKS[part], text)


if __name__ == "__main__":
    manners.run(main)
