"""How examples reach the network, and which of them the search decides by."""

from __future__ import annotations

from dataclasses import dataclass

from .fields import Options, setting


@dataclass(frozen=True)
class Data(Options):
    """Normalisation and augmentation of data of the user's own."""

    mean: tuple[float, ...] = setting(
        (0.0,), flag="data_mean", help="subtracted from its pixels; one or one per channel"
    )
    std: tuple[float, ...] = setting(
        (1.0,), flag="data_std", help="that they are then divided by; one or one per channel"
    )
    flip: bool = setting(True, flag="data_flip", help="mirror images at random in training")
    crop: int | None = setting(
        None,
        flag="data_crop",
        least=0,
        help="shift images in training by up to so many pixels",
        shown="an eighth of the shorter side",
    )


@dataclass(frozen=True)
class Sampling(Options):
    """D_subset and D_val, the training examples that a search adapts to and decides by.

    None: by data set.
    """

    subset_per_class: int | None = setting(
        None, flag="subset_per_class", least=1, help="size of D_subset"
    )
    val_per_class: int | None = setting(None, flag="val_per_class", least=1, help="size of D_val")
    batch_size: int = setting(
        256,
        flag="search_batch_size",
        least=1,
        help="examples per batch of D_val and of the bank, whose statistics batch norm uses",
    )
    seed: int = setting(0, flag="search_seed", help="which examples make up D_subset and D_val")
