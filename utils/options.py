"""The flags of the five command-line programs, by phase, and the option objects made of them."""

import argparse

import tensorflow as tf

from dataloader import Dataset, own
from pruning.greedy import EVALUATORS, SearchOptions
from utils import cli, devices, inputs
from utils.phases import Device, TrainOptions
from utils.runfolder import RunFolder

# Epochs and batch size where the user gives none: the paper's for CIFAR, minutes on a CPU for
# DIGITS.
DEFAULTS = {
    "CIFAR10": {"baseline_epoch": 200, "train_epoch": 100, "batch_size": 128},
    "CIFAR100": {"baseline_epoch": 200, "train_epoch": 100, "batch_size": 128},
    "DIGITS": {"baseline_epoch": 40, "train_epoch": 20, "batch_size": 64},
    own.NAME: {"train_epoch": 20, "batch_size": 64},
}


def fractions(text: str) -> tuple[float, ...]:
    """argparse type: increasing numbers between 0 and 1, "0.3,0.6,0.8" or "[0.3, 0.6, 0.8]"."""
    points = tuple(cli.fraction(part) for part in text.strip("[]()").replace(",", " ").split())
    if not points or list(points) != sorted(set(points)):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of increasing fractions")
    return points


def add_data(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data and network")
    group.add_argument("--arch", default=inputs.ARCH, help="ResNet-20, -32, -44, -56 or -110")
    group.add_argument("--trained_param", help="trained network: .pkl or .keras")
    inputs.add_dataset(group)


def add_device(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("device")
    group.add_argument(
        "--gpu_id", type=devices.gpu_ids, default=[0], help='GPU numbers, "0,1", or "cpu"'
    )
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
        "--search_target_rate",
        type=cli.fraction,
        default=0.5,
        help="FLOPs that remain, as a share of the original",
    )
    group.add_argument(
        "--search_step", type=cli.fraction, default=0.2, help="share of a gate removed at a time"
    )
    group.add_argument(
        "--search_teacher", choices=("none", "single", "ensemble"), default="ensemble"
    )
    group.add_argument("--score", choices=("taylor", "l1", "fpgm", "random"), default="taylor")
    group.add_argument("--evaluator", choices=tuple(EVALUATORS), default="exact")
    group.add_argument("--search_batch_size", type=cli.positive_int, default=256)
    group.add_argument("--search_seed", type=int, default=0, help="of D_subset and D_val")
    group.add_argument(
        "--subset_per_class", type=cli.positive_int, help="size of D_subset; default by data set"
    )
    group.add_argument(
        "--val_per_class", type=cli.positive_int, help="size of D_val; default by data set"
    )
    group.add_argument(
        "--num_teacher", type=cli.positive_int, default=5, help="teachers in the memory bank"
    )


def add_baseline(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("baseline (without --trained_param)")
    group.add_argument("--baseline_epoch", type=cli.positive_int)
    group.add_argument("--baseline_learning_rate", type=cli.positive_float, default=0.1)


def add_finetune(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("fine-tuning")
    group.add_argument(
        "--finetune_teacher", choices=("none", "single", "ensemble"), default="ensemble"
    )
    group.add_argument("--temperature", type=cli.positive_float, default=4.0)
    group.add_argument("--train_epoch", type=cli.positive_int)
    group.add_argument("--learning_rate", type=cli.positive_float, default=0.01)
    group = parser.add_argument_group("training (baseline and fine-tuning)")
    group.add_argument("--batch_size", type=cli.positive_int)
    group.add_argument("--accum", type=cli.positive_int, default=1, help="micro-batches per step")
    group.add_argument("--schedule", choices=("step", "cosine"), default="step")
    group.add_argument("--decay_points", type=fractions, default=(0.3, 0.6, 0.8))
    group.add_argument("--decay_rate", type=cli.positive_float, default=0.2)
    group.add_argument("--weight_decay", type=cli.non_negative_float, default=5e-4)
    group.add_argument(
        "--mixed_precision", type=cli.on_off, default=False, help="bfloat16 activations"
    )


def fill_defaults(args: argparse.Namespace, data: Dataset) -> None:
    """Puts the data set's own defaults where the user gave no value."""
    values = DEFAULTS[data.name] | {
        "subset_per_class": data.subset_per_class,
        "val_per_class": data.val_per_class,
    }
    for name, value in values.items():
        if hasattr(args, name) and getattr(args, name) is None:
            setattr(args, name, value)


def device_of(args: argparse.Namespace) -> Device:
    """The `Device` that the flags ask for; chooses the GPUs, so call it before anything runs."""
    strategy = devices.choose(args.gpu_id)
    on_gpu = bool(tf.config.get_visible_devices("GPU"))
    return Device(
        strategy=strategy,
        compile=on_gpu if args.compile is None else args.compile,
        mixed_precision=getattr(args, "mixed_precision", False),
        accum=getattr(args, "accum", 1),
        val_batch_images=args.val_batch_size,
    )


def search_of(args: argparse.Namespace) -> SearchOptions:
    """The `SearchOptions` of the flags."""
    return SearchOptions(
        target_rate=args.search_target_rate,
        step=args.search_step,
        teacher=args.search_teacher,
        score=args.score,
        evaluator=args.evaluator,
        batch_images=args.search_batch_size,
        subset_per_class=args.subset_per_class,
        val_per_class=args.val_per_class,
        num_teacher=args.num_teacher,
        seed=args.search_seed,
    )


def train_of(args: argparse.Namespace, *, epochs: int, learning_rate: float) -> TrainOptions:
    """The `TrainOptions` of the flags for a baseline or a fine-tuning."""
    return TrainOptions(
        epochs=epochs,
        learning_rate=learning_rate,
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
