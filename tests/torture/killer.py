"""Commands in processes that are killed: at a moment, or right before or after a change on disk.

The processes are forked from one that has imported TensorFlow and computed nothing yet, so that a
run costs no start.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHANGES = ("replace", "fsync", "unlink", "mkdir")  # of os: what a run does to the disk
KILLED = -signal.SIGKILL


@dataclass(frozen=True)
class At:
    """The change on disk at which a process kills itself: its number, or the first that brings a
    file of a name; and on which side of it."""

    number: int = 0
    after: bool = True
    name: str = ""

    def is_it(self, number: int, *paths: Any) -> bool:
        """Whether this change is the one; paths: what it was called with."""
        if self.name:
            target = paths[1] if len(paths) > 1 else None  # of a renaming
            return isinstance(target, str | Path) and os.path.basename(target) == self.name
        return number == self.number


@dataclass(frozen=True)
class Ended:
    """How a process ended. changes: on disk, as far as it came; output: all that it printed."""

    code: int
    changes: int
    seconds: float
    output: str


def run(words: Sequence[str], log: Path, *, at: At | None = None, after: float = 0) -> Ended:
    """Runs an `ekg-tf` command to its end, or until it is killed.

    Args:
        log: a file for what it prints. at: where it kills itself. after: seconds from its first
            change on disk until it is killed from outside; 0: not at all.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.torture.killer", "tests.torture.loaded"])
    changes = context.Value("i", 0)
    arguments = (list(words), os.fspath(log), changes, at)
    process = context.Process(target=_child, args=arguments)
    start = time.perf_counter()
    process.start()
    if after:
        while not changes.value and process.is_alive():
            time.sleep(0.02)
        process.join(after)
        process.kill()
    process.join()
    seconds = time.perf_counter() - start
    output = log.read_text(errors="replace") if log.exists() else ""
    return Ended(process.exitcode, changes.value, seconds, output)


def _child(words: list[str], log: str, changes: Any, at: At | None) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    for number in (1, 2):
        os.dup2(descriptor, number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    for name in CHANGES:
        setattr(os, name, _watched(getattr(os, name), changes, at))
    from ekg_tf.cli import manners

    from ekg_tf.__main__ import main

    manners.run(lambda _: main(words))


def _watched(change: Callable, changes: Any, at: At | None) -> Callable:
    def watched(*args: Any, **options: Any) -> Any:
        changes.value += 1
        here = at is not None and at.is_it(changes.value, *args)
        if here and not at.after:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            return change(*args, **options)
        finally:  # a change may fail, as making a folder that is there
            if here:
                os.kill(os.getpid(), signal.SIGKILL)

    return watched
