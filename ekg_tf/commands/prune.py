"""`ekg-tf prune`: search, fine-tuning and test of a network of one's own.

ekg-tf prune --model my.keras --data photos --search_target_rate 0.5 --train_path run
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ekg_tf.cli import choices, flags, manners
from ekg_tf.options.training import Training
from ekg_tf.utils import devices, progress
from ekg_tf.utils.errors import UserError
from ekg_tf.utils.runfiles import EXPORTED, START, SUPERNET_ORDER


def parser() -> manners.Parser:
    """The flags of the command."""
    parser = manners.Parser(prog="ekg-tf prune", description="Prunes and fine-tunes a network.")
    flags.add_run(parser)
    flags.add_data(parser)
    flags.add_own(parser)
    flags.add_device(parser)
    flags.add_search(parser)
    flags.add_finetune(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    args = parser().parse_args(argv)
    if not (args.trained_param or args.model):
        raise UserError("--model (or --trained_param) is missing: which network shall be pruned?")
    finetuning, search = choices.finetuning_of(args), choices.search_of(args)
    bank = choices.bank_of(args, search.method, finetuning)
    training = replace(choices.made(Training, args), seed=args.seed)
    choices.check_folder(args)
    devices.import_tensorflow()
    import keras

    from ekg_tf.cli import inputs
    from ekg_tf.dataloader import unreadable_named
    from ekg_tf.phases import pipeline
    from ekg_tf.phases.dry_run import dry_run
    from ekg_tf.phases.opening import work_of
    from ekg_tf.phases.rehearsal import rehearse
    from ekg_tf.reports.networks import print_report
    from ekg_tf.reports.written import write_if_missing
    from ekg_tf.training.trainer import needs_lamb

    device = choices.device_of(args, machines=True)
    keras.utils.set_random_seed(args.seed)
    with unreadable_named():
        work = work_of(args)
        phase = work.given, work.task, work.data
        plan = pipeline.Plan(search, bank, finetuning, training).resolved(
            work.data, lamb=needs_lamb(work.given, work.task)
        )
        pipeline.check_plan(work.given, work.data, plan, device)
        kept = choices.record(args, plan, work)
        choices.check_folder(args, kept)
        rehearse(*phase, device, plan.search, known=inputs.is_built(args))
        if args.dry_run:
            progress.say(dry_run(*phase, plan.wanted(), device))
            return
        with choices.open_folder(args, kept, START, SUPERNET_ORDER) as folder:
            if folder.finished:
                progress.say(f"{folder.path} holds the finished run of this command:")
                print_report(folder.read_json("result.json"), str(folder.file(EXPORTED)))
                write_if_missing(folder)
                return
            pipeline.search_phase(folder, *phase, plan, device)
            pipeline.finetune_phase(folder, *phase, plan, device)
