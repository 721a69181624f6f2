"""D_val, the held-out training examples that a search decides by."""

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...utils.trees import parts_of


@dataclass(frozen=True)
class Validation:
    """D_val in batches of nearly equal size; all but `batch_images` are trees (`utils.trees`).

    Attributes:
        inputs: of the network, float32 [n, ...].
        targets: one array for each output: classes int32 [n] or [n, ...], else float32 [n, ...].
        batch_images: most examples in a batch.
        weights: sample weights float32 [n] (or one per pixel), one for each output, None where
            there are none.
    """

    inputs: Any
    targets: Any
    batch_images: int
    weights: Any = None

    def __len__(self) -> int:
        """Number of examples."""
        return len(parts_of(self.inputs)[0])

    def batches(self) -> list[slice]:
        """Row ranges of ceil(n / batch_images) batches whose sizes differ by at most one."""
        count = -(-len(self) // self.batch_images)
        edges = np.linspace(0, len(self), count + 1).astype(int).tolist()
        return [slice(a, b) for a, b in itertools.pairwise(edges)]
