"""What the lazy evaluator costs in quality: its final networks beside exact's, draw by draw.

    python -m ekg_tf.benchmarks.lazy_quality --arch ResNet-20 --dataset DIGITS \\
        --search_batch_size 128 \\
        --trained_param runs/digits/baseline.keras --search_target_rate 0.45 \\
        --train_path NEW_FOLDER --out docs/results/lazy_quality.json

The final loss of a greedy search hangs on every choice before, so one search says little: both
evaluators search with every one of `--seeds` draws of D_subset and D_val. Everything else is as in
search.py; two batches of D_val at least, for the lazy evaluator screens on half of them.
"""

from ..cli import manners
from ..utils import devices

devices.import_tensorflow()

from dataclasses import replace
from pathlib import Path

from ..cli import flags
from ..dataloader import load
from ..nets.zoo.load import load_network
from ..options.recipes import fill_defaults
from ..phases.searching import prepare
from ..pruning.history import History
from ..pruning.methods.greedy import GreedySearch
from ..reports import machine
from ..utils.runfolder import RunFolder

EVALUATORS = ("exact", "lazy")


def searched(path: Path, model, data, options, device) -> dict:
    """Final loss and top-1 on D_val of one search, and what it evaluated."""
    with RunFolder.open(path, {}) as folder:
        graph, val = prepare(folder, model, data, options, device)
        history = History(folder, (len(val.labels), data.num_classes))
        GreedySearch(graph, val, history, options).run()
    rows = history.rows
    return {
        "seed": options.seed,
        "steps": len(rows) - 1,
        "evaluations": sum(row["evaluations"] for row in rows),
        # each step also runs the current network, for its cache and the importance
        "proposal_images": sum(row["images"] - len(val.labels) for row in rows[1:]),
        "val_loss": rows[-1]["val_loss"],
        "val_accuracy": rows[-1]["val_accuracy"],
    }


def main(argv: list[str] | None = None) -> None:
    """The command line: that of search.py."""
    parser = manners.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=flags.count, default=7, help="draws of D_val")
    flags.add_run(parser)
    flags.add_data(parser)
    flags.add_device(parser)
    flags.add_search(parser)
    machine.add_out(parser)
    args = parser.parse_args(argv)
    device = flags.device_of(args)
    data = load(args.dataset, args.data_path)
    fill_defaults(args, data)
    results: dict[str, list[dict]] = {name: [] for name in EVALUATORS}
    for seed in range(args.seeds):
        for name, found in results.items():
            options = replace(flags.search_of(args), evaluator=name, seed=seed)
            model = load_network(args.trained_param, args.arch, data.num_classes, data.image_shape)
            path = Path(args.train_path) / f"{name}_{seed}"
            found.append(searched(path, model, data, options, device))
            print(f"{name}: {found[-1]}", flush=True)
    machine.report(
        {
            "machine": machine.describe(),
            "network": f"{args.arch}, {args.dataset}",
            "target_rate": args.search_target_rate,
            **results,
        },
        args.out,
    )


if __name__ == "__main__":
    manners.run(main)
