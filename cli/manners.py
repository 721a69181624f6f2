"""Command-line manners: one-line errors and exit codes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from ..utils import cluster
from ..utils.errors import UserError

USAGE_EXIT = 2
INTERRUPT_EXIT = 130


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

    Of several machines each ends with 2 when another one has ended before it.

    Any other exception is a bug of ours and keeps its traceback.
    """
    try:
        code = main(None)
        cluster.leave()
    except UserError as error:
        if cluster.size() > 1:
            cluster.end(_one_line(str(error)))  # before the end of another is noticed
        print(f"error: {_one_line(str(error))}", file=sys.stderr)
        sys.exit(USAGE_EXIT)
    except KeyboardInterrupt:
        print("\ninterrupted: run the same command again to resume", file=sys.stderr)
        sys.exit(INTERRUPT_EXIT)
    except Exception as error:
        if cluster.lost(error):
            cluster.end(cluster.LOST)
        raise
    sys.exit(code or 0)


def _one_line(message: str) -> str:
    return " ".join(message.split())
