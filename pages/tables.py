"""docs/tables.md from docs/results/table*.json.

python -m ekg_tf.pages.tables
"""

from pathlib import Path

from ..cli import manners
from ..experiments.tables.text import as_published, markdown, of_the_same_network
from ..reports.tables import NOT_MEASURED
from ..utils.files import replace_between
from ..utils.jsonl import read_json
from .files import RESULTS, ROOT

PAGE = ROOT / "docs" / "tables.md"
BEGIN = "<!-- tables: begin (python -m ekg_tf.pages.tables) -->"
END = "<!-- tables: end -->"


def page(folder: Path = RESULTS) -> str:
    """All tables whose results are collected, in Markdown, each with its picture; after them the
    published figures of other networks than ours."""
    parts, published = [], {}
    for file in sorted(folder.glob("table*.json")):
        result = read_json(file)
        parts.append(markdown(result))
        picture = file.with_suffix(".png")
        if picture.exists():
            parts.append(f"![accuracies of its rows](results/{picture.name})")
        if not of_the_same_network(result):
            published[result["table"], result["published"]["network"]] = as_published(result)
    return "\n\n".join([*parts, *published.values()]) or NOT_MEASURED


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    manners.Parser(description="Writes docs/tables.md from docs/results/table*.json.").parse_args(
        argv
    )
    replace_between(PAGE, BEGIN, END, page())


if __name__ == "__main__":
    manners.run(main)
