"""Which network and which data the flags name: ours by name, or the user's own."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import keras

from ..dataloader import Dataset, load
from ..dataloader import own as own_data
from ..dataloader.own_function import import_module
from ..nets.zoo.builders import build
from ..nets.zoo.load import check_fits, load_network, load_own
from ..options.data import Data
from ..utils.errors import UserError
from ..utils.jsonl import read_json
from .flags import ARCH, DATASET, NAMED_DATA, OWN_DATA, made

ARGS = "args.json"


def import_custom(modules: Sequence[str]) -> None:
    """Imports the modules of --custom_module, so that their layers are known.

    Raises:
        UserError: as `dataloader.own_function.import_module`.
    """
    for name in modules:
        import_module(name)


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
            raise UserError(f"--{idle[0]} is for data of your own: give --data as well")
        args.dataset = args.dataset or DATASET
        return load(
            args.dataset, args.data_path, val_labels=args.val_labels, hold_out=args.hold_out
        )
    if named := [name for name in NAMED_DATA if getattr(args, name, None) is not None]:
        raise UserError(f"--data excludes --{named[0]}: give one or the other")
    if model is None:
        raise UserError("--data needs --model: your data goes with a network of your own")
    return own_data.load(args.data, tuple(model.inputs[0].shape[1:]), preprocessing(args))


def preprocessing(args: argparse.Namespace) -> Data:
    """The `Data` of the flags; puts its defaults into `args`."""
    options = made(Data, args)
    for flag, value in options.flags().items():
        if hasattr(args, flag) and flag != "data_crop":
            setattr(args, flag, value)
    return options


def named_network(args: argparse.Namespace, data: Dataset) -> keras.Model:
    """The network of --trained_param, or a fresh one of --arch.

    Raises:
        UserError: as `load_network`.
    """
    shape = (args.arch, data.num_classes, data.image_shape)
    return load_network(args.trained_param, *shape) if args.trained_param else build(*shape)


def data_and_network(args: argparse.Namespace) -> tuple[Dataset, keras.Model]:
    """The data and the network that the flags of add_data and add_own name.

    The network comes as given, with a final softmax if it has one; see `nets.given`.

    Raises:
        UserError: as `data_of` and `load_network`; flags that exclude each other.
    """
    if args.model is None:
        data = data_of(args)
        args.arch = args.arch or ARCH
        network = load_network(args.trained_param, args.arch, data.num_classes, data.image_shape)
        return data, network
    if args.arch or args.trained_param:
        raise UserError(
            "--model excludes --arch and --trained_param: a .keras file holds architecture and "
            "weights"
        )
    network = load_own(args.model)
    data = data_of(args, network)
    check_fits(args.model, network, data.num_classes, data.image_shape)
    return data, network
