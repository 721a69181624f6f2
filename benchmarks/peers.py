"""Our searches beside Torch-Pruning's one-shot rankings: the same weights, D_val and target.

    python -m venv TV && TV/bin/pip install torch torch-pruning==1.6.0 numpy
    python -m ekg_tf.benchmarks.peers --searches FOLDER --whole docs/results/whole_search.json \\
        --torch_python TV/bin/python --out docs/results/peers.json

FOLDER is the --train_path of `benchmarks.whole_search`, whose result is --whole: a CIFAR ResNet
searched by exact and fast. FFP's search is added there with the same flags. Torch-Pruning starts
from the same adapted weights, in processes of their own (`peers_torch.py`); where the other Python
lacks torch, these rows say why. All losses and accuracies are by batch statistics, before any
fine-tuning.
"""

from ..cli import manners
from ..utils import devices

devices.import_tensorflow()

import argparse
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

from ..cli import inputs
from ..dataloader import normalised_inputs, parts
from ..nets.given import Given
from ..options import recipes
from ..options.data import Sampling
from ..phases.opening import fit_of
from ..reports import machine
from ..utils.devices import VAL_BATCH_IMAGES
from ..utils.errors import UserError
from ..utils.jsonl import read_json
from ..utils.keras_files import load_keras
from ..utils.runfiles import START
from .whole_search import measure

TORCH = Path(__file__).with_name("peers_torch.py")
METHODS = {"l1": "L1", "fpgm": "FPGM", "taylor": "Taylor"}  # of Torch-Pruning


def problem_of(search: Path) -> dict[str, np.ndarray]:
    """What `peers_torch.py` reads: theta_0, D_val and the test split of a finished search."""
    args = argparse.Namespace(**read_json(search / inputs.ARGS))
    start = load_keras(search / START, compile=False)
    data = inputs.data_of(args, fit_of(Given.read(start)))
    given = Sampling(
        seed=args.search_seed,
        val_per_class=args.val_per_class,
        subset_per_class=args.subset_per_class,
        batch_size=args.search_batch_size,
    )
    sampling = recipes.sampling(given, data)
    problem = {
        f"weights/{layer.name}/{number}": value
        for layer in start.layers
        for number, value in enumerate(layer.get_weights())
    }
    splits = {
        "val": (data.train, parts(data, sampling)[1], sampling.batch_size),
        "test": (data.test, np.arange(len(data.test)), VAL_BATCH_IMAGES),
    }
    for name, (_, rows, batch) in splits.items():
        held = normalised_inputs(data, rows, "train" if name == "val" else "test")
        problem |= {f"{name}_inputs": held.inputs, f"{name}_labels": held.targets}
        problem[f"{name}_batch"] = np.array(batch)
    return problem


def by_torch(python: Path, problem: Path, method: str, target_rate: float) -> dict:
    """The figures of one pruning by Torch-Pruning, or {"skipped": why}."""
    out = problem.with_name(f"{method}.json")
    command = [str(python), str(TORCH), str(problem), "--method", method]
    command += ["--target_rate", str(target_rate), "--out", str(out)]
    begin = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        return {"skipped": f"{python} does not run: {error.strerror}"}
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        return {"skipped": lines[-1] if lines else f"status {done.returncode}"}
    return {"wall_seconds": time.perf_counter() - begin, **read_json(out)}


def ours(name: str, run: dict) -> dict:
    """A row of one of our searches from its figures."""
    return {
        "method": name,
        "wall_seconds": run["wall_seconds"],
        "flops_rate": run["flops_rate"],
        "val_loss": run["val_loss"]["after"],
        "val_accuracy": run["val_accuracy"]["after"],
        "test_accuracy": run["test"]["after"]["batch_top1"],
    }


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = manners.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--searches", type=Path, required=True, help="folder of run folders")
    parser.add_argument("--whole", type=Path, required=True, help="result of whole_search")
    parser.add_argument("--torch_python", type=Path, required=True, help="Python with torch")
    machine.add_out(parser)
    args = parser.parse_args(argv)
    whole, about = read_json(args.whole), machine.describe()
    runs = {run["evaluator"]: run for run in whole["runs"]}
    if not {"exact", "fast"} <= set(runs):
        raise UserError(f"{args.whole} lacks the searches by exact and fast")
    target_rate = read_json(args.searches / "exact" / inputs.ARGS)["search_target_rate"]
    with tempfile.TemporaryDirectory() as folder:
        problem = Path(folder, "problem.npz")
        np.savez(problem, **problem_of(args.searches / "exact"))
        rows = [
            {"method": f"Torch-Pruning, {title}"}
            | {
                k: v
                for k, v in by_torch(args.torch_python, problem, name, target_rate).items()
                if k != "method"
            }
            for name, title in METHODS.items()
        ]
    flags = [*whole["flags"], "--method", "ffp"]
    rows += [ours("FFP", measure("exact", args.searches / "ffp", flags))]
    rows += [ours(f"EKG, {name}", runs[name]) for name in ("exact", "fast")]
    results = {"machine": about, "flags": whole["flags"], "target_rate": target_rate, "rows": rows}
    machine.report(results, args.out)


if __name__ == "__main__":
    manners.run(main)
