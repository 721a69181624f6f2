"""TensorFlow's functions on symbolic tensors, as those of `keras.ops`.

A layer of the user's may call `tf.reduce_mean(x)` where x is a KerasTensor, because its `call` is
traced (`nets.traced`). TensorFlow refuses that, but asks the dispatchers that are registered with
it first: inside `as_keras_ops` one answers with what `keras.ops` makes of the same arguments. The
trace is compared with the layer afterwards, so a function that is only nearly the same shows. A
function that isn't known here is refused as before.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import string
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from .keras_graph import plain_products

ops = keras.ops
_active = contextvars.ContextVar("as_keras_ops", default=False)


@contextlib.contextmanager
def as_keras_ops() -> Iterator[None]:
    """Inside, functions of TensorFlow take symbolic tensors; products as in `plain_products`."""
    _dispatcher()
    token = _active.set(True)
    try:
        with plain_products():
            yield
    finally:
        _active.reset(token)


class _Dispatcher(tf.__internal__.dispatch.GlobalOpDispatcher):
    def handle(self, op: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        """What a function gives for its arguments; NOT_SUPPORTED: this isn't known here."""
        function = FUNCTIONS.get(op.__name__) if _active.get() else None
        given = (args, kwargs)
        if function is None or not any(map(_is_symbolic, tf.nest.flatten(given))):
            return self.NOT_SUPPORTED
        args, kwargs = tf.nest.map_structure(_plain, given)
        kwargs.pop("name", None)
        try:
            return function(*args, **kwargs)
        except (_Unknown, TypeError):
            return self.NOT_SUPPORTED


@functools.cache
def _dispatcher() -> _Dispatcher:
    """The one that TensorFlow asks, from the first call on."""
    dispatcher = _Dispatcher()
    dispatcher.register()
    return dispatcher


class _Unknown(Exception):
    """Arguments of a form that isn't known."""


def _is_symbolic(value: Any) -> bool:
    return isinstance(value, keras.KerasTensor)


def _plain(value: Any) -> Any:
    """A constant as an array."""
    return value.numpy() if isinstance(value, tf.Tensor) and hasattr(value, "numpy") else value


def _sizes(values: Any) -> tuple[int, ...]:
    """Sizes as whole numbers; an array, or a list of numbers."""
    flat = (
        list(np.atleast_1d(values))
        if isinstance(values, np.ndarray | np.integer | int)
        else list(values)
    )
    if any(map(_is_symbolic, flat)):
        raise _Unknown
    return tuple(int(one) for one in flat)


def _axes(axis: Any) -> int | tuple[int, ...] | None:
    return axis if axis is None or isinstance(axis, int) else _sizes(axis)


# ---------------------------------------------------------------- functions as TensorFlow has them


def _of_one(function: Callable) -> Callable:
    """A function of one tensor, whatever its argument is called; a name may come behind it."""

    def applied(*args: Any, **kwargs: Any) -> Any:
        tensors = [one for one in (*args, *kwargs.values()) if _is_symbolic(one)]
        if len(tensors) != 1 or len(args) + len(kwargs) > 2:
            raise _Unknown
        return function(tensors[0])

    return applied


def _of_two(function: Callable) -> Callable:
    def applied(x: Any, y: Any, name: str | None = None) -> Any:
        return function(x, y)

    return applied


def _reduction(function: Callable) -> Callable:
    def applied(input_tensor: Any, axis=None, keepdims: bool = False, name=None) -> Any:
        if isinstance(input_tensor, list | tuple):  # of tensors, one by one along a first axis
            input_tensor = ops.stack(input_tensor)
        return function(input_tensor, axis=_axes(axis), keepdims=bool(keepdims))

    return applied


def _over_one_axis(function: Callable) -> Callable:
    def applied(logits: Any, axis: int | None = None, name: str | None = None) -> Any:
        return function(logits, axis=-1 if axis is None else axis)

    return applied


def _pooling(function: Callable) -> Callable:
    def applied(input, ksize, strides, padding, data_format="NHWC", name=None) -> Any:
        if data_format not in ("NHWC", None) or not isinstance(padding, str):
            raise _Unknown
        return function(input, _window(ksize), _window(strides), padding.lower())

    return applied


def _window(size: Any) -> int | tuple[int, ...]:
    """A window over positions, with or without batch and channels."""
    if isinstance(size, int):
        return size
    sizes = _sizes(size)
    if len(sizes) < 3:
        return sizes[0] if len(sizes) == 1 else sizes
    if sizes[0] != 1 or sizes[-1] != 1:
        raise _Unknown
    return sizes[1:-1]


def _convolution(function: Callable) -> Callable:
    def applied(input, filters, strides, padding, data_format=None, dilations=None, name=None):
        if data_format not in (None, "NHWC") or not isinstance(padding, str):
            raise _Unknown
        options = {"strides": _window(strides), "padding": padding.lower()}
        if dilations is not None:
            options["dilation_rate"] = _window(dilations)
        return function(input, filters, **options)

    return applied


def _depthwise_convolution(
    input, filter, strides, padding, data_format=None, dilations=None, name=None
):
    return _convolution(ops.depthwise_conv)(input, filter, strides, padding, data_format, dilations)


def _gather(params, indices, validate_indices=None, axis=None, batch_dims=0, name=None):
    if batch_dims:
        raise _Unknown
    return ops.take(params, indices, axis=0 if axis is None else int(axis))


def _crelu(features, axis=-1, name=None):
    return ops.concatenate([ops.relu(features), ops.relu(ops.negative(features))], axis=axis)


def _local_response_normalization(input, depth_radius=5, bias=1.0, alpha=1.0, beta=0.5, name=None):
    channels, radius = input.shape[-1], int(depth_radius)
    widths = [(0, 0)] * (len(input.shape) - 1) + [(radius, radius)]
    squares = ops.pad(ops.square(input), widths)
    near = _add_n([squares[..., k : k + channels] for k in range(2 * radius + 1)])
    return input / ops.power(bias + alpha * near, beta)


def _gelu(features, approximate: bool = False, name=None):
    return ops.gelu(features, approximate=approximate)


def _leaky_relu(features, alpha: float = 0.2, name=None):
    return ops.leaky_relu(features, negative_slope=float(alpha))


def _swish(features, beta: float = 1.0):
    return ops.silu(features) if beta == 1 else features * ops.sigmoid(features * beta)


def _squared_difference(x, y, name=None):
    return ops.square(ops.subtract(x, y))


def _add_n(inputs, name=None):
    total = inputs[0]
    for one in inputs[1:]:
        total = ops.add(total, one)
    return total


def _bias_add(value, bias, data_format=None, name=None):
    if data_format not in (None, "NHWC"):
        raise _Unknown
    return ops.add(value, bias)


def _clip(t, clip_value_min, clip_value_max, name=None):
    if _is_symbolic(clip_value_min) or _is_symbolic(clip_value_max):
        return ops.minimum(ops.maximum(t, clip_value_min), clip_value_max)
    return ops.clip(t, float(clip_value_min), float(clip_value_max))


def _squares(x, axis, keepdims: bool):
    return ops.sum(ops.square(x), axis=_axes(axis), keepdims=keepdims)


def _l2_normalize(x, axis=None, epsilon: float = 1e-12, name=None):
    return x * ops.rsqrt(ops.maximum(_squares(x, axis, True), epsilon))


def _norm(tensor, ord="euclidean", axis=None, keepdims=None, name=None):
    if ord != "euclidean":
        raise _Unknown
    return ops.sqrt(_squares(tensor, axis, bool(keepdims)))


def _split(value, num_or_size_splits, axis=0, num=None, name=None):
    if isinstance(num_or_size_splits, int):
        return ops.split(value, num_or_size_splits, axis=int(axis))
    sizes = _sizes(num_or_size_splits)
    if -1 in sizes:
        raise _Unknown
    return ops.split(value, [int(one) for one in np.cumsum(sizes)[:-1]], axis=int(axis))


def _pad(tensor, paddings, mode="CONSTANT", name=None, constant_values=0):
    widths = tuple(_sizes(one) for one in paddings)
    if mode.lower() != "constant":
        return ops.pad(tensor, widths, mode=mode.lower())
    return ops.pad(tensor, widths, constant_values=constant_values)


def _shape(input, *_: Any, **__: Any):
    if None in input.shape:
        raise _Unknown
    return np.array(input.shape, np.int32)


def _cast(x, dtype, name=None):
    return ops.cast(x, tf.as_dtype(dtype).name)


def _matmul(a, b, transpose_a=False, transpose_b=False, name=None):
    a = ops.swapaxes(a, -1, -2) if transpose_a else a
    return ops.matmul(a, ops.swapaxes(b, -1, -2) if transpose_b else b)


def _einsum(equation, *inputs, name=None):
    """Keras takes small letters alone, and no blanks: "bhwc, bHWc->bhwHW"."""
    equation = equation.replace(" ", "")
    letters = dict.fromkeys(filter(str.isalpha, equation))
    small = [one for one in string.ascii_lowercase if one not in letters]
    large = [one for one in letters if one.isupper()]
    if len(large) > len(small):
        raise _Unknown
    names = dict(zip(large, small, strict=False))
    return ops.einsum("".join(names.get(one, one) for one in equation), *inputs)


def _resize(
    images, size, method="bilinear", preserve_aspect_ratio=False, antialias=False, name=None
):
    if preserve_aspect_ratio:
        raise _Unknown
    method = getattr(method, "value", method)
    return ops.image.resize(images, _sizes(size), interpolation=method, antialias=bool(antialias))


def _blocks(function: Callable) -> Callable:
    def applied(input, block_size, data_format="NHWC", name=None):
        if data_format != "NHWC":
            raise _Unknown
        return function(input, int(block_size), "channels_last")

    return applied


def _patches(images, sizes, strides, rates, padding, name=None):
    size, strides, rates = map(_window, (sizes, strides, rates))
    if len(set(np.atleast_1d(rates))) != 1:
        raise _Unknown
    rate = int(np.atleast_1d(rates)[0])
    return ops.image.extract_patches(
        images, size, strides, rate, padding.lower(), data_format="channels_last"
    )


def _repeat(input, repeats, axis=None, name=None):
    repeats = _sizes(repeats)
    return ops.repeat(input, repeats[0] if len(repeats) == 1 else list(repeats), axis)


def _crop(image, offset_height, offset_width, target_height, target_width):
    if len(image.shape) != 4:
        raise _Unknown
    top, left, height, width = _sizes([offset_height, offset_width, target_height, target_width])
    return image[:, top : top + height, left : left + width]


def _pad_image(image, offset_height, offset_width, target_height, target_width):
    if len(image.shape) != 4 or None in image.shape[1:3]:
        raise _Unknown
    top, left, height, width = _sizes([offset_height, offset_width, target_height, target_width])
    rows, columns = image.shape[1:3]
    widths = (0, 0), (top, height - top - rows), (left, width - left - columns), (0, 0)
    return ops.pad(image, widths)


def _slice(input_, begin, size, name=None):
    starts, sizes = _sizes(begin), _sizes(size)
    places = zip(starts, sizes, strict=True)
    return input_[tuple(slice(a, None if n == -1 else a + n) for a, n in places)]


def _expand_dims(input, axis, name=None):
    return ops.expand_dims(input, int(axis))


FUNCTIONS: dict[str, Callable] = {
    **{
        name: _of_one(getattr(ops, {"neg": "negative"}.get(name, name)))
        for name in (
            *("relu", "relu6", "elu", "selu", "sigmoid", "tanh", "softplus", "softsign", "erf"),
            *("exp", "log", "log1p", "sqrt", "rsqrt", "square", "reciprocal", "abs", "sign", "neg"),
            *("sin", "cos", "floor", "ceil", "round", "stop_gradient"),
        )
    },
    **{
        name: _of_two(getattr(ops, {"div_no_nan": "divide_no_nan", "pow": "power"}.get(name, name)))
        for name in (
            *("add", "subtract", "multiply", "maximum", "minimum", "pow", "div_no_nan"),
            *("greater", "greater_equal", "less", "less_equal", "equal", "not_equal"),
        )
    },
    "truediv": _of_two(ops.divide),
    "reduce_mean": _reduction(ops.mean),
    "reduce_sum": _reduction(ops.sum),
    "reduce_max": _reduction(ops.max),
    "reduce_min": _reduction(ops.min),
    "reduce_prod": _reduction(ops.prod),
    "reduce_std": _reduction(ops.std),
    "reduce_variance": _reduction(ops.var),
    "max_pool2d": _pooling(ops.max_pool),
    "avg_pool2d": _pooling(ops.average_pool),
    "avg_pool_v2": _pooling(ops.average_pool),
    "conv2d_v2": _convolution(ops.conv),
    "depthwise_conv2d_v2": _depthwise_convolution,
    "gather_v2": _gather,
    "crelu_v2": _crelu,
    "lrn": _local_response_normalization,
    "identity": lambda input, name=None: input,
    "convert_to_tensor_v2_with_dispatch": lambda value, *_, **__: value,
    "gelu": _gelu,
    "leaky_relu": _leaky_relu,
    "swish": _swish,
    "softmax_v2": _over_one_axis(ops.softmax),
    "log_softmax_v2": _over_one_axis(ops.log_softmax),
    "squared_difference": _squared_difference,
    "add_n": _add_n,
    "bias_add": _bias_add,
    "clip_by_value": _clip,
    "l2_normalize": _l2_normalize,
    "norm": _norm,
    "where_v2": lambda condition, x=None, y=None, name=None: ops.where(condition, x, y),
    "concat": lambda values, axis, name=None: ops.concatenate(values, axis=int(axis)),
    "stack": lambda values, axis=0, name=None: ops.stack(values, axis=axis),
    "unstack": lambda value, num=None, axis=0, name=None: ops.unstack(value, num, axis),
    "split": _split,
    "reshape": lambda tensor, shape, name=None: ops.reshape(tensor, _sizes(shape)),
    "transpose": lambda a, perm=None, conjugate=False, name=None: ops.transpose(a, _axes(perm)),
    "expand_dims_v2": _expand_dims,
    "squeeze": lambda input, axis=None, name=None: ops.squeeze(input, _axes(axis)),
    "tile": lambda input, multiples, name=None: ops.tile(input, _sizes(multiples)),
    "repeat": _repeat,
    "pad": _pad,
    "roll": lambda input, shift, axis, name=None: ops.roll(input, shift, axis),
    "reverse_v2": lambda tensor, axis, name=None: ops.flip(tensor, _axes(axis)),
    "broadcast_to": lambda input, shape, name=None: ops.broadcast_to(input, _sizes(shape)),
    "ones_like_v2": lambda input, *_, **__: ops.ones_like(input),
    "zeros_like_v2": lambda input, *_, **__: ops.zeros_like(input),
    "shape": _shape,
    "rank": lambda input, name=None: len(input.shape),
    "cast": _cast,
    "matmul": _matmul,
    "einsum": _einsum,
    "tensordot": lambda a, b, axes, name=None: ops.tensordot(a, b, axes),
    "resize_images_v2": _resize,
    "depth_to_space_v2": _blocks(ops.depth_to_space),
    "space_to_depth_v2": _blocks(ops.space_to_depth),
    "extract_image_patches_v2": _patches,
    "crop_to_bounding_box": _crop,
    "pad_to_bounding_box": _pad_image,
    "slice": _slice,
}
