"""Ctrl-C of a command: answered at once, and over within seconds.

Python looks at a signal between two of its own instructions, which can be a minute away while
TensorFlow compiles or computes. So a thread waits for it beside: it says at once that the run ends,
and ends the process if Python hasn't got round to it in time. A run folder may be left at any
moment (`utils.runfolder`).
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

EXIT = 130
GRACE_SECONDS = 3.0  # for Python to end in its own way
ANSWER = "\nstopping; Ctrl-C again ends at once\n"
RESUME = "interrupted: run the same command again to resume\n"

_tidying: list[Callable[[], object]] = []


def before_end(tidy: Callable[[], object]) -> None:
    """Has `tidy` called even where the process is ended in the middle of a computation."""
    _tidying.append(tidy)


@contextmanager
def answered() -> Iterator[None]:
    """Answers Ctrl-C inside; only in the main thread of a program of ours, never in a notebook.

    A first one is a KeyboardInterrupt as ever; 3 seconds later, or at a second one, the process
    ends with code 130 wherever it is, and says how to go on.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    terminal = os.dup(2)  # stderr itself may be held back when it is needed
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    former = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    watch = threading.Thread(target=_watch, args=(reading, terminal), daemon=True)
    watch.start()
    interrupted = False
    try:
        yield
    except KeyboardInterrupt:
        interrupted = True  # the watching goes on: other threads have no more than the grace, too
        raise
    finally:
        if not interrupted:
            signal.set_wakeup_fd(former)
            os.close(writing)  # which ends the watching
            watch.join()
            os.close(reading)
            os.close(terminal)


def _watch(reading: int, terminal: int) -> None:
    if not _interrupted(reading):
        return
    _write(terminal, ANSWER)
    end = threading.Timer(GRACE_SECONDS, _end, (terminal,))
    end.daemon = True
    end.start()
    if _interrupted(reading):
        _end(terminal)
    end.cancel()


def _interrupted(reading: int) -> bool:
    """Waits for the next Ctrl-C, or for the end of the watching."""
    while signals := os.read(reading, 64):
        if signal.SIGINT in signals:
            return True
    return False


def _write(terminal: int, text: str) -> None:
    with suppress(OSError):  # nobody reads it any more
        os.write(terminal, text.encode())


def _end(terminal: int) -> None:
    _write(terminal, RESUME)
    leave()


def leave() -> NoReturn:
    """Ends the process with code 130, without waiting for threads that still compute."""
    for tidy in _tidying:
        tidy()
    os._exit(EXIT)
