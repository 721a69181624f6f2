"""How sensitive a network is to the width of each of its groups (docs/control.md).

One group at a time loses shares of its filters, the weakest first, while all others stay whole;
the network runs on D_val as in a search: masked, by the statistics of the batch, not fine-tuned.
This is the analysis of Li et al. (Pruning Filters for Efficient ConvNets, ICLR 2017, section 3.2).
"""

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..nets.gates import Gate, Gates
from ..nets.graph import ChannelGraph
from ..options.methods import CACHE_MB
from ..training.task import Task
from ..utils import progress
from .engine.by_name import EVALUATORS
from .engine.evaluator import ExactEvaluator
from .engine.validation import Validation
from .space.candidates import Proposal
from .worth.drop import values_of
from .worth.rewards import Reward, loss_and_accuracy
from .worth.scores import weight_scores

SHARES = tuple(round(0.1 * tenth, 1) for tenth in range(1, 10))


def sensitivities(
    graph: ChannelGraph,
    val: Validation,
    task: Task,
    shares: Sequence[float] = SHARES,
    *,
    score: str = "taylor",
    seed: int = 0,
    evaluator: str = "exact",
    compile: bool = False,
) -> dict[str, Any]:
    """What every group of a network costs.

    Args:
        graph: of the network, with at least one group. val: D_val. task: what it is trained for.
        shares: of a group's filters that are removed, 0 .. 1 (not reached), rising.
        score: how filters are ranked, of `options.methods.SCORES`; seed: of the random one.
        evaluator: of `EVALUATORS`; all give the same.
        compile: XLA.

    Returns:
        {"examples": of D_val, "score", "shares", "whole": the network's figures, "groups":
        [{"layers", "width", "removed": filters [shares], "flops": share of the network's FLOPs that
        remain [shares], "rise": of the loss [shares], "figures": [shares]}]}. Figures are {"loss"}
        and "top1" in percent, or the user's metrics.
    """
    running = EVALUATORS[evaluator](graph, val, compile=compile, cache_bytes=CACHE_MB << 20)
    gates, measure = Gates(graph.groups), _Measure(task, val)
    scores, outputs = _scores(running, graph, val, task, score, seed)
    for gate in gates:
        gate.rank(scores[gate.units])
    whole, flops = measure(outputs), graph.flops()
    groups = []
    with progress.bar("sensitivity", len(gates)) as bar:
        for number, gate in enumerate(gates):
            counts = [_count(gate, one) for one in shares]
            distinct = {count: _without(graph, gates, number, count) for count in counts}
            found = running.each(list(distinct.values()), measure)
            figures = dict(zip(distinct, found, strict=True))
            groups.append(
                {
                    "layers": list(gate.layers),
                    "width": gate.channels,
                    "removed": counts,
                    "flops": [distinct[count].size / max(1, flops) for count in counts],
                    "rise": [figures[count]["loss"] - whole["loss"] for count in counts],
                    "figures": [figures[count] for count in counts],
                }
            )
            bar.advance(1)
    known = {"examples": len(val), "score": score, "shares": list(shares)}
    return known | {"whole": whole, "groups": groups}


def _count(gate: Gate, share: float) -> int:
    """Filters that a share is: the nearest number, one stays."""
    # 16 filters: 0.1 -> 2; 4 filters: 0.1 -> 0, 0.9 -> 3
    return min(gate.channels - 1, int(share * gate.channels + 0.5))


def _without(graph: ChannelGraph, gates: Gates, number: int, count: int) -> Proposal:
    gate, mask = gates[number], graph.open_mask()
    channels = gate.weakest(count)
    mask[gate.start + channels] = 0
    return Proposal(number, channels, 0.0, mask, graph.flops(mask))


def _scores(
    running: ExactEvaluator,
    graph: ChannelGraph,
    val: Validation,
    task: Task,
    score: str,
    seed: int,
) -> tuple[np.ndarray, Any]:
    """(scores of all units, float64 [U + 1]; the network's outputs on D_val)."""
    mask = graph.open_mask()
    if score == "taylor":
        outputs, scores = running.set_current_with_importance(mask, Reward(task, val))
        return scores, outputs
    kernels = {} if score == "random" else graph.kernels()
    return weight_scores(score, kernels, mask, [seed, 0]), running.set_current(mask)


class _Measure:
    """outputs on D_val, tree of float32 [n, ...] -> {figure: value}, from any thread."""

    def __init__(self, task: Task, val: Validation):
        self._task, self._val = task, val
        self._lock = threading.Lock()  # Keras's metrics are objects with a state

    def __call__(self, outputs: Any) -> dict[str, float]:
        loss, accuracy = loss_and_accuracy(self._task, self._val, outputs)
        if accuracy is not None:
            return {"loss": loss, "top1": accuracy}
        with self._lock:
            return {"loss": loss} | values_of(self._task, self._val, outputs)
