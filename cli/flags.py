"""Flags, derived from the settings of `options`.

No TensorFlow here: a mistake is answered before it is imported. A flag that isn't given is None in
the parsed arguments.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..options import recipes
from ..options.bank import KINDS, NO_BANK, Bank
from ..options.budgets import BUDGETS
from ..options.control import Control
from ..options.data import Data, Sampling
from ..options.fields import SEEDS, Options, Setting, settings_of
from ..options.finetuning import (
    FINETUNE_METHODS,
    FINETUNINGS,
)
from ..options.kinds import ARCHITECTURES, DATASETS, WEIGHTS
from ..options.methods import METHODS, TEACHERS
from ..options.training import Baseline, Training
from ..utils import devices

ARCH, DATASET = "ResNet-20", "DIGITS"
NAMED_DATA = ("dataset", "data_path", "val_labels", "hold_out")
OWN_DATA = ("data", *(one.flag for one in settings_of(Data) if one.flag))
AIMS = ("loss", "metrics")

# ---------------------------------------------------------------- from settings to flags


def typed(one: Setting) -> Callable[[str], Any]:
    """The argparse type of a setting."""

    def parse(text: str) -> Any:
        try:
            return one.parsed(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


def add_settings(group: argparse._ActionsContainer, *kinds: type[Options]) -> None:
    """A flag for every setting of these groups of options; what they share comes once."""
    known: dict[str, Setting] = {}
    for kind in kinds:
        for one in settings_of(kind):
            if one.flag:
                known.setdefault(one.flag, one)
    for flag, one in known.items():
        more: dict[str, Any] = {"type": typed(one)}
        if one.choices:
            kind = one.kind
            more = {"type": kind, "choices": one.choices}
        if one.spaced:
            more = {"type": typed(_element(one)), "nargs": "+"}
        group.add_argument(f"--{flag}", help=f"{one.help}; default: {default_of(one)}", **more)


def add_named(group: argparse._ActionsContainer, kind: type[Options], names: Iterable[str]) -> None:
    """Flags of some settings of a group of options, by the names of their fields."""
    own = {one.name: one.flag for one in settings_of(kind)}
    without = {flag for name, flag in own.items() if name not in names}
    add_some(group, without, kind)


def _element(one: Setting) -> Setting:
    return Setting(**{**vars(one), "many": False})


def default_of(one: Setting) -> str:
    """The default of a setting in words."""
    if one.shown:
        return one.shown
    by_data = recipes.shown(one.flag or "")
    if by_data:
        return by_data
    value = one.default
    if isinstance(value, bool):
        value = "on" if value else "off"
    if isinstance(value, tuple):
        value = ",".join(f"{part:g}" for part in value) or "none"
    return "by data set" if value is None else str(value)


def add_data(
    parser: argparse.ArgumentParser, *, arch: str | None = ARCH, dataset: str | None = DATASET
) -> None:
    group = parser.add_argument_group("data and network")
    group.add_argument(
        "--arch",
        default=arch,
        help=f"{', '.join(ARCHITECTURES)}; default: {arch or ARCH}",
    )
    group.add_argument("--trained_param", type=path, help="trained network: " + ", ".join(WEIGHTS))
    add_dataset(group, dataset)


def add_dataset(
    group: argparse._ActionsContainer, default: str | None = DATASET, shown: str | None = None
) -> None:
    """Flags of the data that `dataloader.load` knows by name.

    Args:
        shown: the default in words.
    """
    words = f"{', '.join(DATASETS)}; default: {shown or default or DATASET}"
    group.add_argument("--dataset", default=default, help=words)
    group.add_argument(
        "--data_path", type=path, help="folder or archive of the data; default: TFDS"
    )
    group.add_argument("--val_labels", type=path, help="ImageNet: labels of a flat folder val")
    group.add_argument(
        "--hold_out",
        type=typed(_SHARE),
        help="ImageNet: share of a single folder of classes to test on",
    )


_SHARE = Setting("share", float, False, False, None, "", None, above=0, below=1)
_COUNT = Setting("count", int, False, False, None, "", None, least=1)
_ON_OFF = Setting("switch", bool, False, False, None, "", None)
_SEED = Setting("seed", int, False, False, None, "", None, least=0, below=SEEDS)


def path(text: str) -> str:
    """argparse type: a path, "~" in front being one's home."""
    return os.path.expanduser(text)


def shape(text: str) -> tuple[int, ...]:
    """argparse type: "224,224,3" -> (224, 224, 3)."""
    return tuple(count(part) for part in text.split(","))


def as_path(text: str) -> Path:
    """argparse type: as `path`."""
    return Path(path(text))


def count(text: str) -> int:
    """argparse type: a whole number of at least 1."""
    return typed(_COUNT)(text)


def fraction(text: str) -> float:
    """argparse type: a number strictly between 0 and 1."""
    return typed(_SHARE)(text)


def _own_network(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """The group of flags of a network of the user's own; there is one of it."""
    title = "your own network"
    known = (group for group in parser._action_groups if group.title == title)
    return next(known, None) or parser.add_argument_group(title)


def add_custom(parser: argparse.ArgumentParser) -> None:
    """The flag that names modules with layers of the user's own."""
    _own_network(parser).add_argument(
        "--custom_module",
        nargs="+",
        default=(),
        metavar="MODULE",
        help="Python modules of yours, in the current folder, that register the network's own "
        "layers (keras.saving.register_keras_serializable); default: none",
    )


def add_own(parser: argparse.ArgumentParser) -> None:
    """Flags, after add_data: a network and data of the user's own."""
    _own_network(parser).add_argument(
        "--model",
        type=path,
        help="trained network of your own: a .keras or .h5 file, or hf://USER/NAME",
    )
    add_custom(parser)
    add_aims(parser)
    add_own_data(parser)
    parser.set_defaults(arch=None)  # so that --arch beside --model is noticed


def add_aims(parser: argparse.ArgumentParser) -> None:
    """Flags of the loss and the metrics of a network of the user's own."""
    words = "names of Keras's or module:name"
    for flag, example in (("loss", "mse"), ("metrics", "mae")):
        _own_network(parser).add_argument(
            f"--{flag}",
            nargs="+",
            metavar="NAME",
            help=f"{words}, for several outputs OUTPUT=NAME, such as {example}; default: what the "
            "network is compiled with",
        )


def add_own_data(parser: argparse.ArgumentParser) -> None:
    """Flags, after add_dataset: data of the user's own, read by `dataloader.own`."""
    group = parser.add_argument_group("your own data")
    group.add_argument(
        "--data", help="folder {train,test}/<class>/*, or module:function that returns both splits"
    )
    add_settings(group, Data)
    parser.set_defaults(dataset=None)  # so that --dataset beside --data is noticed


def add_augmentation(parser: argparse.ArgumentParser) -> None:
    """Flags of the training images of the user's own, for a fine-tuning of a search."""
    for one in settings_of(Data):
        if one.name in ("flip", "crop"):
            parser.add_argument(
                f"--{one.flag}", type=typed(one), help=f"{one.help}; default: that of the search"
            )


def add_device(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("device")
    group.add_argument(
        "--gpu_id",
        type=devices.gpu_ids,
        default=[0],
        help='GPU numbers, "0,1", or "cpu"; default: 0',
    )
    group.add_argument(
        "--compile", type=typed(_ON_OFF), help="XLA; default: on with a GPU, off on the CPU"
    )
    add_val_batch_size(group)
    group.add_argument(
        "--deployed_latency",
        type=typed(_ON_OFF),
        default=True,
        help="measure the latency in LiteRT or ONNX Runtime as well, where one is installed; "
        "default: on",
    )


def add_val_batch_size(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--val_batch_size",
        type=count,
        default=devices.VAL_BATCH_IMAGES,
        help=f"images per evaluation batch; default: {devices.VAL_BATCH_IMAGES}",
    )


def add_run(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("run folder")
    group.add_argument(
        "--train_path", type=path, required=True, help="folder that the run writes to"
    )
    group.add_argument(
        "--resume",
        type=typed(_ON_OFF),
        default=True,
        help="go on with an unfinished run; default: on",
    )
    group.add_argument(
        "--overwrite", action="store_true", help="delete a former run in the folder; default: off"
    )
    group.add_argument(
        "--dry_run",
        action="store_true",
        help="take a few steps, say how long all of it will take and what memory, and end without "
        "writing anything; default: off",
    )
    group.add_argument(
        "--do_log", type=typed(_ON_OFF), default=True, help="write TensorBoard events; default: on"
    )
    group.add_argument(
        "--seed",
        type=typed(_SEED),
        default=0,
        help="seed of initial weights and augmentation; default: 0",
    )


def add_search(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("search")
    group.add_argument(
        "--method",
        choices=tuple(METHODS),
        default="ekg",
        help="ekg: greedy; ffp: coarse to fine; swp, autoslim: supernets; uniform widths; "
        "global threshold; default: ekg",
    )
    group.add_argument(
        "--budget",
        choices=tuple(BUDGETS),
        default="flops",
        help="what is to be saved; default: flops",
    )
    add_settings(group, *BUDGETS.values())
    plain = [kind for kind in METHODS.values() if not kind.supernet]
    add_settings(group, *plain)
    add_settings(group, Sampling)
    add_settings(parser.add_argument_group("limits"), Control)
    add_bank(parser)
    group = parser.add_argument_group("supernet (--method swp and autoslim)")
    seen = {one.flag for kind in plain for one in settings_of(kind)}
    add_some(group, seen, *[kind for kind in METHODS.values() if kind.supernet])


def add_some(
    group: argparse._ActionsContainer, without: Iterable[str | None], *kinds: type[Options]
) -> None:
    """As `add_settings`, without flags that are there already."""
    holder = argparse.ArgumentParser(add_help=False)
    add_settings(holder, *kinds)
    for action in holder._actions:
        if action.dest not in without:
            group._add_action(action)


def add_bank(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("memory bank")
    for one in settings_of(Bank):
        text = f"{one.help}; default: {default_of(one)}"
        if one.name == "kind":
            group.add_argument("--bank", choices=(*KINDS, NO_BANK), help=text)
        else:
            group.add_argument(f"--{one.flag}", type=typed(one), help=text)


def add_baseline(parser: argparse.ArgumentParser) -> None:
    add_settings(parser.add_argument_group("baseline (without --trained_param)"), Baseline)


def add_finetune(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("fine-tuning")
    group.add_argument(
        "--finetune_method",
        choices=FINETUNE_METHODS,
        default="ekg",
        help="ekg; ckt: FFP's contrastive transfer; kd: Hinton's distillation; plain; default: ekg",
    )
    group.add_argument(
        "--finetune_teacher",
        choices=TEACHERS,
        help="teacher of ekg; default: ensemble, the memory bank",
    )
    add_settings(group, *FINETUNINGS)
    add_settings(parser.add_argument_group("training (baseline and fine-tuning)"), Training)
