"""Command-line manners: one-line errors and exit codes."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from ..utils.errors import UserError

USAGE_EXIT = 2
INTERRUPT_EXIT = 130


class Arguments(argparse.Namespace):
    """Parsed flags, and beside them (not in `vars`) the command as it was typed."""

    __slots__ = ("command",)
    command: str


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that refuses abbreviated flags and reports a mistake in one line."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: None = None
    ) -> Arguments:
        """As argparse's, with the command among the `Arguments`."""
        words = sys.argv[1:] if args is None else list(args)
        found = super().parse_args(words, Arguments())
        python = ["python"] if self.prog.endswith(".py") else []
        found.command = shlex.join([*python, *self.prog.split(), *words])
        return found

    def error(self, message: str) -> NoReturn:
        """Prints `error: message` to stderr and exits with code 2."""
        self.exit(USAGE_EXIT, f"error: {_one_line(message)} (see {self.prog} --help)\n")


def run(main: Callable[[Sequence[str] | None], int | None]) -> NoReturn:
    """Calls main(None) and exits: 0 or main's own code, 2 on UserError, 130 on Ctrl-C.

    Any other exception is a bug of ours and keeps its traceback.
    """
    try:
        code = main(None)
    except UserError as error:
        print(f"error: {_one_line(str(error))}", file=sys.stderr)
        sys.exit(USAGE_EXIT)
    except KeyboardInterrupt:
        print("\ninterrupted: run the same command again to resume", file=sys.stderr)
        sys.exit(INTERRUPT_EXIT)
    sys.exit(code or 0)


def _one_line(message: str) -> str:
    return " ".join(message.split())
