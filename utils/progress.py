"""All that a run shows of itself while it works: lines, and bars where somebody watches them.

* A terminal (stderr is one) or a notebook with ipywidgets: bars by `tqdm.auto`.
* Anything else, such as a file: a line per epoch, or every few per cent, with the time left.

Lines go to stdout, bars to stderr. Nothing is silent for long: `doing` says in a line what begins
and reports again while it lasts. Keras's `verbose` (`shown`) switches all of it off.

There are no TensorFlow imports here: `--help` and mistakes in flags answer at once.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, Literal

from .errors import UserError

# As of keras.Model.fit: "auto", 0 silent, 1 bars, 2 lines.
Verbose = Literal["auto", 0, 1, 2] | bool
OFF, BARS, LINES = "off", "bars", "lines"

QUIET_SECONDS = 10.0  # of silence that nobody has to wonder about
TICK_SECONDS = 1.0  # in which a bar's clock moves on
LINES_OF_BAR = 50  # at most, of a long one without a terminal
LONGEST_QUIET = 300.0  # between two lines of a bar that takes days
BAR_FORMAT = "{desc}: {percentage:3.0f}%|{bar:20}| {elapsed}<{remaining}{postfix}"

_mode: ContextVar[str | None] = ContextVar("mode", default=None)  # None: by surroundings


@contextmanager
def shown(verbose: Verbose = "auto") -> Iterator[None]:
    """How much is shown inside: "auto" (bars or lines, by surroundings), 0 (nothing but
    warnings), 1 (bars) or 2 (lines), as in `keras.Model.fit`.

    Raises:
        UserError: another value.
    """
    if (isinstance(verbose, str) and verbose != "auto") or verbose not in ("auto", 0, 1, 2):
        raise UserError(f'verbose {verbose!r} is none of "auto", 0 (silent), 1 (bars), 2 (lines)')
    if verbose == "auto":
        yield
        return
    token = _mode.set({0: OFF, 1: BARS, 2: LINES}[int(verbose)])
    try:
        yield
    finally:
        _mode.reset(token)


def mode() -> str:
    """ "off", "bars" or "lines": what was asked for, else what the surroundings can show."""
    wanted = _mode.get()
    if wanted is not None:
        return wanted
    return BARS if _in_notebook() or sys.stderr.isatty() else LINES


def _tqdm() -> Any:
    import warnings

    from tqdm import TqdmWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TqdmWarning)  # no ipywidgets: lines are shown instead
        from tqdm.auto import tqdm
    return tqdm


def _in_notebook() -> bool:
    """Whether bars can be widgets of a notebook."""
    if "IPython" not in sys.modules:
        return False
    notebook = sys.modules.get("tqdm.notebook") if _tqdm() else None
    return notebook is not None and issubclass(_tqdm(), notebook.tqdm_notebook)


# ---------------------------------------------------------------- lines


def say(text: str) -> None:
    """Shows a line (or several) on stdout."""
    if mode() != OFF:
        _write(text)


def warn(text: str) -> None:
    """Shows a warning, which `verbose` 0 doesn't switch off."""
    _write(f"warning: {text}")


def _write(text: str) -> None:
    _clock.spoken()
    if _open and not _in_notebook():
        _tqdm().write(text, file=sys.stdout)  # above the bars
        sys.stdout.flush()
    else:
        print(text, flush=True)


@contextmanager
def doing(text: str, *, after: float = 0) -> Iterator[None]:
    """Says what begins; while it lasts it is said again, ever more rarely, how long it has.

    Args:
        after: so many seconds; what is over by then isn't spoken of, and nothing is where a bar is
            seen.
    """
    if not after:
        say(text)
    if mode() == OFF or (after and _open):
        yield
        return
    begin, pause, named = time.monotonic(), after or QUIET_SECONDS, not after
    _clock.spoken()

    def still() -> None:
        nonlocal pause, named
        if _clock.quiet() < pause:
            return
        passed = time.monotonic() - begin
        _write(f"  ... still at it, {duration(passed)} so far" if named else text)
        named, pause = True, min(LONGEST_QUIET, max(QUIET_SECONDS, passed / 2))

    with _ticking(still):
        yield


class _Clock:
    """When something was last shown."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    def spoken(self) -> None:
        self.last = time.monotonic()

    def quiet(self) -> float:
        """Seconds since then."""
        return time.monotonic() - self.last


_clock = _Clock()
_open: list[Bar] = []  # bars that are seen now, the outermost first


@contextmanager
def _ticking(tick: Callable[[], None]) -> Iterator[None]:
    """Calls `tick` every second in a thread, which never keeps a process alive."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(TICK_SECONDS):
            tick()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


# ---------------------------------------------------------------- bars


class Bar:
    """How far something is; made by `bar`.

    Attributes:
        done, total: in units of the work.
    """

    def __init__(self, what: str, total: float, initial: float, delay: float, mode: str):
        self.what, self.total, self.done = what, total, initial
        self._begin, self._mode = time.monotonic(), mode
        self._initial: float | None = None
        self._since = self._begin
        self._noted, self._text = initial, ""
        self._tqdm: Any = None
        if mode == BARS:
            self._tqdm = _tqdm()(
                total=total,
                initial=initial,
                desc=what,
                delay=delay,
                leave=delay == 0,
                dynamic_ncols=True,
                bar_format=BAR_FORMAT,
                file=sys.stderr,
            )

    def to(self, done: float, text: str = "", *, line: bool = True) -> None:
        """So much is done now; `text` says how well. Without `line` none is shown for it."""
        if self._initial is None and done > self.done:
            # What was first took longer: it was traced. The time left is judged from here on.
            self._initial, self._since = done, time.monotonic()
        self.done, self._text = min(done, self.total), text
        if self._tqdm is not None:
            self._tqdm.set_postfix_str(text, refresh=False)
            self._tqdm.update(self.done - self._tqdm.n)
        elif line and self._mode == LINES and _clock.quiet() >= self._pause():
            self._line(text)

    def tick(self) -> None:
        """Shows that something is going on, even if no part of it was finished."""
        if self._tqdm is not None:
            self._tqdm.refresh()
        elif self._mode == LINES and _clock.quiet() >= 1.5 * self._pause():
            self._line(self._text or f"working for {duration(time.monotonic() - self._begin)}")

    def advance(self, more: float, text: str = "", *, line: bool = True) -> None:
        """As `to`, counted from what is done."""
        self.to(self.done + more, text, line=line)

    def note(self, text: str, line: str | None = None) -> None:
        """What is worth a line of its own, such as an epoch's end; without a terminal at most a
        hundred of them are shown, the last one always.

        Args:
            text: what the bar says. line: what the line says instead.
        """
        if self._tqdm is not None:
            self.to(self.done, text)
        elif self._mode == LINES:
            due = self.done - self._noted >= 0.01 * self.total - 1e-9
            if due or self.done >= self.total:
                self._noted = self.done
                self._line(line or text, percent=False)

    def _pause(self) -> float:
        """Seconds between two lines: a few per cent of the whole, but not too long."""
        passed = time.monotonic() - self._begin
        left = self.left()
        whole = 10 * passed if left is None else passed + left
        return min(LONGEST_QUIET, max(QUIET_SECONDS, whole / LINES_OF_BAR))

    def left(self) -> float | None:
        """Seconds until the end at the speed so far; None: unknown yet."""
        if self._initial is None or self.done <= self._initial:
            return None
        made = self.done - self._initial
        return (time.monotonic() - self._since) * (self.total - self.done) / made

    def _line(self, text: str, percent: bool = True) -> None:
        parts = [f"{100 * self.done / max(self.total, 1e-12):.0f} %"] if percent else []
        parts += [text] if text else []
        if self.done < self.total and (left := self.left()) is not None:
            parts.append(f"about {duration(left)} left")
        _write(f"{self.what}: {', '.join(parts)}")

    def close(self) -> None:
        if self._tqdm is not None:
            self._tqdm.refresh()
            self._tqdm.close()


@contextmanager
def bar(what: str, total: float, *, initial: float = 0, delay: float = 0) -> Iterator[Bar]:
    """A bar in a terminal or a notebook, else lines.

    Args:
        what: is being done. total: of its units. initial: done by an earlier process.
        delay: seconds after which it is worth showing; such a bar leaves nothing behind.
    """
    one = Bar(what, total, initial, delay, mode())
    _clock.spoken()
    shown_now = one._mode == BARS
    if shown_now:
        _open.append(one)
    try:
        # A notebook's widgets keep to its main thread.
        with _ticking(one.tick) if mode() != OFF and not _in_notebook() else nullcontext():
            yield one
    finally:
        one.close()
        if shown_now:
            _open.remove(one)


def duration(seconds: float) -> str:
    """How it reads: 0.4 s, 12 s, 3 min, 1 h 20 min, 2 days 3 h."""
    if seconds < 9.5:
        return f"{seconds:.1f} s" if seconds < 0.95 else f"{seconds:.0f} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    of_days = f"{days} day{'' if days == 1 else 's'}"
    return f"{of_days} {hours} h" if hours else of_days


def count(number: int, one: str, several: str | None = None) -> str:
    """A number with its noun: "1 epoch", "1,280 examples"."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"
