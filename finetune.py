"""Phase 2: fine-tuning of the network that search.py has found; by default EKG's (Lee & Song, ECCV
2022), which replays the memory bank, with --finetune_method also FFP's contrastive transfer.

    python finetune.py --train_path ../run

continues a folder in which search.py has finished. With --search_path the search's folder is only
read, so that several fine-tunings (teachers, seeds) can start from one search. The test split is
read after every epoch for the curves; it chooses nothing, the network of the last epoch is kept.
"""

from __future__ import annotations

if __name__ == "__main__":  # first, so that Ctrl-C is answered in one line from here on
    from ekg_tf.cli.manners import run_module

    run_module("ekg_tf.finetune")  # under its own name: __main__'s classes would be others

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ekg_tf.cli import choices, flags, manners
from ekg_tf.options.training import Training
from ekg_tf.utils import devices, progress
from ekg_tf.utils.runfiles import BASELINE, EXPORTED


def parser() -> manners.Parser:
    """The flags of the fine-tuning."""
    parser = manners.Parser(description="Fine-tunes the network that a search has pruned.")
    flags.add_run(parser)
    parser.add_argument(
        "--search_path", type=flags.path, help="folder of the search; default: --train_path"
    )
    parser.add_argument("--data_path", type=flags.path, help="default: that of the search")
    parser.add_argument("--data", help="your own data; default: that of the search")
    flags.add_custom(parser)
    flags.add_augmentation(parser)
    parser.add_argument(
        "--rate",
        type=flags.fraction,
        help="fine-tune the network that the search kept at this rate of its --budgets; default: "
        "its last",
    )
    flags.add_device(parser)
    flags.add_finetune(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """The command line of phase 2."""
    args = parser().parse_args(argv)
    finetuning = choices.finetuning_of(args)
    training = replace(choices.made(Training, args), seed=args.seed)
    choices.check_folder(args)

    devices.import_tensorflow()
    import keras
    from ekg_tf.cli import inputs
    from ekg_tf.dataloader import unreadable_named
    from ekg_tf.options import recipes
    from ekg_tf.phases.dry_run import Wanted, dry_run
    from ekg_tf.phases.finetuning import (
        objective_of,
        pruned_file,
        run_finetuning,
        training_data,
    )
    from ekg_tf.phases.opening import work_again
    from ekg_tf.reports.finetuning import report, tested
    from ekg_tf.reports.networks import print_report
    from ekg_tf.reports.written import write_if_missing
    from ekg_tf.training.trainer import check_batch, needs_lamb
    from ekg_tf.utils.keras_files import load_keras

    inputs.import_custom(args.custom_module)
    search_path = Path(args.search_path or args.train_path)
    pruned = search_path / pruned_file(search_path, args.rate)
    inputs.inherit_data(args, search_path)
    device = choices.device_of(args, machines=True)
    keras.utils.set_random_seed(args.seed)
    with unreadable_named():
        network = load_keras(search_path / BASELINE, compile=args.loss is None)
        work = work_again(args, network)
        given, task, data = phase = work.given, work.task, work.data
        finetuning = recipes.finetuning(finetuning, data)
        training = recipes.training(training, data, lamb=needs_lamb(given, task))
        # Whatever is wrong with the search's files shows here, before there is a folder.
        check_batch(training, training_data(search_path, data), device)
        student = given.read_again(load_keras(pruned, compile=False)).core
        objective_of(search_path, student, task, data, finetuning, args.seed, device)
        if args.dry_run:
            wanted = Wanted(finetuning=finetuning, training=training)
            small = given.read_again(load_keras(pruned, compile=False))
            progress.say(dry_run(small, task, training_data(search_path, data), wanted, device))
            return
        kept = choices.record(args, finetuning, training) | {"data_digest": data.fingerprint}
        with choices.open_folder(args, kept, "finetune_state.npz") as folder:
            if folder.finished:
                progress.say(f"{folder.path} holds the finished run of this command:")
                print_report(folder.read_json("result.json"), str(folder.file(EXPORTED)))
                write_if_missing(folder)
                return
            model = run_finetuning(
                folder, search_path, *phase, training, device, finetuning, args.rate
            )
            more, untuned = folder.read_json("finetune.json"), tested(search_path, args.rate)
            after = given.read_again(model)
            report(folder, given, after, task, data, device, more, untuned)
