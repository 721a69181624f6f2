"""The EKG paper's tables, and one of all methods, as commands that run their grid and print them.

    python -m ekg_tf.experiments.tables --table 2 --scale smoke --train_path runs/table2
    python -m ekg_tf.experiments.tables --table 1 --dataset CIFAR10 --arch ResNet-56 \\
        --data_path DIR \\
        --trained_param res56.pkl --scale paper --train_path ../grid
    python -m ekg_tf.experiments.tables --table methods --scale short --data_path DIR \\
        --train_path ../grid

1: scores of filters; 2: teachers in search and fine-tuning; 3: ImageNet; methods: --method of
search.py at the same FLOPs. Every cell is a command of this package (printed, so that you can run
it by hand) with a folder of its own in --train_path: finished ones are skipped, a killed grid goes
on, tables in one folder share their cells. A cell that fails doesn't stop the others; the exit code
is 1 then. The table is made of everything that the folder holds, whatever --rows and --seeds say.

--scale: smoke is a check in minutes (DIGITS), short is hours on two CPU cores (CIFAR-10 and
ResNet-20, all 50,000 images; a baseline of 20 epochs, fine-tuning for 2), paper is the published
setting: the programs' defaults. What varies between seeds: see experiments/plans.py.
"""

import argparse
import json
from pathlib import Path

from ...cli import flags, manners
from ...utils import devices
from ...utils.errors import UserError
from ...utils.files import atomic_write
from . import grid, outcomes, text
from .plans import BYOL, IMAGENET, SCALES, TABLES, Request, pick, plan, rows_of, seeds_in


def parser() -> manners.Parser:
    """The flags; those of data and network are passed on to the programs."""
    parser = manners.Parser(
        prog="python -m ekg_tf.experiments.tables",
        description="Runs and prints the paper's tables.",
    )
    parser.add_argument(
        "--table", choices=TABLES, required=True, help="of the EKG paper, or methods"
    )
    parser.add_argument("--train_path", type=Path, required=True, help="folder of the grid")
    parser.add_argument(
        "--scale",
        choices=tuple(SCALES),
        default="smoke",
        help="minutes on DIGITS, hours on CIFAR-10, or the published setting; default: smoke",
    )
    parser.add_argument(
        "--rows", nargs="+", metavar="ROW", help="run only these rows; default: all"
    )
    parser.add_argument(
        "--seeds",
        type=flags.count,
        help="runs per row, with seeds from 0 on; default: 3, but 1 for smoke and --table 3",
    )
    parser.add_argument(
        "--jobs",
        type=flags.count,
        default=1,
        help="cells that run at a time; they share out the GPUs and the CPU cores; default: 1",
    )
    parser.add_argument("--out", type=Path, help="also write the result to this .json, and a .png")
    parser.add_argument("--dry_run", action="store_true", help="print the commands, run nothing")
    group = parser.add_argument_group("data and network")
    group.add_argument("--dataset", help="data by name; default: by scale; --table 3: ImageNet")
    group.add_argument("--arch", help="network by name; default: by scale; --table 3: ResNet-50")
    for name in ("data_path", "val_labels", "hold_out"):
        group.add_argument(f"--{name}", help="as of train_cifar.py and train_imagenet.py")
    group.add_argument("--trained_param", help="the baseline; default: one is trained")
    group.add_argument("--gpu_id", type=devices.gpu_ids, help="as of all programs")
    group = parser.add_argument_group(
        "further flags of the programs",
        "in one pair of quotes; a flag of some methods goes to their cells alone",
    )
    for name in ("baseline", "search", "finetune"):
        group.add_argument(
            f"--{name}_flags",
            type=str.split,
            default=[],
            metavar="FLAGS",
            help=f"further flags of the {name} program, such as '--accum 8'",
        )
    group.add_argument(
        "--search_target_rate",
        type=flags.fraction,
        help="share of the FLOPs that remains; default: 0.45, or the row's",
    )
    return parser


def request_of(args: argparse.Namespace) -> Request:
    """The `Request` of the flags."""
    scale = SCALES[args.scale]
    large = args.table == "3"
    data = [
        word
        for name in ("data_path", "val_labels", "hold_out")
        if getattr(args, name) is not None
        for word in (f"--{name}", getattr(args, name))
    ]
    return Request(
        scale=scale,
        dataset=args.dataset or (IMAGENET if large else scale.dataset),
        arch=args.arch or ("ResNet-50" if large else scale.arch),
        target_rate=args.search_target_rate,
        trained_param=args.trained_param,
        data=tuple(data),
        baseline=tuple(args.baseline_flags),
        search=tuple(args.search_flags),
        finetune=tuple(args.finetune_flags),
    )


def main(argv: list[str] | None = None) -> int:
    """The command line; 1 if a cell failed."""
    args = parser().parse_args(argv)
    if args.out and (args.out.suffix != ".json" or not args.out.parent.is_dir()):
        raise UserError(f"--out {args.out}: give a .json file in a folder that exists")
    request = request_of(args)
    rows = rows_of(args.table, request.arch)
    chosen = pick(rows, args.rows)
    seeds = args.seeds or (1 if args.table == "3" else request.scale.seeds)
    root = args.train_path.resolve()
    plans = [plan(row, request, list(range(seeds))) for row in chosen]
    cells = grid.ordered(cell for planned in plans for cell in planned.cells)
    places = grid.slots(args.gpu_id, args.jobs)
    if args.dry_run:
        grid.show(cells, root, places[0])
        return 0

    # EKG-BYOL's cells are EKG's from another network: never both in one folder.
    shown = chosen if BYOL in (args.rows or ()) else [row for row in rows if row.name != BYOL]

    def report() -> str:
        known = sorted({*range(seeds), *seeds_in(root)})
        every = [plan(row, request, known) for row in shown]
        result = outcomes.collect(args.table, every, request, root)
        content = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
        for path in filter(None, [root / f"table{args.table}.json", args.out]):
            atomic_write(path, lambda temporary: temporary.write_text(content, encoding="utf-8"))
        if args.out:
            text.draw(result, args.out.with_suffix(".png"))
        return text.write(result, root)

    failures = grid.run(cells, root, report, places)
    print(report())
    for failure in failures:
        print(f"FAILED: {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    manners.run(main)
