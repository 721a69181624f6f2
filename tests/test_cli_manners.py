"""Exit codes, one-line errors, and the types of flags."""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ekg_tf.cli import flags, manners
from ekg_tf.options.fields import Setting
from ekg_tf.utils import devices

ROOT = Path(__file__).resolve().parents[1]


def type_of(**limits):
    """The argparse type of a setting with these limits."""
    kind = limits.pop("kind", float)
    return flags.typed(Setting("it", kind, False, False, "it", "help", None, **limits))


POSITIVE, NOT_NEGATIVE, ON_OFF = type_of(above=0), type_of(least=0), type_of(kind=bool)


def run_script(body: str) -> subprocess.CompletedProcess:
    script = (
        "from ekg_tf.cli import manners\nfrom ekg_tf.utils.errors import UserError\n"
        f"def main(argv=None):\n    {body}\nmanners.run(main)\n"
    )
    return subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


def test_user_error_is_one_line_and_exit_2():
    result = run_script("raise UserError('no such folder:\\n  give another')")
    assert result.returncode == 2
    assert result.stderr == "error: no such folder: give another\n"


def test_interrupt_exits_130_and_says_how_to_resume():
    result = run_script("raise KeyboardInterrupt")
    assert result.returncode == 130
    assert "same command" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_signals_are_answered_by_a_line(name, code):
    result = run_script(f"import os, signal; os.kill(os.getpid(), signal.{name})")
    assert result.returncode == code
    assert re.fullmatch(r"\n\w+ed: run the same command again to resume\n", result.stderr)


def test_interrupt_while_a_module_is_imported(tmp_path):
    """TensorFlow's modules answer it by pages of their own."""
    source = "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\n"
    (tmp_path / "half.py").write_text(source + "except BaseException:\n    print('went on')\n")
    result = run_script(f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import half")
    assert result.returncode == 130 and result.stdout == ""
    assert result.stderr == "\ninterrupted: run the same command again to resume\n"


@pytest.mark.parametrize("script", ["search.py", "test.py"])
def test_scripts_answer_an_interrupt_before_they_import_anything_else(script, tmp_path):
    (tmp_path / "numpy.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    command = [sys.executable, str(ROOT / script), "--help"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert result.returncode == 130
    assert result.stderr == "\ninterrupted: run the same command again to resume\n"


def test_home_in_a_path(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert flags.path("~/run") == "/home/me/run" and flags.path("a/~") == "a/~"


def test_a_bug_keeps_its_traceback():
    result = run_script("raise ValueError('a bug')")
    assert result.returncode == 1
    assert "Traceback" in result.stderr


@pytest.mark.parametrize(("value", "code"), [("None", 0), ("0", 0), ("3", 3)])
def test_exit_code_is_that_of_main(value, code):
    with pytest.raises(SystemExit) as exit_:
        manners.run(lambda argv: None if value == "None" else int(value))
    assert exit_.value.code == code


@pytest.mark.parametrize("argv", [["--lr", "x"], ["--learn", "0.1"], ["--unknown"]])
def test_parser_reports_in_one_line(argv, capsys):
    parser = manners.Parser(prog="train")
    parser.add_argument("--lr", type=POSITIVE)
    parser.add_argument("--learning_rate", type=float)
    with pytest.raises(SystemExit) as exit_:
        parser.parse_args(argv)
    lines = capsys.readouterr().err.splitlines()
    assert exit_.value.code == 2
    assert len(lines) == 1 and lines[0].startswith("error: ")


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (flags.fraction, "0.5", 0.5),
        (flags.count, "1", 1),
        (POSITIVE, "1e-3", 0.001),
        (NOT_NEGATIVE, "0", 0.0),
        (ON_OFF, "True", True),
        (ON_OFF, "0", False),
        (ON_OFF, "ON", True),
        (ON_OFF, "no", False),
        (devices.gpu_ids, "0", [0]),
        (devices.gpu_ids, "1, 0", [1, 0]),
        (devices.gpu_ids, "cpu", []),
    ],
)
def test_types_accept(parse, text, value):
    assert parse(text) == value


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        *((flags.fraction, text) for text in ("0", "1", "-0.1", "nan", "half")),
        *((flags.count, text) for text in ("0", "1.5", "")),
        *((POSITIVE, text) for text in ("0", "inf", "nan")),
        *((NOT_NEGATIVE, text) for text in ("-1", "nan")),
        *((ON_OFF, text) for text in ("2", "", "maybe")),
        *((devices.gpu_ids, text) for text in ("", "-1", "0,,1", "0,0", "x")),
    ],
)
def test_types_refuse(parse, text):
    with pytest.raises(argparse.ArgumentTypeError):
        parse(text)
