"""The current network of a search: weights, cached activations, outputs on D_val.

Inputs, activations at a cut and outputs are trees (`utils.trees`).
"""

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ...nets.graph import ChannelGraph
from ...utils import cluster
from ...utils.threads import pool, side_by_side
from ...utils.trees import mapped, rows_of
from ..space.candidates import Proposal
from ..worth.rewards import Reward
from .cuts import size_of
from .importance import ImportancePass
from .kept import Files, Kept
from .prefix import PrefixCuts
from .recomputed import RecomputedPass
from .segments import LayerWeights, Segments
from .validation import Validation

CACHE_BYTES = 2 << 30  # of activations


@dataclass(frozen=True)
class MemoryPlan:
    """How a search lives with little memory; nothing of it changes a number.

    Attributes:
        workers: networks that are evaluated side by side; None: as `side_by_side`.
        passes: batches that pass through the current network side by side; None: as many.
        recompute: the importance pass runs every segment again for its gradient.
        cached_bytes: of the activations at the cuts that are kept in memory, the others are in
            files; None: all.
    """

    workers: int | None = None
    passes: int | None = None
    recompute: bool = False
    cached_bytes: int | None = None


PLENTY = MemoryPlan()


def joined(batches: Sequence[Any]) -> Any:
    """A tree of float32 arrays [n, ...] from the trees of tensors of all batches."""
    arrays = [mapped(lambda one: one.numpy(), batch) for batch in batches]
    return mapped(lambda *parts: np.concatenate(parts), arrays[0], *arrays[1:])


class CurrentNetwork:
    """The network that the proposals of a step change, and the threads that evaluate them.

    Args:
        graph: the channel graph of theta_0.
        data: D_val.
        compile: XLA on masked full-width kernels (GPU).
        workers: threads that work side by side; default: as `side_by_side`.
        cache_bytes: memory for activations; those that don't fit are computed again for every
            proposal that needs them.
        slopes: whether `set_with_importance` keeps the reward's gradient at the kept cuts, too, on
            the first half of the batches; they share `cache_bytes`.
        plan: how it lives with little memory.

    Attributes:
        rows: row ranges of the batches of D_val.
        segments: the network's segments.
        cuts: which activations are kept.
        pool: what runs side by side.
        sloped: numbers of the cuts where slopes are kept.
        inputs: of D_val, per batch.
        weights: effective ones of the current network.
        cache: of the current network per batch, {cut: activations}.
        slopes: per batch of the first half, {cut: the reward's gradient}.
        outputs: of the current network on D_val, tree of float32 [n, ...].
    """

    weights: LayerWeights
    cache: list[Kept]
    slopes: list[Kept]
    outputs: Any

    def __init__(
        self,
        graph: ChannelGraph,
        data: Validation,
        *,
        compile: bool = False,
        workers: int | None = None,
        cache_bytes: int = CACHE_BYTES,
        slopes: bool = False,
        plan: MemoryPlan = PLENTY,
    ):
        self.rows = data.batches()
        self.segments = Segments(graph, compile=compile)
        self.cuts = self._choose_cuts(len(data), int(cache_bytes / (1.5 if slopes else 1)))
        self.sloped = [cut for cut in self.cuts.kept[1:] if slopes and self._is_float(cut)]
        self.inputs = [mapped(tf.constant, rows_of(data.inputs, rows)) for rows in self.rows]
        workers = workers or plan.workers or side_by_side(compile=compile)
        self.pool = pool(workers)
        self._pass = RecomputedPass if plan.recompute else ImportancePass
        self._importance: dict[tuple, ImportancePass | RecomputedPass] = {}  # by kind of reward
        self._beside = threading.Semaphore(plan.passes or workers)
        self._outside = self._in_files(plan.cached_bytes)
        self._files = Files() if self._outside else None

    def _choose_cuts(self, examples: int, cache_bytes: int) -> PrefixCuts:
        parts = self.segments
        sizes = [
            4 * examples * sum(size_of(parts.graph, tensor) for tensor in cut) for cut in parts.cuts
        ]
        firsts = [parts.first_segment(gate) for gate in range(len(parts.graph.groups))]
        return PrefixCuts(sizes, np.bincount(firsts, minlength=len(sizes)), cache_bytes)

    def _in_files(self, cached_bytes: int | None) -> frozenset[int]:
        """The cuts whose activations and slopes are kept in files."""
        if cached_bytes is None:
            return frozenset()
        both = {cut: 1.5 if cut in self.sloped else 1.0 for cut in self.cuts.kept[1:]}
        return self.cuts.outside(cached_bytes, both)

    def _is_float(self, cut: int) -> bool:
        tensors = self.segments.cuts[cut]
        return all(keras.backend.is_float_dtype(one.dtype) for one in tensors)

    def set(self, mask: np.ndarray) -> Any:
        """Makes the network under `mask` the current one.

        Returns:
            Its outputs on D_val, tree of float32 [n, ...].
        """
        self._set_weights(mask)

        def run(number: int) -> tuple[Kept, Any]:
            with self._beside:
                x = self.inputs[number]
                cache = {0: x}
                activations = self.segments.activations(x, self.weights)
                for cut, x in enumerate(activations, start=1):
                    if cut in self.cuts.kept:
                        cache[cut] = x
                return self._kept(cache, f"x{number}"), x

        return self._keep(list(self.pool.map(run, range(len(self.rows)))))

    def set_with_importance(self, mask: np.ndarray, reward: Reward) -> tuple[Any, np.ndarray]:
        """As `set`, with the Taylor scores of the reward from the same pass.

        All rewards that one `CurrentNetwork` is asked about are of one task.

        Returns:
            (outputs, tree of float32 [n, ...]; scores float64 [U + 1] summed over batches).
        """
        if reward.kind not in self._importance:
            taken = self._pass(self.segments, self.cuts.kept, reward, self.sloped)
            self._importance[reward.kind] = taken
        importance = self._importance[reward.kind]
        self._set_weights(mask)

        sloped = self.sloped
        half = range(math.ceil(len(self.rows) / 2))

        def run(number: int) -> tuple[Kept, Any, np.ndarray, Kept]:
            terms = reward.terms(self.rows[number])
            with self._beside:
                cache, outputs, scores, slopes = importance.run(
                    self.inputs[number], terms, self.weights, mask
                )
                own = dict(zip(sloped, slopes, strict=True)) if number in half else {}
                kept = self._kept(dict(zip(self.cuts.kept, cache, strict=True)), f"x{number}")
                return kept, outputs, scores, self._kept(own, f"slope{number}")

        results = list(self.pool.map(run, range(len(self.rows))))
        outputs = self._keep([result[:2] for result in results])
        self.slopes = [results[number][3] for number in half if sloped]
        return outputs, sum(scores for *_, scores, _ in results)

    def without(self, *proposals: Proposal) -> Callable[[int], Any]:
        """The current network without what proposals remove.

        Returns:
            number of a batch -> its outputs, tree of float32 [rows, ...], from the last kept cut
            before the first change on.
        """
        parts, weights = self.segments, self.weights
        mask = np.min([one.mask for one in proposals], 0)
        first = self.cuts.before(min(parts.first_segment(one.gate) for one in proposals))
        for one in proposals:
            weights = parts.changed_weights(weights, mask, one.gate)
        return lambda number: parts.outputs_from(self.cache[number][first], weights, first)

    def evaluate(self, masks: list[np.ndarray]) -> list[Any]:
        """Outputs on D_val of whole networks, a tree of float32 [n, ...] each, side by side.

        Several machines share them out; each gets all outputs.

        Args:
            masks: unit masks, float32 [U + 1]; the current network stays.
        """

        def run(mask: np.ndarray) -> Any:
            weights = self.segments.weights(mask)
            return joined([self.segments.outputs_from(x, weights) for x in self.inputs])

        return cluster.shared(
            len(masks), lambda own: list(self.pool.map(run, [masks[number] for number in own]))
        )

    def _set_weights(self, mask: np.ndarray) -> None:
        self.cache = self.slopes = []  # before the next is computed: never two in memory
        self.weights = self.segments.weights(mask)

    def _kept(self, values: dict[int, Any], name: str) -> Kept:
        return Kept(values, self._outside, self._files, name)

    def _keep(self, results: list[tuple[Kept, Any]]) -> Any:
        """Keeps the activations at the kept cuts; returns the outputs."""
        self.cache = [cache for cache, _ in results]
        self.outputs = joined([outputs for _, outputs in results])
        return self.outputs
