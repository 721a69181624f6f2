"""Phase 1: the search for a sub-network and its memory bank; by default EKG's greedy search (Lee &
Song, ECCV 2022), with --method also FFP's, SWP's, AutoSlim's, uniform widths or a global threshold.

    python search.py --arch ResNet-56 --dataset CIFAR10 --data_path DIR --trained_param res56.pkl \\
        --search_target_rate 0.45 --train_path ../run

Filters are ranked and removed by what D_val says, a part of the *training* set; the test split
is only read for the figures printed at the end and chooses nothing.
"""

from __future__ import annotations

if __name__ == "__main__":  # first, so that Ctrl-C is answered in one line from here on
    from ekg_tf.cli.manners import run_module

    run_module("ekg_tf.search")  # under its own name: __main__'s classes would be others

from collections.abc import Sequence

from ekg_tf.cli import choices, flags, manners
from ekg_tf.utils import devices, progress
from ekg_tf.utils.errors import UserError
from ekg_tf.utils.runfiles import PRUNED, START, SUPERNET_ORDER


def parser() -> manners.Parser:
    """The flags of the search."""
    parser = manners.Parser(description="Searches a sub-network and builds its memory bank.")
    flags.add_run(parser)
    flags.add_data(parser)
    flags.add_own(parser)
    flags.add_device(parser)
    flags.add_search(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """The command line of phase 1."""
    args = parser().parse_args(argv)
    if not (args.trained_param or args.model):
        raise UserError(
            "--trained_param (or --model) is missing: the search needs a trained network"
        )
    options = choices.search_of(args)
    bank = choices.bank_of(args, options.method)
    choices.check_folder(args)

    devices.import_tensorflow()
    import keras
    from ekg_tf.cli import inputs
    from ekg_tf.dataloader import unreadable_named
    from ekg_tf.options import recipes
    from ekg_tf.phases.dry_run import Wanted, dry_run
    from ekg_tf.phases.opening import work_of
    from ekg_tf.phases.rehearsal import rehearse
    from ekg_tf.phases.searching import check, run_search
    from ekg_tf.reports.search import print_summary

    device = choices.device_of(args, machines=True)
    keras.utils.set_random_seed(args.seed)
    with unreadable_named():
        work = work_of(args)
        phase = work.given, work.task, work.data
        options = recipes.search(options, work.data)
        check(work.given, work.data, options, bank)  # before there is a folder
        kept = choices.record(args, options, bank, work)
        choices.check_folder(args, kept)
        rehearse(*phase, device, options, known=inputs.is_built(args))
        if args.dry_run:
            progress.say(dry_run(*phase, Wanted(options, bank), device))
            return
        with choices.open_folder(args, kept, START, SUPERNET_ORDER) as folder:
            run_search(folder, *phase, options, device, bank)
            print_summary(folder.read_json("search.json"), str(folder.file(PRUNED)))
