"""Convolutions and products by a kernel that a layer of the user's holds itself, as Keras's layers.

    keras.ops.conv(x, self.kernel)      Conv2D          keras.ops.matmul(x, self.kernel)    Dense

As layers of Keras's they lose filters, and so does what they are called on. The kernel may be a
constant, too, such as that of a blur.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import keras

from .keras_graph import Arguments, Call, is_op
from .products import OPERATIONS, product_of

if TYPE_CHECKING:
    from .trace import Trace

L = keras.layers
# By the class of the operation, then by the number of axes that the kernel is moved along.
CONVOLUTIONS: dict[str, dict[int, type[keras.Layer]]] = {
    "Conv": {1: L.Conv1D, 2: L.Conv2D, 3: L.Conv3D},
    "DepthwiseConv": {1: L.DepthwiseConv1D, 2: L.DepthwiseConv2D},
}


def kernel_of(call: Call) -> Any:
    """What a tensor is convolved with, or its channels multiplied by; None for another call.

    Args:
        call: perhaps one of `with_biases`.
    """
    kind = type(call.operation).__name__
    if not is_op(call.operation) or len(call.values) not in (2, 3):
        return None
    tensor, kernel, *_ = call.values
    if not isinstance(tensor, keras.KerasTensor) or not hasattr(kernel, "shape"):
        return None
    if not keras.backend.is_float_dtype(tensor.dtype):
        return None
    if kind in CONVOLUTIONS:
        return kernel if _has_layer(call, kernel) else None
    product = product_of(call.operation, call.values[:2]) if kind in OPERATIONS else None
    if product is None or len(product.sides) != 2 or product.operands[1] is not kernel:
        return None
    given, (*rows, columns) = product.sides
    dense = rows == [given[-1]] and product.output == given[:-1] + columns
    return kernel if dense and columns not in given and len(given) > 1 else None


def with_biases(trace: Trace, layer: keras.Layer) -> tuple[list[Call], set[int]]:
    """The calls of a layer's trace, with what a kernel of its own gives and the vector that it adds
    as one call, of three arguments; and the ids of such vectors."""
    readers = Counter(one for call in trace.calls for one in {id(tensor) for tensor in call.inputs})
    readers.update(map(id, keras.tree.flatten(trace.outputs)))
    kernels = {key for key, held in trace.held.items() if held.kernel}
    vectors = {
        key
        for key, held in trace.held.items()
        if held.layer is layer and isinstance(held.value, keras.Variable) and readers[key] == 1
    }
    made = {id(one.outputs[0]): one for one in trace.calls if id(kernel_of(one)) in kernels}
    found: dict[int, Call] = {}  # by the id of what they give
    biases = set()
    for call in trace.calls:
        pair = call.inputs if type(call.operation).__name__ == "Add" else ()
        for one, other in zip(pair, pair[::-1], strict=True) if len(pair) == 2 else ():
            fits = id(other) in vectors and tuple(other.shape) == tuple(one.shape[-1:])
            if fits and id(one) in made and readers[id(one)] == 1:
                first = found.pop(id(one))
                inputs = (*first.inputs, other)
                call = Call(first.operation, Arguments(inputs), inputs, call.outputs)
                biases.add(id(other))
                break
        found[id(call.outputs[0])] = call
    return list(found.values()), biases


def usage_of(call: Call) -> tuple:
    """What tells one use of a kernel from another."""
    return type(call.operation).__name__, repr(call.operation.get_config() | {"name": ""})


def layer_of(call: Call, kernel: Any, bias: Any, name: str) -> keras.Layer:
    """A built layer that does what a call does.

    Args:
        call: one with a `kernel_of`.
        kernel: what that stands for: a variable, which is trained if it was, or an array, which
            isn't.
        bias: a variable, or None.
    """
    kind, channels = type(call.operation).__name__, call.inputs[0].shape[-1]
    regularizer = "depthwise_regularizer" if kind == "DepthwiseConv" else "kernel_regularizer"
    options = {"use_bias": bias is not None, "name": name, "dtype": "float32"}
    options["bias_regularizer"] = getattr(bias, "regularizer", None)
    options[regularizer] = getattr(kernel, "regularizer", None)
    if kind in CONVOLUTIONS:
        layer = _convolution(call, kernel.shape, options)
    else:
        layer = L.Dense(kernel.shape[-1], **options)
    layer.build((*(None,) * (len(call.inputs[0].shape) - 1), channels))
    weights = [kernel] if bias is None else [kernel, bias]
    layer.set_weights([keras.ops.convert_to_numpy(one) for one in weights])
    layer.trainable = isinstance(kernel, keras.Variable) and kernel.trainable
    return layer


def _has_layer(call: Call, kernel: Any) -> bool:
    operation = call.operation
    data_format = operation.data_format or keras.config.image_data_format()
    channels = call.inputs[0].shape[-1]
    axes = len(kernel.shape) - 2
    known = axes in CONVOLUTIONS[type(operation).__name__] and data_format == "channels_last"
    return known and channels is not None


def _convolution(call: Call, shape: tuple[int, ...], options: dict) -> keras.Layer:
    operation, kind = call.operation, type(call.operation).__name__
    *size, ins, outs = shape
    if kind == "DepthwiseConv":
        options["depth_multiplier"] = outs
    else:
        options |= {"filters": outs, "groups": call.inputs[0].shape[-1] // ins}
    options |= {key: getattr(operation, key) for key in ("strides", "padding", "dilation_rate")}
    return CONVOLUTIONS[kind][len(size)](kernel_size=tuple(size), **options)
