"""The authors' trained ResNet-56 on original CIFAR-10 pixels (skipped where shared/data is not)."""

import tarfile

import numpy as np
import pytest
import tensorflow as tf
from ekg_tf.dataloader import load
from ekg_tf.nets.gates import Gates
from ekg_tf.nets.graph import ChannelGraph
from ekg_tf.nets.zoo.load import load_network
from ekg_tf.training.task import classification
from ekg_tf.training.trainer import both_modes
from ekg_tf.utils.devices import Device


@pytest.fixture(scope="module")
def cifar10(shared_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cifar10")
    with tarfile.open(shared_data / "cifar10_raw_subset.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return load("CIFAR10", folder)


def test_both_batch_norm_modes_score_what_the_paper_trained(res56_pkl, cifar10):
    model = load_network(res56_pkl, "ResNet-56", 10, (32, 32, 3))
    device = Device(strategy=tf.distribute.get_strategy(), compile=False)
    figures = both_modes(model, classification(), cifar10, "test", device)
    assert figures["examples"] == 500
    assert figures["top1"] >= 92
    assert figures["batch_top1"] >= 92


def test_pruned_real_network_computes_what_the_masked_one_does(res56_pkl, cifar10):
    graph = ChannelGraph(load_network(res56_pkl, "ResNet-56", 10, (32, 32, 3)))
    rng = np.random.default_rng(0)
    gates = Gates(graph.groups)
    for gate in gates:
        gate.rank(rng.random(gate.channels))
        gate.remove(gate.weakest(gate.channels // 4))
    mask = gates.mask()
    gated, variable = graph.gated()
    variable.assign(mask)
    pruned = graph.pruned(mask)
    images = tf.constant((cifar10.test.inputs[:32] - cifar10.mean) / cifar10.std, tf.float32)
    for training in (False, True):
        difference = gated(images, training=training) - pruned(images, training=training)
        assert float(tf.reduce_max(tf.abs(difference))) <= 1e-4
