"""Class-balanced, disjoint parts of a training set (D_subset and D_val of the search)."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from ..options.data import Sampling
from ..utils import progress
from ..utils.errors import UserError
from .dataset import Dataset


def parts(data: Dataset, sampling: Sampling) -> list[np.ndarray]:
    """Indices of D_subset and D_val: per class where sizes are per class, else at random.

    A class that is too small for the data set's own sizes gives what it has, with a warning.

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
    if labels is None:
        return random_indices(len(data.train), [size or 0 for size in in_all], sampling.seed)
    lenient = all(size in (None, default) for size, default in zip(per_class, own, strict=True))
    drawn = per_class_indices(
        labels, [size or 0 for size in per_class], sampling.seed, lenient=lenient
    )
    if in_all == [None, None]:
        return drawn
    left = np.setdiff1d(np.arange(len(labels)), np.concatenate(drawn))
    others = random_indices(len(left), [size or 0 for size in in_all], sampling.seed)
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
    labels: np.ndarray, counts: Sequence[int], seed: int, *, lenient: bool = False
) -> list[np.ndarray]:
    """Draws len(counts) disjoint sets with counts[i] examples of every class.

    Each set is shuffled across classes: batch normalisation by the statistics of class-sorted
    batches would measure something else.

    Args:
      labels: integers [n]; the classes are 0..labels.max().
      counts: images per class of each set. seed: fixes the draw.
      lenient: a class with fewer than sum(counts) examples gives what it has, with a warning, in
        the proportion of the counts.

    Returns:
      int64 arrays [counts[i] * classes] of example indices.

    Raises:
      UserError: a count below 0, or, unless lenient, a class with fewer than sum(counts) examples.
    """
    if min(counts) < 0:
        raise UserError("subset_per_class and val_per_class must not be negative")
    class_sizes = np.bincount(labels)
    smallest = int(class_sizes.argmin())
    if class_sizes[smallest] < sum(counts):
        problem = (
            f"class {smallest} has {class_sizes[smallest]} training images, but "
            f"{' + '.join(map(str, counts))} per class are asked for"
        )
        if not lenient:
            raise UserError(f"{problem}: lower subset_per_class or val_per_class")
        small = int((class_sizes < sum(counts)).sum())
        _warn(f"{problem}: {small} such class(es) give what they have")
    rng = np.random.default_rng(seed)
    bounds = np.cumsum(counts)
    drawn: list[list[np.ndarray]] = [[] for _ in counts]
    for label in range(len(class_sizes)):
        shuffled = rng.permutation(np.flatnonzero(labels == label))[: bounds[-1]]
        ends = bounds[:-1]
        if len(shuffled) < bounds[-1]:
            shared = -(-ends * len(shuffled) // bounds[-1])
            ends = np.minimum(shared, max(1, len(shuffled) - 1))  # one is left for D_val
        for part, chosen in zip(drawn, np.split(shuffled, ends), strict=True):
            part.append(chosen)
    return [rng.permutation(np.concatenate(part)).astype(np.int64) for part in drawn]


@functools.cache
def _warn(problem: str) -> None:
    """Said once: a search draws its parts several times."""
    progress.warn(problem)
