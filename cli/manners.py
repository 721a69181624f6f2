"""Command-line manners: one-line errors and exit codes."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import FrameType
from typing import Any, NoReturn

from ..utils import cluster
from ..utils.errors import UserError

USAGE_EXIT = 2
INTERRUPT_EXIT, TERMINATE_EXIT = 130, 143
_IMPORTING = "<frozen importlib._bootstrap>"


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


class Stopped(KeyboardInterrupt):
    """A signal asked for the end.

    Attributes:
        code: the exit code, 128 and the number of the signal.
    """

    def __init__(self, code: int):
        super().__init__()
        self.code = code


def run(main: Callable[[Sequence[str] | None], int | None]) -> NoReturn:
    """Calls main(None) and exits: 0 or main's own code, 2 on UserError, 130 on Ctrl-C, 143 on
    SIGTERM.

    Of several machines each ends with 2 when another one has ended before it.

    Any other exception is a bug of ours and keeps its traceback.
    """
    with _signals() as terminal:
        try:
            code = main(None)
            cluster.leave()
        except UserError as error:
            if cluster.size() > 1:
                cluster.end(_one_line(str(error)))  # before the end of another is noticed
            print(f"error: {_one_line(str(error))}", file=sys.stderr)
            sys.exit(USAGE_EXIT)
        except KeyboardInterrupt as stopped:
            code = getattr(stopped, "code", INTERRUPT_EXIT)
            _say_stopped(code, terminal)
            sys.exit(code)
        except Exception as error:
            if cluster.lost(error):
                cluster.end(cluster.LOST)
            raise
    sys.exit(code or 0)


def run_module(name: str) -> NoReturn:
    """Calls the main of a module as `run` does; the module is only imported then."""
    run(lambda argv: importlib.import_module(name).main(argv))


@contextlib.contextmanager
def _signals() -> Iterator[int]:
    """Inside, Ctrl-C and SIGTERM end the program as `run` says.

    Yields:
        A file descriptor of stderr as it is now.
    """
    terminal = os.dup(2)
    old = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            old[number] = signal.signal(number, partial(_stop, terminal))
    try:
        yield terminal
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
        os.close(terminal)


def _stop(terminal: int, number: int, frame: FrameType | None) -> None:
    """Ends the program by an exception; at once where a module is just being imported.

    Half of a module can't be told from a broken one: TensorFlow answers by pages of its own.
    """
    code = 128 + number
    while frame is not None:
        if frame.f_code.co_filename == _IMPORTING:
            _say_stopped(code, terminal)
            os._exit(code)
        frame = frame.f_back
    raise Stopped(code)


def _say_stopped(code: int, terminal: int) -> None:
    what = "terminated" if code == TERMINATE_EXIT else "interrupted"
    with contextlib.suppress(OSError):
        os.write(terminal, f"\n{what}: run the same command again to resume\n".encode())


def _one_line(message: str) -> str:
    return " ".join(message.split())
