"""The current network of a search on every device: weights, cached activations, outputs on D_val.

Inputs, activations at a cut and outputs are trees (`utils.trees`).
"""

import math
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ...nets.graph import ChannelGraph
from ...utils import cluster
from ...utils.provenance import cpu_count
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

CACHE_BYTES = 2 << 30  # of activations on each device
IN_FLIGHT = 2  # networks on each of several devices


def side_by_side(devices: int, *, compile: bool) -> int:
    """How many networks are evaluated at once: on the CPU one per core, on one GPU one.

    On several devices `IN_FLIGHT` on each: one is computed while Python prepares the next.
    """
    if devices > 1:
        return IN_FLIGHT * devices
    return 1 if compile else cpu_count()


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


@dataclass
class Place:
    """What one device holds: D_val and the current network."""

    device: str | None
    inputs: list[Any]  # per batch
    weights: LayerWeights = field(default_factory=dict)
    cache: list[Kept] = field(default_factory=list)  # per batch: {cut: activations}
    slopes: list[Kept] = field(default_factory=list)  # per batch of the first half


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
        devices: names of the devices that share the work; default: TensorFlow's default device.
        cache_bytes: memory for activations on each device; those that don't fit are computed again
            for every proposal that needs them.
        slopes: whether `set_with_importance` keeps the reward's gradient at the kept cuts, too, on
            the first half of the batches; they share `cache_bytes`.
        plan: for one device alone.

    Attributes:
        rows: row ranges of the batches of D_val.
        segments: the network's segments.
        cuts: which activations are kept.
        pool: threads, each bound to the device that `place` tells.
        outputs: of the current network on D_val, tree of float32 [n, ...].
        sloped: numbers of the cuts where slopes are kept.
        places: what every device holds.
    """

    outputs: Any

    def __init__(
        self,
        graph: ChannelGraph,
        data: Validation,
        *,
        compile: bool = False,
        workers: int | None = None,
        devices: Sequence[str] = (),
        cache_bytes: int = CACHE_BYTES,
        slopes: bool = False,
        plan: MemoryPlan = PLENTY,
    ):
        self.rows = data.batches()
        self.segments = Segments(graph, compile=compile)
        self.cuts = self._choose_cuts(len(data), int(cache_bytes / (1.5 if slopes else 1)))
        self.sloped = [cut for cut in self.cuts.kept[1:] if slopes and self._is_float(cut)]
        self.places = []
        for device in devices or (None,):
            with tf.device(device):
                inputs = [mapped(tf.constant, rows_of(data.inputs, rows)) for rows in self.rows]
            self.places.append(Place(device, inputs))
        workers = workers or plan.workers or side_by_side(len(self.places), compile=compile)
        self.pool = self._make_pool(workers)
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

    def _make_pool(self, workers: int) -> ThreadPoolExecutor:
        """Threads that are bound to the devices in turn."""
        self._bound = threading.local()
        places: queue.SimpleQueue[Place] = queue.SimpleQueue()
        for number in range(workers):
            places.put(self.places[number % len(self.places)])

        def bind() -> None:
            self._bound.place = places.get()

        return ThreadPoolExecutor(workers, initializer=bind)

    @property
    def place(self) -> Place:
        """The device that the calling thread of the pool is bound to."""
        return self._bound.place

    def set(self, mask: np.ndarray) -> Any:
        """Makes the network under `mask` the current one.

        Returns:
            Its outputs on D_val, tree of float32 [n, ...].
        """
        self._set_weights(mask)

        def run(number: int) -> tuple[Kept, Any]:
            place = self.place
            with self._beside, tf.device(place.device):
                x = place.inputs[number]
                cache = {0: x}
                activations = self.segments.activations(x, place.weights)
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
            place, rows = self.place, self.rows[number]
            with self._beside, tf.device(place.device):
                cache, outputs, scores, slopes = importance.run(
                    place.inputs[number], reward.terms(rows), place.weights, mask
                )
                own = dict(zip(sloped, slopes, strict=True)) if number in half else {}
                kept = self._kept(dict(zip(self.cuts.kept, cache, strict=True)), f"x{number}")
                return kept, outputs, scores, self._kept(own, f"slope{number}")

        results = list(self.pool.map(run, range(len(self.rows))))
        outputs = self._keep([result[:2] for result in results])
        for place in self.places:
            place.slopes = self._on(place, [results[number][3] for number in half if sloped])
        return outputs, sum(scores for *_, scores, _ in results)

    def without(self, *proposals: Proposal) -> Callable[[int], Any]:
        """The current network without what proposals remove, for the calling thread of the pool.

        Returns:
            number of a batch -> its outputs, tree of float32 [rows, ...], from the last kept cut
            before the first change on.
        """
        parts, place = self.segments, self.place
        mask = np.min([one.mask for one in proposals], 0)
        first = self.cuts.before(min(parts.first_segment(one.gate) for one in proposals))
        with tf.device(place.device):
            weights = place.weights
            for one in proposals:
                weights = parts.changed_weights(weights, mask, one.gate)

        def outputs(number: int) -> Any:
            with tf.device(place.device):
                return parts.outputs_from(place.cache[number][first], weights, first)

        return outputs

    def evaluate(self, masks: list[np.ndarray]) -> list[Any]:
        """Outputs on D_val of whole networks, a tree of float32 [n, ...] each, side by side.

        Several machines share them out; each gets all outputs.

        Args:
            masks: unit masks, float32 [U + 1]; the current network stays.
        """

        def run(mask: np.ndarray) -> Any:
            place = self.place
            with tf.device(place.device):
                weights = self.segments.weights(mask)
                return joined([self.segments.outputs_from(x, weights) for x in place.inputs])

        return cluster.shared(
            len(masks), lambda own: list(self.pool.map(run, [masks[number] for number in own]))
        )

    def _set_weights(self, mask: np.ndarray) -> None:
        for place in self.places:
            place.cache = place.slopes = []  # before the next is computed: never two in memory
            with tf.device(place.device):
                place.weights = self.segments.weights(mask)

    def _kept(self, values: dict[int, Any], name: str) -> Kept:
        return Kept(values, self._outside, self._files, name)

    def _keep(self, results: list[tuple[Kept, Any]]) -> Any:
        """Gives every device the activations at the kept cuts; returns the outputs."""
        caches = [cache for cache, _ in results]
        for place in self.places:
            place.cache = self._on(place, caches)
        self.outputs = joined([outputs for _, outputs in results])
        return self.outputs

    def _on(self, place: Place, batches: list[Kept]) -> list[Kept]:
        """Tensors by batch and cut, on the device of a place: copies where there are several."""
        if len(self.places) == 1:
            return batches
        with tf.device(place.device):
            copies = [{cut: mapped(tf.identity, x) for cut, x in one.items()} for one in batches]
        return [self._kept(one, "") for one in copies]
