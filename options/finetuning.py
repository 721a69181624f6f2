"""How the pruned network learns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from .fields import Options, setting, share

CONTRASTS = ("infonce", "pull")
TEACHER_RULES = PAPER, CODE, ALL = "paper", "code", "all"
_TEMPERATURE: dict[str, Any] = {
    "flag": "temperature",
    "above": 0,
    "help": "temperature of the distillation",
    "shown": "4, from 1000 classes up 10",
}


@dataclass(frozen=True)
class FineTuning(Options):
    """Base of all fine-tunings.

    Attributes:
        method, teacher: what --finetune_method and --finetune_teacher call it.
        replays: whether it needs the memory bank.
        usual_views: where `views` isn't given and views differ at all.
    """

    method: ClassVar[str]
    teacher: ClassVar[str] = "none"
    replays: ClassVar[bool] = False
    usual_views: ClassVar[int] = 1

    from_scratch: bool = setting(
        False, flag="from_scratch", help="begin the fine-tuning with fresh weights"
    )
    views: int | None = setting(
        None,
        flag="views",
        choices=(1, 2),
        help="augmented views of an example in a step; two also differ in contrast and saturation",
        shown="2 with a teacher of ekg and in ckt, else 1; 1 where nothing is augmented",
    )

    def flags(self) -> dict[str, Any]:
        """As `Options.flags`, with --finetune_method and --finetune_teacher."""
        kind = {"finetune_method": self.method, "finetune_teacher": self.teacher}
        return super().flags() | kind


@dataclass(frozen=True)
class Ensemble(FineTuning):
    """The teachers of the bank that are at least as good as the student (docs/method.md 3)."""

    method: ClassVar[str] = "ekg"
    teacher: ClassVar[str] = "ensemble"
    replays: ClassVar[bool] = True
    usual_views: ClassVar[int] = 2

    temperature: float | None = setting(None, **_TEMPERATURE)
    rule: str = setting(
        PAPER,
        flag="teacher_rule",
        choices=TEACHER_RULES,
        help="which teachers of the bank a batch uses: those whose loss is at most the student's, "
        "those that the published code takes, or all",
    )


@dataclass(frozen=True)
class Single(FineTuning):
    """The unpruned network, run online, as the only teacher (docs/method.md 3)."""

    method: ClassVar[str] = "ekg"
    teacher: ClassVar[str] = "single"
    usual_views: ClassVar[int] = 2

    temperature: float | None = setting(None, **_TEMPERATURE)


@dataclass(frozen=True)
class Contrastive(FineTuning):
    """Contrast with the bank's features (docs/method.md 5)."""

    method: ClassVar[str] = "ckt"
    replays: ClassVar[bool] = True
    usual_views: ClassVar[int] = 2

    loss: str = setting(
        "infonce",
        flag="ckt",
        choices=CONTRASTS,
        help="loss of the contrastive transfer; pull: without negatives",
    )


@dataclass(frozen=True)
class Hinton(FineTuning):
    """The unpruned network, run online, as the teacher (Hinton et al. 2015)."""

    method: ClassVar[str] = "kd"

    temperature: float | None = setting(None, **_TEMPERATURE)
    alpha: float = share(0.9, flag="kd_alpha", help="weight of the distillation in kd")


@dataclass(frozen=True)
class Plain(FineTuning):
    """Cross-entropy alone."""

    method: ClassVar[str] = "plain"


FINETUNINGS: tuple[type[FineTuning], ...] = (Ensemble, Single, Contrastive, Hinton, Plain)
FINETUNE_METHODS = tuple(dict.fromkeys(one.method for one in FINETUNINGS))
