"""Class-balanced, disjoint parts of a training set (D_subset and D_val of the search)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..options.data import Sampling
from ..utils import progress
from ..utils.errors import UserError
from .dataset import Dataset

# Of the examples held out: the same ones for every D_val, so that searches of several seeds can
# begin with one baseline.
HELD_OUT_SEED = 0


def without_held_out(data: Dataset, share: float | None) -> Dataset:
    """The data whose trainings leave out the examples that D_val is drawn from.

    Args:
      share: `Sampling.held_out`; None: nothing is left out.
    """
    return data if share is None else replace(data, held_out=held_out(data, share))


def held_out(data: Dataset, share: float) -> np.ndarray:
    """The same share of every class, or of all examples, int64, rising; at least one of each."""
    labels = np.zeros(len(data.train), int) if data.labels is None else data.labels
    rng, drawn = np.random.default_rng(HELD_OUT_SEED), []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        drawn.append(members[: max(1, round(share * len(members)))])
    return np.sort(np.concatenate(drawn))


def parts(data: Dataset, sampling: Sampling) -> list[np.ndarray]:
    """Indices of D_subset and D_val: per class where sizes are per class, else at random.

    A class that is too small for the data set's own sizes gives what it has, with a warning. With
    `sampling.held_out` D_val is drawn from the examples held out, D_subset from the others.

    Args:
      sampling: its open sizes are the data set's.

    Returns:
      int64 arrays of training examples' indices, disjoint.

    Raises:
      UserError: sizes per class for data without classes, or more examples than there are.
    """
    names = ("subset", "val")
    per_class = [getattr(sampling, f"{name}_per_class") for name in names]
    in_all = [getattr(sampling, name) for name in names]
    own = (data.subset_per_class, data.val_per_class)
    labels = data.labels
    if labels is None and (given := [n for n, size in zip(names, per_class, strict=True) if size]):
        raise UserError(
            f"{given[0]}_per_class is for examples of one class each, which this data isn't: give "
            f"{given[0]}_examples"
        )
    for k, name in enumerate(names):
        if in_all[k] is None and per_class[k] is None:
            per_class[k] = own[k]
            in_all[k] = getattr(data, f"{name}_examples") if own[k] is None else None
    if labels is not None and sampling.held_out is None:
        sizes = np.bincount(labels)
        per_class = _beside_given(sampling, per_class, int(sizes[sizes > 0].min()))
    lenient = all(size in (None, default) for size, default in zip(per_class, own, strict=True))

    def drawn(rows: np.ndarray, *wanted: int) -> list[np.ndarray]:
        """Both sets out of some examples; those that aren't wanted are empty."""
        counts = [
            [size[k] if k in wanted else None for k in (0, 1)] for size in (per_class, in_all)
        ]
        of_rows = None if labels is None else labels[rows]
        return [rows[one] for one in _drawn(of_rows, len(rows), counts, sampling.seed, lenient)]

    if sampling.held_out is None:
        return drawn(np.arange(len(data.train)), 0, 1)
    split = without_held_out(data, sampling.held_out)
    if in_all[1] == data.val_examples:
        in_all[1] = min(in_all[1], len(split.held_out))
    try:
        validation = drawn(split.held_out, 1)[1]
    except UserError as error:
        raise UserError(f"{error}, or raise val_held_out, which D_val is drawn from") from None
    return [drawn(split.trained_on, 0)[0], validation]


def _beside_given(sampling: Sampling, per_class: list[int | None], least: int) -> list[int | None]:
    """Sizes per class: where one of the two is given, the data set's own for the other is no more
    than the smallest class, of `least` examples, has left."""
    subset, val = per_class
    if subset and sampling.subset_per_class is None and sampling.val_per_class is not None:
        subset = min(subset, max(1, least - sampling.val_per_class))
    if val and sampling.val_per_class is None and sampling.subset_per_class is not None:
        val = min(val, max(1, least - sampling.subset_per_class))
    return [subset, val]


def _drawn(
    labels: np.ndarray | None, count: int, sizes: list[list], seed: int, lenient: bool
) -> list[np.ndarray]:
    """D_subset and D_val out of `count` examples; sizes: [per class, in all], None: not so."""
    per_class, in_all = sizes
    if labels is None:
        return random_indices(count, [size or 0 for size in in_all], seed)
    counts = per_class[0] or 0, per_class[1] or 0
    drawn = per_class_indices(labels, counts, seed, lenient=lenient)
    if in_all == [None, None]:
        return drawn
    left = np.setdiff1d(np.arange(count), np.concatenate(drawn))
    others = random_indices(len(left), [size or 0 for size in in_all], seed)
    return [
        left[other] if size else mine
        for mine, other, size in zip(drawn, others, in_all, strict=True)
    ]


def random_indices(count: int, sizes: Sequence[int], seed: int) -> list[np.ndarray]:
    """Draws len(sizes) disjoint sets of 0..count-1.

    Args:
      sizes: examples of each set. seed: fixes the draw.

    Returns:
      int64 arrays [sizes[i]], each in random order.

    Raises:
      UserError: more examples than there are.
    """
    if sum(sizes) > count:
        raise UserError(
            f"{' + '.join(map(str, sizes))} training examples are asked for, but there are "
            f"{count}: lower subset_examples or val_examples"
        )
    order = np.random.default_rng(seed).permutation(count)[: sum(sizes)].astype(np.int64)
    return np.split(order, np.cumsum(sizes)[:-1])


def per_class_indices(
    labels: np.ndarray, counts: tuple[int, int], seed: int, *, lenient: bool = False
) -> list[np.ndarray]:
    """Draws D_subset and D_val with so many examples of every class that there is.

    Each set is shuffled across classes: batch normalisation by the statistics of class-sorted
    batches would measure something else.

    Args:
      labels: integers [n], from 0.
      counts: images per class of D_subset and of D_val. seed: fixes the draw.
      lenient: a class with fewer examples than both gives what it has, D_val first, up to half of
        it; with a warning if that is too few for D_val.

    Returns:
      int64 arrays of example indices, disjoint.

    Raises:
      UserError: a count below 0, or, unless lenient, a class with fewer than sum(counts) examples.
    """
    if min(counts) < 0:
        raise UserError("subset_per_class and val_per_class must not be negative")
    class_sizes = np.bincount(labels)
    classes = np.flatnonzero(class_sizes)
    smallest = int(classes[class_sizes[classes].argmin()])
    problem = (
        f"class {smallest} has {class_sizes[smallest]} training images, but "
        f"{' + '.join(map(str, counts))} per class are asked for"
    )
    if class_sizes[smallest] < sum(counts) and not lenient:
        raise UserError(f"{problem}: lower subset_per_class or val_per_class")
    of_class = {int(label): _divided(int(class_sizes[label]), counts) for label in classes}
    if small := sum(val < counts[1] for _, val in of_class.values()):
        _warn(f"{problem}: {small} such class(es) give what they have")
    rng = np.random.default_rng(seed)
    drawn: list[list[np.ndarray]] = [[], []]
    for label, (subset, val) in of_class.items():
        shuffled = rng.permutation(np.flatnonzero(labels == label))
        drawn[0].append(shuffled[:subset])
        drawn[1].append(shuffled[subset : subset + val])
    return [rng.permutation(np.concatenate(part)).astype(np.int64) for part in drawn]


def _divided(size: int, counts: tuple[int, int]) -> tuple[int, int]:
    """How many examples of a class go to D_subset and D_val."""
    subset, val = counts
    if subset and size < subset + val:
        val = min(val, size // 2)
    val = min(val, size)
    return min(subset, size - val), val


@functools.cache
def _warn(problem: str) -> None:
    """Said once: a search draws its parts several times."""
    progress.warn(problem)
