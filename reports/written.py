"""What a run folder gets when a phase has ended: report.html and, of a network, its model card."""

from __future__ import annotations

from typing import Any

from ..utils import cluster, progress
from ..utils.errors import UserError
from ..utils.files import atomic_write
from ..utils.runfiles import CARD, REPORT
from ..utils.runfolder import RunFolder
from . import card, page


def write(folder: RunFolder) -> None:
    """Writes report.html and README.md of what the folder holds by now.

    Neither is what the run was for: whatever goes wrong is said in a line, and the run goes on. A
    README.md that somebody else has written or changed is left alone.
    """
    cluster.on_chief(lambda: _write(folder))


def close(folder: RunFolder, name: str, results: dict[str, Any]) -> None:
    """Writes the figures that end a phase; the report of an earlier one goes before them.

    So `write`, which comes next, can be made up for by `write_if_missing`.

    Args:
        name: of a JSON file of the run.
    """
    folder.drop(REPORT)
    folder.write_json(name, results)


def write_if_missing(folder: RunFolder) -> None:
    """What a process that was killed between the last figures and the report has left out."""
    if not folder.has(REPORT):
        write(folder)


def _write(folder: RunFolder) -> None:
    for name, make in ((REPORT, _report), (CARD, _card)):
        try:
            make(folder)
        except UserError as error:
            progress.say(f"{name} is not written: {error}")
        except Exception as error:  # a mistake of ours mustn't end a run of hours
            progress.say(
                f"{name} is not written ({type(error).__name__}: {error}); please report this"
            )


def _report(folder: RunFolder) -> None:
    text = page.text_of([folder.path])
    atomic_write(folder.file(REPORT), lambda path: path.write_text(text, encoding="utf-8"))


def _card(folder: RunFolder) -> None:
    if not folder.may_write(CARD):
        progress.say(f"{folder.path / CARD} is not ours, or was changed: it is left as it is")
        return
    text = card.text_of(folder.path)
    atomic_write(folder.file(CARD), lambda path: path.write_text(text, encoding="utf-8"))
    folder.seal(CARD)
