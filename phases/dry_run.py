"""A dry run: what a run will take, before it takes it; steps, seconds, memory, disk.

Seconds come from steps that are really taken on this machine: two of the search (the second one
counts, the first one traces) and a few of the training. How many steps a search will take comes
from a walk without data (`Search.remaining`). docs/running.md says how far off it has been.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ..dataloader import Dataset, normalised_inputs, parts, train_batches, without_held_out
from ..nets.gates import Gates
from ..nets.given import Given
from ..nets.graph import ChannelGraph
from ..nets.rebuild import to_policy
from ..op_utils import make_train_step
from ..options.bank import Bank
from ..options.finetuning import FineTuning
from ..options.search import SearchOptions
from ..options.training import Training
from ..pruning.engine.current import MemoryPlan
from ..pruning.engine.features import width
from ..pruning.engine.validation import Validation
from ..pruning.history import History, output_shapes
from ..pruning.knowledge.bank import Layout
from ..pruning.knowledge.distill import plain_loss
from ..pruning.methods.base import Search
from ..pruning.methods.by_name import SEARCHES
from ..pruning.space.widths import smallest
from ..reports.networks import peak_memory_mb
from ..training.schedules import steps_in
from ..training.task import Task
from ..utils import progress
from ..utils.devices import Device
from ..utils.runfolder import RunFolder
from .memory import USUAL, planned
from .outlook import FORWARD, MEASURED_STEPS, gib, search_outlook
from .searching import at_layers, planned_bank

TRAINED_SECONDS = 2.0  # of timed training steps, at least two of them
SUPERNET_PASSES = 5  # what a step of a supernet's training costs, in steps of the plain network


@dataclass(frozen=True)
class Wanted:
    """What a dry run looks at; None: that part isn't to be done.

    byol: whether the baseline has that teacher.
    """

    search: SearchOptions | None = None
    bank: Bank | None = None
    finetuning: FineTuning | None = None
    training: Training | None = None
    baseline: Training | None = None
    byol: bool = False


@dataclass(frozen=True)
class Outlook:
    """What a search will take.

    lines: what is said of it. steps: of the search. forward: seconds of an example through the
    whole network.
    """

    seconds: float
    lines: tuple[str, ...]
    steps: int
    forward: float


def dry_run(given: Given, task: Task, data: Dataset, wanted: Wanted, device: Device) -> str:
    """Takes a few steps of everything, without a run folder, and says what the whole will take.

    Args:
        given: the network; after a search, the pruned one.

    Raises:
        UserError: as the phases themselves.
    """
    lines, seconds, memory = [_of_data(data, wanted)], 0.0, USUAL
    if wanted.search:
        wanted = replace(wanted, search=at_layers(wanted.search, given))
        memory = planned(given, task, data, wanted.search, device)
        data = without_held_out(data, wanted.search.sampling.held_out)
    graph = ChannelGraph(given.core)
    if wanted.baseline:
        with progress.doing("measuring training steps of the baseline"):
            views = 2 if wanted.byol and data.augments else 1
            step = training_step_seconds(given.core, task, data, wanted.baseline, views, device)
            step *= 1 + FORWARD if wanted.byol else 1
        taken, line = _training("baseline", wanted.baseline, data, step)
        lines, seconds = [*lines, line], seconds + taken
    student = given.core
    if wanted.search:
        if wanted.search.method.supernet:
            found = _supernet(graph, task, data, wanted.search, device)
        else:
            found = _search(graph, task, data, wanted.search, device, memory.plan)
        lines, seconds = [*lines, *found.lines], seconds + found.seconds
        if wanted.bank:
            taken, line = _bank(wanted.bank, graph, task, data, wanted.search, found)
            lines, seconds = [*lines, line], seconds + taken
        student = _uniform(graph, wanted.search.budget.goal)
    if wanted.training and wanted.finetuning:
        views = wanted.finetuning.views or 1
        with progress.doing("measuring training steps of a network as small as the pruned one"):
            step = training_step_seconds(student, task, data, wanted.training, views, device)
        taken, line = _training("fine-tuning", wanted.training, data, step)
        lines, seconds = [*lines, line], seconds + taken
    peaks = peak_memory_mb()
    host = max(2**20 * peaks.pop("host"), memory.peak or 0)
    peak = [f"{gib(host)} of memory"]
    peak += [f"{gib(2**20 * one)} on {name}" for name, one in peaks.items()]
    if memory.peak is not None:
        lines.append(str(memory))
    lines.append(f"in all about {progress.duration(seconds)}; at its peak about {', '.join(peak)}")
    lines.append("nothing was written; without --dry_run the same command does it")
    return "\n".join(lines)


def _of_data(data: Dataset, wanted: Wanted) -> str:
    train = progress.count(len(data.train), "training example")
    line = f"data: {train}, {progress.count(len(data.test), 'test example')}"
    if wanted.search:
        subset, held_out = parts(data, wanted.search.sampling)
        line += f"; {len(held_out):,} of the first decide the search, {len(subset):,} adapt it"
    return line


def _training(name: str, training: Training, data: Dataset, step: float) -> tuple[float, str]:
    """Seconds and a line; testing after each epoch counts as forward passes do."""
    assert training.epochs is not None and training.batch_size is not None
    each = steps_in(1, len(data.trained_on), training.batch_size)
    testing = FORWARD * step * len(data.test) / training.batch_size
    seconds = training.epochs * (each * step + testing)
    epochs = progress.count(training.epochs, "epoch")
    line = f"{name}: {epochs} of {progress.count(each, 'step')} ({_short(step)} each)"
    return seconds, f"{line}, about {progress.duration(seconds)}"


def _search(
    graph: ChannelGraph,
    task: Task,
    data: Dataset,
    options: SearchOptions,
    device: Device,
    plan: MemoryPlan,
) -> Outlook:
    """By two steps in a temporary folder."""
    with (
        progress.doing(f"measuring {MEASURED_STEPS} steps of the search"),
        progress.shown(0),
        _begun(graph, task, data, options, compile=device.compile, plan=plan) as running,
    ):
        running.run(most=MEASURED_STEPS)
        rows = running.history.rows
        taken = sum(sum(row["seconds"].values()) for row in rows)
        left = search_outlook(running)
        steps = len(rows) - 1 + left.steps
        tried = sum(row["evaluations"] for row in rows) + left.evaluations
    seconds = taken + left.seconds
    line = _of_search(options, steps, tried, left.evaluation_seconds, seconds)
    return Outlook(seconds, (line,), steps, left.forward_seconds)


def _supernet(
    graph: ChannelGraph, task: Task, data: Dataset, options: SearchOptions, device: Device
) -> Outlook:
    """With the supernet's training; by training steps of the plain network."""
    method = options.method
    plain = replace(Training(), epochs=method.epochs, batch_size=method.batch_size)
    with progress.doing("measuring training steps"):
        step = training_step_seconds(graph.model, task, data, plain, 1, device)
    training, line = _training("supernet", plain, data, SUPERNET_PASSES * step)
    with _begun(graph, task, data, options, compile=device.compile) as running:
        steps, tried = running.remaining()
        forward = FORWARD * step / method.batch_size
        whole = forward * len(running.val) * _shrunk(options)
        each = running.part * whole
    search = steps * whole + tried * each
    lines = line, _of_search(options, steps, tried, each, search)
    return Outlook(training + search, lines, steps, forward)


@contextmanager
def _begun(
    graph: ChannelGraph, task: Task, data: Dataset, options: SearchOptions, **more: Any
) -> Iterator[Search]:
    """A search in a temporary folder, before its first step."""
    val = held_out(data, options)
    with (
        tempfile.TemporaryDirectory(prefix="ekg_tf_dry_") as folder,
        RunFolder.open(Path(folder, "run"), {}) as kept,
    ):
        history = History(kept, output_shapes(graph, len(val)))
        yield SEARCHES[options.method.name](graph, val, history, options, task, **more)


def _shrunk(options: SearchOptions) -> float:
    """What the networks of a search cost, as a share of the whole one, half-way."""
    return (1 + options.budget.goal) / 2


def _of_search(options: SearchOptions, steps: int, tried: int, each: float, seconds: float) -> str:
    return (
        f"search by {options.method.name} to {100 * options.budget.goal:g} % of the "
        f"{options.budget.label}: about {progress.count(steps, 'step')}, "
        f"{progress.count(tried, 'smaller network')} tried ({_short(each)} each), about "
        f"{progress.duration(seconds)}"
    )


def _bank(
    bank: Bank,
    graph: ChannelGraph,
    task: Task,
    data: Dataset,
    options: SearchOptions,
    search: Outlook,
) -> tuple[float, str]:
    """Seconds and a line."""
    layout = _layout(bank, graph.model, task, data, min(bank.teachers, search.steps))
    passes = layout.examples * layout.teachers if layout.arrays else 0
    seconds = passes * search.forward * _shrunk(options)
    return seconds, f"memory bank: {layout}, about {progress.duration(seconds)}"


def _layout(bank: Bank, core: keras.Model, task: Task, data: Dataset, teachers: int) -> Layout:
    features = width(core) if bank.features else 0
    return planned_bank(bank, core, data, teachers, features, task=task)


def held_out(data: Dataset, options: SearchOptions) -> Validation:
    """D_val as a search takes it."""
    held = normalised_inputs(data, parts(data, options.sampling)[1])
    return Validation(held.inputs, held.targets, options.sampling.batch_size, held.weights)


def _uniform(graph: ChannelGraph, rate: float) -> keras.Model:
    """The network with the same share of filters in every group and about `rate` of the FLOPs."""

    def mask(x: float) -> np.ndarray:
        gates = Gates(graph.groups)
        for gate in gates:
            gate.remove(gate.weakest(min(gate.width - 1, int(x * gate.channels))))
        return gates.mask()

    full = graph.flops()
    x = smallest(lambda x: graph.flops(mask(x)) <= rate * full, 1e-2)
    return graph.pruned(mask(1.0 if x is None else x))


def training_step_seconds(
    model: keras.Model, task: Task, data: Dataset, training: Training, views: int, device: Device
) -> float:
    """Seconds of a training step at its real batch size; the network itself isn't changed.

    The loss is the task's own: what a teacher's knowledge costs beside it is left out.
    """
    with device.strategy.scope():
        policy = "mixed_bfloat16" if training.mixed_precision else "float32"
        copy = to_policy(model, policy)
        optimizer = keras.optimizers.SGD(0.0)
    loss = plain_loss(task, viewed=data.moves_targets)
    options = {"accum": training.accum, "compile": device.compile}
    steps = make_train_step(copy, optimizer, loss, device.strategy, **options)
    assert training.batch_size is not None
    batches = train_batches(
        data,
        None,
        training.batch_size,
        seed=training.seed,
        epoch=0,
        views=views,
        augment=True,
        jitter=views > 1,
    ).repeat()
    distributed = iter(device.strategy.experimental_distribute_dataset(batches))
    steps(distributed, tf.constant(1))["loss"].numpy()  # traces
    times = []
    while len(times) < 2 or sum(times) < TRAINED_SECONDS:
        begin = time.perf_counter()
        steps(distributed, tf.constant(1))["loss"].numpy()
        times.append(time.perf_counter() - begin)
    return float(np.median(times))


def _short(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
