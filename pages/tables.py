"""docs/tables.md from docs/results/table*.json.

python -m ekg_tf.pages.tables
"""

from pathlib import Path

from ..cli import manners
from ..experiments.tables.text import markdown
from ..reports.tables import NOT_MEASURED
from ..utils.files import replace_between
from ..utils.jsonl import read_json
from .files import RESULTS, ROOT

PAGE = ROOT / "docs" / "tables.md"
BEGIN = "<!-- tables: begin (python -m ekg_tf.pages.tables) -->"
END = "<!-- tables: end -->"


def page(folder: Path = RESULTS) -> str:
    """All tables whose results are collected, in Markdown, each with its picture."""
    parts = []
    for file in sorted(folder.glob("table*.json")):
        parts.append(markdown(read_json(file)))
        picture = file.with_suffix(".png")
        if picture.exists():
            parts.append(f"![accuracies](results/{picture.name})")
    return "\n\n".join(parts) or NOT_MEASURED


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    manners.Parser(description="Writes docs/tables.md from docs/results/table*.json.").parse_args(
        argv
    )
    replace_between(PAGE, BEGIN, END, page())


if __name__ == "__main__":
    manners.run(main)
