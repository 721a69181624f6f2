"""theta_0, with which a search begins: the given network after an epoch on D_subset."""

import keras
import numpy as np
import tensorflow as tf

from ..dataloader import Dataset, train_batches
from ..nets.graph import ChannelGraph
from ..nets.rebuild import copied
from ..nets.sections import Sections
from ..nets.stateless import call
from ..op_utils import check_finite, make_train_step
from ..options.search import SearchOptions
from ..pruning.engine.cuts import find_cuts
from ..pruning.knowledge.distill import plain_loss
from ..pruning.supernet.training import micro_batches
from ..training.diagnosis import first_cause
from ..training.task import Task
from ..utils import cluster, progress
from ..utils.devices import Device
from ..utils.keras_files import load_keras, save_keras
from ..utils.runfiles import START
from ..utils.runfolder import RunFolder

ADAPT_BATCH, ADAPT_LEARNING_RATE = 256, 1e-3


def adapted(
    folder: RunFolder,
    model: keras.Model,
    task: Task,
    data: Dataset,
    subset: np.ndarray,
    options: SearchOptions,
    device: Device,
    *,
    sections: bool = False,
) -> keras.Model:
    """theta_0: the given network after one epoch on D_subset (docs/method.md 1, step 1).

    Of several machines the first one trains alone, on one device: theta_0, and with it the search,
    doesn't depend on how many there are.

    Args:
        subset: integers, the training examples of D_subset.
        sections: run section by section, in less memory; the numbers are the same.
    """
    if not folder.has(START):
        alone = tf.distribute.get_strategy()
        strategy = device.strategy if cluster.size() == 1 else alone
        folder.write(
            START,
            lambda path: save_keras(
                path,
                _after_an_epoch(
                    model, task, data, subset, options, strategy, device.compile, sections
                ),
            ),
        )
        folder.seal(START)
    return load_keras(folder.file(START), compile=False)


def in_sections(model: keras.Model) -> Sections:
    """A network's training pass, cut where the search cuts the network."""
    graph = ChannelGraph(model)
    gated, _ = graph.gated()
    bounds, _ = find_cuts(graph, {name: gated.get_layer(name) for name in graph.units})
    return Sections(model, bounds[1:-1])


def _after_an_epoch(
    model: keras.Model,
    task: Task,
    data: Dataset,
    subset: np.ndarray,
    options: SearchOptions,
    strategy: tf.distribute.Strategy,
    compile: bool,
    sections: bool,
) -> keras.Model:
    batch = min(ADAPT_BATCH, len(subset))
    batches = train_batches(
        data,
        subset,
        batch,
        seed=options.sampling.seed,
        epoch=0,
        views=1,
        augment=False,
        jitter=False,
    )
    with strategy.scope():
        start = copied(model)
        kind = keras.optimizers.Lamb if task.has_numbers else keras.optimizers.SGD
        optimizer = kind(ADAPT_LEARNING_RATE)
    steps = make_train_step(
        start,
        optimizer,
        plain_loss(task, viewed=data.moves_targets),
        strategy,
        accum=micro_batches(batch, strategy.num_replicas_in_sync, options.sampling.batch_size),
        compile=compile,
        run=in_sections(start) if sections else call,
    )
    count = len(subset) // batch
    distributed = iter(strategy.experimental_distribute_dataset(batches))
    examples, losses = progress.count(len(subset), "training example"), np.zeros(0)
    with progress.doing(f"search: adapting the network to {examples} for one epoch"):
        for _ in range(count):  # one by one: Python, and so Ctrl-C, has its turn between them
            losses = np.append(losses, steps(distributed, tf.constant(1))["loss"])
            check_finite(
                losses, 1, lambda place, known=losses: first_cause(batches, place, known[:place], 0)
            )
    return start
