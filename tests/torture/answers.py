"""What a case is answered by: its line, its exit code, its seconds and what it leaves."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ekg_tf.cli import manners
from ekg_tf.utils.errors import UserError

from ekg_tf.__main__ import main
from tests.torture.bad_inputs import Case
from tests.torture.base import Base

PATIENCE = 120  # seconds, after which a refusal counts as hanging
LENGTH = 900  # seconds that a run which is fine may take


@dataclass(frozen=True)
class Answer:
    """lines: of stderr, or the message of a UserError. code: 0 or the exit code; None: anything
    else was raised, and its traceback is in lines. left: whether there is a folder `run`."""

    code: int | None
    lines: str
    seconds: float
    mebibytes: float
    left: bool


class Hanging(BaseException):
    """A case took longer than PATIENCE."""


def answer(case: Case, base: Base, folder: Path) -> Answer:
    """Runs a case in an empty folder, which is also its HOME and its current folder."""
    words = case.make(base, folder)
    before, start = _peak(), time.perf_counter()
    path, here, home = list(sys.path), os.getcwd(), os.environ.get("HOME")
    os.chdir(folder)
    os.environ["HOME"] = str(folder)
    code: int | None = 0
    lines = ""
    try:
        seconds = PATIENCE if case.line else LENGTH
        with tempfile.TemporaryFile() as errors, _patience(seconds):
            with _stderr_to(errors.fileno()):
                try:
                    if callable(words):
                        words()
                    else:
                        manners.run(lambda _: main(words))
                except UserError as error:
                    code, lines = 2, f"error: {error}\n"
                except SystemExit as stop:
                    code = stop.code if isinstance(stop.code, int) else None
                except (Exception, Hanging):
                    code, lines = None, traceback.format_exc()
            errors.seek(0)
            lines += errors.read().decode(errors="replace")
    finally:
        os.chdir(here)
        sys.path[:] = path
        if home is not None:
            os.environ["HOME"] = home
    seconds = time.perf_counter() - start
    return Answer(code, lines, seconds, _peak() - before, (folder / "run").exists())


def problem(case: Case, found: Answer) -> str | None:
    """What is wrong with an answer."""
    if not case.line:
        return None if (found.code, found.lines) == (0, "") else "it is fine and was refused"
    if found.code != 2:
        return f"exit code {found.code}"
    if not re.fullmatch(r"error: [^\n]+\n", found.lines):
        return "not one line"
    if not re.search(case.line, found.lines):
        return f"the line lacks {case.line!r}"
    if found.left:
        return "a folder is left"
    return f"{found.seconds:.0f} seconds" if found.seconds > PATIENCE / 2 else None


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@contextlib.contextmanager
def _patience(most: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Hanging(f"after {most} s")

    old = signal.signal(signal.SIGALRM, stop)
    signal.alarm(most)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)


@contextlib.contextmanager
def _stderr_to(descriptor: int) -> Iterator[None]:
    """File descriptor 2 as well, for lines of TensorFlow's C++ side."""
    sys.stderr.flush()
    kept, python = os.dup(2), sys.stderr
    os.dup2(descriptor, 2)
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    try:
        yield
    finally:
        sys.stderr.close()
        sys.stderr = python
        os.dup2(kept, 2)
        os.close(kept)
