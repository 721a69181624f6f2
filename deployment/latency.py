"""Latency where networks are deployed: LiteRT, else ONNX Runtime, on one CPU thread."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np

from ..nets.rebuild import to_policy
from ..training.latency import medians, ratio_of, turns
from ..utils.devices import hold_stderr
from ..utils.errors import UserError
from ..utils.trees import tree_of
from . import formats
from .runtimes import Names, Runtime

TITLES = {"litert": "LiteRT", "onnx": "ONNX Runtime"}
PROBES = 2  # examples on which an export is compared with Keras


def runtime() -> str | None:
    """Name of the format whose runtime is installed, LiteRT first; None: neither is."""
    for name in TITLES:
        try:
            formats.chosen([name], False)
        except UserError:
            continue
        return name
    return None


def compared(before: keras.Model, after: keras.Model, seconds: float = 4.0) -> dict | None:
    """Latency of two networks in their deployment, one example at a time.

    Both are exported into a temporary folder; nothing is kept.

    Args:
        before, after: take inputs of the same fixed shapes.
        seconds: of measurement, as of `training.latency.turns`.

    Returns:
        {"runtime": its title, "batch": 1, "latency_ms": {"before", "after"} (medians), "ratio":
        [lowest, highest]}; or {"runtime", "problem": why it can't}; None without a runtime.
    """
    name = runtime()
    if name is None:
        return None
    found = {"runtime": f"{TITLES[name]}, one CPU thread"}
    with hold_stderr(), tempfile.TemporaryDirectory() as folder:
        try:
            example = tree_of(_random(one) for one in before.inputs)
            runs = [
                _opened(name, one, Path(folder, str(n))) for n, one in enumerate((before, after))
            ]
            rounds = turns([partial(run, example) for run in runs], seconds)
        except Exception as error:  # converters and runtimes raise anything; a run must not end so
            return found | {"problem": _reason(error)}
    times = dict(zip(("before", "after"), medians(rounds), strict=True))
    return found | {"batch": 1, "latency_ms": times, "ratio": list(ratio_of(rounds))}


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _random(tensor: keras.KerasTensor) -> np.ndarray:
    """One example from 0 to 1, float32 [1, ...]."""
    if None in tensor.shape[1:]:
        raise UserError(f"its input {tensor.name} has no fixed size")
    return np.random.default_rng(0).random((1, *tensor.shape[1:]), np.float32)


def _opened(name: str, model: keras.Model, folder: Path) -> Runtime:
    folder.mkdir()
    (kind,) = formats.chosen([name], False)
    if any(layer.dtype_policy.name != "float32" for layer in model.layers):
        model = to_policy(model, "float32")
    plain = formats.unnested(model)
    path = folder / f"network{kind.suffix}"
    probe: Any = tree_of(np.repeat(_random(one), PROBES, 0) for one in plain.inputs)
    formats.write(kind, plain, path, probe, None)
    return kind.open(path, Names.of(plain))
