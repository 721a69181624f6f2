"""A pruned network out to deployment: SavedModel, LiteRT, ONNX, each also checked and measured.

Every export is opened by its own runtime (TensorFlow's loader, the LiteRT interpreter, ONNX
Runtime) and compared with Keras on the test split. int8 kinds are quantised after training, with
calibration images of the *training* split.
"""

import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import keras
import numpy as np

from ..dataloader import Dataset, eval_batches
from ..nets.rebuild import to_policy
from ..training.latency import alternately
from ..utils import provenance
from ..utils.columns import aligned
from ..utils.errors import UserError
from ..utils.files import size_of
from ..utils.keras_files import load_keras
from . import formats, runtimes

PROBE_IMAGES = 8  # on which an export is compared before it takes its place
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
        UserError: missing or corrupt file, more than one input or output, an input without a fixed
            size, or a mixed-precision network that holds another model.
    """
    model = load_keras(path)
    if not model.built:
        raise UserError(f"{path} was saved before it was built: call it on data, save it again")
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise UserError(f"{path} has several inputs or outputs: one of each can be exported")
    shape = model.input_shape
    if len(shape) < 2 or None in shape[1:] or len(model.output_shape) != 2:
        raise UserError(
            f"{path} maps {shape} to {model.output_shape}: inputs of a fixed size and one row of "
            "outputs per example are needed, (None, h, w, c) to (None, classes)"
        )
    if all(layer.dtype_policy.name == "float32" for layer in model.layers):
        return model
    try:
        return to_policy(model, "float32")
    except ValueError as error:
        raise UserError(f"{path} can't be rebuilt in float32: {error}") from None


def export(
    model: keras.Model,
    path: Path,
    kinds: list[formats.Format],
    data: Dataset,
    *,
    out: Path,
    reference: Path | None = None,
    calibration_images: int = 256,
    batch_images: int = 256,
) -> dict:
    """Writes `out`/<name of the network><suffix> for every kind, then measures all of them.

    Args:
        model: from `load_float32`. path: its file, whose name the exports take.
        reference: file of the unpruned network, exported for comparison only.
        calibration_images: of the training split, drawn by seed 0.

    Returns:
        All figures: "input", "images", "calibration_images", "versions" and "exports", one
        dict per kind (Keras first): "file", "bytes", "latency_ms" (batch 1), and on the test split
        "top1" and "agreement" with Keras's top-1 in percent and "max_difference" of the outputs;
        "reference_bytes", "reference_latency_ms".

    Raises:
        UserError: as `load_float32` and `formats.write`; networks and data of other shapes.
    """
    unpruned = load_float32(reference) if reference else None
    for network, name in ((model, path), (unpruned, reference)):
        if network is not None:
            _check_fits(network, name, data)
    probe = _images(data, "test", np.arange(min(PROBE_IMAGES, len(data.test))))
    calibration = None
    if any(kind.int8 for kind in kinds):
        order = np.random.default_rng(0).permutation(len(data.train))
        calibration = _images(data, "train", order[:calibration_images])
    with tempfile.TemporaryDirectory() as scratch:
        ways = [_keras_way(path, model, reference, unpruned)]
        for kind in kinds:
            target = out / f"{path.stem}{kind.suffix}"
            formats.write(kind, model, target, probe, calibration)
            size, run = None, None
            if unpruned is not None:
                other = Path(scratch, f"reference{kind.suffix}")
                formats.write(kind, unpruned, other, probe, calibration)
                size, run = size_of(other), kind.open(other)
            ways.append(Exported(kind.title, target, kind.open(target), size, run))
            print(f"{kind.title}: {target} ({size_of(target):,} bytes)", flush=True)
        rows = _accuracies(ways, data, batch_images)
        for row, costs in zip(rows, _costs(ways, probe[:1]), strict=True):
            row |= costs
    return {
        "model": str(path),
        "reference": str(reference) if reference else None,
        "input": {
            "shape": [None, *data.image_shape],
            "mean": data.mean,
            "std": data.std,
        },
        "images": len(data.test),
        "calibration_images": None if calibration is None else len(calibration),
        "exports": rows,
        "versions": provenance.versions() | provenance.installed(VERSIONED),
    }


def _check_fits(model: keras.Model, path: Path, data: Dataset) -> None:
    if model.output_shape[1] != data.num_classes or model.input_shape[1:] != data.image_shape:
        raise UserError(
            f"{path} maps images {model.input_shape[1:]} to {model.output_shape[1]} classes, but "
            f"{data.name} has images {data.image_shape} and {data.num_classes} classes: give the "
            "network's own data"
        )


def _images(data: Dataset, split: str, indices: np.ndarray) -> np.ndarray:
    """Normalised images float32 [n, h, w, c] of a split."""
    batches = eval_batches(data, split, len(indices), indices=indices, shuffle_seed=None)
    return np.concatenate([batch["inputs"].numpy() for batch in batches])


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


def _accuracies(ways: list[Exported], data: Dataset, batch_images: int) -> list[dict]:
    """Accuracy of every way and its distance from the first, in one pass over the test split."""
    hits, agreeing, worst = (np.zeros(len(ways)) for _ in range(3))
    for batch in eval_batches(data, "test", batch_images):
        images, labels = batch["inputs"].numpy(), batch["targets"].numpy()
        outputs = [way.run(images) for way in ways]
        for number, output in enumerate(outputs):
            hits[number] += (output.argmax(1) == labels).sum()
            agreeing[number] += (output.argmax(1) == outputs[0].argmax(1)).sum()
            worst[number] = max(worst[number], np.abs(output - outputs[0]).max())
    count = len(data.test)
    return [
        {
            "format": way.title,
            "file": way.path.name,
            "bytes": size_of(way.path),
            "top1": 100 * hits[number] / count,
            "agreement": 100 * agreeing[number] / count,
            "max_difference": worst[number],
        }
        for number, way in enumerate(ways)
    ]


def _costs(ways: list[Exported], image: np.ndarray) -> list[dict]:
    """Latency in ms of one image, and size and latency of the reference (None without one).

    All runtimes take turns, so that other work on the machine hits all alike. Those of the
    reference come after all others: a runtime that ran just before is quicker the second time.
    """
    runs = [way.run for way in ways]
    runs += [way.reference_run for way in ways if way.reference_run is not None]
    times = alternately([partial(run, image) for run in runs], SECONDS * len(ways))
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
    """Header and one row per way of running the network, as text."""
    rows = [
        [
            "format",
            "file, KiB",
            "top-1 %",
            "agrees with Keras %",
            "max difference",
            "latency, ms, batch 1",
        ]
    ]
    for one in results["exports"]:
        rows.append(
            [
                one["format"],
                _pair(one["reference_bytes"], one["bytes"], lambda size: f"{size / 1024:,.0f}"),
                f"{one['top1']:.2f}",
                f"{one['agreement']:.2f}",
                f"{one['max_difference']:.2g}",
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
    entry = results["input"]
    print(
        f"input: float32 {entry['shape']}, (pixel value - mean) / std with mean "
        f"{_plain(entry['mean'])} and std {_plain(entry['std'])}; {results['images']} test images"
    )


def _plain(values: list[float]) -> str:
    same = len(set(values)) == 1
    return ", ".join(f"{value:g}" for value in (values[:1] if same else values))
