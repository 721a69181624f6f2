"""Measured latency of pruned networks against their FLOPs, channel counts free and rounded.

    python -m ekg_tf.benchmarks.latency --arch ResNet-56 --dataset CIFAR10 --data_path DIR \\
        --trained_param res56_cifar10.pkl --search_target_rate 0.45 \\
        --train_path NEW_FOLDER --out docs/results/latency.json

One search per rounding, by default cheap ones (fast, L1, no teacher, 8 images a class) because the
speed of a network depends on its widths only. All networks are then timed in turn.
"""

from ..cli import manners
from ..utils import devices

devices.import_tensorflow()

from dataclasses import replace
from pathlib import Path

import keras
import numpy as np

from ..cli import choices, flags, inputs
from ..dataloader import Dataset
from ..nets.graph import ChannelGraph
from ..options import recipes
from ..options.budgets import Flops
from ..options.data import Sampling
from ..options.methods import EKG
from ..options.search import SearchOptions
from ..phases.searching import prepare
from ..pruning.history import History, output_shapes
from ..pruning.methods.greedy import GreedySearch
from ..pruning.space.candidates import lowest_mask
from ..reports import machine
from ..training.latency import latencies
from ..training.task import classification
from ..utils.devices import Device
from ..utils.runfolder import RunFolder

ROUNDINGS, RATES, BATCHES = (1, 4, 8, 16), (0.8, 0.6, 0.45), (1, 128)


def networks(
    path: Path, model: keras.Model, data: Dataset, options: SearchOptions, device: Device
) -> list[dict]:
    """Networks of one search at the RATES that it reaches.

    Returns:
        Dicts with round_to, flops, widths and the network under "model".
    """
    budget = options.budget
    with RunFolder.open(path, {}) as folder:
        graph, val = prepare(folder, model, classification(), data, options, device)
        lowest = graph.flops(lowest_mask(graph, budget.round_to)) / graph.flops()
        reachable = [rate for rate in RATES if rate >= max(lowest, budget.rate)]
        if not reachable:
            print(f"--round_to {budget.round_to} can't go below {lowest:.3f}", flush=True)
            return []
        history = History(folder, output_shapes(graph, len(val)))
        options = replace(options, budget=replace(budget, rate=min(reachable)))
        GreedySearch(graph, val, history, options, classification()).run()
        found = []
        for rate in reachable:
            step = next(i for i, row in enumerate(history.rows) if row["flops_rate"] <= rate)
            row = history.rows[step]
            found.append(
                {
                    "round_to": budget.round_to,
                    "flops": row["flops"],
                    "widths": row["widths"],
                    "model": graph.pruned(history.mask(graph, step)),
                }
            )
    return found


def main(argv: list[str] | None = None) -> None:
    """The command line: flags of search.py."""
    parser = manners.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--train_path", type=Path, required=True, help="folder of the run folders")
    flags.add_data(parser)
    flags.add_device(parser)
    group = parser.add_argument_group(
        "search",
        "by default --score l1 --search_teacher none --evaluator fast --val_per_class 8; each of "
        f"--round_to {' '.join(map(str, ROUNDINGS))}",
    )
    flags.add_settings(group, Flops, EKG, Sampling)
    machine.add_out(parser)
    parser.set_defaults(evaluator="fast", score="l1", search_teacher="none", val_per_class=8)
    args = parser.parse_args(argv)
    budget, method = choices.made(Flops, args), choices.made(EKG, args)
    device = choices.device_of(args)
    keras.utils.set_random_seed(0)
    data = inputs.data_of(args)
    model = inputs.named_network(args, data)
    sampling = recipes.sampling(choices.made(Sampling, args), data)
    full = ChannelGraph(model)
    widths = [group.channels for group in full.groups]
    rows = [{"round_to": None, "flops": full.flops(), "widths": widths, "model": model}]
    for round_to in ROUNDINGS:
        options = SearchOptions(replace(budget, round_to=round_to), method, sampling)
        rows += networks(args.train_path / f"round_to_{round_to}", model, data, options, device)
    about = machine.describe()
    models = [row.pop("model") for row in rows]
    for batch in BATCHES:
        times = latencies(models, batch, compile=device.compile, seconds=20.0)
        for row, milliseconds in zip(rows, times, strict=True):
            row[f"ms_batch_{batch}"] = milliseconds
    for row in rows:
        row["multiples_of_8"] = float(np.mean([width % 8 == 0 for width in row["widths"]]))
    machine.report(
        {"machine": about, "network": args.arch, "compile": device.compile, "rows": rows}, args.out
    )


if __name__ == "__main__":
    manners.run(main)
