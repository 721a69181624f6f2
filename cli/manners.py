"""Command-line manners: one-line errors and exit codes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from ..utils import interrupts
from ..utils.errors import UserError

USAGE_EXIT = 2


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that refuses abbreviated flags and reports a mistake in one line."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Prints `error: message` to stderr and exits with code 2."""
        self.exit(USAGE_EXIT, f"error: {_one_line(message)} (see {self.prog} --help)\n")


def run(main: Callable[[Sequence[str] | None], int | None]) -> NoReturn:
    """Calls main(None) and exits: 0 or main's own code, 2 on UserError, 130 on Ctrl-C.

    Any other exception is a bug of ours and keeps its traceback.
    """
    try:
        with interrupts.answered():
            code = main(None)
    except UserError as error:
        print(f"error: {_one_line(str(error))}", file=sys.stderr)
        sys.exit(USAGE_EXIT)
    except KeyboardInterrupt:
        print(interrupts.RESUME, end="", file=sys.stderr, flush=True)
        sys.stdout.flush()
        interrupts.leave()
    sys.exit(code or 0)


def _one_line(message: str) -> str:
    return " ".join(message.split())
