"""The supernet of a run folder: resumed training, what it leaves alone, its files."""

from functools import partial

import keras
import numpy as np
import pytest
import tensorflow as tf
from ekg_tf.dataloader import load, normalised_inputs
from ekg_tf.nets.gates import Gates
from ekg_tf.nets.graph import ChannelGraph
from ekg_tf.pruning.engine.validation import Validation
from ekg_tf.pruning.supernet.training import (
    micro_batches,
    order_in,
    seconds_before,
    train_supernet,
)
from ekg_tf.training.task import classification
from ekg_tf.utils.devices import Device
from ekg_tf.utils.runfiles import START, SUPERNET_ORDER
from ekg_tf.utils.runfolder import RunFolder

from tests.helpers.networks import L, conv_bn
from tests.helpers.options import search_options

OPTIONS = search_options(
    0.5, method="swp", epochs=2, learning_rate=0.02, supernet_batch_size=32, width_steps=3
)


def digits_net():
    """Two stages of two convolutions for DIGITS."""
    keras.utils.set_random_seed(4)
    image = L.Input((8, 8, 1))
    x = L.ReLU()(conv_bn(image, 4, "a"))
    x = L.ReLU()(conv_bn(x, 4, "b"))
    x = L.ReLU()(conv_bn(x, 6, "c", strides=2))
    x = L.ReLU()(conv_bn(x, 6, "d"))
    return keras.Model(image, L.Dense(10, name="fc")(L.GlobalAveragePooling2D()(x)))


def trained(path, data, val, stop_after=None):
    """The supernet of a folder; `stop_after` ends it like a kill before that epoch's checkpoint."""
    model = digits_net()
    before = model.get_weights()
    device = Device(tf.distribute.get_strategy(), compile=False)
    with RunFolder.open(path, {"do_log": False}) as folder:
        if stop_after:
            folder.append = partial(append_until, folder.append, stop_after)
        start = train_supernet(
            folder, START, model, classification(), data, val, np.arange(100, 260), OPTIONS, device
        )
        seconds = seconds_before(folder)
        order = order_in(folder)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    return start, order, seconds


def append_until(append, epoch, name, row):
    append(name, row)
    if row["epoch"] == epoch:
        raise KeyboardInterrupt


def test_a_killed_supernet_training_ends_with_the_same_network(tmp_path):
    data = load("DIGITS", None)
    part = normalised_inputs(data, np.arange(100))
    val = Validation(part.inputs, part.targets, 50)
    whole, order, seconds = trained(tmp_path / "whole", data, val)
    assert (tmp_path / "whole" / SUPERNET_ORDER).exists()
    assert seconds["order"] > 0 and seconds["supernet"] > 0
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "killed", data, val, stop_after=2)
    assert not (tmp_path / "killed" / START).exists()
    resumed, resumed_order, _ = trained(tmp_path / "killed", data, val)
    np.testing.assert_array_equal(order, resumed_order)
    assert (order != Gates(ChannelGraph(whole).groups).order()).any()
    for one, other in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_micro_batches():
    assert micro_batches(128, 1, 128) == 1
    assert micro_batches(128, 2, 32) == 2
    assert micro_batches(60, 1, 25) == 3
