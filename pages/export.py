"""docs/export.md's table, printed from the figures that `ekg-tf export --json` wrote.

python -m ekg_tf.pages.export collect "ResNet-56 on CIFAR-10" FILE.json   # -> export.json
python -m ekg_tf.pages.export write                                       # -> docs/export.md
"""

import json
from pathlib import Path

from ..cli import manners
from ..deployment.exporting import table
from ..reports.tables import table as markdown
from ..utils.errors import UserError
from ..utils.files import atomic_write, replace_between
from ..utils.jsonl import read_json
from .files import RESULTS, ROOT, collect_or_write

FIGURES = RESULTS / "export.json"
PAGE = ROOT / "docs" / "export.md"
BEGIN = "<!-- figures: begin (python -m ekg_tf.pages.export write) -->"
END = "<!-- figures: end -->"


def collect(title: str, source: Path, figures: Path = FIGURES) -> None:
    """Adds what `ekg-tf export --json` wrote to the collected figures, under a title.

    Raises:
        UserError: a file is missing or damaged, or holds no exports.
    """
    run = read_json(source)
    if not isinstance(run, dict) or "exports" not in run:
        raise UserError(f"{source} holds no figures of ekg-tf export --json")
    runs = read_json(figures) if figures.exists() else {}
    text = json.dumps(runs | {title: run}, indent=2, sort_keys=True) + "\n"
    atomic_write(figures, lambda path: path.write_text(text, encoding="utf-8"))


def tables(figures: Path = FIGURES) -> str:
    """One table in Markdown per collected network; before → after where both were exported."""
    parts = []
    for title, run in read_json(figures).items():
        versions = run["versions"]
        calibration = run["calibration_images"]
        header, *rows = table(run)
        parts += [
            f"**{title}** ({run['images']:,} test images"
            + (f", {calibration:,} calibration images" if calibration else "")
            + f"; LiteRT {versions['ai-edge-litert']}, ONNX Runtime {versions['onnxruntime']}, "
            f"TensorFlow {versions['tensorflow']}, one CPU thread but for Keras and SavedModel):",
            markdown(header, rows),
        ]
    return "\n\n".join(parts)


def write() -> None:
    """Puts the tables between docs/export.md's two markers; raises as `replace_between`."""
    replace_between(PAGE, BEGIN, END, tables())


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    collect_or_write(
        "Collects export figures and writes docs/export.md's tables.", collect, write, argv
    )


if __name__ == "__main__":
    manners.run(main)
