"""A training: its optimizer, rates and batches, with L2 on every trainable."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .fields import SEEDS, Options, setting, share

SCHEDULES = ("step", "cosine")
OPTIMIZERS = SGD, LAMB = "sgd", "lamb"
BYOL = "byol"
BASELINE_TEACHERS = ("none", BYOL)
BYOL_WEIGHT, BYOL_MOMENTUM = 1.0, 0.99


@dataclass(frozen=True)
class Training(Options):
    """Length, rate and batches of a training; None: by data set (`options.recipes`)."""

    epochs: int | None = setting(None, flag="train_epoch", least=1, help="epochs of fine-tuning")
    learning_rate: float | None = setting(
        None, flag="learning_rate", above=0, help="learning rate at first"
    )
    batch_size: int | None = setting(
        None, flag="batch_size", least=1, help="examples per step over all devices"
    )
    weight_decay: float | None = setting(
        None, flag="weight_decay", least=0, help="L2 in the gradient of every trainable"
    )
    schedule: str = setting(
        "step", flag="schedule", choices=SCHEDULES, help="how the learning rate falls"
    )
    decay_points: tuple[float, ...] = share(
        (0.3, 0.6, 0.8),
        flag="decay_points",
        rising=True,
        help="shares of the fine-tuning at which the rate falls",
    )
    decay_rate: float = setting(0.2, flag="decay_rate", above=0, help="factor of the rate there")
    accum: int = setting(
        1, flag="accum", least=1, help="micro-batches that each device's batch is cut into"
    )
    mixed_precision: bool = setting(
        False, flag="mixed_precision", help="bfloat16 activations; losses stay float32"
    )
    seed: int = setting(0, least=0, below=SEEDS, help="of the order of examples and augmentation")
    optimizer: str | None = setting(
        None,
        flag="optimizer",
        choices=OPTIMIZERS,
        help="sgd: with Nesterov momentum 0.9; lamb: by a share of each weight, L2 off unless said",
        shown="sgd; lamb for networks without batch norm or with losses of plain numbers",
    )


@dataclass(frozen=True)
class Baseline(Options):
    """What the training of a baseline has of its own; the rest is that of `Training`."""

    epochs: int | None = setting(
        None, flag="baseline_epoch", least=1, help="epochs of the baseline"
    )
    learning_rate: float | None = setting(
        None, flag="baseline_learning_rate", above=0, help="learning rate of the baseline at first"
    )
    decay_points: tuple[float, ...] | None = share(
        None,
        flag="baseline_decay_points",
        rising=True,
        help="shares of the baseline at which the rate falls",
    )
    decay_rate: float | None = setting(
        None, flag="baseline_decay_rate", above=0, help="factor of the rate there"
    )

    teacher: str = setting(
        "none",
        flag="baseline_teacher",
        choices=BASELINE_TEACHERS,
        help="byol: a moving average of the network that is trained, which it learns from as well",
    )
    byol_weight: float | None = setting(
        None,
        flag="byol_weight",
        above=0,
        help="of its loss beside the task's",
        shown=f"{BYOL_WEIGHT:g}",
    )
    byol_momentum: float | None = share(
        None,
        flag="byol_momentum",
        help="share of the moving average that stays in a step",
        shown=f"{BYOL_MOMENTUM:g}",
    )

    def training(self, finetuning: Training) -> Training:
        """The baseline's training, once both are resolved."""
        assert self.decay_points is not None and self.decay_rate is not None
        return replace(
            finetuning,
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            decay_points=self.decay_points,
            decay_rate=self.decay_rate,
        )
