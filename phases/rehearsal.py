"""The whole way once, in seconds, before any work: what can't work is refused here.

Copy, save, read back, mask, prune at random widths, one training step. Each is compared with the
network as it was given or with the file, never a copy with a copy.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ..dataloader import Dataset, examples_of, train_batches
from ..nets.given import Given
from ..nets.graph import ChannelGraph
from ..nets.proof import TIMES, TOLERANCE, agreement, agrees, difference, sentence
from ..op_utils import check_finite, make_train_step
from ..options.search import SearchOptions
from ..pruning.engine.segments import Segments
from ..pruning.knowledge.distill import plain_loss
from ..training.diagnosis import first_cause
from ..training.task import Task
from ..utils import progress
from ..utils.devices import Device
from ..utils.errors import USERS, UserError, line_of
from ..utils.keras_files import load_keras, save_keras
from ..utils.trees import mapped, parts_of, tree_of
from .memory import planned

EXAMPLES, KEEP = 4, 0.6
# Half precision rounds by so much of the largest output, in a network of a hundred layers.
HALF_TOLERANCE = 5e-2


def rehearse(
    given: Given,
    task: Task,
    data: Dataset,
    device: Device,
    search: SearchOptions | None = None,
    *,
    known: bool = False,
) -> None:
    """Goes the whole way once on a few examples; nothing is kept.

    Args:
        search: what is to come, which must fit into memory; None: it isn't looked at.
        known: the network is one of `nets.zoo.builders`, whose layers the tests take all this way:
            it is only run.

    Raises:
        UserError: what can't work, at which step and where; or as `memory.planned`.
    """
    inputs = examples_of(data, EXAMPLES)
    if known:
        _check_outputs(given, inputs)
    else:
        few = progress.count(EXAMPLES, "example")
        with progress.doing(f"checking the whole way on {few}: copy, save, prune, train a step"):
            _rehearse(given, inputs, task, data, device)
    if search:
        planned(given, task, data, search, device)


def _rehearse(given: Given, inputs: Any, task: Task, data: Dataset, device: Device) -> None:
    graph, pruned, mask = rehearse_network(given, inputs)
    with _step(given, "cutting it into segments"):
        parts = Segments(graph, compile=device.compile)
        parts.outputs_from(mapped(tf.constant, inputs), parts.weights(mask))
    with _step(given, "training the pruned network for a step"):
        _train_a_step(pruned, task, data)


def rehearse_network(given: Given, inputs: Any) -> tuple[ChannelGraph, keras.Model, np.ndarray]:
    """What needs no task: copying, saving, masking, pruning.

    Args:
        inputs: a few, float32 [n, ...], a tuple where there are several.

    Returns:
        (channel graph of the core, its core pruned at random, the unit mask of that).

    Raises:
        UserError: as `rehearse`.
    """
    graph = ChannelGraph(given.core, closed=given.closed)
    for name, parts in given.unused.items():
        progress.say(f"{name} doesn't need {', '.join(parts)}: the pruned network is without")
    _check_outputs(given, inputs)
    with _step(given, "copying it"):
        _compare(given, given.model, given.finished(given.core), inputs, "its copy")
        _compare_core(given, inputs)
    mask = _random_mask(graph)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "given.keras")
        with _step(given, "saving it and reading it back"):
            save_keras(path, given.to_write())
            again = given.read_again(load_keras(path, compile=False), inputs).model
            _compare(given, given.model, again, inputs, "the network in its own file")
        with _step(given, "masking and pruning it"):
            pruned = graph.pruned(mask)
            proof = agreement(graph, mask, pruned, inputs)
            if not agrees(proof):
                raise UserError(f"{given.model.name} can't be pruned: {sentence(proof)}")
        path = Path(folder, "pruned.keras")
        with _step(given, "saving the pruned network and reading it back"):
            finished = given.finished(pruned)
            save_keras(path, finished)
            again = given.read_again(load_keras(path, compile=False)).model
            _compare(given, finished, again, inputs, "the pruned network in its file")
    return graph, pruned, mask


def _check_outputs(given: Given, inputs: Any) -> None:
    """What a network gives of a few examples is finite."""
    with _step(given, "running it"):
        outputs = given.as_core()(mapped(tf.constant, inputs))
    if not all(np.isfinite(np.asarray(one)).all() for one in parts_of(outputs)):
        raise UserError(
            f"{given.model.name} gives NaN or infinite outputs on examples: check its weights "
            "and how the data is scaled"
        )


def _random_mask(graph: ChannelGraph) -> np.ndarray:
    """A unit mask, float32 [U + 1], that keeps 60 % of every group at random."""
    rng, mask = np.random.default_rng(0), graph.open_mask()
    for group in graph.groups:
        kept = max(1, round(KEEP * group.channels))
        mask[group.start + rng.permutation(group.channels)[kept:]] = 0
    return mask


def _compare(
    given: Given, expected: keras.Model, found: keras.Model, inputs: np.ndarray, what: str
) -> None:
    apart, noise = difference(given.as_core(expected), given.as_core(found), inputs)
    if not apart <= max(_tolerance(given), TIMES * noise):
        raise UserError(
            f"{given.model.name} can't be pruned: {what} gives other outputs, by {apart:.2g} of "
            "the largest; a layer keeps something that its configuration and weights don't hold"
        )


def _compare_core(given: Given, inputs: Any) -> None:
    """The core's outputs mean what the given network says."""
    core = given.core

    def probabilities(run: Callable) -> Callable:
        def of(x: Any) -> Any:
            values = parts_of(run(x))
            pairs = zip(given.outputs, values, strict=True)
            return tree_of(one.given(value) for one, value in pairs)

        return of

    pair = probabilities(given.as_core()), probabilities(lambda x: core(x, training=False))
    apart, noise = difference(*pair, inputs)
    if not apart <= max(_tolerance(given), TIMES * noise):
        raise UserError(
            f"{given.model.name} can't be pruned: its parts give other outputs than itself, by "
            f"{apart:.2g} of the largest"
        )


def _tolerance(given: Given) -> float:
    half = any("16" in layer.compute_dtype for layer in given.model.layers)
    return HALF_TOLERANCE if half else TOLERANCE


def _train_a_step(pruned: keras.Model, task: Task, data: Dataset) -> None:
    """One step by the task's own loss on training examples with their targets."""
    strategy = tf.distribute.get_strategy()
    with strategy.scope():
        optimizer = keras.optimizers.SGD(0.0)
    loss = plain_loss(task, viewed=data.moves_targets)
    steps = make_train_step(pruned, optimizer, loss, strategy)
    few = np.arange(min(EXAMPLES, len(data.train)))
    batches = train_batches(
        data, few, len(few), seed=0, epoch=0, views=1, augment=False, jitter=False
    )
    loss = steps(iter(batches), tf.constant(1))["loss"]
    check_finite(loss, 1, lambda place: first_cause(batches, place, (), 0))


@contextmanager
def _step(given: Given, what: str) -> Iterator[None]:
    """Says at which step something failed that nobody foresaw."""
    try:
        yield
    except UserError:
        raise
    except USERS as error:  # Keras, TensorFlow and the user's own layers raise anything
        why = f"{type(error).__name__}: {line_of(error)}"
        raise UserError(f"{given.model.name} can't be pruned: {what} fails ({why})") from error
