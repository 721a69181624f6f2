"""Channels in another order: each keeps to its own place as others go (`nets.shuffles`)."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from ekg_tf.nets.given import Given
from ekg_tf.nets.graph import ChannelGraph
from ekg_tf.nets.shuffles import Shuffled
from ekg_tf.phases.opening import work_on
from ekg_tf.phases.rehearsal import rehearse
from ekg_tf.utils import devices

from ekg_tf.api.arguments import reader
from tests.helpers.networks import assert_a_third_can_go

L, ops = keras.layers, keras.ops
SIZE, CHANNELS = 8, 12
ORDER = [k // 2 + (k % 2) * 6 for k in range(CHANNELS)]  # two groups, in turn


class OwnShuffle(L.Layer):
    """As repositories write it."""

    def call(self, x):
        n, (height, width, channels) = tf.shape(x)[0], x.shape[1:]
        x = tf.transpose(tf.reshape(x, [n, height, width, 2, channels // 2]), [0, 1, 2, 4, 3])
        return tf.reshape(x, [n, height, width, channels])


def by_layers(x):
    x = L.Permute((1, 2, 4, 3))(L.Reshape((SIZE, SIZE, 2, CHANNELS // 2))(x))
    return L.Reshape((SIZE, SIZE, CHANNELS))(x)


WAYS = {
    "layers": by_layers,
    "own layer": lambda x: OwnShuffle()(x),
    "list": lambda x: ops.take(x, ORDER, axis=-1),
    "array": lambda x: ops.take(x, np.array(ORDER), axis=3),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_shuffle_is_followed_channel_by_channel(way, tmp_path):
    i, rng = keras.Input((SIZE, SIZE, 3)), np.random.default_rng(0)
    x = L.Conv2D(CHANNELS, 3, padding="same", name="first")(i)
    x = L.DepthwiseConv2D(3, name="each")(WAYS[way](x))
    x = L.Conv2D(CHANNELS, 1, groups=2, name="grouped")(L.BatchNormalization()(x))
    model = keras.Model(i, L.Dense(3)(L.GlobalAveragePooling2D()(x)))
    images = rng.normal(size=(5, SIZE, SIZE, 3)).astype(np.float32)
    given = Given.read(model, images)
    (layer,) = (one for one in given.core.layers if isinstance(one, Shuffled))
    assert list(layer.indices) == ORDER
    graph = ChannelGraph(given.core)
    assert {name for group in graph.groups for name in group.layers} >= {"first", "grouped"}
    assert_a_third_can_go(graph, images, rng)
    mask = graph.open_mask()
    first = next(group for group in graph.groups if "first" in group.layers)
    mask[[first.start + 1, first.start + first.channels - 1]] = 0
    small = given.finished(graph.pruned(mask))
    small.save(tmp_path / "small.keras")
    again = keras.models.load_model(tmp_path / "small.keras")  # stock, as it is
    np.testing.assert_array_equal(again(images), small(images))
    assert any(isinstance(one, Shuffled) for one in Given.read(again).core.layers)


def test_a_network_with_a_shuffle_is_searched_in_segments():
    i, rng = keras.Input((SIZE, SIZE, 3)), np.random.default_rng(0)
    x = by_layers(L.Conv2D(CHANNELS, 3, padding="same", activation="relu")(i))
    x = L.GlobalAveragePooling2D()(L.Conv2D(6, 3, activation="relu")(x))
    model = keras.Model(i, L.Dense(4, activation="softmax")(x))
    data = rng.integers(0, 256, (32, SIZE, SIZE, 3), np.uint8), np.arange(32) % 4
    work = work_on(model, reader(data, data, None, "the test"))
    rehearse(work.given, work.task, work.data, devices.make(tf.distribute.get_strategy()))


def test_a_choice_of_some_channels_stays_whole():
    i = keras.Input((SIZE, SIZE, 3))
    x = ops.take(L.Conv2D(CHANNELS, 3, name="first")(i), [0, 0, 5], axis=-1)
    graph = ChannelGraph(Given.read(keras.Model(i, L.Dense(3)(L.Flatten()(x)))).core)
    assert not graph.groups
    assert graph.frozen["first"].endswith("takes some of the channels")
