"""A validation set, a reward, proposals, and whole greedy searches on a small network."""

import keras
import numpy as np
from ekg_tf.nets.gates import Gates
from ekg_tf.nets.graph import ChannelGraph
from ekg_tf.nets.zoo.resnet import cifar_resnet
from ekg_tf.pruning.engine.current import PLENTY
from ekg_tf.pruning.engine.validation import Validation
from ekg_tf.pruning.history import History, output_shapes
from ekg_tf.pruning.methods.greedy import GreedySearch
from ekg_tf.pruning.space.candidates import Candidates
from ekg_tf.pruning.worth.rewards import Reward
from ekg_tf.training.task import classification
from ekg_tf.utils.runfolder import RunFolder

from tests.helpers.networks import images_for, shaken
from tests.helpers.options import search_options


def validation(model, count=24, batch_images=10, seed=5):
    labels = np.random.default_rng(seed).integers(0, model.output_shape[-1], count)
    return Validation(images_for(model, count), labels.astype(np.int32), batch_images)


def reward_for(model, val, seed=6):
    """EKG's reward with a teacher of random logits."""
    shape = (len(val), model.output_shape[-1])
    teacher = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return Reward(classification(), val, teacher)


def proposals_at(graph, mask, step=0.4):
    """A proposal of every gate that has a filter to give, with random scores."""
    gates = Gates(graph.groups)
    gates.set_mask(mask)
    scores = np.random.default_rng(8).random(len(mask))
    for gate in gates:
        gate.rank(scores[gate.units])
    return Candidates(gates, graph.flops, target=1, step=step).propose(scores)


def searched(path, evaluator, **options):
    """(channel graph, D_val, history) of a `greedy_search`."""
    search = greedy_search(path, evaluator, **options)
    return search.graph, search.val, search.history


def greedy_search(path, evaluator, *, target=0.72, batch_images=16, plan=PLENTY, **options):
    """A real search on a small ResNet-8, at its end."""
    keras.utils.set_random_seed(0)
    graph = ChannelGraph(shaken(cifar_resnet(8, 5, (8, 8, 3))))
    val = validation(graph.model, count=40, batch_images=batch_images)
    settings = search_options(target, evaluator=evaluator, **options)
    with RunFolder.open(path, {}) as folder:
        history = History(folder, output_shapes(graph, 40))
        search = GreedySearch(graph, val, history, settings, classification(), plan=plan)
        search.run()
    return search
