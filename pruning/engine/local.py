"""The local effect of a proposal, and what it foretells of the reward (docs/method.md 1, step e).

A proposal is run only through the segments that its gate's layers lie in. How far the activations
behind them change, along the reward's gradient there, is known for a small part of the work of an
evaluation; a regression on what was evaluated before makes a forecast of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from ...utils.trees import parts_of
from ..space.candidates import Proposal
from .current import CurrentNetwork

MOST_SEGMENTS = 2  # that a proposal is run through; beyond them an effect isn't local any more


@dataclass(frozen=True)
class Effect:
    """First-order effects <g, delta> of a proposal on the losses of some examples.

    Attributes:
        harm: mean of the positive ones. spread: root of their mean square.
        depth: where in the network it is, 0 (the input) .. 1.
    """

    harm: float
    spread: float
    depth: float


class LocalEffects:
    """Runs proposals through their own segments only.

    Args:
        current: the current network, with the slopes of the reward at its cuts.
    """

    def __init__(self, current: CurrentNetwork):
        self._current = current
        gates = range(len(current.segments.graph.groups))
        self._spans = [self._span(gate) for gate in gates]

    def _span(self, gate: int) -> tuple[int, int] | None:
        """The cuts between which a gate's effect is taken; None: it isn't local."""
        parts, cuts = self._current.segments, self._current.cuts
        first = cuts.before(parts.first_segment(gate))
        behind = [cut for cut in self._current.sloped if cut > parts.last_segment(gate)]
        if not behind or behind[0] - first > MOST_SEGMENTS:
            return None
        group = parts.graph.groups[gate]
        units = np.concatenate([parts.graph.tensor_units(one) for one in parts.cuts[behind[0]]])
        own = (units >= group.start) & (units < group.start + group.channels)
        return None if own.any() else (first, behind[0])

    def of(self, proposals: Sequence[Proposal]) -> list[Effect | None]:
        """The effects on the examples whose slopes are kept, side by side.

        None where it isn't local or isn't finite, or the current network was set without slopes.
        """
        return list(self._current.pool.map(self._effect, proposals))

    def _effect(self, proposal: Proposal) -> Effect | None:
        current, parts = self._current, self._current.segments
        span = self._spans[proposal.gate]
        if span is None or not current.slopes:
            return None
        first, end = span
        found = []
        weights = parts.changed_weights(current.weights, proposal.mask, proposal.gate)
        for cache, slopes in zip(current.cache, current.slopes, strict=False):
            y = parts.run(cache[first], weights, first, end)
            found.append(_along(y, cache[end], slopes[end]))
        effects = np.concatenate(found).astype(np.float64)
        if not np.isfinite(effects).all():
            return None  # the whole evaluation will tell
        harm, spread = np.maximum(effects, 0).mean(), np.sqrt(np.mean(effects**2))
        return Effect(float(harm), float(spread), first / len(parts.segments))


def _along(y: Any, x: Any, slope: Any) -> np.ndarray:
    """<slope, y - x> of every example, float32 [n]; trees of float32 [n, ...]."""
    total = 0.0
    for after, before, g in zip(*map(parts_of, (y, x, slope)), strict=True):
        product = (after - before) * g
        total += tf.reduce_sum(product, list(range(1, len(product.shape)))).numpy()
    return total


class Forecast:
    """Online ridge regression of a rise of the loss on a proposal's local effect.

    With everything as a share of `scale`, log(rise + EPSILON) is taken as a linear function of
    log(harm + EPSILON), log(spread + EPSILON), the depth and 1. It begins as rise = harm, and each
    observation counts FORGET times less with every later one.
    """

    EPSILON, FORGET, RIDGE = 1e-3, 0.98, 1.0
    START = np.array([1.0, 0.0, 0.0, 0.0])

    def __init__(self) -> None:
        self._gram = self.RIDGE * np.eye(4)
        self._moment = self.RIDGE * self.START

    def _features(self, effect: Effect, scale: float) -> np.ndarray:
        harm, spread = effect.harm / scale, effect.spread / scale
        return np.array(
            [np.log(harm + self.EPSILON), np.log(spread + self.EPSILON), effect.depth, 1.0]
        )

    def of(self, effect: Effect, scale: float) -> float:
        """The log of the share of `scale` by which the loss is expected to rise."""
        weights = np.linalg.solve(self._gram, self._moment)
        return float(self._features(effect, scale) @ weights)

    def learn(self, effect: Effect, rise: float, scale: float) -> None:
        """Takes in that the loss rose by `rise`."""
        x, y = self._features(effect, scale), np.log(max(rise, 0) / scale + self.EPSILON)
        prior = (1 - self.FORGET) * self.RIDGE
        self._gram = self.FORGET * self._gram + np.outer(x, x) + prior * np.eye(4)
        self._moment = self.FORGET * self._moment + y * x + prior * self.START

    def state(self) -> dict[str, list]:
        """What it has learnt, as plain values."""
        return {"gram": self._gram.tolist(), "moment": self._moment.tolist()}

    def restore(self, state: dict[str, list]) -> None:
        """Takes in the `state` of an earlier process."""
        self._gram, self._moment = np.array(state["gram"]), np.array(state["moment"])
