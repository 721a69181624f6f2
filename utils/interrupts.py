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
from contextlib import contextmanager
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
    try:
        yield
    except KeyboardInterrupt:
        raise  # the watching goes on: what runs in other threads has no more than the grace, too
    except BaseException:
        signal.set_wakeup_fd(former)
        raise
    else:
        signal.set_wakeup_fd(former)


def _watch(reading: int, terminal: int) -> None:
    while signal.SIGINT not in os.read(reading, 64):
        pass
    os.write(terminal, ANSWER.encode())
    end = threading.Timer(GRACE_SECONDS, _end, (terminal,))
    end.daemon = True
    end.start()
    while signal.SIGINT not in os.read(reading, 64):
        pass
    _end(terminal)


def _end(terminal: int) -> None:
    os.write(terminal, RESUME.encode())
    leave()


def leave() -> NoReturn:
    """Ends the process with code 130, without waiting for threads that still compute."""
    for tidy in _tidying:
        tidy()
    os._exit(EXIT)
