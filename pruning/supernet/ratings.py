"""Stage losses of sub-networks on D_val (SWP, docs/method.md 6): each stage gets the whole
network's feature before it and is measured against the whole network's feature behind it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from ...nets.graph import ChannelGraph
from ...training.task import Task
from ...utils import cluster
from ...utils.threads import pool, side_by_side
from ...utils.trees import mapped, rows_of
from ..engine.current import joined
from ..engine.cuts import size_of
from ..engine.segments import Segments
from ..engine.validation import Validation
from ..space.stages import Stage, find_stages
from .network import feature_loss


class StageRater:
    """Rates sub-networks of one stage at a time; batch norms use the statistics of the batch.

    Args:
        graph: the channel graph of the whole network.
        val: D_val.
        task: what the network is trained for.
        count: number of stages, or "auto", as `find_stages` takes it.
        compile: XLA on masked full-width kernels (GPU).
        cache_bytes: memory for features of the whole network; batches whose features don't fit
            are run through the whole network again whenever they are needed.

    Attributes:
        segments: the network's segments.
        stages: at least one.
        evaluations, images: how many versions of a stage were rated so far, and the examples that
            ran through them; an example counts by the stage's part of the network's FLOPs.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        val: Validation,
        task: Task,
        count: int | str,
        *,
        compile: bool = False,
        cache_bytes: int = 2 << 30,
    ):
        self.segments = Segments(graph, compile=compile)
        self.stages = find_stages(graph, self.segments.bounds, self.segments.cuts, count)
        self._rows = val.batches()
        self._inputs = [mapped(tf.constant, rows_of(val.inputs, rows)) for rows in self._rows]
        self._task = task
        self._whole = self.segments.weights(graph.open_mask())
        self._cache_bytes = cache_bytes
        self._pool = pool(side_by_side(compile=compile))
        self._number, self._kept = -1, []
        self.evaluations, self.images = 0, 0.0

    def _share(self, stage: Stage) -> float:
        return stage.flops / max(1, sum(one.flops for one in self.stages))

    def plan(self) -> str:
        """What of the features is kept in memory, in one line."""
        total, kept = self._rows[-1].stop, [self._kept_images(stage) for stage in self.stages]
        pairs = zip(self.stages, kept, strict=True)
        needed = max(self._bytes(stage) * images for stage, images in pairs)
        line = f"{len(self.stages)} stages; the whole network's features in memory: at most "
        line += f"{needed / 2**20:,.1f} MB"
        if min(kept) < total:
            line += f"; those of {total - min(kept)} of {total} images are computed again each time"
        return line

    def _bytes(self, stage: Stage) -> int:
        """Of an example's features before and behind the stage."""
        ends = [*self.segments.cuts, self.segments.outputs]
        kept = [*ends[stage.last], *(ends[stage.first] if stage.first else ())]  # else: the inputs
        return 4 * sum(size_of(self.segments.graph, tensor) for tensor in kept)

    def _kept_batches(self, stage: Stage) -> int:
        most = self._cache_bytes // self._bytes(stage)
        return sum(rows.stop <= most for rows in self._rows)

    def _kept_images(self, stage: Stage) -> int:
        """Of how many images the features fit into memory: whole batches."""
        batches = self._kept_batches(stage)
        return self._rows[batches - 1].stop if batches else 0

    # ---------------------------------------------------------------- forward passes

    def _features(self, number: int) -> tuple[Any, Any]:
        """The whole network's features of a batch before and behind the current stage."""
        stage = self.stages[self._number]
        before = self.segments.run(self._inputs[number], self._whole, 0, stage.first)
        return before, self.segments.run(before, self._whole, stage.first, stage.last)

    def _enter(self, number: int) -> None:
        """Makes a stage the current one and computes its features, as far as they fit."""
        if number == self._number:
            return
        self._number, self._kept = number, []  # never two stages' features in memory
        batches = range(self._kept_batches(self.stages[number]))
        self._kept = list(self._pool.map(self._features, batches))

    def rate(self, number: int, masks: Sequence[np.ndarray]) -> np.ndarray:
        """Mean losses on D_val, float64 [masks], of versions of stage `number`; several machines
        share them out.

        Mean squared difference of the features behind the stage; of the last stage, the task's
        `distillation` (KL of the softmax for classes).

        Args:
            masks: unit masks, float32 [U + 1], that keep the gates at the stage's borders whole.
        """
        found = cluster.shared(
            len(masks), lambda own: self._rated(number, [masks[place] for place in own])
        )
        self.evaluations += len(masks)
        self.images += len(masks) * self._rows[-1].stop * self._share(self.stages[number])
        return np.array(found, np.float64)

    def _rated(self, number: int, masks: Sequence[np.ndarray]) -> np.ndarray:
        self._enter(number)
        stage = self.stages[number]
        loss = self.output_loss if number == len(self.stages) - 1 else feature_loss
        segments = self.segments.segments[stage.first : stage.last]
        names = sorted({name for segment in segments for name in segment.layers})
        totals = np.zeros(len(masks))

        def run(index: int, before: Any, behind: Any) -> float:
            weights = self.segments.weights_of(names, masks[index])
            after = self.segments.run(before, weights, stage.first, stage.last)
            return float(loss(after, behind))

        for batch, rows in enumerate(self._rows):
            kept = batch < len(self._kept)
            before, behind = self._kept[batch] if kept else self._features(batch)
            work = ((index, before, behind) for index in range(len(masks)))
            losses = list(self._pool.map(lambda one: run(*one), work))
            totals += np.array(losses) * (rows.stop - rows.start)
        return totals / self._rows[-1].stop

    def output_loss(self, student: Any, teacher: Any) -> tf.Tensor:
        """How far outputs are from a teacher's, a scalar; trees of float32 [n, ...]."""
        return self._task.distillation(teacher, student, 1.0)

    def outputs(self, mask: np.ndarray) -> Any:
        """Outputs of a whole sub-network on D_val, tree of float32 [n, ...]."""
        weights = self.segments.weights(mask)
        outputs = self._pool.map(lambda x: self.segments.outputs_from(x, weights), self._inputs)
        self.images += self._rows[-1].stop
        return joined(list(outputs))
