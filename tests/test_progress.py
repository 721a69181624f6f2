"""What a run shows while it works: in a terminal, in a file, in a notebook, and not at all."""

import io
import subprocess
import sys
import time
from contextlib import redirect_stderr
from pathlib import Path

import pytest
from ekg_tf.utils import progress
from ekg_tf.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def hurried(monkeypatch):
    """A tenth of a second is a long silence."""
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.1)
    monkeypatch.setattr(progress, "TICK_SECONDS", 0.02)


def work(count: int = 4, pause: float = 0.0) -> None:
    with progress.bar("training", count) as bar:
        for number in range(count):
            time.sleep(pause)
            bar.advance(1, f"loss {number}")
            bar.note(f"epoch {number + 1} of {count}")


def test_a_terminal_has_a_bar_with_the_epoch_on_stderr(capsys):
    terminal = Terminal()
    with redirect_stderr(terminal), progress.bar("training", 4) as bar:
        bar.advance(4, "epoch 2 of 2, loss 0.5")
        progress.say("a line above it")
    assert "training: 100%|" in terminal.getvalue()
    assert "epoch 2 of 2, loss 0.5" in terminal.getvalue()
    assert capsys.readouterr().out == "a line above it\n"


def test_a_file_has_a_line_per_epoch_with_the_time_left(capsys):
    assert progress.mode() == progress.LINES
    work(4, pause=0.02)
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert [line.split(",")[0] for line in lines] == [
        f"training: epoch {number} of 4" for number in (1, 2, 3, 4)
    ]
    # The first part is traced: only from the second on it is known how long a part takes.
    assert "left" not in lines[0] and "left" in lines[1] and "left" not in lines[3]
    assert err == ""


def test_many_short_epochs_make_a_hundred_lines_at_most(capsys):
    work(1000)
    lines = capsys.readouterr().out.splitlines()
    assert 90 <= len(lines) <= 101 and lines[-1] == "training: epoch 1000 of 1000"


def test_a_silence_within_a_part_is_broken(hurried, capsys):
    with progress.bar("search", 10):
        time.sleep(0.6)
    assert capsys.readouterr().out.startswith("search: 0 %, working for ")


def test_what_lasts_says_so_ever_more_rarely(hurried, capsys):
    with progress.doing("tracing the step"):
        time.sleep(1.0)
    first, *more = capsys.readouterr().out.splitlines()
    assert first == "tracing the step"
    assert 2 <= len(more) <= 7 and all(line.startswith("  ... still at it, ") for line in more)


@pytest.mark.parametrize(("seconds", "said"), [(0.0, ""), (0.5, "loading\n")])
def test_what_is_soon_over_isnt_spoken_of(hurried, capsys, seconds, said):
    with progress.doing("loading", after=0.3):
        time.sleep(seconds)
    out = capsys.readouterr().out
    assert out.startswith(said) and bool(out) == bool(said)


def test_silent_is_silent_but_for_warnings(capsys):
    terminal = Terminal()
    with redirect_stderr(terminal), progress.shown(0):
        progress.say("a line")
        work()
        with progress.doing("tracing"):
            progress.warn("the disk is nearly full")
    assert (capsys.readouterr().out, terminal.getvalue()) == (
        "warning: the disk is nearly full\n",
        "",
    )


@pytest.mark.parametrize(
    ("verbose", "mode"), [(0, "off"), (1, "bars"), (2, "lines"), (True, "bars")]
)
def test_verbose_is_that_of_keras(verbose, mode):
    with progress.shown(verbose):
        assert progress.mode() == mode
    assert progress.mode() == progress.LINES


@pytest.mark.parametrize("verbose", [3, "yes", None])
def test_another_verbose_is_refused(verbose):
    with pytest.raises(UserError, match='none of "auto", 0'), progress.shown(verbose):
        pass


NOTEBOOK = """
import sys, types
class Shell:
    config = {"IPKernelApp": {}}
sys.modules["IPython"] = types.SimpleNamespace(get_ipython=Shell)
sys.modules["ipykernel.zmqshell"] = types.ModuleType("zmqshell")
WIDGETS
from ekg_tf.utils import progress
print(progress.mode())
"""
WIDGETS = """
import tqdm.notebook
tqdm.notebook.IProgress = object
"""


@pytest.mark.parametrize(("widgets", "mode"), [("", "lines"), (WIDGETS, "bars")])
def test_a_notebook_has_bars_where_it_has_widgets(widgets, mode):
    script = NOTEBOOK.replace("WIDGETS", widgets or "sys.modules['ipywidgets'] = None")
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == (f"{mode}\n", "")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0.4 s"), (1, "1 s"), (75, "75 s"), (200, "3 min"), (4800, "1 h 20 min"),
     (7200, "2 h"), (97200, "1 day 3 h"), (172800, "2 days")],
)  # fmt: skip
def test_durations_as_people_say_them(seconds, text):
    assert progress.duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"), [(1, "1 epoch"), (0, "0 epochs"), (1280, "1,280 epochs")]
)
def test_plurals(number, text):
    assert progress.count(number, "epoch") == text


# ---------------------------------------------------------------- Ctrl-C

BLOCKED = """
import ctypes, sys
from ekg_tf.cli import manners
def main(argv):
    mutex, lock = ctypes.create_string_buffer(64), ctypes.CDLL(None).pthread_mutex_lock
    lock(mutex)
    print("computing", flush=True)
    lock(mutex)  # for ever, and no signal ends it: as a kernel of TensorFlow's
manners.run(main)
"""


def test_ctrl_c_is_answered_at_once_and_over_soon_even_in_the_middle_of_a_computation():
    process = subprocess.Popen(
        [sys.executable, "-c", BLOCKED],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "computing\n"
    time.sleep(0.5)  # until it is blocked
    begin = time.monotonic()
    process.send_signal(2)
    assert process.stderr.readline() == "\n"
    assert process.stderr.readline() == "stopping; Ctrl-C again ends at once\n"
    assert time.monotonic() - begin < 2
    _, rest = process.communicate(timeout=20)
    assert process.returncode == 130 and rest.startswith("interrupted: run the same command")
    assert time.monotonic() - begin < 10
