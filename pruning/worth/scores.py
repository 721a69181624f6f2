"""Filter importance from the weights alone: L1, FPGM, random (docs/method.md 7).

A score is float64 [U + 1], one value per unit of the channel graph, larger = more important. The
scores of a unit that several layers write (a residual stream) are summed over these layers. The
Taylor score needs a backward pass and lives in `pruning.engine.importance.ImportancePass`.
"""

from collections.abc import Callable

import numpy as np

SCORES = ("taylor", "l1", "fpgm", "random")


def l1(kernel: np.ndarray) -> np.ndarray:
    """Sum of absolute weights of every filter; kernel float [..., in, out] -> float64 [out]."""
    return np.abs(kernel.astype(np.float64)).reshape(-1, kernel.shape[-1]).sum(0)


def fpgm(kernel: np.ndarray) -> np.ndarray:
    """Sum of Euclidean distances to the layer's other filters (He et al. 2019; small = redundant).

    kernel float [..., in, out] -> float64 [out].
    """
    filters = kernel.astype(np.float64).reshape(-1, kernel.shape[-1])
    products = filters.T @ filters
    squares = np.diag(products)
    distances = np.sqrt(np.maximum(squares[:, None] + squares - 2 * products, 0))
    np.fill_diagonal(distances, 0)
    return distances.sum(0)


def weight_scores(
    score: str,
    kernels: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]],
    mask: np.ndarray,
    seed: list[int],
) -> np.ndarray:
    """Scores of every kept unit of the current network; removed units score zero.

    Args:
        score: "l1", "fpgm" or "random".
        kernels: {layer name: (full kernel [..., in, out], in_units, out_units)}, as
            `ChannelGraph.kernels` gives them.
        mask: unit mask of the current network, float32 [U + 1].
        seed: of the random score.

    Returns:
        float64 [U + 1].
    """
    scores = np.zeros(len(mask))
    if score == "random":
        return np.random.default_rng(seed).random(len(scores)) * (mask > 0)
    function: Callable = {"l1": l1, "fpgm": fpgm}[score]
    for kernel, in_units, out_units in kernels.values():
        kept = mask[out_units] > 0
        current = kernel[..., mask[in_units] > 0, :][..., kept]
        np.add.at(scores, out_units[kept], function(current))
    return scores
