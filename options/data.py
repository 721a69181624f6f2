"""How examples reach the network, and which of them the search decides by."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..utils.errors import UserError
from .fields import SEEDS, Options, setting, share


@dataclass(frozen=True)
class Data(Options):
    """Normalisation, augmentation and reading of data of the user's own.

    `augment`, in Python alone, takes the place of flip and crop: a function (inputs, targets) ->
    (inputs, targets) on a batch, inside a tf.data graph, or a Keras layer or a list of layers for
    the only input. It draws random numbers by `tf.random`, never by numpy.
    """

    mean: tuple[float, ...] = setting(
        (0.0,), flag="data_mean", help="subtracted from its pixels; one or one per channel"
    )
    std: tuple[float, ...] = setting(
        (1.0,), flag="data_std", help="that they are then divided by; one or one per channel"
    )
    flip: bool | None = setting(
        None,
        flag="data_flip",
        help="mirror images at random in training",
        shown="on for colour images of exclusive classes, else off",
    )
    crop: int | None = setting(
        None,
        flag="data_crop",
        least=0,
        help="shift images in training by up to so many pixels",
        shown="an eighth of the shorter side for images of exclusive classes, else 0",
    )
    memory: float | None = setting(
        None,
        flag="data_memory",
        above=0,
        help="GiB that examples may take in memory; what is larger is read when it is needed",
        shown="a quarter of the machine's",
    )
    workers: int | None = setting(
        None,
        flag="data_workers",
        least=1,
        help="threads that read examples one by one",
        shown="two per core",
    )
    augment: Any = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.augment is None:
            return
        if isinstance(self.augment, list):
            object.__setattr__(self, "augment", tuple(self.augment))
        steps = self.augment if isinstance(self.augment, tuple) else (self.augment,)
        if isinstance(self.augment, str) or not steps or not all(map(callable, steps)):
            raise UserError(
                f"Data(augment={self.augment!r}): give a function (inputs, targets) -> (inputs, "
                "targets), a Keras layer or a list of Keras layers"
            )
        if self.flip or self.crop:
            raise UserError("Data(augment=...) takes the place of flip and crop: leave these out")

    def flags(self) -> dict[str, Any]:
        """{flag: value}; with an augmentation also "data_augment", words by which it is known."""
        known = super().flags()
        return known if self.augment is None else known | {"data_augment": _words(self.augment)}


def _words(augment: Any) -> str:
    """An augmentation's name and a digest of its settings or its code."""
    steps: Sequence[Any] = augment if isinstance(augment, tuple) else (augment,)
    names, found = [], hashlib.sha256()
    for step in steps:
        code = getattr(step, "__code__", None)
        names.append(getattr(step, "__qualname__", type(step).__name__))
        if hasattr(step, "get_config"):
            config = {key: value for key, value in step.get_config().items() if key != "name"}
            found.update(repr(config).encode())
        elif code is not None:
            constants = [one for one in code.co_consts if not hasattr(one, "co_code")]
            found.update(code.co_code + repr((constants, code.co_names)).encode())
    return f"{', '.join(names)} {found.hexdigest()[:16]}"


@dataclass(frozen=True)
class Sampling(Options):
    """D_subset and D_val, the training examples that a search adapts to and decides by.

    None: by data set. Sizes are examples of every class, or examples in all.
    """

    subset_per_class: int | None = setting(
        None, flag="subset_per_class", least=1, help="size of D_subset"
    )
    val_per_class: int | None = setting(None, flag="val_per_class", least=1, help="size of D_val")
    subset: int | None = setting(
        None,
        flag="subset_examples",
        least=1,
        help="size of D_subset in all, drawn at random, instead of subset_per_class",
        shown="where there are no classes the rest, at most 2560",
    )
    val: int | None = setting(
        None,
        flag="val_examples",
        least=1,
        help="size of D_val in all, drawn at random, instead of val_per_class",
        shown="where there are no classes a fifth, at most 320",
    )
    batch_size: int = setting(
        256,
        flag="search_batch_size",
        least=1,
        help="examples per batch of D_val and of the bank, whose statistics batch norm uses",
    )
    seed: int = setting(
        0,
        flag="search_seed",
        least=0,
        below=SEEDS,
        help="which examples make up D_subset and D_val",
    )
    held_out: float | None = share(
        None,
        flag="val_held_out",
        help="draw D_val from this share of the training examples, which no training then uses: the"
        " baseline, where the same command trains it, and the fine-tuning leave them out",
        shown="D_val is a part of what is trained on",
    )
