"""Command-line manners: one-line errors and exit codes."""

from __future__ import annotations

import argparse
import importlib
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from ..utils import interrupts
from ..utils.errors import UserError

USAGE_EXIT = 2


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
    """Calls main(None) and exits: 0 or main's own code, 2 on UserError, 130 on Ctrl-C, 143 on
    SIGTERM.

    Of several machines each ends with 2 when another one has ended before it.

    Any other exception is a bug of ours and keeps its traceback.
    """
    os.environ["KERAS_BACKEND"] = "tensorflow"  # whatever the user's other programs run on
    try:
        with interrupts.answered():
            code = main(None)
            if cluster := _cluster():
                cluster.leave()
    except UserError as error:
        if (cluster := _cluster()) and cluster.size() > 1:
            cluster.end(_one_line(str(error)))  # before the end of another is noticed
        print(f"error: {_one_line(str(error))}", file=sys.stderr)
        sys.exit(USAGE_EXIT)
    except KeyboardInterrupt as stopped:
        code = getattr(stopped, "code", interrupts.INTERRUPT_EXIT)
        print(interrupts.in_words(code), end="", file=sys.stderr, flush=True)
        interrupts.leave(code)
    except Exception as error:
        if (cluster := _cluster()) and cluster.lost(error):
            cluster.end(cluster.LOST)
        raise
    sys.exit(code or 0)


def _cluster() -> Any:
    """`utils.cluster` where a command has imported it: it brings numpy, for which neither `--help`
    nor the first Ctrl-C shall wait."""
    return sys.modules.get(f"{__package__.rpartition('.')[0]}.utils.cluster")


def run_module(name: str) -> NoReturn:
    """Calls the main of a module as `run` does; the module is only imported then."""
    run(lambda argv: importlib.import_module(name).main(argv))


def _one_line(message: str) -> str:
    return " ".join(message.split())
