"""How sensitive a given network is to the width of each of its groups, on its own data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..dataloader import normalised_inputs, parts
from ..nets.graph import ChannelGraph
from ..options.data import Sampling
from ..pruning.engine.validation import Validation
from ..pruning.sensitivity import SHARES, sensitivities
from ..pruning.space.limits import check_something_is_left
from ..utils.devices import Device
from ..utils.errors import UserError
from .opening import Work


def run_sensitivity(
    work: Work,
    sampling: Sampling,
    device: Device,
    shares: Sequence[float] = SHARES,
    *,
    score: str = "taylor",
) -> dict[str, Any]:
    """What every group of the network costs on the D_val that a search would draw.

    Args:
        sampling: resolved, as `options.recipes.sampling` gives it.
        shares, score: as of `pruning.sensitivity.sensitivities`.

    Returns:
        As `sensitivities`, with the network's name.

    Raises:
        UserError: no group that can be pruned, too few examples, or a loss that isn't finite.
    """
    graph = ChannelGraph(work.given.core)
    check_something_is_left(graph, [1] * len(graph.groups))
    _, chosen = parts(work.data, sampling)
    held = normalised_inputs(work.data, chosen)
    val = Validation(held.inputs, held.targets, sampling.batch_size, held.weights)
    result = sensitivities(
        graph,
        val,
        work.task,
        shares,
        score=score,
        seed=sampling.seed,
        compile=device.compile,
    )
    if not np.isfinite(result["whole"]["loss"]):
        raise UserError(
            f"the loss of {work.given.model.name} on its data is {result['whole']['loss']}: check "
            "the weights, the loss and the targets"
        )
    return {"network": work.given.model.name} | result
