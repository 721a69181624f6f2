"""Networks that aren't classifiers at half their FLOPs: EKG against uniform widths.

python -m ekg_tf.experiments.tasks --data_path cifar10 --work runs/tasks

Trains every network of `task_networks`, prunes it by both methods with the same fine-tuning,
exports the result of EKG to LiteRT, and writes figures after every run; a run that is there isn't
repeated. `python -m ekg_tf.pages.tasks` prints docs/tasks.md from them.
"""

from __future__ import annotations

from ..cli import flags, manners
from ..utils import devices

devices.import_tensorflow()

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from ..api import export, prune
from ..options.data import Sampling
from ..options.methods import EKG, Uniform
from ..options.training import Training
from ..reports import machine
from ..utils.jsonl import read_json
from ..utils.keras_files import load_keras, save_keras
from .task_networks import BATCH, EPOCHS, TASKS, TEST, TRAIN, TaskNetwork, adam, photos

RESULTS = Path("docs/results/tasks.json")
METHODS = {"ekg": EKG(), "uniform": Uniform()}
TUNING, BUDGET = 15, 0.5


def run(name: str, seed: int, parts: list, work: Path) -> dict[str, Any]:
    """Both methods on one network of one seed.

    Args:
        parts: as `photos` gives them. work: of the run folders.

    Returns:
        {"before": figures, method: figures}; figures: "metrics", "loss", "flops", "parameters",
        "latency_ms" and, of a method, "untuned": metrics before its fine-tuning.
    """
    task, folder = TASKS[name], work / f"{name}_{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    train, test = task.data(parts, seed)
    given = _trained(task, train, folder / "given.keras", seed)
    found: dict[str, Any] = {}
    for method, options in METHODS.items():
        result = prune(
            load_keras(given),
            train,
            test,
            folder / method,
            budget=BUDGET,
            method=options,
            sampling=Sampling(val=400),
            training=Training(epochs=TUNING, batch_size=BATCH),
            optimizer=adam(TUNING),
            seed=seed,
        )
        found |= {"before": _figures(task, result.before, test)}
        searched = read_json(folder / method / "search.json")["test"]["after"]
        untuned = _metrics(task, searched["metrics"], test)
        found[method] = _figures(task, result.after, test) | {"untuned": untuned}
    if importlib.util.find_spec("ai_edge_litert"):
        found["litert"] = _exported(folder, train, test)
    return found


def _trained(task: TaskNetwork, train: tuple, path: Path, seed: int) -> Path:
    if not path.exists():
        keras.utils.set_random_seed(seed)
        model = task.build()
        model.fit(*train, epochs=EPOCHS, batch_size=BATCH, verbose=0)
        save_keras(path, model)
    return path


def _figures(task: TaskNetwork, side: dict, test: tuple) -> dict[str, Any]:
    metrics = _metrics(task, side["test"]["metrics"], test)
    keys = ("flops", "parameters", "latency_ms")
    return {"metrics": metrics, "loss": side["test"]["loss"]} | {key: side[key] for key in keys}


def _metrics(task: TaskNetwork, measured: dict[str, float], test: tuple) -> dict[str, float]:
    """The task's metrics from what Keras has measured, larger is better."""
    metrics = {}
    for name, (_, share) in task.metrics.items():
        value = measured[name]
        if share:
            targets = test[1][name.removesuffix("_mae")] if isinstance(test[1], dict) else test[1]
            value = 1 - value / float(np.abs(targets - targets.mean()).mean())
        metrics[name] = value
    return metrics


def _exported(folder: Path, train: tuple, test: tuple) -> dict[str, Any]:
    """What LiteRT makes of EKG's network, beside that of the given one."""
    results = export(
        folder / "ekg" / "pruned.keras",
        ["litert"],
        train,
        test,
        out=folder,
        reference=folder / "given.keras",
    )
    keys = ("bytes", "latency_ms", "reference_bytes", "reference_latency_ms", "max_difference")
    return {key: results["exports"][1][key] for key in keys}


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = manners.Parser(description="Prunes networks that aren't classifiers.")
    parser.add_argument("--data_path", type=Path, required=True, help="CIFAR-10, as train_cifar.py")
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--seeds", type=flags.count, default=3, help="default: 3")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--out", type=Path, default=RESULTS, help=f"default: {RESULTS}")
    args = parser.parse_args(argv)
    results = read_json(args.out) if args.out.exists() else {}
    results |= {"machine": machine.describe(), "budget": BUDGET}
    results |= {"epochs": [EPOCHS, TUNING], "examples": [TRAIN, TEST]}
    runs, parts = results.setdefault("runs", {}), photos(args.data_path)
    for seed in range(args.seeds):
        for name in args.tasks:
            key = f"{name} {seed}"
            if key not in runs:
                runs[key] = run(name, seed, parts, args.work)
                machine.write(results, args.out)
                print(f"{key}: {runs[key]}", flush=True)


if __name__ == "__main__":
    manners.run(main)
