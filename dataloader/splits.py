"""Class-balanced, disjoint parts of a training set (D_subset and D_val of the search)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..utils.errors import UserError


def per_class_indices(labels: np.ndarray, counts: Sequence[int], seed: int) -> list[np.ndarray]:
    """Draws len(counts) disjoint sets with counts[i] examples of every class.

    Each set is shuffled across classes: batch normalisation by the statistics of class-sorted
    batches would measure something else.

    Args:
      labels: integers [n]; the classes are 0..labels.max().
      counts: images per class of each set. seed: fixes the draw.

    Returns:
      int64 arrays [counts[i] * classes] of example indices.

    Raises:
      UserError: a count below 0, or a class with fewer than sum(counts) examples.
    """
    if min(counts) < 0:
        raise UserError("subset_per_class and val_per_class must not be negative")
    class_sizes = np.bincount(labels)
    smallest = int(class_sizes.argmin())
    if class_sizes[smallest] < sum(counts):
        raise UserError(
            f"class {smallest} has {class_sizes[smallest]} training images, but "
            f"{' + '.join(map(str, counts))} per class are asked for: lower subset_per_class "
            "or val_per_class"
        )
    rng = np.random.default_rng(seed)
    bounds = np.cumsum(counts)
    parts: list[list[np.ndarray]] = [[] for _ in counts]
    for label in range(len(class_sizes)):
        shuffled = rng.permutation(np.flatnonzero(labels == label))[: bounds[-1]]
        for part, chosen in zip(parts, np.split(shuffled, bounds[:-1]), strict=True):
            part.append(chosen)
    return [rng.permutation(np.concatenate(part)).astype(np.int64) for part in parts]
