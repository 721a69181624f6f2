"""Keras's own layers that are made of others, as these others: attention and the like.

An opener takes a layer, its call and a name for the parts, and gives these as a function of the
same arguments, or None where it doesn't know this form of the layer. The parts are stock layers and
`keras.ops`; where they stand, channels can be followed and removed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from ..utils.devices import full_float32
from .keras_graph import (
    Call,
    ends,
    has_graph,
    layers_in,
    origin_of,
    own_variables,
    takes_mask,
    takes_training,
)
from .rebuild import carry_over, rebuilt

L = keras.layers
TRIED = 512, 4  # examples that a layer is tried on, and most of each of their other sizes
SIDES = ("query", "value")  # of attention, in the order of its arguments
FORBIDDEN = -3e4  # a score that a softmax turns into zero, also in half precision
Parts = Callable[..., Any]


def open_attention(
    layer: L.MultiHeadAttention | L.GroupQueryAttention, call: Call, name: str
) -> Parts | None:
    """Attention with several heads as projections, scores, softmax and weighted values.

    Widths of keys and values can be removed, the k-th of all heads together; the scores go on being
    divided by the square root of the original width.
    """
    config, kwargs = layer.get_config(), call.arguments.kwargs
    query, value, *_ = (*call.arguments.args, *(kwargs[key] for key in SIDES if key in kwargs))
    ranks, axes = {len(query.shape), len(value.shape)}, config.get("attention_axes")
    plain = ranks == {3} and axes in ((1,), [1], None)
    grid = ranks == {4} and axes in ((1, 2), [1, 2], None)
    if grid:
        told = [kwargs[key] for key in kwargs if "mask" in key or key == "return_attention_scores"]
        special = any(one is not None and one is not False for one in told)
        grid = not special and None not in query.shape[1:-1]
    if not (plain or grid) or config.get("sliding_window") or config.get("use_gate"):
        return None
    return _Attention(layer, config, name)


class _Attention:
    """Attention between all places, along one axis or on a grid of two."""

    def __init__(self, layer: keras.Layer, config: dict[str, Any], name: str):
        self._config, bias = config, config["use_bias"]
        self._projections = {one.name: one for one in layers_in(layer)}
        common = {"dtype": layer.dtype_policy, "trainable": layer.trainable}
        self._made = {}
        for part in ("query", "key", "value"):
            own, (_, heads, width) = f"{name}_{part}", self._projections[part].kernel.shape
            dense = L.Dense(heads * width, use_bias=bias, name=own, **common)
            split = L.Reshape((-1, heads, width), name=f"{own}_heads", **common)
            self._made[part] = dense, split
        *_, keys = self._projections["query"].kernel.shape
        self._scale = 1 / float(keys) ** 0.5
        self._heads, values, width = self._projections["attention_output"].kernel.shape
        self._output = L.Dense(width, use_bias=bias, name=f"{name}_output", **common)
        self._joined = L.Reshape((-1, self._heads * values), name=f"{name}_joined", **common)
        self._softmax = L.Softmax(name=f"{name}_softmax", **common)
        self._dropout = L.Dropout(config["dropout"], name=f"{name}_dropout", **common)
        self._filled = False

    def __call__(self, query, value, key=None, return_attention_scores=False, **masks):
        tensors = {"query": query, "value": value, "key": value if key is None else key}
        masked = masks.get("query_mask") is not None or masks.get("value_mask") is not None
        split = {name: self._split(name, tensor, masked) for name, tensor in tensors.items()}
        scores = keras.ops.einsum("bthd,bshd->bhts", split["query"] * self._scale, split["key"])
        weights = self._weights(scores, told=return_attention_scores, **masks)
        mixed = keras.ops.einsum("bhts,bshd->bthd", self._dropout(weights), split["value"])
        output = self._output(self._joined(mixed))
        if not self._filled:
            self._fill()
        if len(query.shape) > 3:
            output = keras.ops.reshape(output, (-1, *query.shape[1:-1], output.shape[-1]))
        return (output, weights) if return_attention_scores else output

    def _weights(self, scores: Any, told: bool, **masks: Any) -> Any:
        """Softmax of the scores [n, heads, query, key] where no mask forbids it.

        Args:
            told: whether it is an output of the layer.
        """
        mask = _attention_mask(scores, **masks)
        if mask is None:
            return self._softmax(scores)
        if self._config["dropout"] or told:  # as Keras: a query that sees nothing gets zeros
            return self._softmax(scores, mask=mask)
        return self._softmax(keras.ops.where(mask, scores, FORBIDDEN))  # or the mean of all

    def _split(self, name: str, tensor: Any, masked: bool) -> Any:
        dense, split = self._made[name]
        tensor = dense(tensor)
        # A Dense hands its input's mask on, and Reshape warns that it doesn't; a copy has none.
        heads = split(keras.ops.copy(tensor) if masked else tensor)
        times = self._heads // heads.shape[-2]  # grouped queries have keys and values in common
        return heads if times == 1 else keras.ops.repeat(heads, times, axis=2)

    def _fill(self) -> None:
        for name, (dense, _) in self._made.items():
            _take(dense, self._projections[name])
        _take(self._output, self._projections["attention_output"])
        self._filled = True


def _attention_mask(
    scores: Any,
    query_mask: Any = None,
    value_mask: Any = None,
    key_mask: Any = None,
    attention_mask: Any = None,
    use_causal_mask: bool = False,
    **_: Any,
) -> Any:
    """What every query may look at, bool [n, heads or 1, query, key] or broadcast to it; None: all.

    Args:
        scores: [n, heads, query, key]. query_mask, value_mask, key_mask: bool [n, steps].
        attention_mask: [n, query, key], or with an axis for the heads.
    """
    ops, found = keras.ops, []
    if query_mask is not None:
        found.append(ops.cast(query_mask, "bool")[:, None, :, None])
    found += [
        ops.cast(one, "bool")[:, None, None] for one in (value_mask, key_mask) if one is not None
    ]
    if attention_mask is not None:
        mask = ops.cast(attention_mask, "bool")
        found.append(mask[:, None] if len(mask.shape) == 3 else mask)
    if use_causal_mask:
        ones = ops.ones_like(scores[:, :1], dtype="int32")
        found.append(ops.cumsum(ones, axis=-2) >= ops.cumsum(ones, axis=-1))
    mask = found.pop() if found else None
    for one in found:
        mask = ops.logical_and(mask, one)
    return mask


def open_scored_attention(
    layer: L.Attention | L.AdditiveAttention, call: Call, name: str
) -> Parts | None:
    """Attention of one head without projections: scores by products or by a sum of tanh's, softmax
    and weighted values.

    Channels of query and key go together; the sum of tanh's is a Dense of one unit without a bias.
    """
    return _Scored(layer, name) if {len(one.shape) for one in call.inputs[:2]} == {3} else None


class _Scored:
    """Attention between all steps of a query and a value, each [n, steps, channels]."""

    def __init__(self, layer: L.Attention, name: str):
        common = {"dtype": layer.dtype_policy, "trainable": layer.trainable}
        self._layer, self._sum, factor = layer, None, layer.scale
        if isinstance(layer, L.AdditiveAttention) or layer.score_mode == "concat":
            self._sum = L.Dense(1, use_bias=False, name=f"{name}_scores", **common)
        if isinstance(layer, L.AdditiveAttention):
            factor = None  # one for each channel, the kernel of the sum
        self._scale = None
        if factor is not None:
            self._scale = L.Rescaling(float(factor), name=f"{name}_scale", **common)
        self._softmax = L.Softmax(name=f"{name}_softmax", **common)
        self._dropout = L.Dropout(layer.dropout, name=f"{name}_dropout", **common)

    def __call__(
        self, inputs, mask=None, return_attention_scores=False, use_causal_mask=False, **_
    ):
        ops, (query, value, *rest) = keras.ops, inputs
        key = rest[0] if rest else value
        if query.shape[0] == 1 != key.shape[0]:  # learned queries, the same for all examples
            query = query + ops.zeros_like(key[:, :1])
        scores = self._scores(query, key)
        query_mask, value_mask = (mask[0], mask[1]) if mask else (None, None)
        allowed = _attention_mask(
            scores[:, None], value_mask=value_mask, use_causal_mask=use_causal_mask
        )
        if allowed is not None:
            scores = ops.where(allowed[:, 0], scores, FORBIDDEN)
        weights = self._dropout(self._softmax(scores))
        mixed = ops.einsum("bts,bsd->btd", weights, value)
        if query_mask is not None:
            mixed = mixed * ops.cast(query_mask, mixed.dtype)[..., None]
        return (mixed, weights) if return_attention_scores else mixed

    def _scores(self, query: Any, key: Any) -> Any:
        """[n, query, key]"""
        ops = keras.ops
        if self._sum is None:
            scores = ops.einsum("btd,bsd->bts", query, key)
            return scores if self._scale is None else self._scale(scores)
        pairs = ops.expand_dims(query, 2) + ops.expand_dims(key, 1)
        tanh = ops.tanh(pairs if self._scale is None else self._scale(pairs))
        fresh = not self._sum.built
        scores = self._sum(tanh)
        if fresh:
            self._sum.kernel.assign(ops.broadcast_to(self._weights(), self._sum.kernel.shape))
        return ops.squeeze(scores, -1)

    def _weights(self) -> Any:
        """Of the channels in the sum, [channels, 1] or a number."""
        if not isinstance(self._layer, L.AdditiveAttention):
            return self._layer.concat_score_weight
        return 1.0 if self._layer.scale is None else self._layer.scale[:, None]


def open_einsum_dense(layer: L.EinsumDense, call: Call, name: str) -> Parts | None:
    """An EinsumDense over the last axes alone as a Dense, such as "abc,cde->abde", which makes the
    heads of an attention; several axes are one for the Dense."""
    sides, _, output = layer.equation.replace(" ", "").partition("->")
    given, _, kernel = sides.partition(",")
    over = len(given) - len(given.rstrip(kernel))  # how many axes it sums over
    leading, new = given[: len(given) - over], kernel[over:]
    alike = over and new and leading and given[-over:] == kernel[:over] and output == leading + new
    sizes = tuple(layer.kernel.shape[over:])
    biased = layer.bias is not None
    if not alike or (biased and tuple(layer.bias.shape) != sizes):
        return None
    if max(over, len(new)) > 1 and len(leading) > 2 and None in call.inputs[0].shape[1:]:
        return None
    common = {"dtype": layer.dtype_policy, "trainable": layer.trainable}
    units, summed = math.prod(sizes), math.prod(layer.kernel.shape[:over])
    dense = L.Dense(units, activation=layer.activation, use_bias=biased, name=name, **common)
    parts = _filled_from(dense, layer)

    def shaped(x: Any, last: tuple[int, ...], suffix: str) -> Any:
        if len(leading) > 2:
            return keras.ops.reshape(x, (-1, *x.shape[1 : len(leading)], *last))
        steps = (-1,) * (len(leading) - 1)
        made = shapes.setdefault(suffix, L.Reshape((*steps, *last), name=name + suffix, **common))
        return made(x)

    shapes: dict[str, L.Reshape] = {}

    def between(x: Any, **_: Any) -> Any:
        x = shaped(x, (summed,), "_joined") if over > 1 else x
        x = parts(x)
        return shaped(x, sizes, "_apart") if len(new) > 1 else x

    return between


def open_time_distributed(layer: L.TimeDistributed, call: Call, name: str) -> Parts | None:
    """What a TimeDistributed holds, called once on the steps of all examples.

    A Dense, which works on every step by itself, is called on its input as it is.
    """
    inner, steps = layer.layer, call.inputs[0].shape[1]
    masked = len(call.inputs) != 1 or call.mask is not None
    if masked and takes_mask(inner):
        return None
    if type(inner) is L.Identity:  # such as `Given.finished` sets at the end
        return lambda x, **_: x
    config = {"name": name, "trainable": layer.trainable}
    if type(inner) is L.Dense:
        return _filled_from(L.Dense.from_config(inner.get_config() | config), inner)
    if steps is None or (isinstance(inner, keras.Model) and not has_graph(inner)):
        return None
    if isinstance(inner, keras.Model):
        copy = rebuilt(inner)
        made = keras.Model(*ends(copy), name=name)
    else:
        made = type(inner).from_config(inner.get_config() | config)
    return _Steps(inner, made, steps)


class _Steps:
    """A layer called on the steps of a tensor as if they were examples: all first steps, all second
    ones, ... What such calls pass on to each other isn't taken apart in between."""

    def __init__(self, source: keras.Layer, made: keras.Layer, steps: int):
        self._source, self._made, self._steps = source, made, steps

    def __call__(self, x, training=None, **_):
        made, joined = self._made, self._joined(x)
        if joined is None:
            joined = keras.ops.concatenate(keras.ops.unstack(x, axis=1), axis=0)
        told = training is not None and takes_training(made)
        fresh = not made.built
        y = made(joined, training=training) if told else made(joined)
        if fresh:
            carry_over(self._source, made)
        return keras.ops.stack(keras.ops.split(y, self._steps, axis=0), axis=1)

    def _joined(self, x) -> Any:
        """What a call before this one gave for all steps; None if x comes of something else."""
        stack = origin_of(x)
        if stack is None or not _works_along(stack, "Stack", x, axis=1):
            return None
        first = origin_of(stack.inputs[0])
        if first is None or not _works_along(first, "Split", stack.inputs[0], axis=0):
            return None
        whole = all(made is one for made, one in zip(first.outputs, stack.inputs, strict=False))
        same = len(first.outputs) == len(stack.inputs) == self._steps
        return first.inputs[0] if whole and same else None


def _works_along(call: Call, name: str, tensor: keras.KerasTensor, axis: int) -> bool:
    """Whether a call is of the operation of this name, along an axis of a tensor it has made."""
    operation = call.operation
    return type(operation).__name__ == name and operation.axis % len(tensor.shape) == axis


def _filled_from(dense: L.Dense, source: keras.Layer) -> Parts:
    def parts(x, **_):
        built = dense.built
        output = dense(x)
        if not built:
            _take(dense, source)
        return output

    return parts


def _take(dense: L.Dense, source: keras.Layer) -> None:
    """Gives a Dense the kernel [in, out] and the bias of a layer with the same in other shapes."""
    dense.kernel.assign(keras.ops.reshape(source.kernel, dense.kernel.shape))
    if dense.bias is not None:
        dense.bias.assign(keras.ops.reshape(source.bias, dense.bias.shape))


def _passes_states(layer: L.RNN, call: Call) -> bool:
    """Whether a recurrent layer is given states, or keeps them or gives them back."""
    given = call.arguments.kwargs.get("initial_state") is not None or len(call.arguments.args) > 1
    return given or layer.return_state or layer.stateful


def open_bidirectional(layer: L.Bidirectional, call: Call, name: str) -> Parts | None:
    """Both directions as layers of their own, and their merge."""
    merges = {"concat": L.Concatenate, "sum": L.Add, "mul": L.Multiply, "ave": L.Average}
    one = layer.forward_layer
    if layer.merge_mode not in merges or _passes_states(one, call):
        return None
    sides = []
    for side in (layer.forward_layer, layer.backward_layer):
        config = side.get_config() | {"name": f"{name}_{side.name}"}
        sides.append((side, type(side).from_config(config)))
    merge = merges[layer.merge_mode](name=f"{name}_merged")

    def parts(x, mask=None, **_):
        built = sides[0][1].built
        outputs = [copy(x, mask=mask) for _, copy in sides]
        if not built:
            for side, copy in sides:
                carry_over(side, copy)
        if one.return_sequences:
            outputs[1] = keras.ops.flip(outputs[1], axis=1)
        return merge(outputs)

    return parts


CELLS = {L.SimpleRNNCell: L.SimpleRNN, L.GRUCell: L.GRU, L.LSTMCell: L.LSTM}


def open_rnn(layer: L.RNN, call: Call, name: str) -> Parts | None:
    """An RNN around Keras's own cells as a recurrent layer for each of them."""
    cells = layer.cell.cells if isinstance(layer.cell, L.StackedRNNCells) else [layer.cell]
    if {*map(type, cells)} - CELLS.keys() or _passes_states(layer, call):
        return None
    made = []
    for number, cell in enumerate(cells):
        last = number == len(cells) - 1
        config = cell.get_config() | {
            "name": f"{name}_{cell.name}" if len(cells) > 1 else name,
            "return_sequences": layer.return_sequences or not last,
            "go_backwards": layer.go_backwards and number == 0,
            "unroll": layer.unroll,
            "zero_output_for_mask": layer.zero_output_for_mask and last,
            "trainable": layer.trainable,
        }
        made.append(CELLS[type(cell)].from_config(config))

    def parts(x, mask=None, **_):
        fresh = not made[0].built
        for one in made:
            x = one(x, mask=mask)
        if fresh:
            for one, cell in zip(made, cells, strict=True):
                one.cell.set_weights(cell.get_weights())
        return x

    return parts


def stock_norm_like(layer: keras.Layer, call: Call, name: str) -> Parts | None:
    """A custom layer with a weight per channel, as the stock normalisation that it may be.

    Whether it is that one shows when the two are compared; None where it can't be.
    """
    weights = list(own_variables(layer))
    tensors = call.inputs
    if len(tensors) != 1 or len(layers_in(layer)) > 1 or not weights:
        return None
    if any(tuple(one.shape) != tuple(tensors[0].shape[-1:]) for one in weights):
        return None
    small = [
        value for value in vars(layer).values() if isinstance(value, float) and 0 < value <= 1e-2
    ]
    for epsilon in dict.fromkeys(small):
        options = {"epsilon": epsilon, "name": name, "dtype": layer.dtype_policy}
        norm = L.RMSNormalization(**options) if len(weights) == 1 else None
        if norm is None:
            continue
        norm.build(tensors[0].shape)
        norm.scale.assign(weights[0])
        norm.trainable = layer.trainable
        if _alike(layer, norm, tensors[0].shape):
            return lambda x, norm=norm, **_: norm(x)
    return None


@full_float32()
def dropout_like(layer: keras.Layer, call: Call, name: str) -> L.Dropout | None:
    """A custom layer that leaves out whole examples in training, as stochastic depth does, as the
    stock Dropout that it is; None for any other."""
    if layer.weights or len(call.inputs) != 1 or not takes_training(layer):
        return None
    examples, most = TRIED
    shape = (examples, *(min(size or 2, most) for size in call.inputs[0].shape[1:]))
    rng = np.random.default_rng(0)  # numbers of both signs and every size
    x = (rng.choice([-1, 1], shape) * np.exp(rng.uniform(-7, 7, shape))).astype(np.float32)
    try:
        same, dropped = (np.asarray(layer(x, training=training)) for training in (False, True))
    except Exception:  # the layer's own code may raise anything
        return None
    if layer.losses or not same.shape == dropped.shape == shape or not np.array_equal(same, x):
        return None
    factors = (dropped / x).reshape(examples, -1)
    kept = factors[factors[:, 0] > 0]
    scale = float(np.median(kept)) if len(kept) else 0.0
    whole = np.abs(factors - np.where(factors[:, :1] > 0, scale, 0)).max() <= 1e-4
    # As often as it has to be for the mean to stay, but for chance.
    share = len(kept) / examples * scale
    if not whole or scale < 1 or abs(share - 1) > 6 * np.sqrt((scale - 1) / examples):
        return None
    rate = round(1 - 1 / scale, 5)
    ones = (1,) * (len(shape) - 1)
    return L.Dropout(rate, noise_shape=(None, *ones), name=name, dtype=layer.dtype_policy)


@full_float32()
def _alike(layer: keras.Layer, other: keras.Layer, shape: tuple) -> bool:
    """Whether two layers of one input give the same for random numbers of `shape`."""
    sizes = [size or 2 for size in shape]
    x = keras.ops.cast(np.random.default_rng(0).normal(size=sizes), layer.compute_dtype)
    a, b = (np.asarray(keras.ops.convert_to_numpy(one(x)), np.float64) for one in (layer, other))
    return a.shape == b.shape and bool(np.abs(a - b).max() <= 1e-4 * max(1e-6, np.abs(a).max()))


OPENERS: dict[type, Callable[[Any, Call, str], Parts | None]] = {
    L.MultiHeadAttention: open_attention,
    L.GroupQueryAttention: open_attention,
    L.Attention: open_scored_attention,
    L.AdditiveAttention: open_scored_attention,
    L.EinsumDense: open_einsum_dense,
    L.TimeDistributed: open_time_distributed,
    L.Bidirectional: open_bidirectional,
    L.RNN: open_rnn,
}
