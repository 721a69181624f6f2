"""What `keras.ops` operations in a functional graph do to channels: rules by operation name."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from .channels import Ids, NoRule, Site
from .keras_graph import Call
from .layer_rules import concatenate_rule, merge_rule, product_rule, same_rule
from .products import OPERATIONS

# Operations on every number by itself.
POINTWISE = frozenset(
    "Relu Relu6 Sigmoid SparseSigmoid Softplus Softsign SoftShrink SparsePlus Silu Squareplus "
    "LogSigmoid LeakyRelu HardSigmoid HardSilu Elu Selu Gelu Celu TanhShrink HardTanh HardShrink "
    "Threshold Absolute Abs Negative Exp Expm1 Log Log1p Sqrt Rsqrt Square Reciprocal Sin Cos Tanh "
    "Sinh Cosh Arctan Clip Sign Floor Ceil Round Cast StopGradient Erf Copy "
    "OnesLike ZerosLike FullLike Tan Arcsinh Arctanh Trunc Exp2 Log2 Log10 Cbrt Deg2rad Rad2deg "
    "NanToNum Isnan Isfinite Isinf "
    "ReLU".split()  # the last one is of keras.activations
)
MERGES = frozenset(
    "Add Subtract Multiply Divide TrueDivide DivideNoNan FloorDivide Mod Fmod Maximum Minimum "
    "Power Logaddexp Hypot Arctan2".split()
)
REDUCTIONS = frozenset("Mean Sum Max Min Amax Amin Var Std Prod".split())
POOLING = frozenset("MaxPool AveragePool".split())
CONDITIONS = frozenset(
    "Where LogicalAnd LogicalOr LogicalNot Equal NotEqual Greater GreaterEqual Less "
    "LessEqual".split()
)
PARTS = 8  # that channels are taken apart into by hand, at most


def _along_channels(axis: int | Sequence[int] | None, rank: int) -> bool:
    """Whether the axis, or one of the axes, is the last one; None: all axes."""
    return axis is None or rank - 1 in {one % rank for one in np.atleast_1d(axis)}


def _beside_channels(why: str) -> Callable[[Ids, Site], np.ndarray]:
    """A rule for what hands channels on as long as it works along other axes than theirs."""

    def rule(ids: Ids, site: Site) -> np.ndarray:
        if _along_channels(site.layer.axis, len(site.in_shapes[0])):
            raise NoRule(why)
        return site.inputs[0]

    return rule


def _expand_dims_rule(ids: Ids, site: Site) -> np.ndarray:
    if _along_channels(site.layer.axis, len(site.out_shape)):
        raise NoRule("moves the channels to another axis")
    return site.inputs[0]


def _patches_rule(ids: Ids, site: Site) -> np.ndarray:
    """A patch has its places side by side, each with all channels."""
    _check_format(site)
    return np.tile(site.inputs[0], site.out_shape[-1] // len(site.inputs[0]))


def _depth_to_space_rule(ids: Ids, site: Site) -> np.ndarray:
    """A channel of every place in a block: these are one.

    Blocks of 2 x 2 of channels [0, 1, ..., 7]: 0-2-4-6, 1-3-5-7.
    """
    _check_format(site)
    rows = site.inputs[0].reshape(site.layer.block_size**2, -1)
    ids.tie_rows(rows)
    return rows[0]


def _transpose_rule(ids: Ids, site: Site) -> np.ndarray:
    rank, axes = len(site.in_shapes[0]), site.layer.axes
    if axes is None or axes[-1] % rank != rank - 1:
        raise NoRule("moves the channels to another axis")
    return site.inputs[0]


def _swapaxes_rule(ids: Ids, site: Site) -> np.ndarray:
    if _along_channels((site.layer.axis1, site.layer.axis2), len(site.in_shapes[0])):
        raise NoRule("moves the channels to another axis")
    return site.inputs[0]


def _unstack_rule(ids: Ids, site: Site) -> list[np.ndarray]:
    rank = len(site.in_shapes[0])
    axis = site.layer.axis % rank
    if axis == rank - 1:
        raise NoRule("runs over the channels")
    return [site.inputs[0]] * (site.layer.num or site.in_shapes[0][axis])


def _pad_rule(ids: Ids, site: Site) -> np.ndarray:
    if len(site.layer.pad_width) == 1 or tuple(site.layer.pad_width[-1]) != (0, 0):
        raise NoRule("pads the channels")
    return site.inputs[0]


def _reshape_rule(ids: Ids, site: Site) -> np.ndarray:
    # The number of channels stands in the operation; only -1 also fits the pruned network.
    if site.layer.newshape[-1] != -1 or site.out_shape[-1] != len(site.inputs[0]):
        raise NoRule("reshapes to a fixed number of channels")
    return site.inputs[0]


def _pooling_rule(ids: Ids, site: Site) -> np.ndarray:
    _check_format(site)
    return site.inputs[0]


def _check_format(site: Site) -> None:
    data_format = site.layer.data_format or keras.config.image_data_format()
    if data_format != "channels_last":
        raise NoRule("works on channels_first")


def _keys_of(key: Any, rank: int, *, fresh_axes: bool = False) -> list:
    """What x[key] takes of the axes, from the first on; None: a fresh one of size 1.

    Raises:
        NoRule: it adds an axis, unless there may be `fresh_axes`.
    """
    keys = list(key) if isinstance(key, (tuple, list)) else [key]
    fresh = sum(one is None for one in keys)
    if fresh and not fresh_axes:
        raise NoRule("adds an axis")
    if Ellipsis in keys:
        place = keys.index(Ellipsis)
        missing = rank - (len(keys) - 1 - fresh)
        keys[place : place + 1] = [slice(None)] * missing
    return keys


def channels_taken(call: Call) -> tuple[tuple[int, int], list] | None:
    """((first, end), keys of the other axes) where a call takes neighbouring channels, x[..., a:b];
    None for another call."""
    if type(call.operation).__name__ != "GetItem" or len(call.inputs) != 1:
        return None
    *axes, width = call.inputs[0].shape
    try:
        *others, last = _keys_of(call.values[1], len(axes) + 1)
    except NoRule:
        return None
    if len(others) != len(axes) or not isinstance(last, slice) or not width:
        return None
    start, stop, step = last.indices(width)
    return ((start, stop), others) if step == 1 and start < stop else None


def equal_part(call: Call) -> tuple[int, int] | None:
    """(parts, number) where a call takes one of a few equal parts of the channels, x[..., :c]; None
    for another call. As a part of a split it goes on to do so where there are fewer channels."""
    if (taken := channels_taken(call)) is None:
        return None
    (start, stop), others = taken
    size, width = stop - start, call.inputs[0].shape[-1]
    if not all(isinstance(one, slice) and one == slice(None) for one in others):
        return None
    if width % size or start % size or not 1 < width // size <= PARTS:
        return None
    return width // size, start // size


def _item_rule(ids: Ids, site: Site) -> np.ndarray:
    """Slices on other axes than the channels', and axes of size 1 before them."""
    rank = len(site.in_shapes[0])
    keys = _keys_of(site.arguments[1], rank, fresh_axes=True)
    taken = [one for one in keys if one is not None]
    if len(taken) == rank and keys[-1] is None:
        raise NoRule("moves the channels to another axis")
    if len(taken) == rank and not _takes_all(keys[-1], len(site.inputs[0])):
        raise NoRule("takes some of the channels")
    return site.inputs[0]


def _takes_all(key, width: int) -> bool:
    """Whether a slice takes every channel, and goes on to do so where there are fewer."""
    plain = isinstance(key, slice) and key.start in (None, 0) and key.step in (None, 1)
    return plain and (key.stop is None or key.stop >= width)


def _split_rule(ids: Ids, site: Site) -> list[np.ndarray]:
    """Parts of equal size stay so: their k-th channels are tied. Other axes leave channels alone.

    Channels [0, 1, 2, 3] in two parts: [0, 1] and [2, 3], 0-2, 1-3.
    """
    parts, rank = site.layer.indices_or_sections, len(site.in_shapes[0])
    count = parts if isinstance(parts, int) else len(parts) + 1
    if site.layer.axis % rank != rank - 1:
        return [site.inputs[0]] * count
    if not isinstance(parts, int):
        raise NoRule("splits the channels at fixed places")
    rows = site.inputs[0].reshape(parts, -1)
    ids.tie_rows(rows)
    return list(rows)


def _stack_rule(ids: Ids, site: Site) -> np.ndarray:
    if site.layer.axis % len(site.out_shape) == len(site.out_shape) - 1:
        raise NoRule("moves the channels to another axis")
    for other in site.inputs[1:]:
        ids.tie(site.inputs[0], other)
    return site.inputs[0]


def _tile_rule(ids: Ids, site: Site) -> np.ndarray:
    if np.atleast_1d(site.layer.repeats)[-1] != 1:
        raise NoRule("repeats the channels")
    return site.inputs[0]


def _moments_rule(ids: Ids, site: Site) -> list[np.ndarray]:
    if _along_channels(site.layer.axes, len(site.in_shapes[0])):
        raise NoRule("runs over the channels")
    return [site.inputs[0]] * 2


def _moveaxis_rule(ids: Ids, site: Site) -> np.ndarray:
    rank = len(site.in_shapes[0])
    axes = np.empty(range(rank))  # an axis is known again by its size
    if np.moveaxis(axes, site.layer.source, site.layer.destination).shape[-1] != rank - 1:
        raise NoRule("moves the channels to another axis")
    return site.inputs[0]


def _take_rule(ids: Ids, site: Site) -> np.ndarray:
    if len(site.inputs) > 1:
        raise NoRule("takes places that aren't constant")
    if _along_channels(site.layer.axis, len(site.in_shapes[0])):
        raise NoRule("takes some of the channels")
    return site.inputs[0]


RULES = {
    **dict.fromkeys(POINTWISE, same_rule),
    **dict.fromkeys(MERGES | CONDITIONS, merge_rule),
    **dict.fromkeys(
        REDUCTIONS | {"Cumprod", "Cumsum", "Softmax", "Sort"},
        _beside_channels("runs over the channels"),
    ),
    **dict.fromkeys(("Flip", "Roll"), _beside_channels("turns the channels round")),
    **dict.fromkeys(POOLING, _pooling_rule),
    "Concatenate": concatenate_rule,
    **dict.fromkeys(OPERATIONS, product_rule),
    "GetItem": _item_rule,
    **dict.fromkeys(("CropImages", "PadImages"), _pooling_rule),
    "ExtractPatches": _patches_rule,
    "SpaceToDepth": _patches_rule,
    "DepthToSpace": _depth_to_space_rule,
    "Moments": _moments_rule,
    "Moveaxis": _moveaxis_rule,
    "Take": _take_rule,
    "Tile": _tile_rule,
    "Repeat": _beside_channels("repeats the channels"),
    "Resize": same_rule,
    "Split": _split_rule,
    "Stack": _stack_rule,
    "ExpandDims": _expand_dims_rule,
    "Squeeze": _beside_channels("may drop the channel axis"),
    "Swapaxes": _swapaxes_rule,
    "Transpose": _transpose_rule,
    "Unstack": _unstack_rule,
    "Pad": _pad_rule,
    "Reshape": _reshape_rule,
}


# Operations that multiply nothing with anything but a number per place.
FREE = frozenset(RULES.keys() - OPERATIONS)


def takes_plain_numbers(operation: keras.Operation) -> bool:
    """Whether an input may be a number without channels, for all or for each example."""
    return type(operation).__name__ in POINTWISE | MERGES


def follow(ids: Ids, site: Site) -> np.ndarray | list[np.ndarray]:
    """Channel ids of an operation's output.

    Raises:
        NoRule: the channels can't be followed.
    """
    name = type(site.layer).__name__
    if name not in RULES:
        raise NoRule("has no rule")
    for constant in site.constants:
        shape = tuple(np.shape(constant))
        if shape and shape[-1] > 1 and name not in OPERATIONS | {"Take"}:
            raise NoRule("has a constant per channel")
    return RULES[name](ids, site)
