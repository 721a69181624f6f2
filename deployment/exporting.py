"""A pruned network out to deployment: SavedModel, LiteRT, ONNX, each also checked and measured.

Every export is opened by its own runtime (TensorFlow's loader, the LiteRT interpreter, ONNX
Runtime) and compared with Keras on the test split. int8 kinds are quantised after training, with
calibration examples of the *training* split.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np

from ..dataloader import Dataset, eval_batches
from ..nets.compiling import compile_like
from ..nets.keras_graph import ends
from ..nets.rebuild import to_policy
from ..training.latency import alternately
from ..training.task import Task
from ..utils import progress, provenance
from ..utils.columns import aligned
from ..utils.errors import UserError
from ..utils.files import size_of
from ..utils.keras_files import load_keras
from ..utils.trees import mapped, rows_of
from . import formats, runtimes
from .fitting import check_labels, fitted, input_of
from .measuring import measured

PROBE_EXAMPLES = 8  # on which an export is compared before it takes its place
SECONDS = 3.0  # of latency measurement per format
VERSIONED = ("ai-edge-litert", "onnx", "onnxruntime", "tf2onnx")


@dataclass(frozen=True)
class Exported:
    """One way to run the network: title, file or folder, the runtime, and the reference's."""

    title: str
    path: Path
    run: runtimes.Runtime
    reference_bytes: int | None = None
    reference_run: runtimes.Runtime | None = None


def load_float32(path: Path) -> keras.Model:
    """The network of a .keras file, rebuilt in float32 where it computes in another precision.

    Raises:
        UserError: missing or corrupt file, a network without a graph, or a mixed-precision network
            that holds another model.
    """
    model = load_keras(path)
    if not model.built:
        raise UserError(f"{path} was saved before it was built: call it on data, save it again")
    ends(model)
    if all(layer.dtype_policy.name == "float32" for layer in model.layers):
        return model
    try:
        rebuilt = to_policy(model, "float32")
    except ValueError as error:
        raise UserError(f"{path} can't be rebuilt in float32: {error}") from None
    compile_like(model, rebuilt)
    return rebuilt


def export(
    model: keras.Model,
    path: Path,
    kinds: list[formats.Format],
    data: Dataset,
    task: Task,
    *,
    out: Path,
    reference: Path | None = None,
    calibration_images: int = 256,
    batch_images: int = 256,
) -> dict:
    """Writes `out`/<name of the network><suffix> for every kind, then measures all of them.

    Args:
        model: from `load_float32`. path: its file, whose name the exports take.
        task: what it is measured by.
        reference: file of the unpruned network, exported for comparison only.
        calibration_images: examples of the training split, drawn by seed 0.
        batch_images: examples at a time.

    Returns:
        All figures: "input" (a list where there are several), "images", "calibration_images",
        "versions" and "exports", one dict per kind (Keras first): "file", "bytes", "latency_ms"
        (batch 1), and on the test split what `measuring.measured` gives; "reference_bytes",
        "reference_latency_ms".

    Raises:
        UserError: as `load_float32` and `formats.write`; a network and data or a task that don't
            fit.
    """
    unpruned = load_float32(reference) if reference else None
    batch = _batch(data, "test", np.arange(min(PROBE_EXAMPLES, len(data.test))))
    probe = mapped(_array, batch["inputs"])
    model = fitted(model, path, data, batch)
    if reference and unpruned:
        unpruned = fitted(unpruned, reference, data, batch)
    check_labels(model, path, data, task)
    calibration, count = None, None
    if any(kind.int8 for kind in kinds):
        order = np.random.default_rng(0).permutation(len(data.train))[:calibration_images]
        calibration = mapped(_array, _batch(data, "train", order)["inputs"])
        count = len(order)
    with tempfile.TemporaryDirectory() as scratch:
        ways = [_keras_way(path, model, reference, unpruned)]
        for kind in kinds:
            target = out / f"{path.stem}{kind.suffix}"
            run = _written(kind, model, target, probe, calibration)
            size, other = None, None
            if unpruned is not None:
                place = Path(scratch, f"reference{kind.suffix}")
                other = _written(kind, unpruned, place, probe, calibration)
                size = size_of(place)
            ways.append(Exported(kind.title, target, run, size, other))
            progress.say(f"{kind.title}: {target} ({size_of(target):,} bytes)")
        files = [
            {"format": way.title, "file": way.path.name, "bytes": size_of(way.path)} for way in ways
        ]
        batches = eval_batches(data, "test", batch_images)
        figures = measured([way.run for way in ways], task, batches)
        costs = _costs(ways, rows_of(probe, slice(0, 1)))
    return {
        "model": str(path),
        "reference": str(reference) if reference else None,
        "input": input_of(model, data),
        "images": len(data.test),
        "calibration_images": count,
        "exports": [a | b | c for a, b, c in zip(files, figures, costs, strict=True)],
        "versions": provenance.versions() | provenance.installed(VERSIONED),
    }


def _written(
    kind: formats.Format, model: keras.Model, path: Path, probe: Any, calibration: Any
) -> runtimes.Runtime:
    """The runtime of a model that is written to a file of this kind."""
    plain = formats.unnested(model)
    formats.write(kind, plain, path, probe, calibration)
    return kind.open(path, runtimes.Names.of(plain))


def _batch(data: Dataset, split: str, indices: np.ndarray) -> dict[str, Any]:
    """The examples of these indices, in order, as one batch."""
    batches = eval_batches(data, split, len(indices), indices=indices, shuffle_seed=None)
    return next(iter(batches))


def _array(tensor: Any) -> np.ndarray:
    return tensor.numpy()


def _keras_way(path: Path, model: keras.Model, reference: Path | None, unpruned) -> Exported:
    if unpruned is None:
        return Exported("Keras", path, runtimes.open_keras(model))
    return Exported(
        "Keras",
        path,
        runtimes.open_keras(model),
        size_of(reference),
        runtimes.open_keras(unpruned),
    )


def _costs(ways: list[Exported], example: Any) -> list[dict]:
    """Latency in ms of one example, and size and latency of the reference (None without one).

    All runtimes take turns, so that other work on the machine hits all alike. Those of the
    reference come after all others: a runtime that ran just before is quicker the second time.
    """
    runs = [way.run for way in ways]
    runs += [way.reference_run for way in ways if way.reference_run is not None]
    times = alternately([partial(run, example) for run in runs], SECONDS * len(ways))
    later = iter(times[len(ways) :])
    return [
        {
            "latency_ms": milliseconds,
            "reference_bytes": way.reference_bytes,
            "reference_latency_ms": next(later) if way.reference_run is not None else None,
        }
        for way, milliseconds in zip(ways, times, strict=False)
    ]


def table(results: dict) -> list[list[str]]:
    """Header and one row per way of running the network, as text; of the figures that are there."""
    exports = results["exports"]
    metrics = exports[0].get("metrics") or {}
    # title, key of the figure, its text
    columns = [
        ("top-1 %", "top1", "{:.2f}"),
        ("loss", "loss", "{:.4g}"),
        *((name, name, "{:.4g}") for name in metrics),
        ("agrees with Keras %", "agreement", "{:.2f}"),
        ("max difference", "max_difference", "{:.2g}"),
        ("largest output", "largest_output", "{:.3g}"),
    ]
    figures = [(one.get("metrics") or {}) | one for one in exports]
    columns = [
        column for column in columns if all(one.get(column[1]) is not None for one in figures)
    ]
    rows = [["format", "file, KiB", *(title for title, *_ in columns), "latency, ms, batch 1"]]
    for one in figures:
        rows.append(
            [
                one["format"],
                _pair(one["reference_bytes"], one["bytes"], lambda size: f"{size / 1024:,.0f}"),
                *(form.format(one[key]) for _, key, form in columns),
                _pair(one["reference_latency_ms"], one["latency_ms"], lambda ms: f"{ms:.3f}"),
            ]
        )
    return rows


def _pair(before: float | None, after: float, form) -> str:
    return form(after) if before is None else f"{form(before)} → {form(after)}"


def print_table(results: dict) -> None:
    """Prints the figures; before → after where a reference was given."""
    rows = table(results)
    print(aligned(rows, right=range(1, len(rows[0]))))
    entry, count = results["input"], results["images"]
    if isinstance(entry, list):
        each = "; ".join(f"{one['name']} {one['shape']}" for one in entry)
        print(f"inputs, as the data has them: {each}; {count} test examples")
        return
    print(
        f"input: float32 {entry['shape']}, (pixel value - mean) / std with mean "
        f"{_plain(entry['mean'])} and std {_plain(entry['std'])}; {count} test images"
    )


def _plain(values: list[float]) -> str:
    same = len(set(values)) == 1
    return ", ".join(f"{value:g}" for value in (values[:1] if same else values))
