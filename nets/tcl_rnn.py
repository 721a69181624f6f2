"""Recurrent layers with filter masks: a unit of the state is a channel.

A removed unit has zero weights in all its gates, so that its state stays zero: the activation must
map zero to zero (`layer_rules.recurrent_rule`). The gates' columns lie side by side: kernel [in,
gates * units], recurrent_kernel [units, gates * units], bias [..., gates * units].
"""

from collections.abc import Iterator
from contextlib import contextmanager

import keras
import numpy as np
import tensorflow as tf

from .keras_graph import values_of
from .tcl import Axes, Gated, Weights


@contextmanager
def _of_units(cell: keras.Layer, units: int | tf.Tensor) -> Iterator[None]:
    """Runs a cell on weights of so many units: a GRU's cuts its gates apart by that number."""
    before = cell.units
    cell.units = units
    try:
        yield
    finally:
        cell.units = before


class _Recurrent(Gated):
    reads = True
    state_count = 1

    @classmethod
    def from_config(cls, config):
        # cuDNN's kernels want the layer's own variables.
        return super().from_config(
            config | {"use_cudnn": False} if "use_cudnn" in config else config
        )

    @staticmethod
    def axes(layer, in_units, out_units) -> Axes:
        columns = np.tile(out_units, layer.cell.kernel.shape[-1] // len(out_units))
        return {
            "kernel": {-2: in_units, -1: columns},
            "recurrent_kernel": {-2: out_units, -1: columns},
            "bias": {-1: columns},
        }

    @staticmethod
    def config(layer, in_units, out_units, mask) -> dict:
        return {"units": int(np.count_nonzero(mask[out_units]))}

    def apply(self, x, weights: Weights, training: bool = True):
        """x float [n, time, in] -> [n, out] or [n, time, out]; `training` is unused."""
        values = [(v, tf.convert_to_tensor(weights[v.name])) for v in self.weights]
        recurrent = weights["recurrent_kernel"]
        units = recurrent.shape[0]
        units = tf.shape(recurrent)[0] if units is None else int(units)
        zeros = tf.zeros([tf.shape(x)[0], units])
        with values_of(values), _of_units(self.cell, units):
            return keras.layers.RNN.call(self, x, initial_state=[zeros] * self.state_count)

    def call(self, sequences, initial_state=None, mask=None, training=False):
        return self.apply(sequences, self.current())


class SimpleRNN(_Recurrent, keras.layers.SimpleRNN):
    """keras.layers.SimpleRNN with masks on its inputs and units."""


class GRU(_Recurrent, keras.layers.GRU):
    """keras.layers.GRU with masks on its inputs and units."""


class LSTM(_Recurrent, keras.layers.LSTM):
    """keras.layers.LSTM with masks on its inputs and units."""

    state_count = 2
