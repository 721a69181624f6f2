"""Which network and which data the flags name: ours by name, or the user's own."""

import argparse
import math
from pathlib import Path

import keras

from dataloader import NAMES, Dataset, load
from dataloader import own as own_data
from nets.load import check_fits, load_network, load_own
from utils import cli
from utils.jsonl import read_json

ARCH, DATASET = "ResNet-20", "DIGITS"
ARGS = "args.json"
NAMED_DATA = ("dataset", "data_path", "val_labels", "hold_out")
OWN_DATA = ("data", "data_mean", "data_std", "data_flip", "data_crop")


def add_dataset(group: argparse._ActionsContainer, default: str = DATASET) -> None:
    """Flags of the data that `dataloader.load` knows by name."""
    group.add_argument("--dataset", default=default, help=", ".join(NAMES))
    group.add_argument("--data_path", help="folder or archive of the data; default: TFDS")
    group.add_argument("--val_labels", help="ImageNet: labels of a flat folder val")
    group.add_argument(
        "--hold_out",
        type=cli.fraction,
        help="ImageNet: share of a single folder of classes to test on",
    )


def add_own(parser: argparse.ArgumentParser) -> None:
    """Flags, after options.add_data: a network and data of the user's own."""
    parser.add_argument("--model", help="trained functional .keras network of your own")
    add_own_data(parser)
    parser.set_defaults(arch=None)  # so that --arch beside --model is noticed


def add_own_data(parser: argparse.ArgumentParser) -> None:
    """Flags, after add_dataset: data of the user's own, read by `dataloader.own`."""
    group = parser.add_argument_group("your own data")
    group.add_argument(
        "--data", help="folder {train,test}/<class>/*, or module:function that returns both splits"
    )
    add_preprocessing(group)
    parser.set_defaults(dataset=None)  # so that --dataset beside --data is noticed


def add_preprocessing(group: argparse._ActionsContainer) -> None:
    """Flags that say how data of the user's own reaches the network."""
    group.add_argument(
        "--data_mean", type=numbers, help="subtracted from its pixels; one or one per channel"
    )
    group.add_argument("--data_std", type=numbers, help="that they are then divided by")
    add_augmentation(group)


def add_augmentation(group: argparse._ActionsContainer) -> None:
    """Flags of the training images of the user's own."""
    group.add_argument(
        "--data_flip", type=cli.on_off, help="mirror images in training; default: on"
    )
    group.add_argument(
        "--data_crop",
        type=cli.non_negative_int,
        help="shift images in training by up to so many pixels; default: an eighth of the side",
    )


def numbers(text: str) -> tuple[float, ...]:
    """argparse type: finite numbers, "123.7,116.8,103.9" or a single one."""
    try:
        values = tuple(float(part) for part in text.replace(",", " ").split())
    except ValueError:
        values = ()
    if not values or not all(map(math.isfinite, values)):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers such as 0.5,0.5,0.5")
    return values


def is_run(folder: Path) -> bool:
    """Whether the folder holds a run, whose arguments `inherit_data` can take."""
    return (folder / ARGS).exists()


def inherit_data(args: argparse.Namespace, folder: Path) -> None:
    """Takes from the run in `folder` what the command line leaves open about the data.

    `--data_path` or `--data` given alone means that the run's data has been moved. Raises UserError
    for an args.json that is missing or damaged.
    """
    used = read_json(folder / ARGS)
    if getattr(args, "dataset", None) is not None:
        return
    for name in OWN_DATA if args.data else (*NAMED_DATA, *OWN_DATA):
        if getattr(args, name, None) is None:
            setattr(args, name, used.get(name))


def data_of(args: argparse.Namespace, model: keras.Model | None = None) -> Dataset:
    """The data that the flags name; sets the default of --dataset in `args`.

    Args:
        model: whose input size images of the user's own are brought to.

    Raises:
        UserError: flags that exclude each other, no model for --data, or as `dataloader.load` and
            `dataloader.own.load`.
    """
    if getattr(args, "data", None) is None:
        idle = [name for name in OWN_DATA if getattr(args, name, None) is not None]
        if idle:
            raise cli.UserError(f"--{idle[0]} is for data of your own: give --data as well")
        args.dataset = args.dataset or DATASET
        return load(
            args.dataset, args.data_path, val_labels=args.val_labels, hold_out=args.hold_out
        )
    if named := [name for name in NAMED_DATA if getattr(args, name, None) is not None]:
        raise cli.UserError(f"--data excludes --{named[0]}: give one or the other")
    if model is None:
        raise cli.UserError("--data needs --model: your data goes with a network of your own")
    return own_data.load(args.data, model.input_shape[1:], **preprocessing(args))


def preprocessing(args: argparse.Namespace) -> dict:
    """Arguments of `dataloader.own.dataset` from the flags of `add_preprocessing`."""
    args.data_flip = True if args.data_flip is None else args.data_flip
    mean, std = args.data_mean or (0.0,), args.data_std or (1.0,)
    return {"mean": mean, "std": std, "flip": args.data_flip, "crop": args.data_crop}


def data_and_network(args: argparse.Namespace) -> tuple[Dataset, keras.Model]:
    """The data and the network that the flags of add_data and add_own name.

    The network comes as given, with a final softmax if it has one; see `nets.head`.

    Raises:
        UserError: as `data_of` and `load_network`; flags that exclude each other.
    """
    if args.model is None:
        data = data_of(args)
        args.arch = args.arch or ARCH
        network = load_network(args.trained_param, args.arch, data.num_classes, data.image_shape)
        return data, network
    if args.arch or args.trained_param:
        raise cli.UserError(
            "--model excludes --arch and --trained_param: a .keras file holds architecture and "
            "weights"
        )
    network = load_own(args.model)
    data = data_of(args, network)
    check_fits(args.model, network, data.num_classes, data.image_shape)
    return data, network
