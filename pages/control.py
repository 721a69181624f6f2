"""docs/control.md's figures, from what `ekg-tf inspect --sensitivity --json` and searches wrote.

python -m ekg_tf.pages.control collect sensitivity FILE.json   # -> docs/results/sensitivity.json
python -m ekg_tf.pages.control collect NAME RUN_FOLDER         # -> docs/results/control.json
python -m ekg_tf.pages.control write                           # -> docs/control.md, sensitivity.png
"""

import json
from pathlib import Path
from typing import Any

from ..cli import manners
from ..reports import sensitivity
from ..reports.tables import table
from ..utils.errors import UserError
from ..utils.files import atomic_write, replace_between
from ..utils.jsonl import read_json
from .files import RESULTS, ROOT, collect_or_write

SENSITIVITY, RUNS = RESULTS / "sensitivity.json", RESULTS / "control.json"
PAGE, PICTURE = ROOT / "docs" / "control.md", RESULTS / "sensitivity.png"
BEGIN = "<!-- {}: begin (python -m ekg_tf.pages.control write) -->"
END = "<!-- {}: end -->"
KEPT = ("method", "steps", "flops_rate", "widths", "gates", "drop", "val_accuracy", "evaluations")


def collect(name: str, source: Path) -> None:
    """Adds a sensitivity, or a run's search under a name, to the collected figures.

    Raises:
        UserError: a file is missing or damaged, or holds no sensitivity, or no end by max_drop.
    """
    if name == "sensitivity":
        found = read_json(source)
        if not isinstance(found, dict) or "sensitivity" not in found:
            raise UserError(f"{source} holds no figures of ekg-tf inspect --sensitivity --json")
        _write(SENSITIVITY, found["sensitivity"])
        return
    run, args = read_json(source / "search.json"), read_json(source / "args.json")
    if not run.get("drop"):
        raise UserError(f"the search in {source} was made without --max_drop")
    runs = read_json(RUNS) if RUNS.exists() else {}
    kept = {key: run[key] for key in KEPT} | {"exclude": args["exclude"]}
    _write(RUNS, runs | {name: kept})


def _write(path: Path, figures: dict[str, Any]) -> None:
    text = json.dumps(figures, indent=1, sort_keys=True) + "\n"
    atomic_write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def of_sensitivity(result: dict[str, Any]) -> str:
    """The table of the groups that cost most and least when half of their filters leave."""
    place = result["shares"].index(0.5)
    ranked = sorted(result["groups"], key=lambda group: -group["rise"][place])
    rows = [
        [
            f"`{sensitivity.group_name(group)}`",
            str(group["width"]),
            *(
                sensitivity.signed(group["rise"][result["shares"].index(share)])
                for share in (0.2, 0.5, 0.8)
            ),
            f"{100 * (1 - group['flops'][place]):.1f} %",
        ]
        for group in [*ranked[:5], *ranked[-3:]]
    ]
    header = ["group", "width", "rise at -20 %", "-50 %", "-80 %", "FLOPs saved by -50 %"]
    whole = ", ".join(f"{name} {value:.4f}" for name, value in result["whole"].items())
    return (
        f"{result['network']}, {len(result['groups'])} groups, {result['examples']} examples of "
        f"D_val; the whole network: {whole}. The five groups that cost most and the three that "
        f"cost least when half of their filters leave:\n\n{table(header, rows)}"
    )


def of_runs(runs: dict[str, Any]) -> str:
    """The table of the searches that ended by --max_drop."""
    rows = [
        [
            f"`{run['method']}`",
            f"{run['drop']['allowed']:g}",
            f"{run['drop']['given']:.2f}",
            f"{run['drop']['after']:.2f}",
            f"{100 * run['flops_rate']:.1f} %",
            str(run["steps"]),
            str(run["evaluations"]),
        ]
        for run in runs.values()
    ]
    header = ["method", "max_drop", "given", "after", "FLOPs left", "steps", "networks evaluated"]
    return table(header, rows)


def write() -> None:
    """Draws the picture and puts the tables between docs/control.md's markers.

    Raises:
        UserError: figures that aren't there, or as `replace_between`.
    """
    result = read_json(SENSITIVITY)
    sensitivity.draw(PICTURE, result)
    parts = {"sensitivity": of_sensitivity(result), "runs": of_runs(read_json(RUNS))}
    for name, text in parts.items():
        replace_between(PAGE, BEGIN.format(name), END.format(name), text)


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    collect_or_write("Collects figures of docs/control.md and writes it.", collect, write, argv)


if __name__ == "__main__":
    manners.run(main)
