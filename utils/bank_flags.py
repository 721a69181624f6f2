"""The flags of the memory bank."""

import argparse

from pruning.bank import KINDS, NO_BANK, BankOptions
from utils import cli


def add_bank(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("memory bank")
    group.add_argument(
        "--num_teacher", type=cli.positive_int, default=5, help="teachers in the memory bank"
    )
    group.add_argument(
        "--bank",
        choices=(*KINDS, NO_BANK),
        help="default: topk from 1000 classes up, else full; none where the same command "
        "fine-tunes without it",
    )
    group.add_argument(
        "--bank_features",
        type=cli.on_off,
        help="keep penultimate features for --finetune_method ckt; default: with --method ffp",
    )
    group.add_argument(
        "--bank_k", type=cli.positive_int, default=16, help="logits per image that topk keeps"
    )


def replays_bank(args: argparse.Namespace) -> bool:
    """Whether the fine-tuning needs a memory bank; True for search.py, whose may yet come."""
    if getattr(args, "finetune_method", "ckt") == "ckt":
        return True
    return args.finetune_method == "ekg" and args.finetune_teacher in (None, "ensemble")


def bank_of(args: argparse.Namespace) -> BankOptions | None:
    """The `BankOptions` of the flags, None for no bank.

    Raises:
        UserError: no bank, but its features, or a fine-tuning that replays it.
    """
    if args.bank is None and not (args.bank_features or replays_bank(args)):
        args.bank = NO_BANK
    if args.bank_features is None:
        args.bank_features = args.method == "ffp" and args.bank != NO_BANK
    if args.bank == NO_BANK:
        if args.bank_features:
            raise cli.UserError("--bank none keeps no features: leave one of the two out")
        if hasattr(args, "finetune_method") and replays_bank(args):
            raise cli.UserError(
                "the fine-tuning replays the memory bank: leave out --bank none, or choose "
                "--finetune_teacher none or single, or --finetune_method kd or plain"
            )
        return None
    return BankOptions(kind=args.bank, k=args.bank_k, features=args.bank_features)
