"""Products of matrices: which axis of which operand is one of channels, and what they cost."""

import keras
import numpy as np
import pytest
from ekg_tf.nets.flatten import flatten
from ekg_tf.nets.graph import ChannelGraph
from ekg_tf.nets.keras_graph import calls_of
from ekg_tf.nets.products import letters_of, product_of

from tests.helpers.networks import assert_masked_is_pruned, groups, random_mask

L, ops = keras.layers, keras.ops
NODES, FEATURES = 6, 5
EDGES = np.random.default_rng(0).uniform(0, 1, (NODES, NODES)).astype(np.float32)


def ended(inputs, x) -> keras.Model:
    x = L.GlobalAveragePooling1D()(L.Dense(7, activation="relu", name="last")(x))
    return keras.Model(inputs, L.Dense(3, name="head")(x))


def graph_network():
    """Every node sees its neighbours; the edges are an input."""
    nodes, edges = keras.Input((NODES, FEATURES)), keras.Input((NODES, NODES))
    x = ops.relu(ops.matmul(edges, L.Dense(8, name="first")(nodes)))
    return ended([nodes, edges], ops.matmul(edges, L.Dense(8, name="second")(x)))


def fixed_edges():
    """As a skeleton's: a constant, named in an einsum that leaves the leading axes open."""
    nodes = keras.Input((NODES, FEATURES))
    x = ops.relu(ops.einsum("nm,bmc->bnc", EDGES, L.Dense(8, name="first")(nodes)))
    return ended(nodes, ops.einsum("nm,...mc->...nc", EDGES, L.Dense(8, name="second")(x)))


def dot_attention():
    """Keras's layer Dot for the scores and for the mean of the values."""
    nodes = keras.Input((NODES, FEATURES))
    query, key, value = (L.Dense(8, name=name)(nodes) for name in ("query", "key", "value"))
    scores = L.Softmax()(L.Dot(axes=2)([query, key]))
    return ended(nodes, L.Dot(axes=(2, 1))([scores, value]))


def turned():
    """Scores by a product with a turned matrix, as written by hand."""
    nodes = keras.Input((NODES, FEATURES))
    query, key, value = (L.Dense(8, name=name)(nodes) for name in ("query", "key", "value"))
    first = ops.softmax(ops.matmul(query, ops.transpose(key, (0, 2, 1))))
    second = ops.softmax(query @ L.Permute((2, 1))(key))
    return ended(nodes, ops.matmul(first + second, value))


@pytest.mark.parametrize(
    ("build", "tied"),
    [
        (graph_network, [("first",), ("second",), ("last",)]),
        (fixed_edges, [("first",), ("second",), ("last",)]),
        (dot_attention, [("key", "query"), ("value",), ("last",)]),
        (turned, [("key", "query"), ("value",), ("last",)]),
    ],
    ids=lambda one: getattr(one, "__name__", None),
)
def test_channels_pass_through_products(build, tied):
    model = build()
    rng = np.random.default_rng(1)
    for variable in model.weights:
        variable.assign(variable + 0.2 * rng.normal(size=variable.shape))
    flat = flatten(model).model
    values = [rng.normal(size=(4, *one.shape[1:])).astype(np.float32) for one in model.inputs]
    values = values if len(values) > 1 else values[0]
    np.testing.assert_allclose(flat(values), model(values), rtol=1e-4, atol=1e-5)
    graph = ChannelGraph(flat)
    assert sorted(groups(graph)) == sorted((names, 7 if "last" in names else 8) for names in tied)
    assert_masked_is_pruned(flat, random_mask(graph), values, sizes=(0.05, 300))


def test_a_product_costs_what_its_letters_run_over():
    graph = ChannelGraph(flatten(graph_network()).model)
    dense = NODES * (FEATURES * 8 + 8 * 8 + 8 * 7) + 7 * 3
    assert graph.flops() == dense + 2 * NODES * NODES * 8
    mask = graph.open_mask()
    mask[graph.groups[0].start] = 0
    assert graph.flops() - graph.flops(mask) == NODES * (FEATURES + 8 + NODES)


def of(function, *shapes):
    """The product of a function of KerasTensors of these shapes, the batch left open."""
    inputs = [keras.Input(batch_shape=shape) for shape in shapes]
    (call,) = calls_of(keras.Model(inputs, function(*inputs)))
    return product_of(call.operation, call.values)


@pytest.mark.parametrize(
    ("function", "shapes", "macs", "channels"),
    [
        (ops.matmul, [(None, 4, 5), (None, 5, 6)], 4 * 5 * 6, 1),
        (ops.matmul, [(None, 3, 4, 5), (None, 3, 5, 6)], 3 * 4 * 5 * 6, 1),
        (lambda a, b: L.Dot(axes=1)([a, b]), [(None, 5), (None, 5)], 5, 0),
        (lambda a, b: L.Dot(axes=-1)([a, b]), [(None, 4, 5), (None, 6, 5)], 4 * 6 * 5, 0),
        (lambda a, b: ops.einsum("bij,bkj", a, b), [(None, 4, 5), (None, 6, 5)], 120, 0),
        (lambda a: ops.tensordot(a, EDGES, 1), [(None, 4, NODES)], 4 * NODES**2, None),
        (lambda a: ops.tensordot(a, EDGES, [[1], [0]]), [(None, NODES, 5)], 5 * NODES**2, None),
        (lambda a: ops.matmul(a, EDGES[0]), [(None, 4, NODES)], 4 * NODES, None),
    ],
)
def test_forms_of_products(function, shapes, macs, channels):
    product = of(function, *shapes)
    sizes = [tuple(size or 1 for size in one.shape) for one in product.operands]
    assert product.macs(sizes) == macs
    assert product.channels == channels


def test_what_is_no_product_or_of_an_unknown_form():
    assert of(ops.add, (None, 4), (None, 4)) is None
    assert letters_of("ij,jk->ik", [3, 2]) is None
    assert letters_of("ij->i", [2, 2]) is None
    assert letters_of("...ij,...jk->...ik", [4, 3]) == (["YZij", "Zjk"], "YZik")
    assert letters_of("...Zj,jk->...Zk", [3, 2]) is None  # which Z is meant?
