"""docs/reliability.md from docs/reliability.in.md and docs/results/reliability.json.

python -m ekg_tf.pages.reliability
"""

from ..cli import manners
from ..reports.tables import NOT_MEASURED, table
from ..utils.files import atomic_write
from ..utils.jsonl import read_json
from .files import RESULTS, ROOT

PAGE = ROOT / "docs" / "reliability.md"
TEXT = ROOT / "docs" / "reliability.in.md"
FIGURES = RESULTS / "reliability.json"
PLACE = "<!-- what was tried -->"


def tried(results: dict) -> str:
    """What the torture tests have tried, as tables; what they haven't says so."""
    parts = []
    for kind, (title, columns, sentence) in KINDS.items():
        found = results.get(kind)
        parts.append(f"**{title}.** {sentence}")
        if found is None:
            parts.append(NOT_MEASURED)
            continue
        rows = [
            [name, *(_shown(run.get(key)) for key in columns.values())]
            for name, run in found["runs"].items()
        ]
        used = found["versions"]
        parts.append(table(["", *columns], rows))
        parts.append(
            f"{found['date']}, TensorFlow {used['tensorflow']}, Keras {used['keras']}, "
            f"Python {used['python']}, {used['cpu_count']} cores."
        )
    return "\n\n".join(parts)


KINDS = {
    "inputs": (
        "Bad inputs",
        {
            "cases in the table": "listed",
            "tried": "cases",
            "refused by one line": "refused",
            "fine and read": "fine",
            "answered otherwise": "wrong",
            "longest refusal, s": "seconds_most",
            "most memory beyond the start, MiB": "mebibytes_most",
        },
        "The table `tests/torture/bad_inputs.py`: an input, and the line that it has to be "
        "answered by, at exit code 2 and without a folder left.",
    ),
    "kills": (
        "Killed runs",
        {
            "SIGKILLs": "kills",
            "of them at a change on disk": "at_changes",
            "changes on disk of a run": "changes",
            "runs compared": "rounds",
            "with another result": "different",
            "seed": "seed",
        },
        "Half of the kills are at a random moment, half right before or after a random rename, "
        "sync, deletion or new folder.",
    ),
    "damage": (
        "Damaged folders",
        {"files spoilt": "files", "refused by one line": "refused", "not needed": "harmless"},
        "Each file of a folder in turn: empty, cut in half, garbage, or that of another run.",
    ),
    "disk": (
        "Full disks",
        {"times full": "full", "with another result in the end": "different"},
        "A whole `prune` on a disk that is enlarged step by step.",
    ),
    "fuzz": (
        "Made-up inputs",
        {"tried": "tried", "answered otherwise": "wrong"},
        "By hypothesis: anything as JSON, changed and cut images of five formats.",
    ),
}


def _shown(value: object) -> str:
    if value is None:
        return NOT_MEASURED
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return f"{value:,.1f}" if isinstance(value, float) else f"{value:,}"


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    manners.Parser(description="Writes docs/reliability.md from what was tried.").parse_args(argv)
    results = read_json(FIGURES) if FIGURES.exists() else {}
    text = TEXT.read_text(encoding="utf-8").replace(PLACE, tried(results))
    atomic_write(PAGE, lambda path: path.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    manners.run(main)
