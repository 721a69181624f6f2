"""Shared by the tests of whole runs: the smallest run on DIGITS, and what is read of its folder."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from ekg_tf.nets.zoo.pkl_weights import load_pkl

ROOT = Path(__file__).resolve().parents[2]
TARGET, TEACHERS = 0.6, 4
SEARCH = "--val_per_class 8 --subset_per_class 16 --search_step 0.5".split()
SEARCH += ["--search_target_rate", str(TARGET), "--num_teacher", str(TEACHERS)]
TRAIN = "--train_epoch 2".split()
MACHINE = "--gpu_id cpu --deployed_latency off".split()
ARGUMENTS = [*SEARCH, *TRAIN, *"--baseline_epoch 2".split(), *MACHINE]
TIMES = ("seconds", "images_per_second")


def command(program: str, folder: Path, *argv) -> list[str]:
    return [sys.executable, str(ROOT / program), "--train_path", str(folder), *map(str, argv)]


def run(arguments: list[str], **options) -> subprocess.CompletedProcess:
    """A process that must end well and print nothing but its own lines."""
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=900, **options)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    return result


def rows(path: Path) -> list[dict]:
    """The complete lines of a file that may be missing or just being written."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().splitlines(True) if line[-1:] == b"\n"]


def untimed(path: Path) -> list[dict]:
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows(path)]


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """(size, time of the last change) of every file, to see that nothing was touched."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def same_network(one: Path, other: Path) -> None:
    first, second = load_pkl(one), load_pkl(other)
    assert first.keys() == second.keys()
    for key, array in first.items():
        assert np.array_equal(array, second[key]), key


def check_report(text: str, figures: dict) -> None:
    """That a printed before -> after block holds the figures."""
    # A name may hold single spaces; two or more stand before a number.
    cells = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]
    lines = {name: values for name, *values in cells}
    before, after = figures["before"], figures["after"]
    flops = [f"{before['flops']:,}", f"{after['flops']:,}"]
    rate = f"{after['flops'] / before['flops']:.3f}"
    assert lines["FLOPs (multiply-accumulates)"] == [*flops, rate]
    name = "top-1 %, moving statistics"
    assert lines[name][:2] == [f"{side['test']['top1']:.2f}" for side in (before, after)]
    assert not any(name.startswith("top-5") for name in lines), "of ten classes it says nothing"
    assert float(lines["latency, ms per example, batch 128"][1]) > 0
