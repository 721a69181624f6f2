"""Recurrent layers with filter masks: a unit (of ConvLSTM a filter) of the state is a channel.

A removed unit has zero weights in all its gates, so that its state stays zero: the activation must
map zero to zero (`layer_rules.recurrent_rule`). The gates' columns lie side by side: kernel [in,
gates * units], recurrent_kernel [units, gates * units], bias [..., gates * units]; kernels of a
ConvLSTM have a window's axes before these.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from .keras_graph import values_of
from .layer_rules import STATES
from .tcl import Axes, Gated, Weights


@contextmanager
def _of_width(cell: keras.Layer, name: str, units: int | tf.Tensor) -> Iterator[None]:
    """Runs a cell on weights of so many units: a GRU's cuts its gates apart by that number."""
    before = getattr(cell, name)
    setattr(cell, name, units)
    try:
        yield
    finally:
        setattr(cell, name, before)


class _Recurrent(Gated):
    reads = True
    width = "units"  # its name in the configuration and of the cell's attribute

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

    @classmethod
    def config(cls, layer, in_units, out_units, mask) -> dict:
        return {cls.width: int(np.count_nonzero(mask[out_units]))}

    @staticmethod
    def further(args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
        names = ("sequences", "initial_state", "mask")
        given = dict(zip(names, args, strict=False)) | kwargs
        return {name: given[name] for name in names[1:] if given.get(name) is not None}

    def _places(self, x) -> list[int]:
        """Sizes of the state's axes between batch and units."""
        return []

    def apply(
        self,
        x,
        weights: Weights,
        training: bool = True,
        mask: Any = None,
        initial_state: Any = None,
    ):
        """x float [n, time, ..., in] -> [n, ..., out] or [n, time, ..., out], as in inference.

        Args:
            mask: bool [n, time], the steps that count.
            initial_state: float [n, ..., out], one or a list of them; None: zeros.
        """
        values = [(v, tf.convert_to_tensor(weights[v.name])) for v in self.weights]
        recurrent = weights["recurrent_kernel"]
        units = recurrent.shape[-2]
        units = tf.shape(recurrent)[-2] if units is None else int(units)
        zeros = tf.zeros([tf.shape(x)[0], *self._places(x), units])
        with values_of(values), _of_width(self.cell, self.width, units):
            count = next(STATES[one] for one in type(self).__mro__ if one in STATES)
            states = [zeros] * count if initial_state is None else initial_state
            return keras.layers.RNN.call(self, x, initial_state=states, mask=mask)

    def call(self, sequences, initial_state=None, mask=None, training=False):
        return self.apply(sequences, self.current(), mask=mask, initial_state=initial_state)


class SimpleRNN(_Recurrent, keras.layers.SimpleRNN):
    """keras.layers.SimpleRNN with masks on its inputs and units."""


class GRU(_Recurrent, keras.layers.GRU):
    """keras.layers.GRU with masks on its inputs and units."""


class LSTM(_Recurrent, keras.layers.LSTM):
    """keras.layers.LSTM with masks on its inputs and units."""


class _ConvLSTM(_Recurrent):
    width = "filters"

    def _places(self, x) -> list[int]:
        return list(self.cell.compute_output_shape((None, *x.shape[2:]))[0][1:-1])


class ConvLSTM1D(_ConvLSTM, keras.layers.ConvLSTM1D):
    """keras.layers.ConvLSTM1D with masks on its inputs and filters."""


class ConvLSTM2D(_ConvLSTM, keras.layers.ConvLSTM2D):
    """keras.layers.ConvLSTM2D with masks on its inputs and filters."""


class ConvLSTM3D(_ConvLSTM, keras.layers.ConvLSTM3D):
    """keras.layers.ConvLSTM3D with masks on its inputs and filters."""
