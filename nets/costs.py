"""Multiply-accumulates of the calls of a network, as products of channel counts.

A cost is (positions, in_units or None, out_units): under a unit mask it amounts to positions *
kept inputs * kept outputs, with None for one input per output (depthwise).
"""

import math
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from ..utils.errors import UserError, line_of
from . import layer_rules as rules
from .keras_graph import Call, takes_training
from .products import Product, letters_of

Cost = tuple[int, np.ndarray | None, np.ndarray]
UnitsOf = Callable[[keras.KerasTensor], np.ndarray]
ShapeOf = Callable[[keras.KerasTensor], tuple[int, ...]]


def _spatial(layer, shape: tuple) -> int:
    """Number of positions of a tensor with batch and channel axes; an example may have several rows
    of the batch, such as windows of an image."""
    first = getattr(layer, "data_format", "channels_last") == "channels_first"
    return math.prod((shape[0], *shape[2:]) if first else shape[:-1])


def kernel_costs(call: Call, units: tuple | None, num_units: int, shape_of: ShapeOf) -> list[Cost]:
    """The costs of one call of a convolution or dense layer.

    Args:
        units: (in_units, out_units) of the layer; None: it is never pruned.
        num_units: the unit that is always kept.
        shape_of: KerasTensor -> its shape for one example.
    """
    layer = call.operation
    transposed = type(layer) in rules.TRANSPOSED
    # Every input position of a transposed convolution meets the whole kernel.
    tensor = call.inputs[0] if transposed else call.outputs[0]
    positions = _spatial(layer, shape_of(tensor))
    if units is None:
        weights = sum(math.prod(v.shape) for v in layer.weights if "kernel" in v.name)
        return [(positions * weights, None, np.array([num_units]))]
    in_units, out_units = units
    if type(layer) is keras.layers.Dense:
        return [(positions, in_units, out_units)]
    taps = positions * math.prod(layer.kernel_size)
    if type(layer) in rules.DEPTHWISE:
        return [(taps, None, out_units)]
    if type(layer) in rules.SEPARABLE:
        between = np.repeat(in_units, layer.depth_multiplier)
        return [(taps, None, between), (positions, between, out_units)]
    if rules.is_depthwise(layer, len(in_units)):
        return [(taps, None, out_units)]
    return [(taps, in_units[: len(in_units) // getattr(layer, "groups", 1)], out_units)]


def recurrent_costs(
    call: Call, units: tuple | None, num_units: int, shape_of: ShapeOf
) -> list[Cost]:
    """The costs of a recurrent layer; the arguments are those of `kernel_costs`."""
    if units is None:
        return _fixed(_recurrent(call, shape_of), num_units)
    in_units, out_units = units
    steps, cell = _steps(call, shape_of), call.operation.cell
    kernels = [(cell.kernel, in_units), (cell.recurrent_kernel, out_units)]
    # Gates lie side by side in the last axis.
    return [
        (steps * math.prod(v.shape) // (v.shape[-2] * len(out_units)), inputs, out_units)
        for v, inputs in kernels
    ]


def product_costs(
    product: Product, units_of: UnitsOf, num_units: int, shape_of: ShapeOf
) -> list[Cost]:
    """The cost of a product of matrices; one of its letters may run over channels.

    Args:
        units_of: KerasTensor -> the units of its channels, int32 [channels].
        num_units: the unit that is always kept.
        shape_of: as in `kernel_costs`.
    """
    macs = product.macs([_shape(one, shape_of) for one in product.operands])
    number = product.channels
    if number is None:
        return _fixed(macs, num_units)
    units = units_of(product.operands[number])
    return [(macs // len(units), None, units)]


def _shape(operand, shape_of: ShapeOf) -> tuple[int, ...]:
    return shape_of(operand) if isinstance(operand, keras.KerasTensor) else tuple(operand.shape)


def total(costs: list[Cost], mask: np.ndarray) -> int:
    """Sum of the costs under a unit mask, float [U + 1]."""
    result = 0
    for positions, in_units, out_units in costs:
        inputs = 1 if in_units is None else np.count_nonzero(mask[in_units])
        result += positions * int(inputs) * int(np.count_nonzero(mask[out_units]))
    return result


# ---------------------------------------------------------------- what is never pruned


def fixed_costs(call: Call, num_units: int, shape_of: ShapeOf) -> list[Cost]:
    """The cost of a call that no rule of channels covers: it stays as it is under every mask.

    Known kinds are counted by their shapes, any other is measured once by TensorFlow's profiler.
    """
    layer = call.operation
    for kinds, count in _COUNTED.items():
        if isinstance(layer, kinds):
            return _fixed(count(call, shape_of), num_units)
    if isinstance(layer, keras.layers.RNN | keras.layers.Bidirectional):
        return _fixed(_recurrent(call, shape_of), num_units)
    return _fixed(_profiled(call, shape_of), num_units)


def _fixed(macs: int, num_units: int) -> list[Cost]:
    return [(macs, None, np.array([num_units]))] if macs else []


def _einsum_dense(call: Call, shape_of: ShapeOf) -> int:
    layer = call.operation
    shapes = [shape_of(call.inputs[0]), tuple(layer.kernel.shape)]
    letters = letters_of(layer.equation, [len(shape) for shape in shapes])
    return Product(*letters, ()).macs(shapes)


def _attention_layer(call: Call, shape_of: ShapeOf) -> int:
    """MultiHeadAttention and GroupQueryAttention: projections, scores and weighted values."""
    layer = call.operation
    query, *others = call.inputs
    asked = math.prod(shape_of(query)[1:-1])
    known = math.prod(shape_of(others[0] if others else query)[1:-1])
    macs = 0
    for name, variable in ((v.path, v) for v in layer.weights if v.name == "kernel"):
        own = "query" in name or "output" in name
        macs += math.prod(variable.shape) * (asked if own else known)
    heads = getattr(layer, "num_heads", None) or layer.num_query_heads
    depth = getattr(layer, "key_dim", None) or getattr(layer, "_key_dim", None) or layer.head_dim
    value = getattr(layer, "value_dim", None) or getattr(layer, "_value_dim", None) or depth
    return shape_of(query)[0] * (macs + heads * asked * known * (depth + value))


def _dot_attention(call: Call, shape_of: ShapeOf) -> int:
    query, value = shape_of(call.inputs[0]), shape_of(call.inputs[1])
    return 2 * math.prod(query[:-1]) * math.prod(value[1:-1]) * query[-1]


def _recurrent(call: Call, shape_of: ShapeOf) -> int:
    kernels = [v for v in call.operation.weights if "kernel" in v.name]
    return _steps(call, shape_of) * sum(math.prod(v.shape) for v in kernels)


def _steps(call: Call, shape_of: ShapeOf) -> int:
    """How often a recurrent cell meets its kernels: at every step, a convolutional one at every
    position of it."""
    shape = shape_of(call.inputs[0])  # [n, time, ..., channels]
    places = 1
    if len(shape) > 3:
        places = math.prod(shape_of(call.outputs[0])[-len(shape) + 2 : -1])
    return math.prod(shape[:2]) * places


_COUNTED = {
    keras.layers.EinsumDense: _einsum_dense,
    (keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention): _attention_layer,
    (keras.layers.Attention, keras.layers.AdditiveAttention): _dot_attention,
}


def _profiled(call: Call, shape_of: ShapeOf) -> int:
    """Half of the floating-point operations that TensorFlow's profiler sees, for one example."""
    profiler = tf.compat.v1.profiler
    tensors = {id(one): one for one in call.inputs}
    specs = [tf.TensorSpec(shape_of(one), one.dtype) for one in tensors.values()]

    def run(*values):
        args, kwargs = call.arguments.fill_in(dict(zip(tensors, values, strict=True)))
        if takes_training(call.operation):
            kwargs["training"] = False
        return call.operation(*args, **kwargs)

    try:
        graph = tf.function(run, autograph=False).get_concrete_function(*specs).graph
    except Exception as error:  # the layer's own code may raise anything
        line = line_of(error)
        raise UserError(
            f"{call.operation.name} can't be run on one example to count its FLOPs: {line}"
        ) from None
    options = profiler.ProfileOptionBuilder.float_operation()
    options = profiler.ProfileOptionBuilder(options).with_empty_output().build()
    return profiler.profile(graph=graph, options=options).total_float_ops // 2
