"""The supernet of a run folder: its channel order, its training, and the search's start network."""

import time
from dataclasses import replace

import keras
import numpy as np

from dataloader import Dataset
from nets.calls import without_nesting
from nets.graph import ChannelGraph
from pruning.current import CurrentNetwork, Validation
from pruning.rewards import Reward
from pruning.scores import weight_scores
from pruning.search import SearchOptions
from pruning.supernet import SANDWICH_RANDOM, Supernet, order_of, set_order
from utils import devices
from utils.checkpoint import load_keras, load_state, save_keras, save_state
from utils.phases import METRICS, Device, Objective, TrainOptions, train
from utils.runfolder import SUPERNET_ORDER as ORDER
from utils.runfolder import RunFolder

PHASE = "supernet"
WEIGHT_DECAY = 1e-4  # less than a baseline's: a supernet goes on from trained weights


def train_supernet(
    folder: RunFolder,
    path: str,
    model: keras.Model,
    data: Dataset,
    val: Validation,
    indices: np.ndarray,
    options: SearchOptions,
    device: Device,
) -> keras.Model:
    """Trains a supernet from a trained network, resuming what an earlier process began.

    Args:
        path: name of the file that the whole network is saved to as a stock model, its moving
            statistics re-estimated.
        val: D_val, which the Taylor score is taken on.
        indices: the training examples to use, int [n]: all but D_val.

    Returns:
        The network of that file.

    Raises:
        UserError: a network that can't be cut into stages as wanted, fewer examples than a batch,
            or a loss that isn't finite.
    """
    file = folder.file(path)
    if file.exists():
        return load_keras(file)
    wanted, given = options.supernet, without_nesting(model)
    flat = keras.models.clone_model(given)
    flat.set_weights(given.get_weights())
    order = _order(folder, flat, val, options, device)
    stagewise = options.method == "swp"
    random_widths = wanted.random_widths if stagewise else SANDWICH_RANDOM

    def forward_of(trained: keras.Model):
        supernet = Supernet(trained, order, wanted, round_to=options.round_to, stagewise=stagewise)
        return supernet.make_forward(options.seed, random_widths)

    training = TrainOptions(
        epochs=wanted.epochs,
        learning_rate=wanted.learning_rate,
        batch_images=wanted.batch_images,
        weight_decay=WEIGHT_DECAY,
        seed=options.seed,
        schedule="cosine",
    )
    objective = Objective(None, forward_of=forward_of, indices=indices)
    parts = micro_batches(
        wanted.batch_images, device.strategy.num_replicas_in_sync, options.batch_images
    )
    device = replace(device, accum=parts, mixed_precision=False)
    trained = train(folder, PHASE, flat, data, objective, training, device)
    save_keras(file, trained)
    return load_keras(file)


def micro_batches(batch_images: int, replicas: int, most_images: int) -> int:
    """The fewest equal parts of a replica's batch that hold `most_images` at most."""
    of_replica = max(1, batch_images // replicas)
    parts = range(1, of_replica + 1)
    return next(n for n in parts if of_replica % n == 0 and of_replica // n <= most_images)


def _order(folder, model, val: Validation, options: SearchOptions, device: Device) -> np.ndarray:
    """Ranks of the channels of the given network by --score; kept, so that a resumed run goes on
    with the same ones."""
    path = folder.file(ORDER)
    if not path.exists():
        begin, graph = time.perf_counter(), ChannelGraph(model)
        scores = _scores(graph, val, options, device)
        for gate in graph.gates:
            gate.rank(scores[gate.units])
        seconds = time.perf_counter() - begin
        save_state(path, {"order": order_of(graph), "seconds": np.float64(seconds)})
    return load_state(path)["order"]


def _scores(graph: ChannelGraph, val: Validation, options: SearchOptions, device: Device):
    mask = graph.open_mask()
    if options.score != "taylor":
        kernels = {} if options.score == "random" else graph.kernels()
        return weight_scores(options.score, kernels, mask, [options.seed, 0])
    network = CurrentNetwork(
        graph,
        val,
        compile=device.compile,
        devices=devices.replicas(device.strategy),
        cache_bytes=0,
    )
    reward = Reward(val.labels, None, graph.model.output_shape[-1])
    return network.set_with_importance(mask, reward)[1]


def take_order(folder: RunFolder, graph: ChannelGraph) -> None:
    """Gives the gates of the start network's graph the order that the supernet was trained with."""
    set_order(graph, load_state(folder.file(ORDER))["order"])


def seconds_before(folder: RunFolder) -> dict[str, float]:
    """Seconds spent on the order and on the training, over all the processes that took part."""
    rows = [row for row in folder.rows(METRICS) if row["phase"] == PHASE]
    order = float(load_state(folder.file(ORDER))["seconds"])
    return {"order": order, PHASE: sum(row["seconds"] for row in rows)}
