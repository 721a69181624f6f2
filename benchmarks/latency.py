"""Measured latency of pruned networks against their FLOPs, channel counts free and rounded.

    python -m ekg_tf.benchmarks.latency --arch ResNet-56 --dataset CIFAR10 --data_path DIR \\
        --trained_param res56_cifar10.pkl --search_target_rate 0.45 \\
        --train_path NEW_FOLDER --out docs/results/latency.json

One search per rounding, cheap ones (lazy, L1, 8 images a class) because the speed of a network
depends on its widths only. All networks are then timed in turn.
"""

from ..cli import manners
from ..utils import devices

devices.import_tensorflow()

from dataclasses import replace
from pathlib import Path

import keras
import numpy as np

from ..cli import flags
from ..dataloader import load
from ..nets.graph import ChannelGraph
from ..nets.zoo.load import load_network
from ..options.recipes import fill_defaults
from ..phases.searching import prepare
from ..pruning.history import History
from ..pruning.methods.greedy import GreedySearch
from ..pruning.space.candidates import lowest_mask
from ..reports import machine
from ..training.latency import latencies
from ..utils.runfolder import RunFolder

ROUNDINGS, RATES, BATCHES = (1, 4, 8, 16), (0.8, 0.6, 0.45), (1, 128)


def networks(path: Path, model, data, options, device) -> list[dict]:
    """Networks of one search at the RATES that it reaches.

    Returns:
        Dicts with round_to, flops, widths and the network under "model".
    """
    with RunFolder.open(path, {}) as folder:
        graph, val = prepare(folder, model, data, options, device)
        lowest = graph.flops(lowest_mask(graph, options.round_to)) / graph.flops()
        reachable = [rate for rate in RATES if rate >= max(lowest, options.target_rate)]
        if not reachable:
            print(f"--round_to {options.round_to} can't go below {lowest:.3f}", flush=True)
            return []
        history = History(folder, (len(val.labels), data.num_classes))
        GreedySearch(graph, val, history, replace(options, target_rate=min(reachable))).run()
        found = []
        for rate in reachable:
            step = next(i for i, row in enumerate(history.rows) if row["flops_rate"] <= rate)
            row = history.rows[step]
            found.append(
                {
                    "round_to": options.round_to,
                    "flops": row["flops"],
                    "widths": row["widths"],
                    "model": graph.pruned(history.mask(graph, step)),
                }
            )
    return found


def main(argv: list[str] | None = None) -> None:
    """The command line: that of search.py."""
    parser = manners.Parser(description=__doc__.splitlines()[0])
    flags.add_run(parser)
    flags.add_data(parser)
    flags.add_device(parser)
    flags.add_search(parser)
    machine.add_out(parser)
    parser.set_defaults(evaluator="lazy", score="l1", search_teacher="none", val_per_class=8)
    args = parser.parse_args(argv)
    device = flags.device_of(args)
    keras.utils.set_random_seed(args.seed)
    data = load(args.dataset, args.data_path)
    fill_defaults(args, data)
    model = load_network(args.trained_param, args.arch, data.num_classes, data.image_shape)
    full = ChannelGraph(model)
    rows = [{"round_to": None, "flops": full.flops(), "widths": full.gates.widths, "model": model}]
    for round_to in ROUNDINGS:
        options = replace(flags.search_of(args), round_to=round_to)
        path = Path(args.train_path) / f"round_to_{round_to}"
        rows += networks(path, model, data, options, device)
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
