"""The command `ekg-tf` as a process: help and mistakes are answered without TensorFlow."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import ekg_tf
from ekg_tf.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
# Runs the command, and says on its last line which of the heavy packages were imported.
WATCHED = """
import sys
from ekg_tf.__main__ import console
try:
    console()
finally:
    print("imported:", *sorted({"keras", "tensorflow"} & sys.modules.keys()))
"""


def call(*argv: str) -> subprocess.CompletedProcess:
    """`python -m ekg_tf` with TensorFlow's default log level."""
    environment = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    command = [sys.executable, "-m", "ekg_tf", *argv]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


def watched(*argv: str) -> tuple[int, str, str, str]:
    """(exit code, stdout, stderr, heavy packages imported) of the command."""
    command = [sys.executable, "-c", WATCHED, *argv]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    said, _, imported = done.stdout.rpartition("imported:")
    return done.returncode, said, done.stderr, imported.strip()


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_help_lists_every_command(argv):
    done = call(*argv)
    assert (done.returncode, done.stderr) == (0, "")
    for word, (_, text) in COMMANDS.items():
        assert f"  {word} " in done.stdout and text in done.stdout


def test_the_version_is_that_of_the_package():
    done = call("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"ekg-tf {ekg_tf.__version__}\n", "")


def test_an_unknown_command_names_those_there_are():
    done = call("prun", "--train_path", "run")
    assert (done.returncode, done.stdout) == (2, "")
    choices = ", ".join(COMMANDS)
    assert done.stderr == (
        f"error: unknown command 'prun': choose from {choices} (see ekg-tf --help)\n"
    )


@pytest.mark.parametrize("word", COMMANDS)
def test_help_of_every_command_needs_no_tensorflow(word):
    code, said, error, imported = watched(word, "--help")
    assert (code, error, imported) == (0, "", "")
    assert said.startswith(f"usage: ekg-tf {word} ")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["prune", "--search_target_rate", "1.5"], "1.5 is not strictly between 0 and 1"),
        (["prune", "--train_path", "run"], "--model (or --trained_param) is missing"),
        (["prune"], "the following arguments are required: --train_path"),
        (["search", "--train_path", "run", "--gpu_id", "x"], "(see ekg-tf search --help)"),
        (
            ["search", "--train_path", "run", "--model", "m.keras", "--latency_batch", "2"],
            "--latency_batch is for --budget latency, flops has none",
        ),
        (
            ["finetune", "--train_path", "run", "--finetune_method", "kd", "--ckt", "pull"],
            "--ckt belongs to --finetune_method ckt, not kd",
        ),
        (["test"], "--trained_param (or --model) is missing"),
        (["export", "a.keras", "--format", "tflite"], "choose from savedmodel, litert, onnx"),
        (["inspect"], "the following arguments are required: network"),
        (["report", "nowhere"], "nowhere holds no run: give a run folder"),
        (["report"], "the following arguments are required: folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_in_a_flag_is_one_line_and_needs_no_tensorflow(argv, message):
    code, said, error, imported = watched(*argv)
    assert (code, said, imported) == (2, "", "")
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert not (ROOT / "run").exists()


def test_the_package_itself_is_imported_without_tensorflow():
    script = (
        "import sys, ekg_tf as ekg\n"
        "ekg.Flops(0.5), ekg.EKG(), ekg.Training(epochs=3), ekg.Ensemble(), ekg.Bank()\n"
        "assert not {'tensorflow', 'keras'} & sys.modules.keys()\n"
        "try:\n    ekg.Flops(1.5)\nexcept ekg.UserError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "Flops(rate=1.5): 1.5 is not strictly between 0 and 1\n"


def test_a_command_does_its_work(tmp_path):
    done = call("inspect", "applications:MobileNet", "--json", str(tmp_path / "out.json"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "568,740,352 FLOPs" in done.stdout and (tmp_path / "out.json").exists()
