"""The options that parsed flags choose, the run folder that belongs to them, and the device."""

from __future__ import annotations

import argparse
from typing import Any, Protocol, TypeVar

from ..options.bank import NO_BANK, Bank
from ..options.budgets import BUDGETS, Budget
from ..options.control import Control
from ..options.data import Sampling
from ..options.fields import Options, settings_of
from ..options.finetuning import (
    FINETUNINGS,
    Contrastive,
    Ensemble,
    FineTuning,
    Plain,
    Single,
)
from ..options.methods import METHODS, Method
from ..options.search import SearchOptions
from ..options.training import BYOL, Baseline
from ..utils import devices
from ..utils.devices import Device
from ..utils.errors import UserError
from ..utils.runfolder import RunFolder
from .manners import Arguments

Group = TypeVar("Group", bound=Options)


def made(kind: type[Group], args: argparse.Namespace) -> Group:
    """The settings of one group from the flags that were given.

    Raises:
        UserError: as `kind`.
    """
    values = {}
    for one in settings_of(kind):
        value = getattr(args, one.flag, None) if one.flag else None
        if value is not None:
            values[one.name] = value
    return kind(**values)


class Flagged(Protocol):
    """Settings that know their flags."""

    def flags(self) -> dict[str, Any]: ...


def record(args: argparse.Namespace, *options: Flagged | None) -> dict[str, Any]:
    """What a run folder keeps of a command: its flags, those of the resolved options filled in."""
    kept = dict(vars(args))
    for one in options:
        kept |= one.flags() if one else {}
    return kept


def device_of(args: argparse.Namespace, *, machines: bool = False) -> Device:
    """The `Device` that the flags ask for; chooses the GPUs, so call it before anything runs.

    Args:
        machines: the command can run on several, where the environment names them.
    """
    return devices.make(
        devices.choose(args.gpu_id, machines=machines),
        args.compile,
        val_batch_images=args.val_batch_size,
        deployed_latency=args.deployed_latency,
    )


def budget_of(args: argparse.Namespace) -> Budget:
    """The `Budget` of the flags.

    Raises:
        UserError: a rate on the way lies below the search's end, or a flag of another budget.
    """
    if args.search_target_rate is None and args.budgets:
        args.search_target_rate = min(args.budgets)
    if args.budgets and min(args.budgets) < args.search_target_rate:
        raise UserError(
            f"--budgets {min(args.budgets):g} lies below --search_target_rate "
            f"{args.search_target_rate:g}, where the search ends"
        )
    kind = BUDGETS[args.budget]
    _refuse_others(args, kind, BUDGETS, "budget")
    return made(kind, args)


def method_of(args: argparse.Namespace) -> Method:
    """The search `Method` of the flags.

    Raises:
        UserError: a flag that the method lacks.
    """
    kind = METHODS[args.method]
    _refuse_others(args, kind, METHODS, "method")
    return made(kind, args)


def _refuse_others(
    args: argparse.Namespace,
    kind: type[Options],
    kinds: dict[str, Any],
    selector: str,
) -> None:
    own = {one.flag for one in settings_of(kind)}
    for flag in dict.fromkeys(one.flag for each in kinds.values() for one in settings_of(each)):
        if flag in own or flag is None or getattr(args, flag) in (None, "none"):
            continue
        having = [
            name for name, each in kinds.items() if flag in {one.flag for one in settings_of(each)}
        ]
        raise UserError(
            f"--{flag} is for --{selector} {' or '.join(having)}, "
            f"{getattr(args, selector)} has none"
        )


def search_of(args: argparse.Namespace) -> SearchOptions:
    """The `SearchOptions` of the flags; those that depend on the data set are still open.

    Raises:
        UserError: as `budget_of` and `method_of`.
    """
    parts = budget_of(args), method_of(args), made(Sampling, args), made(Control, args)
    return SearchOptions(*parts)


def baseline_of(args: argparse.Namespace) -> Baseline:
    """The `Baseline` of the flags.

    Raises:
        UserError: a teacher for a network that is given, or settings of a teacher that it lacks.
    """
    found = made(Baseline, args)
    if found.teacher == BYOL and args.trained_param:
        raise UserError(
            "--baseline_teacher is for a baseline that is trained here: leave it or "
            "--trained_param out"
        )
    for name in ("byol_weight", "byol_momentum"):
        if getattr(found, name) is not None and found.teacher != BYOL:
            raise UserError(f"--{name} is for --baseline_teacher byol: give that, or leave it out")
    return found


def finetuning_of(args: argparse.Namespace) -> FineTuning:
    """The `FineTuning` of the flags.

    Raises:
        UserError: a flag that belongs to another method.
    """
    method, teacher = args.finetune_method, args.finetune_teacher
    if teacher not in (None, "none") and method != "ekg":
        raise UserError(f"--finetune_teacher belongs to --finetune_method ekg, not {method}")
    if method == "ekg":
        kinds = {None: Ensemble, "ensemble": Ensemble, "single": Single, "none": Plain}
        kind: type[FineTuning] = kinds[teacher]
    else:
        kind = next(one for one in FINETUNINGS if one.method == method)
    own = {one.flag for one in settings_of(kind)}
    for other in FINETUNINGS:
        for one in settings_of(other):
            if one.flag and one.flag not in own and getattr(args, one.flag) is not None:
                having = list(
                    dict.fromkeys(
                        each.method
                        for each in FINETUNINGS
                        if one.flag in {its.flag for its in settings_of(each)}
                    )
                )
                raise UserError(
                    f"--{one.flag} belongs to --finetune_method {' or '.join(having)}, not "
                    f"{method}{' without a teacher' if kind is Plain and method == 'ekg' else ''}"
                )
    return made(kind, args)


def bank_of(
    args: argparse.Namespace, method: Method, finetuning: FineTuning | None = None
) -> Bank | None:
    """The `Bank` of the flags, None for no bank.

    Args:
        finetuning: that of the same command; None: it may yet come.

    Raises:
        UserError: no bank, but its features, or a fine-tuning that replays it.
    """
    replays = finetuning is None or finetuning.replays
    if args.bank is None and not (args.bank_features or replays):
        args.bank = NO_BANK
    if args.bank_features is None:
        args.bank_features = method.name == "ffp" and args.bank != NO_BANK
    if args.bank == NO_BANK:
        if args.bank_features:
            raise UserError("--bank none keeps no features: leave one of the two out")
        if finetuning is not None and replays:
            raise UserError(
                "the fine-tuning replays the memory bank: leave out --bank none, or choose "
                "--finetune_teacher none or single, or --finetune_method kd or plain"
            )
        return None
    bank = made(Bank, args)
    if isinstance(finetuning, Contrastive) and not bank.features:
        raise UserError("--finetune_method ckt needs --bank_features on")
    return bank


def check_folder(args: argparse.Namespace, kept: dict[str, Any] | None = None) -> None:
    """Refuses a --train_path that can't be used, before any work; writes nothing.

    A dry run doesn't use it.

    Args:
        kept: what `record` gives; None: it isn't known yet.

    Raises:
        UserError: as `RunFolder.check`.
    """
    if not args.dry_run:
        RunFolder.check(args.train_path, kept, overwrite=args.overwrite)


def open_folder(args: argparse.Namespace, kept: dict[str, Any], *begun: str) -> RunFolder:
    """The run folder of --train_path; refuses an unfinished run with --resume off.

    Args:
        kept: what `record` gives.
        begun: files of which the command writes the first one early: one there means a run to
            resume.

    Raises:
        UserError: as `RunFolder.open`, or an unfinished run that must not be resumed.
    """
    folder = RunFolder.open(args.train_path, kept, overwrite=args.overwrite)
    unfinished = not folder.finished and any(folder.has(name) for name in begun)
    if unfinished and not args.resume:
        folder.close()
        raise UserError(
            f"{args.train_path} holds an unfinished run: leave out --resume off to go on with it, "
            "or give --overwrite to delete it"
        )
    if isinstance(args, Arguments):
        folder.note_command(args.command)
    return folder
