"""The whole EKG pipeline on CIFAR-10, CIFAR-100 or DIGITS: baseline -> search -> fine-tune -> test.

Paper: Ensemble Knowledge Guided Sub-network Search and Fine-tuning for Filter Pruning, ECCV 2022.
Command of the paper's ResNet-56 row:

    python train_cifar.py --gpu_id 0 --arch ResNet-56 --dataset CIFAR10 --search_target_rate 0.45 \\
        --train_path ../test

The paper reports 94.09 +-0.07 % for it (Table 2). Not yet measured here at the paper's length; what
has been measured, on which hardware, is in docs/results.
"""

from __future__ import annotations

if __name__ == "__main__":  # first, so that Ctrl-C is answered in one line from here on
    from ekg_tf.cli.manners import run_module

    run_module("ekg_tf.train_cifar")  # under its own name: __main__'s classes would be others

from collections.abc import Sequence
from dataclasses import replace

from ekg_tf.cli import choices, flags, manners
from ekg_tf.options import recipes
from ekg_tf.options.training import Training
from ekg_tf.utils import devices, progress
from ekg_tf.utils.runfiles import BASELINE, EXPORTED, START, SUPERNET_ORDER

PHASES = ("baseline", "search", "test")


def parser(
    prog: str = "train_cifar.py",
    description: str = "Baseline, EKG search, fine-tuning and test on CIFAR.",
    **defaults: str,
) -> manners.Parser:
    """The flags of the whole pipeline.

    Args:
        defaults: of --arch and --dataset.
    """
    parser = manners.Parser(prog=prog, description=description)
    flags.add_run(parser)
    flags.add_data(parser, **defaults)
    flags.add_device(parser)
    flags.add_baseline(parser)
    flags.add_search(parser)
    flags.add_finetune(parser)
    parser.add_argument(
        "--until",
        choices=PHASES,
        default="test",
        help="last phase to run; the same command with a later one goes on; default: test",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    run(parser(), argv)


def run(parser: manners.Parser, argv: Sequence[str] | None) -> None:
    """The whole pipeline with the flags of `parser`."""
    # ------------------------------------------------------------------ flags
    args = parser.parse_args(argv)
    finetuning, search = choices.finetuning_of(args), choices.search_of(args)
    bank = choices.bank_of(args, search.method, finetuning)
    training = replace(choices.made(Training, args), seed=args.seed)
    of_baseline = choices.baseline_of(args)
    choices.check_folder(args)

    devices.import_tensorflow()
    import keras
    from ekg_tf.cli import inputs
    from ekg_tf.dataloader import unreadable_named, without_held_out
    from ekg_tf.phases import baseline, pipeline
    from ekg_tf.phases.dry_run import dry_run
    from ekg_tf.phases.memory import planned
    from ekg_tf.phases.opening import work_on
    from ekg_tf.reports.networks import print_report
    from ekg_tf.reports.written import write_if_missing

    device = choices.device_of(args, machines=True)
    keras.utils.set_random_seed(args.seed)
    with unreadable_named():
        # -------------------------------------------------------------- data and network
        data = inputs.data_of(args)
        network = inputs.named_network(args, data)
        plan = pipeline.Plan(search, bank, finetuning, training).resolved(data)
        data = without_held_out(data, plan.search.sampling.held_out)
        trained_by = recipes.baseline(of_baseline, training, data)
        of_baseline = recipes.as_baseline(of_baseline, trained_by)
        byol = baseline.Byol.of(of_baseline)
        # before there is a folder
        work = work_on(network, lambda fit: data)
        pipeline.check_plan(work.given, data, plan, device)
        planned(work.given, work.task, data, plan.search, device)
        if args.dry_run:
            of_training = None if args.trained_param else trained_by
            wanted = replace(plan.wanted(of_training, until=args.until), byol=byol is not None)
            progress.say(dry_run(work.given, work.task, data, wanted, device))
            return
        kept = choices.record(args, plan, of_baseline)
        kept |= work.flags() if args.trained_param else {"data_digest": data.fingerprint}
        begun = ("baseline_state.npz", START, SUPERNET_ORDER)
        with choices.open_folder(args, kept, *begun) as folder:
            if folder.finished:
                progress.say(f"{folder.path} holds the finished run of this command:")
                print_report(folder.read_json("result.json"), str(folder.file(EXPORTED)))
                write_if_missing(folder)
                return
            # ---------------------------------------------------------- baseline
            if not args.trained_param:
                assert trained_by.epochs is not None  # it is resolved
                epochs = progress.count(trained_by.epochs, "epoch")
                before = ", finished before" if folder.has(BASELINE) else ""
                progress.say(f"baseline: {args.arch}, {epochs}{before}")
                network = baseline.trained(
                    folder, network, work.task, data, trained_by, device, byol
                )
            else:
                network = baseline.kept(folder, network)
            work = work_on(network, lambda fit: data)
            phase = work.given, work.task, data
            if args.until == "baseline":
                trained_here = not args.trained_param
                return baseline.measure(folder, *phase, device, trained_here=trained_here)
            # ---------------------------------------------------------- search, fine-tuning
            pipeline.search_phase(folder, *phase, plan, device)
            if args.until == "test":
                pipeline.finetune_phase(folder, *phase, plan, device)
