"""report.html: what became of one or several runs, on one page that needs no network.

runs -> figures, charts, layout -> page; `static` and `interactive` draw the same charts. Nothing
here imports TensorFlow, so that a report of a finished folder is there at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...utils.errors import UserError
from .page import GENERATOR, page_of
from .runs import named, read_run

__all__ = ["GENERATOR", "text_of"]

FILE = "report.html"


def text_of(folders: Sequence[Path]) -> str:
    """The page of run folders, which are only read.

    Raises:
        UserError: a folder without a run, or one that holds something else than a run writes.
    """
    names = named(list(folders))
    runs = [read_run(folder, name) for folder, name in zip(folders, names, strict=True)]
    try:
        return page_of(runs)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        places = ", ".join(map(str, folders))
        raise UserError(
            f"{places}: a file there isn't what a run writes ({type(error).__name__}: {error})"
        ) from error
