"""What the benchmarks share: timing, the machine's own speed, writing results."""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf

from ..utils.errors import UserError
from ..utils.files import atomic_write
from ..utils.provenance import cpu_count

MATRIX = 3000


def median_seconds(function: Callable[[], object], *, runs: int = 7, warm_up: int = 2) -> float:
    """Median wall time of a call; the function must wait for its result itself."""
    for _ in range(warm_up):
        function()
    times = []
    for _ in range(runs):
        begin = time.perf_counter()
        function()
        times.append(time.perf_counter() - begin)
    return float(np.median(times))


def matmul_gflops() -> float:
    """GFLOP/s (a multiply-add is two) of a float32 matrix product of 3000 x 3000."""
    a = tf.constant(np.random.default_rng(0).normal(size=(MATRIX, MATRIX)), tf.float32)
    return 2e-9 * MATRIX**3 / median_seconds(lambda: tf.linalg.matmul(a, a).numpy(), runs=5)


def describe() -> dict:
    """The machine in figures; `matmul_gflops` tells how busy it was."""
    gpus = tf.config.list_physical_devices("GPU")
    names = [tf.config.experimental.get_device_details(gpu).get("device_name") for gpu in gpus]
    return {
        "cpus": cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "gpus": names,
        "tensorflow": tf.__version__,
        "onednn": os.environ.get("TF_ENABLE_ONEDNN_OPTS") == "1",
        "matmul_gflops": round(matmul_gflops(), 1),
    }


def add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")


def write(results: dict, out: Path | None) -> None:
    """Writes results as JSON, if a file is given.

    Raises:
        UserError: the file's folder is not there.
    """
    if out and not out.parent.is_dir():
        raise UserError(f"{out.parent} is no folder: make it first")
    if out:
        text = json.dumps(results, indent=1) + "\n"
        atomic_write(out, lambda path: path.write_text(text, encoding="utf-8"))


def report(results: dict, out: Path | None) -> None:
    """Prints results as JSON and writes them; raises as `write`."""
    print(json.dumps(results, indent=1))
    write(results, out)
