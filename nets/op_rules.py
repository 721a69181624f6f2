"""What `keras.ops` operations in a functional graph do to channels: rules by operation name."""

import keras
import numpy as np

from .channels import Ids, NoRule, Site
from .layer_rules import concatenate_rule, merge_rule, same_rule

# Operations on every number by itself.
POINTWISE = frozenset(
    "Relu Relu6 Sigmoid SparseSigmoid Softplus Softsign SoftShrink SparsePlus Silu Squareplus "
    "LogSigmoid LeakyRelu HardSigmoid HardSilu Elu Selu Gelu Celu TanhShrink HardTanh HardShrink "
    "Threshold Absolute Abs Negative Exp Expm1 Log Log1p Sqrt Rsqrt Square Reciprocal Sin Cos Tanh "
    "Sinh Cosh Arctan Clip Sign Floor Ceil Round Cast StopGradient Erf Copy".split()
)
MERGES = frozenset(
    "Add Subtract Multiply Divide TrueDivide DivideNoNan Maximum Minimum Power".split()
)
REDUCTIONS = frozenset("Mean Sum Max Min Amax Amin Var Std Prod".split())
POOLING = frozenset("MaxPool AveragePool".split())


def _reduction_rule(ids: Ids, site: Site) -> np.ndarray:
    rank, axis = len(site.in_shapes[0]), site.layer.axis
    axes = {one % rank for one in np.atleast_1d(axis)} if axis is not None else {rank - 1}
    if rank - 1 in axes:
        raise NoRule("runs over the channels")
    return site.inputs[0]


def _expand_dims_rule(ids: Ids, site: Site) -> np.ndarray:
    rank = len(site.out_shape)
    if rank - 1 in {axis % rank for axis in np.atleast_1d(site.layer.axis)}:
        raise NoRule("moves the channels to another axis")
    return site.inputs[0]


def _squeeze_rule(ids: Ids, site: Site) -> np.ndarray:
    rank, axis = len(site.in_shapes[0]), site.layer.axis
    if axis is None or rank - 1 in {one % rank for one in np.atleast_1d(axis)}:
        raise NoRule("may drop the channel axis")
    return site.inputs[0]


def _transpose_rule(ids: Ids, site: Site) -> np.ndarray:
    rank, axes = len(site.in_shapes[0]), site.layer.axes
    if axes is None or axes[-1] % rank != rank - 1:
        raise NoRule("moves the channels to another axis")
    return site.inputs[0]


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
    data_format = site.layer.data_format or keras.config.image_data_format()
    if data_format != "channels_last":
        raise NoRule("works on channels_first")
    return site.inputs[0]


RULES = {
    **dict.fromkeys(POINTWISE, same_rule),
    **dict.fromkeys(MERGES, merge_rule),
    **dict.fromkeys(REDUCTIONS, _reduction_rule),
    **dict.fromkeys(POOLING, _pooling_rule),
    "Concatenate": concatenate_rule,
    "ExpandDims": _expand_dims_rule,
    "Squeeze": _squeeze_rule,
    "Transpose": _transpose_rule,
    "Pad": _pad_rule,
    "Reshape": _reshape_rule,
}


# Operations that multiply nothing with anything but a number per place.
FREE = frozenset({*RULES, *"GetItem Slice Split Stack Softmax Flip Roll Resize".split()})


def follow(ids: Ids, site: Site) -> np.ndarray:
    """Channel ids of an operation's output.

    Raises:
        NoRule: the channels can't be followed.
    """
    name = type(site.layer).__name__
    if name not in RULES:
        raise NoRule("has no rule")
    for constant in site.constants:
        shape = np.shape(constant)
        if shape and shape[-1] > 1:
            raise NoRule("has a constant per channel")
    return RULES[name](ids, site)
