"""The memory bank: which teachers, and what is kept of their outputs."""

from __future__ import annotations

from dataclasses import dataclass

from .fields import Options, setting

FULL, TOPK, ONLINE = "full", "topk", "online"
KINDS, NO_BANK = (FULL, TOPK, ONLINE), "none"
MANY_CLASSES = 1000  # from here up the bank is "topk" where nothing else is asked for


@dataclass(frozen=True)
class Bank(Options):
    """The memory bank of interim networks' outputs on the training set (docs/method.md 2)."""

    kind: str | None = setting(
        None,
        flag="bank",
        choices=KINDS,
        help="what it keeps of an example: all outputs, or the largest logits and the log-sum-exp "
        "of the others; online: nothing, the teachers run beside the student; none: no bank",
        shown=f"topk from {MANY_CLASSES} classes up, else full, online where that takes more than "
        "half of the free disk; none where the same command fine-tunes without it",
    )
    teachers: int = setting(5, flag="num_teacher", least=1, help="teachers in the memory bank")
    k: int = setting(16, flag="bank_k", least=1, help="logits per example that topk keeps")
    features: bool = setting(
        False,
        flag="bank_features",
        help="keep the teachers' penultimate features for contrastive fine-tuning",
        shown="on with --method ffp",
    )
