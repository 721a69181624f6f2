"""What the fast evaluator costs in quality: its final networks beside exact's, draw by draw.

    python -m ekg_tf.benchmarks.fast_quality --arch ResNet-20 --dataset DIGITS \\
        --search_batch_size 128 --trained_param runs/digits/baseline.keras \\
        --search_target_rate 0.45 --seeds 24 --train_path NEW_FOLDER \\
        --out docs/results/fast_quality_digits.json
    python -m ekg_tf.benchmarks.fast_quality --arch ResNet-20 --dataset CIFAR10 --data_path DIR \\
        --trained_param runs/cifar/baseline.keras --search_target_rate 0.45 --seeds 3 \\
        --train_path NEW_FOLDER --out docs/results/fast_quality_cifar.json
    python -m ekg_tf.benchmarks.fast_quality --arch ResNet-56 --dataset CIFAR10 --data_path DIR \\
        --trained_param res56_cifar10.pkl --search_target_rate 0.45 --seeds 3 \\
        --train_path NEW_FOLDER --out docs/results/fast_quality_resnet56.json

The final loss of a greedy search hangs on every choice before, so one search says little: both
evaluators search with every one of `--seeds` draws of D_subset and D_val. Everything else is as in
search.py; two batches of D_val at least, for the fast evaluator looks at one half first.
"""

from ..cli import manners
from ..utils import devices

devices.import_tensorflow()

import os
from dataclasses import replace
from pathlib import Path

import keras

from ..cli import choices, flags, inputs
from ..dataloader import Dataset
from ..options import recipes
from ..options.budgets import Flops
from ..options.data import Sampling
from ..options.methods import EKG
from ..options.search import SearchOptions
from ..phases.searching import prepare
from ..pruning.history import History, output_shapes
from ..pruning.methods.greedy import GreedySearch
from ..reports import machine
from ..training.task import classification
from ..utils.devices import Device
from ..utils.errors import UserError
from ..utils.runfolder import RunFolder

EVALUATORS = ("exact", "fast")


def cpu_seconds() -> float:
    """Of this process so far, all threads: they say more than the clock on a busy machine."""
    return os.times().user + os.times().system


def searched(
    path: Path, model: keras.Model, data: Dataset, options: SearchOptions, device: Device
) -> dict:
    """Final loss and top-1 on D_val of one search, and what it evaluated."""
    with RunFolder.open(path, {}) as folder:
        graph, val = prepare(folder, model, classification(), data, options, device)
        history = History(folder, output_shapes(graph, len(val)))
        begin = cpu_seconds()
        GreedySearch(graph, val, history, options, classification()).run()
    rows = history.rows
    return {
        "seed": options.sampling.seed,
        "steps": len(rows) - 1,
        "cpu_seconds": cpu_seconds() - begin,
        "evaluations": sum(row["evaluations"] for row in rows),
        # each step also runs the current network, for its cache and the importance
        "proposal_images": sum(row["images"] - len(val) for row in rows[1:]),
        "val_loss": rows[-1]["val_loss"],
        "val_accuracy": rows[-1]["val_accuracy"],
    }


def main(argv: list[str] | None = None) -> None:
    """The command line: flags of search.py."""
    parser = manners.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=flags.count, default=7, help="draws of D_val")
    parser.add_argument("--train_path", type=Path, required=True, help="folder of the run folders")
    flags.add_data(parser)
    flags.add_device(parser)
    group = parser.add_argument_group("search", "with every evaluator and every seed of D_val")
    flags.add_settings(group, Flops, EKG, Sampling)
    machine.add_out(parser)
    args = parser.parse_args(argv)
    if not args.trained_param:
        raise UserError("--trained_param is missing: the search needs a trained network")
    budget, method = SearchOptions(choices.made(Flops, args)).budget, choices.made(EKG, args)
    device = choices.device_of(args)
    data = inputs.data_of(args)
    sampling = recipes.sampling(choices.made(Sampling, args), data)
    results: dict[str, list[dict]] = {name: [] for name in EVALUATORS}
    for seed in range(args.seeds):
        for name, found in results.items():
            options = SearchOptions(
                budget, replace(method, evaluator=name), replace(sampling, seed=seed)
            )
            model = inputs.named_network(args, data)
            found.append(searched(args.train_path / f"{name}_{seed}", model, data, options, device))
            print(f"{name}: {found[-1]}", flush=True)
    machine.report(
        {
            "machine": machine.describe(),
            "network": f"{args.arch}, {args.dataset}",
            "target_rate": budget.rate,
            **results,
        },
        args.out,
    )


if __name__ == "__main__":
    manners.run(main)
