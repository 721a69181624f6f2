"""The current network of a search on every device: weights, cached activations, logits on D_val."""

import math
import queue
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import tensorflow as tf

from ...nets.graph import ChannelGraph
from ...utils.provenance import cpu_count
from ..worth.rewards import Reward
from .importance import ImportancePass
from .prefix import PrefixCuts
from .segments import LayerWeights, Segments
from .validation import Validation

CACHE_BYTES = 2 << 30  # of activations on each device


@dataclass
class Place:
    """What one device holds: D_val and the current network."""

    device: str | None
    inputs: list[tf.Tensor]
    weights: LayerWeights = field(default_factory=dict)
    cache: list[dict[int, tf.Tensor]] = field(default_factory=list)  # per batch: {cut: activation}


class CurrentNetwork:
    """The network that the proposals of a step change, and the threads that evaluate them.

    Args:
        graph: the channel graph of theta_0.
        data: D_val.
        compile: XLA on masked full-width kernels (GPU).
        workers: threads that work side by side; default: one per device on GPUs, one per core on
            the CPU.
        devices: names of the devices that share the work; default: TensorFlow's default device.
        cache_bytes: memory for activations on each device; those that don't fit are computed again
            for every proposal that needs them.

    Attributes:
        rows: row ranges of the batches of D_val.
        segments: the network's segments.
        cuts: which activations are kept.
        pool: threads, each bound to the device that `place` tells.
        logits: of the current network on D_val, float32 [n, classes].
        places: what every device holds.
    """

    logits: np.ndarray

    def __init__(
        self,
        graph: ChannelGraph,
        data: Validation,
        *,
        compile: bool = False,
        workers: int | None = None,
        devices: Sequence[str] = (),
        cache_bytes: int = CACHE_BYTES,
    ):
        self.rows = data.batches()
        self.segments = Segments(graph, compile=compile)
        self.cuts = self._choose_cuts(len(data.targets), cache_bytes)
        self.places = []
        for device in devices or (None,):
            with tf.device(device):
                images = [tf.constant(data.inputs[rows]) for rows in self.rows]
            self.places.append(Place(device, images))
        one_each = compile or len(self.places) > 1
        self.pool = self._make_pool(workers or (len(self.places) if one_each else cpu_count()))
        self._importance: ImportancePass | None = None

    def _choose_cuts(self, images: int, cache_bytes: int) -> PrefixCuts:
        parts = self.segments
        sizes = [4 * images * math.prod(cut.shape[1:]) for cut in parts.cuts]
        firsts = [parts.first_segment(gate) for gate in range(len(parts.graph.groups))]
        return PrefixCuts(sizes, np.bincount(firsts, minlength=len(sizes)), cache_bytes)

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

    def set(self, mask: np.ndarray) -> np.ndarray:
        """Makes the network under `mask` the current one.

        Returns:
            Its logits on D_val, float32 [n, classes].
        """
        self._set_weights(mask)

        def run(number: int) -> tuple[dict[int, tf.Tensor], tf.Tensor]:
            place = self.place
            with tf.device(place.device):
                x = place.inputs[number]
                cache = {0: x}
                outputs = self.segments.outputs(x, place.weights)
                for cut, x in enumerate(outputs, start=1):
                    if cut in self.cuts.kept:
                        cache[cut] = x
            return cache, x

        return self._keep(list(self.pool.map(run, range(len(self.rows)))))

    def set_with_importance(
        self, mask: np.ndarray, reward: Reward
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `set`, with the Taylor scores of the reward from the same pass.

        Returns:
            (logits float32 [n, classes], scores float64 [U + 1] summed over batches).
        """
        if self._importance is None:
            self._importance = ImportancePass(self.segments, self.cuts.kept)
        self._set_weights(mask)

        def run(number: int) -> tuple[dict[int, tf.Tensor], tf.Tensor, np.ndarray]:
            place, rows = self.place, self.rows[number]
            with tf.device(place.device):
                labels, teacher = reward.targets[rows], reward.teacher[rows]
                cache, logits, scores = self._importance.run(
                    place.inputs[number], labels, teacher, place.weights, mask
                )
            return dict(zip(self.cuts.kept, cache, strict=True)), logits, scores

        results = list(self.pool.map(run, range(len(self.rows))))
        logits = self._keep([result[:2] for result in results])
        return logits, sum(scores for *_, scores in results)

    def evaluate(self, masks: list[np.ndarray]) -> list[np.ndarray]:
        """Logits on D_val of whole networks, float32 [n, classes] each, side by side.

        Args:
            masks: unit masks, float32 [U + 1]; the current network stays.
        """

        def run(mask: np.ndarray) -> np.ndarray:
            place = self.place
            with tf.device(place.device):
                weights = self.segments.weights(mask)
                parts = [self.segments.logits(images, weights).numpy() for images in place.inputs]
            return np.concatenate(parts)

        return list(self.pool.map(run, masks))

    def _set_weights(self, mask: np.ndarray) -> None:
        for place in self.places:
            place.cache = []  # before the next one is computed: never two in memory
            with tf.device(place.device):
                place.weights = self.segments.weights(mask)

    def _keep(self, results: list[tuple[dict[int, tf.Tensor], tf.Tensor]]) -> np.ndarray:
        """Gives every device the activations at the kept cuts; returns the logits."""
        caches = [cache for cache, _ in results]
        for place in self.places:
            place.cache = caches
            if len(self.places) > 1:
                with tf.device(place.device):
                    place.cache = [
                        {cut: tf.identity(x) for cut, x in cache.items()} for cache in caches
                    ]
        self.logits = np.concatenate([logits.numpy() for _, logits in results])
        return self.logits
