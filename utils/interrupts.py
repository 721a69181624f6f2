"""Ctrl-C and SIGTERM of a command: answered at once, and over within seconds.

Python looks at a signal between two of its own instructions, which can be a minute away while
TensorFlow compiles or computes. So a thread waits for it beside: it says at once that the run ends,
and ends the process if Python hasn't got round to it in time. A run folder may be left at any
moment (`utils.runfolder`).
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import FrameType
from typing import NoReturn

INTERRUPT_EXIT, TERMINATE_EXIT = 130, 143  # 128 and the number of the signal
AT_ONCE_SECONDS = 0.2  # in which Python mostly ends by itself: nothing more has to be said
GRACE_SECONDS = 3.0  # for Python to end in its own way
ANSWERS = {
    signal.SIGINT: "\nstopping; Ctrl-C again ends at once\n",
    signal.SIGTERM: "\nstopping\n",
}
RESUME = "run the same command again to resume\n"
_IMPORTING = "<frozen importlib._bootstrap>"

_answered = False  # whether one of the ANSWERS was given
_tidying: list[Callable[[], object]] = []


class Stopped(KeyboardInterrupt):
    """A signal asked for the end.

    Attributes:
        code: the exit code, 128 and the number of the signal.
    """

    def __init__(self, code: int):
        super().__init__()
        self.code = code


def before_end(tidy: Callable[[], object]) -> None:
    """Has `tidy` called even where the process is ended in the middle of a computation."""
    _tidying.append(tidy)


@contextmanager
def answered() -> Iterator[None]:
    """Answers both signals inside; only in the main thread of a program of ours, never in a
    notebook.

    A first one is `Stopped`, a KeyboardInterrupt; 3 seconds later, or at a second one, the process
    ends with code 130 or 143 wherever it is, and says how to go on. While a module is being
    imported it ends at once: half of one can't be told from a broken one, and TensorFlow would
    answer by pages of its own.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    terminal = os.dup(2)  # stderr itself may be held back when it is needed
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    former = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    handlers = {one: signal.signal(one, partial(_stop, terminal)) for one in ANSWERS}
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
            for one, handler in handlers.items():
                signal.signal(one, handler)
            signal.set_wakeup_fd(former)
            os.close(writing)  # which ends the watching
            watch.join()
            os.close(reading)
            os.close(terminal)


def _stop(terminal: int, number: int, frame: FrameType | None) -> None:
    while frame is not None:
        if frame.f_code.co_filename == _IMPORTING:
            _end(terminal, 128 + number)
        frame = frame.f_back
    raise Stopped(128 + number)


def _watch(reading: int, terminal: int) -> None:
    global _answered
    first = _signalled(reading)
    if first is None:
        return
    if not select.select([reading], [], [], AT_ONCE_SECONDS)[0]:  # Python is busy
        _answered = True
        _write(terminal, ANSWERS[first])
    end = threading.Timer(GRACE_SECONDS, _end, (terminal, 128 + first))
    end.daemon = True
    end.start()
    if (second := _signalled(reading)) is not None:
        _end(terminal, 128 + second)
    end.cancel()


def _signalled(reading: int) -> signal.Signals | None:
    """Waits for the next of our signals, or for the end of the watching."""
    while signals := os.read(reading, 64):
        for one in ANSWERS:
            if one in signals:
                return one
    return None


def _write(terminal: int, text: str) -> None:
    with suppress(OSError):  # nobody reads it any more
        os.write(terminal, text.encode())


def in_words(code: int) -> str:
    """What ended a command, and how to go on: a line, below a terminal's ^C."""
    said = f"{'terminated' if code == TERMINATE_EXIT else 'interrupted'}: {RESUME}"
    return said if _answered else f"\n{said}"


def _end(terminal: int, code: int) -> NoReturn:
    _write(terminal, in_words(code))
    leave(code)


def leave(code: int) -> NoReturn:
    """Ends the process with this code, without waiting for threads that still compute."""
    for tidy in _tidying:
        tidy()
    with suppress(OSError):
        sys.stdout.flush()
    os._exit(code)
