"""A pruned network out to deployment: SavedModel, LiteRT, ONNX, each also checked and measured.

    python -m utils.export run/pruned.keras --format savedmodel,litert,onnx --int8 \\
        --reference run/baseline.keras --json export.json

Every export is opened by its own runtime (TensorFlow's loader, the LiteRT interpreter, ONNX
Runtime) and compared with Keras on the test split. int8 kinds are quantised after training, with
calibration images of the *training* split.
"""

from utils import cli, devices

devices.import_tensorflow()

import argparse
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import keras
import numpy as np

from dataloader import Dataset, eval_batches, unreadable_named
from nets.graph import to_policy
from utils import export_formats as formats
from utils import export_runtimes as runtimes
from utils import inputs, jsonl, provenance
from utils.checkpoint import load_keras
from utils.files import atomic_write, size_of
from utils.latency import alternately

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
        raise cli.UserError(f"{path} was saved before it was built: call it on data, save it again")
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise cli.UserError(f"{path} has several inputs or outputs: one of each can be exported")
    shape = model.input_shape
    if len(shape) < 2 or None in shape[1:] or len(model.output_shape) != 2:
        raise cli.UserError(
            f"{path} maps {shape} to {model.output_shape}: inputs of a fixed size and one row of "
            "outputs per example are needed, (None, h, w, c) to (None, classes)"
        )
    if all(layer.dtype_policy.name == "float32" for layer in model.layers):
        return model
    try:
        return to_policy(model, "float32")
    except ValueError as error:
        raise cli.UserError(f"{path} can't be rebuilt in float32: {error}") from None


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
        What `--json` holds: "input", "images", "calibration_images", "versions" and "exports", one
        dict per kind (Keras first): "file", "bytes", "latency_ms" (batch 1), and on the test split
        "top1" and "agreement" with Keras's top-1 in percent and "max_difference" of the outputs;
        "reference_bytes", "reference_latency_ms".

    Raises:
        UserError: as `load_float32` and `export_formats.write`; networks and data of other shapes.
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
        raise cli.UserError(
            f"{path} maps images {model.input_shape[1:]} to {model.output_shape[1]} classes, but "
            f"{data.name} has images {data.image_shape} and {data.num_classes} classes: name the "
            "network's own data by --dataset, --data_path or --data"
        )


def _images(data: Dataset, split: str, indices: np.ndarray) -> np.ndarray:
    """Normalised images float32 [n, h, w, c] of a split."""
    batches = eval_batches(data, split, len(indices), indices=indices, shuffle_seed=None)
    return np.concatenate([batch["image"].numpy() for batch in batches])


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
        images, labels = batch["image"].numpy(), batch["label"].numpy()
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
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for name, *numbers in rows:
        cells = [text.rjust(width) for text, width in zip(numbers, widths[1:], strict=True)]
        print("   ".join([name.ljust(widths[0]), *cells]))
    entry = results["input"]
    print(
        f"input: float32 {entry['shape']}, (pixel value - mean) / std with mean "
        f"{_plain(entry['mean'])} and std {_plain(entry['std'])}; {results['images']} test images"
    )


def _plain(values: list[float]) -> str:
    same = len(set(values)) == 1
    return ", ".join(f"{value:g}" for value in (values[:1] if same else values))


def format_names(text: str) -> list[str]:
    """argparse type: "savedmodel,litert,onnx" -> a list of known names."""
    names = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [name for name in names if name not in formats.NAMES]
    if unknown or not names:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no list of formats: choose from {', '.join(formats.NAMES)}"
        )
    return names


@unreadable_named()
def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = cli.Parser(prog="utils.export", description="Exports a network and measures it.")
    parser.add_argument("network", type=Path, help=".keras file")
    parser.add_argument("--format", type=format_names, required=True, help="savedmodel,litert,onnx")
    parser.add_argument("--int8", action="store_true", help="int8 LiteRT and ONNX as well")
    parser.add_argument("--reference", type=Path, help="the unpruned network, for comparison")
    parser.add_argument("--out", type=Path, help="folder; default: the network's own")
    parser.add_argument("--calibration_images", type=cli.positive_int, default=256)
    parser.add_argument("--json", help="also write the figures to this file")
    inputs.add_dataset(parser)
    inputs.add_own_data(parser)
    parser.add_argument("--val_batch_size", type=cli.positive_int, default=256)
    args = parser.parse_args(argv)
    kinds = formats.chosen(args.format, args.int8)
    devices.choose([])  # the CPU, where LiteRT and ONNX Runtime are as well
    model = load_float32(args.network)
    out = args.out or args.network.parent
    if not out.is_dir():
        raise cli.UserError(f"{out} is no folder: make it first")
    if inputs.is_run(args.network.parent):
        inputs.inherit_data(args, args.network.parent)
    results = export(
        model,
        args.network,
        kinds,
        inputs.data_of(args, model),
        out=out,
        reference=args.reference,
        calibration_images=args.calibration_images,
        batch_images=args.val_batch_size,
    )
    print_table(results)
    if args.json:
        text = jsonl.dumps(results, indent=2) + "\n"
        atomic_write(args.json, lambda path: path.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    cli.run(main)
