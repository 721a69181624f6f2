"""D_val, the held-out training examples that a search decides by."""

import itertools
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Validation:
    """D_val in batches of nearly equal size: inputs float32 [n, h, w, c], targets int32 [n]."""

    inputs: np.ndarray
    targets: np.ndarray
    batch_images: int

    def batches(self) -> list[slice]:
        """Row ranges of ceil(n / batch_images) batches whose sizes differ by at most one."""
        count = -(-len(self.targets) // self.batch_images)
        edges = np.linspace(0, len(self.targets), count + 1).astype(int).tolist()
        return [slice(a, b) for a, b in itertools.pairwise(edges)]
