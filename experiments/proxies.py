"""Proxies: what a method ranks sub-networks by, before any fine-tuning.

A proxy is a function (candidate, scene) -> float with a direction; an entry in `PROXIES` makes it
one of --proxies. It must be a pure function of the candidate and the scene, so that a run that is
killed goes on with the same values.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import keras
import numpy as np
import tensorflow as tf

from ..pruning.engine.current import CurrentNetwork
from ..pruning.engine.validation import Validation
from ..pruning.worth.rewards import Knowledge, Reward, loss_and_accuracy
from ..pruning.worth.scores import weight_scores
from ..training.evaluation import make_forward
from ..training.task import classification
from .smoothness import TOLERANCE, Extremes, Hessian, extremes, trace
from .sources import Source


class Scene:
    """What all candidates of an experiment share.

    Args:
        sources: searches that the candidates come from.
        val: D_val.
        compile: XLA.
        tolerance: of eigenvalues, relative.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        val: Validation,
        *,
        compile: bool = False,
        tolerance: float = TOLERANCE,
    ):
        self.sources, self.val, self.compile = sources, val, compile
        self.tolerance = tolerance
        self._scores: dict[tuple[str, int], np.ndarray] = {}

    @cached_property
    def knowledge(self) -> np.ndarray:
        """Mean of the logits on D_val of every network that any of the searches visited, float32
        [n, classes]: one teacher for all, so that rewards can be compared."""
        ensemble = Knowledge("ensemble")
        for source in self.sources:
            for step in range(len(source.history.rows)):
                ensemble.add(source.history.outputs(step))
        return ensemble.outputs

    def scores(self, score: str, source: int) -> np.ndarray:
        """Scores of the filters of a source's theta_0, float64 [U + 1], larger = more important."""
        key = score, source
        if key not in self._scores:
            graph = self.sources[source].graph
            if score == "taylor":
                reward = Reward(classification(), self.val)
                current = CurrentNetwork(graph, self.val, compile=self.compile)
                self._scores[key] = current.set_with_importance(graph.open_mask(), reward)[1]
            else:
                self._scores[key] = weight_scores(score, graph.kernels(), graph.open_mask(), [])
        return self._scores[key]


class Candidate:
    """A sub-network to be judged.

    Args:
        model: the pruned network, before fine-tuning; gives logits.
        mask: unit mask over its source's units, float32 [U + 1].
        source: number of the search that it comes from.
    """

    def __init__(self, model: keras.Model, mask: np.ndarray, source: int, scene: Scene):
        self.model, self.mask, self.source = model, mask, source
        self._scene = scene

    @cached_property
    def logits(self) -> np.ndarray:
        """On D_val, batch statistics, float32 [n, classes]."""
        forward, val = make_forward(self.model, bn="batch"), self._scene.val
        return np.concatenate([forward(val.inputs[rows]).numpy() for rows in val.batches()])

    @cached_property
    def hessian(self) -> Hessian:
        """Of the loss on D_val."""
        return Hessian(self.model, self._scene.val, compile=self._scene.compile)

    @cached_property
    def extremes(self) -> Extremes:
        """The two ends of the Hessian's spectrum."""
        return extremes(self.hessian, tolerance=self._scene.tolerance)


@dataclass(frozen=True)
class Proxy:
    """`value` of (candidate, scene); `better` is 1 if a larger value is better, else -1."""

    value: Callable[[Candidate, Scene], float]
    better: int
    meaning: str


def _val_loss(candidate: Candidate, scene: Scene) -> float:
    return loss_and_accuracy(classification(), scene.val, candidate.logits)[0]


def _val_accuracy(candidate: Candidate, scene: Scene) -> float:
    return loss_and_accuracy(classification(), scene.val, candidate.logits)[1]


def _reward(candidate: Candidate, scene: Scene) -> float:
    reward = Reward(classification(), scene.val, scene.knowledge)
    return -float(tf.reduce_mean(reward.all_losses(candidate.logits)))


def _condition_number(candidate: Candidate, scene: Scene) -> float:
    return candidate.extremes.condition_number


def _lambda_max(candidate: Candidate, scene: Scene) -> float:
    return candidate.extremes.lambda_max


def _trace(candidate: Candidate, scene: Scene) -> float:
    return trace(candidate.hessian)


def _removed(score: str) -> Callable[[Candidate, Scene], float]:
    def value(candidate: Candidate, scene: Scene) -> float:
        return float(scene.scores(score, candidate.source)[candidate.mask == 0].sum())

    return value


PROXIES = {
    "val_loss": Proxy(_val_loss, -1, "loss on D_val"),
    "val_accuracy": Proxy(_val_accuracy, 1, "top-1 % on D_val"),
    "reward": Proxy(_reward, 1, "EKG's reward with one teacher for all"),
    "condition_number": Proxy(_condition_number, -1, "|λ_min / λ_max| of the loss Hessian"),
    "lambda_max": Proxy(_lambda_max, -1, "λ_max, the largest eigenvalue of the loss Hessian"),
    "trace": Proxy(_trace, -1, "trace of the loss Hessian, by Hutchinson's estimate"),
    "taylor": Proxy(_removed("taylor"), -1, "Taylor scores of the removed filters"),
    "l1": Proxy(_removed("l1"), -1, "L1 norms of the removed filters"),
    "fpgm": Proxy(_removed("fpgm"), -1, "FPGM scores of the removed filters"),
}
