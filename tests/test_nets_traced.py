"""What the user's own layers do becomes part of the graph, checked against the layers."""

import keras
import numpy as np
import pytest
from ekg_tf.nets.flatten import flatten
from ekg_tf.nets.graph import ChannelGraph
from ekg_tf.nets.proof import agreement, agrees, sentence

from tests.helpers import own_kinds

L, ops = keras.layers, keras.ops


def checked(model: keras.Model) -> tuple[keras.Model, dict[str, str], ChannelGraph]:
    """The flat network, what stays closed, and the graph; it computes what the model computes."""
    rng = np.random.default_rng(0)
    for variable in model.weights:
        variable.assign(variable + 0.1 * rng.normal(size=variable.shape))
    flat = flatten(model)
    images = rng.normal(size=(5, *model.input_shape[1:])).astype(np.float32)
    expected = np.asarray(model(images, training=False))
    np.testing.assert_allclose(flat.model(images, training=False), expected, rtol=1e-4, atol=1e-5)
    graph = ChannelGraph(flat.model)
    mask = graph.open_mask()
    mask[rng.permutation(graph.num_units)[: graph.num_units // 3]] = 0
    mask[[group.start for group in graph.groups]] = 1
    proof = agreement(graph, mask, graph.pruned(mask), images)
    assert agrees(proof), sentence(proof)
    return flat.model, flat.closed, graph


def test_a_transformer_of_own_layers_opens_to_the_last_weight():
    model = own_kinds.by_hand()
    flat, closed, graph = checked(model)
    assert flat.count_params() == model.count_params()
    assert set(closed.values()) == {"does something else in training"}
    assert sum(isinstance(one, own_kinds.DropPath) for one in flat.layers) == 4
    kept = graph.parameters(graph.least_mask())
    assert kept < 0.1 * graph.parameters()  # the classifier and the single number
    (shift,) = (layer for layer in flat.layers if layer.name.endswith("_shift"))
    assert shift.output_dim == 1 and graph.units[shift.name][1][0] == graph.num_units


def test_windows_open_and_their_channels_stay_with_the_reason():
    _, closed, graph = checked(own_kinds.windows())
    assert not closed
    assert any("fixed number of channels" in why for why in graph.frozen.values())
    assert graph.parameters(graph.least_mask()) < 0.5 * graph.parameters()


def test_code_without_a_name_becomes_operations():
    flat, _, graph = checked(own_kinds.unnamed_activation())
    assert graph.lowest_rate() < 0.2
    keras.Model.from_config(flat.get_config())  # has no lambda to be refused


class WeightsByHand(L.Layer):
    """Uses the kernel of a layer inside it without calling that."""

    def build(self, shape):
        self.inner = L.Dense(8)
        self.inner.build(shape)
        self.built = True

    def call(self, x):
        return ops.matmul(x, self.inner.kernel)


class Tied(L.Layer):
    """Calls a layer inside it, and uses its kernel beside."""

    def build(self, shape):
        self.inner = L.Dense(8)
        self.inner.build(shape)
        self.built = True

    def call(self, x):
        return ops.matmul(self.inner(x), ops.transpose(self.inner.kernel))


class Listed(L.Layer):
    """Holds its variables in a list."""

    def build(self, shape):
        self.factors = [self.add_weight(shape=(shape[-1],), name="factor")]
        self.built = True

    def call(self, x):
        return x * self.factors[0]


class Mixing(L.Layer):
    """Puts the examples behind the positions."""

    def build(self, shape):
        self.inner = L.Dense(shape[-1])
        self.inner.build(shape)
        self.built = True

    def call(self, x):
        y = ops.reshape(self.inner(x), (1, -1, x.shape[-1]))
        return ops.reshape(y - ops.max(y), (-1, *x.shape[1:]))


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (WeightsByHand, "uses the weights of dense"),
        (Tied, "computes something else when it is opened"),
        (Listed, "holds variables in a way that isn't known (factor)"),
        (Mixing, "mixes the examples with their positions"),
    ],
)
def test_what_cannot_be_opened_stays_whole_with_the_reason(layer, why):
    i = keras.Input((6,))
    x = L.Dense(8, activation="relu", name="before")(i)
    flat = flatten(keras.Model(i, L.Dense(2)(layer(name="whole")(x))))
    assert why in flat.closed["whole"]
    assert "has no rule" in ChannelGraph(flat.model).frozen["before"]
