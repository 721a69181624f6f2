"""The paper's claims: seven experiments on ResNet-20 and CIFAR-10.

    python -m ekg_tf.experiments.claims --claims E1 E4 --data_path cifar10 --work runs/claims

E1: the masking rule on a network without batch norm. E2: what helps in the fine-tuning: a second
view, or a teacher. E3: the test that a batch's teachers pass. E4: whether the teacher changes the
search's choices. E5: smoothness against potential. E6: a baseline trained with BYOL's teacher. E7:
whether what the teacher chose is worth more after a fine-tuning.
experiments/claims/plans.py says what each runs.

Every cell is a command of this package (printed, with the time that others of its kind took) with a
folder of its own in --work: finished ones are skipped, a killed run goes on. After every cell --out
has all figures so far, and a run whose figures it has is not run again, whatever --work holds: the
seeds of an experiment may be run on several days or machines. `python -m ekg_tf.pages.claims`
prints docs/claims.md from it. --quick is a check of the machinery in minutes, on scikit-learn's
digits.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...cli import flags, manners
from ...utils import devices
from ...utils.errors import UserError
from ...utils.jsonl import read_json, write_json
from ...utils.provenance import git_state, installed
from ..tables import grid, outcomes
from .plans import FULL, QUICK, Plans, Run, Setting

EXPERIMENTS = ("E1", "E4", "E2", "E7", "E3", "E5", "E6")  # in the order in which they run
RESULTS = Path("docs/results/claims.json")
DATA = "DATA"  # stands for the data's folder in a result file


def parser() -> manners.Parser:
    """The flags."""
    parser = manners.Parser(
        prog="python -m ekg_tf.experiments.claims",
        description="Runs the experiments behind docs/claims.md.",
    )
    parser.add_argument(
        "--claims", nargs="+", choices=EXPERIMENTS, default=EXPERIMENTS, help="default: all"
    )
    parser.add_argument("--data_path", type=flags.path, help="CIFAR-10, as of train_cifar.py")
    parser.add_argument("--work", type=flags.as_path, required=True, help="folder of the cells")
    parser.add_argument(
        "--out", type=Path, help=f"default: {RESULTS}, with --quick {RESULTS.name} in --work"
    )
    parser.add_argument("--quick", action="store_true", help="minutes, on DIGITS; default: off")
    parser.add_argument(
        "--seeds", type=flags.count, help="of each experiment at most; default: all that it has"
    )
    parser.add_argument(
        "--hours",
        type=float,
        default=float("inf"),
        help="begin no cell after so many; default: no end",
    )
    parser.add_argument(
        "--jobs", type=flags.count, default=1, help="cells that run at a time; default: 1"
    )
    parser.add_argument("--gpu_id", type=devices.gpu_ids, help="as of all programs")
    parser.add_argument("--dry_run", action="store_true", help="print the commands, run nothing")
    return parser


def runs_of(plans: Plans, experiment: str, most: int | None = None) -> list[Run]:
    """The runs of an experiment, seed by seed, so that what is there at any time is balanced."""
    seeds = plans.setting.seeds[experiment]
    seeds = seeds if most is None else min(most, seeds)
    return [run for seed in range(seeds) for run in plans.runs(experiment, seed)]


def row_in(known: dict[str, Any], experiment: str, run: Run) -> dict[str, Any] | None:
    """A run's figures among the experiments of a result file; None where it has none."""
    rows = known.get(experiment, {}).get("runs", [])
    alike = (row for row in rows if all(row[key] == one for key, one in run.labels.items()))
    return next(alike, None)


def collected(
    plans: Plans, root: Path, data_path: str | None, known: dict[str, Any]
) -> dict[str, Any]:
    """All figures that the folder of the cells holds, and the known ones that it doesn't:
    {experiment: {"commands", "machines", "runs"}}.

    A command stands for all cells of its kind; those of a kind differ in seeds and rates.
    """
    found: dict[str, Any] = {}
    for experiment in EXPERIMENTS:
        runs = runs_of(plans, experiment)
        here = [run.row(root) for run in runs]
        if not any(here):
            continue
        rows = [one or row_in(known, experiment, run) for one, run in zip(here, runs, strict=True)]
        rows = [row for row in rows if row is not None]
        commands: dict[str, str] = {}
        for cell in (cell for run in runs for cell in run.cells):
            words = [DATA if word == data_path else word for word in (*cell.program, *cell.args)]
            commands.setdefault(cell.kind, " ".join(["python", *words]))
        used = [cell for run in runs for cell in run.cells if cell.read(root) is not None]
        machines = outcomes.machines(used, root)
        machines += [
            one for one in known.get(experiment, {}).get("machines", ()) if one not in machines
        ]
        found[experiment] = {"machines": machines, "commands": commands, "runs": rows}
    return found


def former(out: Path, setting: dict[str, Any]) -> dict[str, Any]:
    """The experiments of a result file that is there already.

    Raises:
        UserError: it is of another setting, or can't be written.
    """
    if out.suffix != ".json" or not out.parent.is_dir():
        raise UserError(f"--out {out}: give a .json file in a folder that exists")
    if not out.exists():
        return {}
    old = read_json(out, "setting", "experiments")
    if old["setting"] != setting:
        raise UserError(
            f"{out} holds results of another setting ({old['setting'].get('title')}): give "
            "another --out"
        )
    return dict(old["experiments"])


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; 1 if a cell failed."""
    args = parser().parse_args(argv)
    setting = QUICK if args.quick else FULL
    plans, root = Plans(setting, _data(args, setting)), args.work.resolve()
    places = grid.slots(args.gpu_id, args.jobs)
    # As JSON has it, so that a file can be compared.
    described = {
        key: list(one) if isinstance(one, tuple) else one for key, one in asdict(setting).items()
    }
    out = args.out or (root / RESULTS.name if args.quick else RESULTS)
    if not args.out and args.quick and not args.dry_run:
        root.mkdir(parents=True, exist_ok=True)
    nowhere = args.dry_run and not out.parent.is_dir()
    before = {} if nowhere else former(out, described)
    runs = [
        run
        for name in EXPERIMENTS
        if name in args.claims
        for run in runs_of(plans, name, args.seeds)
        if run.partial or row_in(before, name, run) is None
    ]
    cells = grid.ordered(cell for run in runs for cell in run.cells)
    if args.dry_run:
        grid.show(cells, root, places[0])
        return 0

    def write() -> None:
        experiments = before | collected(plans, root, args.data_path, before)
        made = {**installed(("tensorflow", "keras", "numpy")), "git": git_state(grid.REPOSITORY)}
        write_json(out, {"setting": described, "made_with": made, "experiments": experiments})

    failures = grid.run(cells, root, write, places, 3600 * args.hours)
    write()
    for failure in failures:
        print(f"FAILED: {failure}")
    return 1 if failures else 0


def _data(args: argparse.Namespace, setting: Setting) -> tuple[str, ...]:
    """The flags of the data.

    Raises:
        UserError: none are given for data that has to lie somewhere, or it isn't there.
    """
    if args.quick and args.data_path:
        raise UserError("--quick runs on scikit-learn's digits: leave out --data_path")
    if not args.quick and not args.data_path:
        raise UserError(f"--data_path is missing: where {setting.dataset} lies")
    if not args.data_path:
        return ()
    if not Path(args.data_path).exists():
        raise UserError(f"--data_path {args.data_path} does not exist")
    args.data_path = str(Path(args.data_path).resolve())  # the same from every folder
    return ("--data_path", args.data_path)


if __name__ == "__main__":
    manners.run(main)
