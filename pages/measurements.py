"""docs/measurements.md's tables of measured figures, printed from result files.

    python -m ekg_tf.pages.measurements collect NAME RUN   # result files -> docs/results/NAME
    python -m ekg_tf.pages.measurements write              # the tables -> docs/measurements.md

Every figure there comes from `tables`; nothing is typed in.
"""

from ..cli import manners
from ..utils import devices

devices.import_tensorflow()

import shutil
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ..options.bank import Bank
from ..pruning.knowledge.bank import layout
from ..reports.tables import NOT_MEASURED, spread, table
from ..utils.errors import UserError
from ..utils.files import replace_between
from ..utils.jsonl import read_json, read_rows
from .files import RESULTS, ROOT, collect_or_write

JSON = tuple(f"{n}.json" for n in ("args", "versions", "search", "bank", "finetune", "result"))
METRICS = "metrics.jsonl"
RATES = "input_pipeline.json"  # python -m ekg_tf.benchmarks.input_pipeline --out docs/results/...
PICTURES = ("widths.png", "search_curve.png", "training_curves.png")
PAGE = ROOT / "docs" / "measurements.md"
BEGIN = "<!-- results: begin (python -m ekg_tf.pages.measurements write) -->"
END = "<!-- results: end -->"


def collect(name: str, run: Path) -> None:
    """Copies the result files of a run folder to docs/results/<name>.

    Raises:
        UserError: no run in that folder.
    """
    if not (run / "args.json").exists():
        raise UserError(f"{run} holds no run")
    target = RESULTS / name
    target.mkdir(parents=True, exist_ok=True)
    for file in (*JSON, METRICS, *PICTURES):
        if (run / file).exists():
            shutil.copyfile(run / file, target / file)


def read_runs(folder: Path) -> dict[str, dict]:
    """{run name: {"args": ..., "search": ..., ...}} of all collected runs, sorted by name."""
    runs = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            files = [path / file for file in JSON if (path / file).exists()]
            runs[path.name] = {file.stem: read_json(file) for file in files}
            runs[path.name]["metrics"] = read_rows(path / METRICS)
    return runs


def pipeline_table(run: dict) -> str:
    """Before -> after of one finished run of the whole pipeline."""
    result = run["result"]
    rows = []
    for title, keys, spec in (
        ("parameters", ("parameters",), ",.0f"),
        ("FLOPs (multiply-accumulates)", ("flops",), ",.0f"),
        ("top-1 %, moving statistics", ("test", "top1"), ".2f"),
        ("top-1 %, batch statistics", ("test", "batch_top1"), ".2f"),
        ("latency, ms per example, batch 1", ("latency_ms", "1"), ".3f"),
        ("latency, ms per example, batch 128", ("latency_ms", "128"), ".3f"),
    ):
        sides = []
        for side in ("before", "after"):
            value = result[side]
            for key in keys:
                value = value[key]
            sides.append(value)
        rows.append([title, *(format(v, spec) for v in sides), f"{sides[1] / sides[0]:.3f}"])
    return table(["", "before", "after", "ratio"], rows)


def search_table(runs: Iterable[dict]) -> str:
    """One row per search: loss, accuracy before fine-tuning, cost."""
    rows = []
    for run in runs:
        search, args = run["search"], run["args"]
        seconds = search["seconds"]
        rows.append(
            [
                args["score"],
                args["search_teacher"],
                f"{100 * search['flops_rate']:.2f}",
                f"{search['val_loss']['before']:.4f} → {search['val_loss']['after']:.4f}",
                f"{search['test']['before']['top1']:.1f} → {search['test']['after']['top1']:.1f}",
                f"{search['test']['before']['batch_top1']:.1f} → "
                f"{search['test']['after']['batch_top1']:.1f}",
                f"{search['steps']} / {search['evaluations']}",
                " / ".join(f"{seconds.get(k, 0):.0f}" for k in ("importance", "proposals", "bank")),
            ]
        )
    header = ["score", "teacher", "FLOPs left %", "D_val loss", "top-1 %, moving statistics"]
    header += ["top-1 %, batch statistics", "steps / evaluations"]
    return table([*header, "seconds: importance / proposals / bank"], rows)


def method_table(runs: Iterable[dict]) -> str:
    """One row per search method: what came out and what it cost."""
    rows = []
    for run in runs:
        search = run["search"]
        cost = [f"{search[key]:,}" for key in ("evaluations", "images")]
        cost += [f"{search['seconds'][key]:.0f}" for key in ("importance", "proposals", "bank")]
        rows.append(
            [
                search["method"],
                f"{100 * search['flops_rate']:.2f}",
                f"{search['val_loss']['after']:.4f}",
                f"{search['test']['after']['top1']:.1f}",
                *cost,
            ]
        )
    header = ["method", "FLOPs left %", "D_val loss", "top-1 %, moving statistics", "evaluations"]
    return table([*header, "images", "seconds: importance", "proposals", "bank"], rows)


def tuning_rows(run: dict) -> list[dict]:
    """The rows of a run's metrics.jsonl that belong to its fine-tuning."""
    return [row for row in run["metrics"] if row["phase"] == "finetune"]


def pipeline_rate_table(rates: dict, tunings: Iterable[dict]) -> str:
    """Images per second of the input pipeline alone beside those of fine-tuning steps."""
    rows = [
        [f"input pipeline alone, {one['views']} view(s)", f"{one['images_per_second']:,}"]
        for one in rates["pipelines"]
    ]
    for run in tunings:
        views = views_of(run["args"])
        median = float(np.median([row["images_per_second"] for row in tuning_rows(run)]))
        title = f"fine-tuning the pruned ResNet-56, {views} view(s), seed {run['args']['seed']}"
        rows.append([title, f"{median * views:,.0f}"])
    return table(["views per second", ""], rows)


IMAGENET = 1_281_167, 1000, 5  # training images, classes, teachers


def views_of(args: dict) -> int:
    """Augmented views of an image that a fine-tuning with these flags shows at a time."""
    method = args.get("finetune_method", "ekg")  # runs from before there were others lack it
    one = method in ("kd", "plain") or (method == "ekg" and args["finetune_teacher"] == "none")
    return 1 if one else 2


def imagenet_table(runs: Iterable[dict]) -> str:
    """One row per run on photographs of ImageNet: images per second of each phase and memory."""
    rows = []
    for run in runs:
        args, search, result = run["args"], run["search"], run["result"]
        speeds = {row["phase"]: row["images_per_second"] for row in run["metrics"]}
        views = views_of(args)
        images, seconds = run["bank"]["examples_done"], search["seconds"]
        rows.append(
            [
                args["arch"],
                str(images),
                f"{result['before']['flops'] / 1e9:.2f} → {result['after']['flops'] / 1e9:.2f}",
                f"{speeds['baseline']:.1f}" if "baseline" in speeds else NOT_MEASURED,
                f"{search['evaluations']} in {seconds['importance'] + seconds['proposals']:.0f} s",
                f"{images * len(run['bank']['teachers']) / seconds['bank']:.1f}",
                f"{speeds['finetune'] * views:.1f}",
                f"{result['peak_memory_mb']['host'] / 1024:.1f}",
            ]
        )
    header = [
        "network",
        "training images",
        "GFLOPs",
        "baseline, images/s",
        "search, evaluations",
        "bank, images/s",
    ]
    return table([*header, "fine-tuning, views/s", "peak memory, GiB"], rows)


def bank_size_table() -> str:
    """The memory bank of all of ImageNet by its kind."""
    images, classes, teachers = IMAGENET
    rows = []
    for options in (Bank("topk"), Bank("full")):
        planned = layout(options, images, [(classes,)], teachers)
        name = f"topk, k = {options.k}" if options.kind == "topk" else options.kind
        rows.append([name, f"{planned.bytes / 1e9:.2f}"])
    title = f"memory bank of {images:,} images, {classes} classes, {teachers} teachers"
    return table([title, "GB"], rows)


def finetune_table(runs: Iterable[dict]) -> str:
    """One row per fine-tuning teacher: accuracy over seeds."""
    groups = defaultdict(list)
    for run in runs:
        groups[run["args"]["finetune_teacher"], run["args"]["train_epoch"]].append(run)
    rows = []
    for (teacher, epochs), group in sorted(groups.items(), key=lambda item: item[0][0] != "none"):
        tests = [run["result"]["after"]["test"] for run in group]
        seconds = [sum(row["seconds"] for row in tuning_rows(run)) for run in group]
        rows.append(
            [
                teacher,
                str(epochs),
                spread([test["top1"] for test in tests]),
                spread([test["batch_top1"] for test in tests]),
                spread([test["loss"] for test in tests], ".4f"),
                spread(seconds, ".0f"),
            ]
        )
    header = ["fine-tuning teacher", "epochs", "top-1 %, moving statistics"]
    return table([*header, "top-1 %, batch statistics", "test loss", "training seconds"], rows)


def tables(folder: Path = RESULTS) -> str:
    """All tables in Markdown, from the collected runs."""
    runs = read_runs(folder)
    searches = [run for name, run in runs.items() if name.startswith("search_")]
    methods = [run for name, run in runs.items() if name.startswith("method_")]
    tunings = [run for name, run in runs.items() if name.startswith("tune_")]
    digits = runs.get("digits")
    parts = [
        "**DIGITS, ResNet-20** (the first command of the README):",
        pipeline_table(digits) if digits else NOT_MEASURED,
        "**Searches of ResNet-56 on original CIFAR-10 pixels** (`res56_cifar10.pkl`; 5,170 "
        "training and 500 test images; not fine-tuned, batch-norm statistics re-estimated; seconds "
        "on one core of a busy machine):",
        search_table(searches) if searches else NOT_MEASURED,
        "**Methods**: such searches with the present version, on two cores, not fine-tuned:",
        method_table(methods) if methods else NOT_MEASURED,
        "**Fine-tuning of the sub-network found by taylor + ensemble**, on the same 5,170 images:",
        finetune_table(tunings) if tunings else NOT_MEASURED,
    ]
    if (folder / RATES).exists():
        parts += [
            "**Input pipeline** (batches of 128 images; fine-tuning on one core):",
            pipeline_rate_table(read_json(folder / RATES), tunings),
        ]
    large = [run for name, run in runs.items() if name.startswith("imagenet_")]
    parts += [
        "**ImageNet's photographs at 224 pixels**, one pass of each phase to see speed and memory, "
        "not accuracy (photographs of 1000 classes in 10 or 4 arbitrary groups; one core of a busy "
        "machine):",
        imagenet_table(large) if large else NOT_MEASURED,
        bank_size_table(),
    ]
    return "\n\n".join(parts)


def write() -> None:
    """Puts the tables between the page's two markers; raises as `replace_between`."""
    replace_between(PAGE, BEGIN, END, tables())


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    collect_or_write(
        "Collects result files and writes docs/measurements.md's tables.", collect, write, argv
    )


if __name__ == "__main__":
    manners.run(main)
