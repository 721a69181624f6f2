"""A network run section by section, each of which is run again for its gradient.

A training step holds all that its backward pass needs of the whole network; here it holds the
tensors between the sections and what one section needs (Chen et al., Training Deep Nets with
Sublinear Memory Cost, 2016), for one more forward pass. The numbers are the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from ..utils.trees import mapped, parts_of, tree_of
from .keras_graph import Call, calls_of, live_tensors, mask_of, packed, sums_across, takes_training


class Sections:
    """A functional model in sections; called as `nets.stateless.call` with training=True.

    Args:
        model: flat, no models in it.
        bounds: number of the first call of every section but the first one, rising; those are
            left out before which a tensor isn't of floats or carries a mask of Keras's, and those
            where sums of gradients would be cut in two (`keras_graph.sums_across`).
    """

    def __init__(self, model: keras.Model, bounds: Sequence[int]):
        calls = calls_of(model)
        live = live_tensors(calls, model)
        plain = [one for one in bounds if all(map(_is_plain, live[one]))]
        cut = [one for one in plain if not sums_across(calls, model, one)]
        edges = [0, *cut, len(calls)]
        self._calls = [calls[a:b] for a, b in itertools.pairwise(edges)]
        self._ends = [*(live[one] for one in cut), list(model.outputs)]
        self._inputs = list(model.inputs)

    def __call__(
        self, model: Any, values: Sequence, inputs: Any, *, training: bool, updated: Sequence = ()
    ) -> tuple[Any, list]:
        """As `nets.stateless.call` of the model that was given, for training.

        Raises:
            ValueError: training is False.
        """
        if not training:
            raise ValueError("sections are for training alone")
        now = {id(v): value for v, value in zip(model.variables, values, strict=True)}
        x = [tf.convert_to_tensor(one) for one in keras.tree.flatten(packed(model, inputs))]
        tensors = self._inputs
        for calls, end in zip(self._calls, self._ends, strict=True):
            x = self._run(calls, tensors, end, x, now)
            tensors = end
        outputs = mapped(lambda one: tf.cast(one, tf.float32), tree_of(x))
        return outputs, [now[id(v)] for v in updated]

    @staticmethod
    def _run(calls: list[Call], start: list, end: list, x: list, now: dict) -> list:
        """Runs a section, whose new state goes into `now`; returns the tensors at its end."""
        known = {id(v): v for call in calls for v in getattr(call.operation, "variables", ())}
        trained = [v for v in known.values() if v.trainable]
        held = [v for key, v in known.items() if not v.trainable and key in now]
        before = {id(one): value for one, value in zip(start, x, strict=True)}
        floats = [key for key, value in before.items() if value.dtype.is_floating]
        kept = [(v, now[id(v)]) for v in held]
        states: list[list] = []

        def run(*flat: tf.Tensor) -> Any:
            values = before | dict(zip(floats, flat, strict=False))
            weights = zip(trained, flat[len(floats) :], strict=True)
            with keras.StatelessScope([*weights, *kept]) as scope:
                _run_calls(calls, values)
            states.append([scope.get_current_value(v) for v in held])
            return [values[id(one)] for one in end]

        inputs = [before[key] for key in floats]
        found = tf.recompute_grad(run)(*inputs, *(now[id(v)] for v in trained))
        now |= {id(v): new for v, new in zip(held, states[0], strict=True)}
        return list(parts_of(found))


def _run_calls(calls: list[Call], values: dict[int, Any]) -> None:
    for call in calls:
        args, kwargs = call.arguments.fill_in(values)
        if takes_training(call.operation):
            kwargs["training"] = True  # as Keras does, whatever the call was written with
        found = keras.tree.flatten(call.operation(*args, **kwargs))
        values |= {id(one): y for one, y in zip(call.outputs, found, strict=True)}


def _is_plain(tensor: keras.KerasTensor) -> bool:
    return keras.backend.is_float_dtype(tensor.dtype) and mask_of(tensor) is None
