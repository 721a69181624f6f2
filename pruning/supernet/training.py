"""The supernet of a run folder: its channel order, its training, and the search's start network."""

import time

import keras
import numpy as np

from ...dataloader import Dataset
from ...nets.gates import Gates
from ...nets.graph import ChannelGraph
from ...nets.rebuild import copied
from ...options.methods import SWP
from ...options.search import SearchOptions
from ...options.training import LAMB, SGD, Training
from ...training.task import Task
from ...training.trainer import METRICS, Objective, train
from ...utils.arrays import load_state, save_state
from ...utils.devices import Device
from ...utils.keras_files import load_keras, save_keras
from ...utils.runfiles import SUPERNET_ORDER as ORDER
from ...utils.runfolder import RunFolder
from ..engine.current import CurrentNetwork
from ..engine.validation import Validation
from ..worth.rewards import Reward
from ..worth.scores import weight_scores
from .network import SANDWICH_RANDOM, Supernet

PHASE = "supernet"
WEIGHT_DECAY = 1e-4  # less than a baseline's: a supernet goes on from trained weights


def train_supernet(
    folder: RunFolder,
    path: str,
    model: keras.Model,
    task: Task,
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
        task: what the network is trained for.
        indices: the training examples to use, int [n]: all but D_val.

    Returns:
        The network of that file.

    Raises:
        UserError: a network that can't be cut into stages as wanted, fewer examples than a batch,
            or a loss that isn't finite.
    """
    file = folder.file(path)
    if folder.has(path):
        return load_keras(file, compile=False)
    wanted, flat = options.method, copied(model)
    order = _order(folder, flat, val, options, task, device)
    stagewise = isinstance(options.method, SWP)
    random_widths = wanted.random_widths if stagewise else SANDWICH_RANDOM

    def forward_of(trained: keras.Model):
        supernet = Supernet(
            trained,
            order,
            wanted,
            task,
            round_to=options.budget.round_to,
            control=options.control,
            stagewise=stagewise,
        )
        return supernet.make_forward(options.sampling.seed, random_widths)

    parts = micro_batches(
        wanted.batch_size, device.strategy.num_replicas_in_sync, options.sampling.batch_size
    )
    training = Training(
        epochs=wanted.epochs,
        learning_rate=wanted.learning_rate,
        batch_size=wanted.batch_size,
        optimizer=LAMB if task.has_numbers else SGD,
        weight_decay=0.0 if task.has_numbers else WEIGHT_DECAY,
        seed=options.sampling.seed,
        schedule="cosine",
        accum=parts,
    )
    objective = Objective(task, None, forward_of=forward_of, indices=indices)
    trained = train(folder, PHASE, flat, data, objective, training, device)
    folder.write(path, lambda file: save_keras(file, trained))
    folder.seal(path)
    return load_keras(file, compile=False)


def micro_batches(batch_images: int, replicas: int, most_images: int) -> int:
    """The fewest equal parts of a replica's batch that hold `most_images` at most."""
    of_replica = max(1, batch_images // replicas)
    parts = range(1, of_replica + 1)
    return next(n for n in parts if of_replica % n == 0 and of_replica // n <= most_images)


def _order(folder, model, val: Validation, options, task: Task, device: Device) -> np.ndarray:
    """Ranks of the channels of the given network by the score; kept, so that a resumed run goes on
    with the same ones."""
    if not folder.has(ORDER):
        begin, graph = time.perf_counter(), ChannelGraph(model)
        scores = _scores(graph, val, options, task, device)
        gates = Gates(graph.groups)
        for gate in gates:
            gate.rank(scores[gate.units])
        seconds = time.perf_counter() - begin
        state = {"order": gates.order(), "seconds": np.float64(seconds)}
        folder.write(ORDER, lambda path: save_state(path, state))
    return load_state(folder.file(ORDER))["order"]


def _scores(graph: ChannelGraph, val: Validation, options, task: Task, device: Device):
    mask = graph.open_mask()
    if options.method.score != "taylor":
        kernels = {} if options.method.score == "random" else graph.kernels()
        return weight_scores(options.method.score, kernels, mask, [options.sampling.seed, 0])
    network = CurrentNetwork(graph, val, compile=device.compile, cache_bytes=0)
    return network.set_with_importance(mask, Reward(task, val))[1]


def order_in(folder: RunFolder) -> np.ndarray:
    """The channels' order that the supernet was trained with, int32 [U]: ranks in their gates."""
    return load_state(folder.file(ORDER))["order"]


def seconds_before(folder: RunFolder) -> dict[str, float]:
    """Seconds spent on the order and on the training, over all the processes that took part."""
    rows = [row for row in folder.rows(METRICS) if row["phase"] == PHASE]
    order = float(load_state(folder.file(ORDER))["seconds"])
    return {"order": order, PHASE: sum(row["seconds"] for row in rows)}
