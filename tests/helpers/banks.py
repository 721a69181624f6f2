"""A search's history of five networks, and the examples that its memory bank is built on."""

import itertools

import keras
import numpy as np
import tensorflow as tf
from ekg_tf.nets.graph import ChannelGraph
from ekg_tf.options.bank import Bank
from ekg_tf.pruning.history import History
from ekg_tf.pruning.knowledge.bank import layout
from ekg_tf.utils.runfolder import RunFolder

from tests.helpers.networks import shaken

L = keras.layers
EXAMPLES, CLASSES, K = 10, 3, 2
LOSSES = [1.0, 2.0, 3.0, 4.0, 5.0]  # of theta_0 .. theta*


def small():
    """A network without batch norm: an example's logits depend on nothing but the example."""
    image = L.Input((4, 4, 2))
    x = L.Conv2D(6, 3, activation="relu", name="conv")(image)
    return ChannelGraph(shaken(keras.Model(image, L.Dense(CLASSES)(L.Flatten()(x)))))


def images():
    return np.random.default_rng(0).normal(size=(EXAMPLES, 4, 4, 2)).astype(np.float32)


def batches(order, sizes=(4, 4, 2)):
    edges = np.cumsum((0, *sizes))
    rows = [np.array(order)[a:b] for a, b in itertools.pairwise(edges)]
    return [
        {"inputs": tf.constant(images()[one]), "index": tf.constant(one, tf.int32)} for one in rows
    ]


def searched(path, graph):
    """A run folder with a history of five networks, each a filter smaller than the last."""
    folder = RunFolder.open(path, {"seed": 0})
    history = History(folder, [(2, CLASSES)])
    for step, loss in enumerate(LOSSES):
        row = {"step": step, "val_loss": loss, "flops": 100 - step}
        row["removed_units"] = [step] if step else []
        history.add(row, np.zeros((2, CLASSES)))
    return folder, history


FULL, TOP2, TOP3 = (
    layout(options, EXAMPLES, [(CLASSES,)], K)
    for options in (Bank(), Bank("topk", k=2), Bank("topk", k=3))
)
