"""Search and fine-tuning in one go; `prune` does it for a network and data that are in memory."""

from __future__ import annotations

import argparse
import os
from typing import NoReturn

import keras
import tensorflow as tf

from dataloader import Dataset, own, own_function
from finetune import finetune_from_flags, report, tested, transfer_of
from nets.head import without_softmax
from nets.load import check_fits, check_own
from pruning.budgets import LABELS
from search import check, search
from utils import cli, inputs
from utils import options as flags
from utils.bank_flags import bank_of
from utils.checkpoint import load_keras
from utils.defaults import fill_defaults
from utils.phases import Device, check_batch
from utils.provenance import digest
from utils.runfolder import START, SUPERNET_ORDER, RunFolder
from utils.search_report import print_summary


def prune(
    model: keras.Model,
    train,
    test,
    train_path: str | os.PathLike,
    *,
    overwrite: bool = False,
    **values,
) -> keras.Model:
    """Searches a smaller network and fine-tunes it, as `search.py` and `finetune.py` do.

    Runs under the current tf.distribute strategy and sets Keras's random seed. A call that was
    killed is taken up where it was by the same call, a finished one gives its network again.

    Args:
        model: trained and functional (or Sequential), float32 [n, ...] -> logits or softmax
            probabilities [n, classes]; it isn't changed.
        train, test: each a pair of arrays (examples [n, ...], integer labels [n]) or a finite
            tf.data.Dataset of such, see `dataloader.own_function.call`. Filters are chosen on a
            part of train; test is for the figures that are printed.
        train_path: the run folder.
        overwrite: delete a former run in the folder.
        values: of the flags of both programs by their names, as README explains them:
            search_target_rate=0.5, budgets=(0.7, 0.5), train_epoch=20, data_flip=False.
            Fine-tuning shifts and mirrors images: a network that was trained without this may lose
            by it (data_crop=0, data_flip=False).

    Returns:
        The fine-tuned network of stock layers, as in pruned.keras; it ends in a softmax if `model`
        does.

    Raises:
        UserError: anything that would end the programs with exit code 2.
    """
    args = _arguments(train_path, overwrite, values)
    check_own(model, model.name)
    shape = model.input_shape[1:]
    splits = own_function.checked((train, test), shape, "prune")
    data = own.dataset(*splits, **inputs.preprocessing(args))
    check_fits(model.name, model, data.num_classes, data.image_shape)
    # They stand in args.json, so that a folder isn't taken up with another network or other data.
    # Names of layers differ from one process to the next, so the weights stand for the network.
    args.model, args.data = digest(model.get_weights()), data.fingerprint
    device = flags.device_of(args, tf.distribute.get_strategy())
    keras.utils.set_random_seed(args.seed)
    fill_defaults(args, data)
    check_flags(model, data, args, device)
    with flags.open_folder(args, START, SUPERNET_ORDER) as folder:
        if not folder.finished:
            search_from_flags(folder, model, data, args, device)
            finetune_and_report(folder, model, data, args, device)
        return load_keras(folder.file("pruned.keras"))


class _Parser(cli.Parser):
    """Mistakes are exceptions: there is no command that could end."""

    def error(self, message: str) -> NoReturn:
        raise cli.UserError(message)


def _arguments(train_path, overwrite: bool, values: dict) -> argparse.Namespace:
    """The values of the flags, checked as on the command line."""
    parser = _Parser(add_help=False)
    flags.add_run(parser)
    inputs.add_preprocessing(parser)
    flags.add_compilation(parser)
    flags.add_search(parser)
    flags.add_finetune(parser)
    argv = [f"--train_path={train_path}", *(["--overwrite"] if overwrite else [])]
    for name, value in values.items():
        if name == "budgets":
            argv += ["--budgets", *map(str, value)]
        elif isinstance(value, tuple | list):
            argv.append(f"--{name}={','.join(map(str, value))}")
        elif value is not None:
            argv.append(f"--{name}={value}")
    return parser.parse_args(argv)


# ---------------------------------------------------------------- the two phases


def check_flags(
    network: keras.Model, data: Dataset, args: argparse.Namespace, device: Device
) -> None:
    """Raises UserError for what is wrong with the flags of both phases, before there is a folder.

    `args` has the flags of search and fine-tuning, their defaults filled in.
    """
    bank = bank_of(args)
    check(network, data, flags.search_of(args), bank)
    check_batch(args.batch_size, data, device)
    if transfer_of(args).method == "ckt" and not bank.features:
        raise cli.UserError("--finetune_method ckt needs --bank_features on")


def search_from_flags(
    folder: RunFolder,
    network: keras.Model,
    data: Dataset,
    args: argparse.Namespace,
    device: Device,
) -> None:
    """`search.search` with the values of the flags; prints what it found."""
    print(f"search: to {args.search_target_rate:.0%} of the {LABELS[args.budget]}", flush=True)
    search(folder, network, data, flags.search_of(args), device, bank_of(args))
    print_summary(folder.read_json("search.json"))


def finetune_and_report(
    folder: RunFolder,
    network: keras.Model,
    data: Dataset,
    args: argparse.Namespace,
    device: Device,
) -> None:
    """`finetune.finetune` after a search in the same folder; ends the run with result.json."""
    print(f"fine-tuning: {args.train_epoch} epochs", flush=True)
    pruned = finetune_from_flags(folder, folder.path, data, args, device)
    more = {name: folder.read_json(f"{name}.json") for name in ("search", "finetune")}
    untuned = tested(folder.path)
    report(folder, without_softmax(network), pruned, data, device, more, untuned)
    print(f"the pruned network is {folder.file('pruned.keras')}")
