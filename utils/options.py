"""The flags of the five command-line programs, by phase, and the option objects made of them."""

import argparse
from dataclasses import replace

import tensorflow as tf

from nets import BUILDERS
from nets.load import WEIGHTS
from pruning.budgets import BUDGETS
from pruning.contrast import KINDS as CKT
from pruning.evaluator import EVALUATORS
from pruning.methods import SEARCHES, SUPERNETS
from pruning.rewards import TEACHERS
from pruning.search import DEFAULT_SUPERNET, SearchOptions
from utils import cli, devices, inputs
from utils.bank_flags import add_bank
from utils.phases import Device, TrainOptions
from utils.runfolder import RunFolder
from utils.supernet_flags import add_supernet, supernet_of


def fractions(text: str) -> tuple[float, ...]:
    """argparse type: increasing numbers between 0 and 1, "0.3,0.6,0.8" or "[0.3, 0.6, 0.8]"."""
    points = tuple(cli.fraction(part) for part in text.strip("[]()").replace(",", " ").split())
    if not points or list(points) != sorted(set(points)):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of increasing fractions")
    return points


def add_data(
    parser: argparse.ArgumentParser, *, arch: str = inputs.ARCH, dataset: str = inputs.DATASET
) -> None:
    group = parser.add_argument_group("data and network")
    group.add_argument("--arch", default=arch, help=", ".join(BUILDERS))
    group.add_argument("--trained_param", help="trained network: " + ", ".join(WEIGHTS))
    inputs.add_dataset(group, dataset)


def add_device(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("device")
    group.add_argument(
        "--gpu_id", type=devices.gpu_ids, default=[0], help='GPU numbers, "0,1", or "cpu"'
    )
    add_compilation(group)


def add_compilation(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--compile", type=cli.on_off, help="XLA; default: on with a GPU, off on the CPU"
    )
    group.add_argument(
        "--val_batch_size", type=cli.positive_int, default=256, help="images per evaluation batch"
    )


def add_run(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("run folder")
    group.add_argument("--train_path", required=True, help="folder that the run writes to")
    group.add_argument(
        "--resume", type=cli.on_off, default=True, help="go on with an unfinished run (default)"
    )
    group.add_argument("--overwrite", action="store_true", help="delete a former run in the folder")
    group.add_argument("--do_log", type=cli.on_off, default=True, help="write TensorBoard events")
    group.add_argument("--seed", type=int, default=0, help="of initial weights and augmentation")


def add_search(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("search")
    group.add_argument(
        "--method",
        choices=tuple(SEARCHES),
        default="ekg",
        help="ekg: greedy; ffp: coarse to fine; swp, autoslim: supernets; uniform widths; "
        "global threshold",
    )
    group.add_argument(
        "--search_target_rate",
        type=cli.fraction,
        help="share of the budget that remains; default: the smallest of --budgets, or 0.5",
    )
    group.add_argument("--budget", choices=BUDGETS, default="flops", help="what is to be saved")
    group.add_argument(
        "--budgets",
        type=cli.fraction,
        nargs="+",
        default=(),
        help="write the network at each of these rates on the way as well",
    )
    group.add_argument(
        "--latency_batch",
        type=cli.positive_int,
        default=1,
        help="images per pass of --budget latency",
    )
    group.add_argument(
        "--search_step", type=cli.fraction, default=0.2, help="share of a gate removed at a time"
    )
    group.add_argument(
        "--search_teacher",
        choices=TEACHERS,
        help="of EKG's reward; default: ensemble",
    )
    group.add_argument("--score", choices=("taylor", "l1", "fpgm", "random"), default="taylor")
    group.add_argument("--evaluator", choices=tuple(EVALUATORS), default="exact")
    group.add_argument(
        "--round_to",
        type=int,
        choices=(1, 4, 8, 16),
        default=1,
        help="kept widths are multiples of this where a group has that many filters",
    )
    group.add_argument(
        "--cache_mb",
        type=cli.positive_int,
        default=2048,
        help="memory for activations that proposals start from, per device",
    )
    group.add_argument("--search_batch_size", type=cli.positive_int, default=256)
    group.add_argument("--search_seed", type=int, default=0, help="of D_subset and D_val")
    group.add_argument(
        "--subset_per_class", type=cli.positive_int, help="size of D_subset; default by data set"
    )
    group.add_argument(
        "--val_per_class", type=cli.positive_int, help="size of D_val; default by data set"
    )
    add_bank(parser)
    add_supernet(parser)


def add_baseline(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("baseline (without --trained_param)")
    group.add_argument("--baseline_epoch", type=cli.positive_int)
    group.add_argument("--baseline_learning_rate", type=cli.positive_float)
    group.add_argument("--baseline_decay_points", type=fractions)
    group.add_argument("--baseline_decay_rate", type=cli.positive_float)


def add_finetune(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("fine-tuning")
    group.add_argument(
        "--finetune_method",
        choices=("ekg", "ckt", "kd", "plain"),
        default="ekg",
        help="ekg; ckt: FFP's contrastive transfer; kd: Hinton's distillation; plain",
    )
    group.add_argument(
        "--finetune_teacher", choices=TEACHERS, help="of ekg; default: ensemble, the memory bank"
    )
    group.add_argument("--ckt", choices=CKT, help="loss of ckt; default: infonce")
    group.add_argument(
        "--kd_alpha", type=cli.fraction, help="weight of kd's distillation; default: 0.9"
    )
    group.add_argument(
        "--from_scratch", type=cli.on_off, default=False, help="begin with fresh weights"
    )
    group.add_argument("--temperature", type=cli.positive_float)
    group.add_argument("--train_epoch", type=cli.positive_int)
    group.add_argument("--learning_rate", type=cli.positive_float)
    group = parser.add_argument_group("training (baseline and fine-tuning)")
    group.add_argument("--batch_size", type=cli.positive_int)
    group.add_argument("--accum", type=cli.positive_int, default=1, help="micro-batches per step")
    group.add_argument("--schedule", choices=("step", "cosine"), default="step")
    group.add_argument("--decay_points", type=fractions, default=(0.3, 0.6, 0.8))
    group.add_argument("--decay_rate", type=cli.positive_float, default=0.2)
    group.add_argument("--weight_decay", type=cli.non_negative_float)
    group.add_argument(
        "--mixed_precision", type=cli.on_off, default=False, help="bfloat16 activations"
    )


def device_of(args: argparse.Namespace, strategy: tf.distribute.Strategy | None = None) -> Device:
    """The `Device` that the flags ask for.

    Args:
        strategy: default: that of --gpu_id; this chooses the GPUs, so call it before anything runs.
    """
    strategy = strategy or devices.choose(args.gpu_id)
    on_gpu = bool(tf.config.get_visible_devices("GPU"))
    return Device(
        strategy=strategy,
        compile=on_gpu if args.compile is None else args.compile,
        mixed_precision=getattr(args, "mixed_precision", False),
        accum=getattr(args, "accum", 1),
        val_batch_images=args.val_batch_size,
    )


def search_of(args: argparse.Namespace) -> SearchOptions:
    """The `SearchOptions` of the flags.

    Raises:
        UserError: a rate on the way lies below the search's end; a teacher that isn't EKG's.
    """
    if args.search_teacher is None:
        args.search_teacher = "ensemble" if args.method == "ekg" else "none"
    if args.method != "ekg" and args.search_teacher != "none":
        raise cli.UserError(f"--search_teacher is for --method ekg, {args.method} has none")
    if args.search_target_rate is None:
        args.search_target_rate = min(args.budgets, default=0.5)
    if args.budgets and min(args.budgets) < args.search_target_rate:
        raise cli.UserError(
            f"--budgets {min(args.budgets):g} lies below --search_target_rate "
            f"{args.search_target_rate:g}, where the search ends"
        )
    return SearchOptions(
        target_rate=args.search_target_rate,
        step=args.search_step,
        method=args.method,
        teacher=args.search_teacher,
        score=args.score,
        evaluator=args.evaluator,
        batch_images=args.search_batch_size,
        subset_per_class=args.subset_per_class,
        val_per_class=args.val_per_class,
        num_teacher=args.num_teacher,
        seed=args.search_seed,
        round_to=args.round_to,
        cache_mb=args.cache_mb,
        budget=args.budget,
        latency_batch=args.latency_batch,
        rates=tuple(sorted(set(args.budgets), reverse=True)),
        supernet=supernet_of(args) if args.method in SUPERNETS else DEFAULT_SUPERNET,
    )


def baseline_of(args: argparse.Namespace) -> TrainOptions:
    """The `TrainOptions` of the flags for a baseline."""
    return replace(
        finetune_of(args),
        epochs=args.baseline_epoch,
        learning_rate=args.baseline_learning_rate,
        decay_points=tuple(args.baseline_decay_points),
        decay_rate=args.baseline_decay_rate,
    )


def finetune_of(args: argparse.Namespace) -> TrainOptions:
    """The `TrainOptions` of the flags for a fine-tuning."""
    return TrainOptions(
        epochs=args.train_epoch,
        learning_rate=args.learning_rate,
        batch_images=args.batch_size,
        weight_decay=args.weight_decay,
        seed=args.seed,
        schedule=args.schedule,
        decay_points=tuple(args.decay_points),
        decay_rate=args.decay_rate,
    )


def open_folder(args: argparse.Namespace, *begun: str) -> RunFolder:
    """The run folder of --train_path for these flags; refuses an unfinished run with --resume off.

    Args:
        begun: files of which the command writes the first one early: one there means a run to
            resume.

    Raises:
        UserError: as `RunFolder.open`, or an unfinished run that must not be resumed.
    """
    folder = RunFolder.open(args.train_path, vars(args), overwrite=args.overwrite)
    unfinished = not folder.finished and any(folder.file(name).exists() for name in begun)
    if unfinished and not args.resume:
        folder.close()
        raise cli.UserError(
            f"{args.train_path} holds an unfinished run: leave out --resume off to go on with it, "
            "or give --overwrite to delete it"
        )
    return folder
