"""Phase 1 in a run folder: the search for a sub-network and its memory bank.

Filters are ranked and removed by what D_val says, a part of the *training* set; the test split
is only read for the figures printed at the end and chooses nothing.
"""

import gc
import math
import shutil
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np

from ..dataloader import (
    Dataset,
    eval_batches,
    held_out,
    normalised_inputs,
    parts,
    without_held_out,
)
from ..nets.given import Given
from ..nets.graph import ChannelGraph
from ..nets.proof import TIMES, TOLERANCE, agreement, difference
from ..nets.stateless import batch_norms
from ..options.bank import Bank
from ..options.budgets import Latency
from ..options.kinds import NUMBERS
from ..options.methods import SWP
from ..options.search import SearchOptions
from ..pruning.engine.current import joined
from ..pruning.engine.features import width
from ..pruning.engine.validation import Validation
from ..pruning.history import History, output_shapes
from ..pruning.knowledge.bank import MANIFEST, Layout, build_bank, layout
from ..pruning.methods.by_name import SEARCHES, smallest_mask
from ..pruning.space.budgets import check_reachable, make_budget
from ..pruning.space.limits import (
    announcement,
    check_something_is_left,
    heaviest_in_words,
    least_widths,
    located,
    smallest_in_words,
)
from ..pruning.supernet.training import order_in, seconds_before, train_supernet
from ..pruning.worth.drop import Drop, drop_from, figure_of
from ..reports import plots, written
from ..reports.search import draw, seconds_of, summary
from ..training.evaluation import make_forward
from ..training.latency import latencies, latency_batches
from ..training.task import Task
from ..training.trainer import METRICS, both_modes, recalibrate
from ..utils import cluster, progress
from ..utils.devices import Device
from ..utils.errors import UserError
from ..utils.keras_files import load_keras, save_keras
from ..utils.runfiles import BASELINE, PRUNED, START, front_file, verify
from ..utils.runfolder import RunFolder
from ..utils.trees import mapped, rows_of
from . import baseline
from .adapting import adapted
from .memory import Memory, planned
from .outlook import said_after_steps

SAVED_IMAGES = 16  # that a written network is compared on
DEFAULT_BANK = Bank()


def run_search(
    folder: RunFolder,
    given: Given,
    task: Task,
    data: Dataset,
    options: SearchOptions,
    device: Device,
    bank: Bank | None = DEFAULT_BANK,
) -> keras.Model:
    """Runs the search from wherever an earlier process stopped, then builds the bank.

    Args:
        given: the trained network. task: what it is trained for.
        bank: kind and size of the memory bank; None for no bank.

    Returns:
        theta* as a smaller network with the ends of the given one, before any fine-tuning.

    Raises:
        UserError: as `check`.
    """
    check(given, data, options, bank)
    options = at_layers(options, given)
    there = [name for name in (BASELINE, START) if folder.has(name)]
    cluster.on_chief(lambda: verify(folder.path, *there))
    baseline.keep(folder, given.to_write())
    if not folder.has(PRUNED):
        memory = planned(given, task, data, options, device, refuse=False)
        graph, val, history, seconds = _searched(folder, given, task, data, options, device, memory)
        gc.collect()  # the activations of the search, which its threads and closures hold
        teachers = []
        if bank:
            begin = time.perf_counter()
            teachers = _bank(folder, graph, history, task, data, options, bank, device)["teachers"]
            seconds |= {"bank": time.perf_counter() - begin}
        mask = history.mask(graph, len(history.rows) - 1)
        pruned = graph.pruned(mask)
        with progress.doing("comparing the masked network with the pruned one"):
            proof = {"masked_and_pruned": agreement(graph, mask, pruned, val.inputs)}
        recalibrate_frozen(pruned, data, device)
        results = summary(graph, history, options, teachers, seconds) | proof
        folder.write_json("search.json", results)
        draw(folder, history, options.budget.rate, options.budget.label)
        with progress.doing(f"writing {folder.file(PRUNED)}"):
            for one in results["front"]:
                network = graph.pruned(history.mask(graph, one["step"]))
                recalibrate_frozen(network, data, device)
                name = front_file(one["wanted"])
                save_finished(folder, name, given, network, val.inputs)
                folder.seal(name)
            save_finished(folder, PRUNED, given, pruned, val.inputs)
            folder.seal("search.json", PRUNED)
    results = folder.read_json("search.json")
    found = load_keras(folder.file(PRUNED), compile=False)
    if "test" not in results:
        core = given.read_again(found).core
        examples = progress.count(len(data.test), "test example")
        with progress.doing(f"testing both networks on {examples}"):
            recalibrate(core, data, device)
            test = {
                "before": both_modes(given, task, data, "test", device),
                "after": both_modes(core, task, data, "test", device),
            }
        if results["front"]:
            kept = progress.count(len(results["front"]), "network")
            with progress.doing(f"testing and timing {kept} kept on the way"):
                _test_front(folder, given, task, results["front"], data, device)
        written.close(folder, "search.json", results | {"test": test})
    folder.seal_open("search.json", PRUNED)
    written.write_if_missing(folder)
    return found


def recalibrate_frozen(model: keras.Model, data: Dataset, device: Device) -> None:
    """Once after the search: what a frozen batch norm has kept is of activations that are gone.

    Afterwards it is frozen again. Does nothing for a network without frozen ones.
    """
    if len(batch_norms(model, frozen=True)) > len(batch_norms(model)):
        recalibrate(model, data, device, frozen=True)


def save_finished(
    folder: RunFolder, name: str, given: Given, core: keras.Model, inputs: Any
) -> None:
    """Writes what became of a given network, with its ends; reads it back and compares.

    Args:
        name: of the file in the run folder.
        core: what became of `given.core`. inputs: float32 [n, ...], a tuple where there are
            several.

    Raises:
        UserError: the file gives other outputs than the network in memory.
    """
    folder.write(name, lambda path: _save_checked(path, given, core, inputs))


def _save_checked(path: Path, given: Given, core: keras.Model, inputs: Any) -> None:
    finished = given.finished(core)
    save_keras(path, finished)
    memory, file = map(given.as_core, (finished, load_keras(path, compile=False)))
    apart, noise = difference(memory, file, mapped(lambda x: x[:SAVED_IMAGES], inputs))
    if not apart <= max(TOLERANCE, TIMES * noise):
        raise UserError(
            f"{path} gives other outputs than the network it was written from, by {apart:.2g} of "
            "the largest: a layer keeps something that its configuration and weights don't hold"
        )


def _searched(
    folder: RunFolder,
    given: Given,
    task: Task,
    data: Dataset,
    options: SearchOptions,
    device: Device,
    memory: Memory,
) -> tuple[ChannelGraph, Validation, History, dict]:
    """The search itself: the channel graph of theta_0, D_val, the history, seconds by part."""
    if memory.peak is not None:
        progress.say(str(memory))
    graph, val = prepare(folder, given.core, task, data, options, device, memory.sections)
    history = History(folder, output_shapes(graph, len(val)))
    method = SEARCHES[options.method.name]
    order = order_in(folder) if options.method.supernet else None
    drop = _drop(given, task, val, history, options, device)
    said = [*announcement(graph, options.control), *([str(drop)] if drop else [])]
    if options.sampling.held_out is not None:
        said.append(_said_of_held_out(folder, data, options.sampling.held_out))
    for line in said:
        progress.say(line)
    running = method(
        graph,
        val,
        history,
        options,
        task,
        drop=drop,
        order=order,
        compile=device.compile,
        **({} if options.method.supernet else {"plan": memory.plan}),
    )

    def log(step: int, values: dict[str, float]) -> None:
        folder.scalars("search", step, values)
        said_after_steps(running)

    running.run(log)
    seconds = seconds_of(history)
    if options.method.supernet:
        seconds |= seconds_before(folder)
    return graph, val, history, seconds


def _said_of_held_out(folder: RunFolder, data: Dataset, share: float) -> str:
    """Who leaves the examples out that D_val is drawn from."""
    count = progress.count(len(held_out(data, share)), "training example")
    line = f"D_val is drawn from {count} that the fine-tuning leaves out"
    if any(row["phase"] == "baseline" for row in folder.rows(METRICS)):
        return f"{line}, as the baseline did"
    return f"{line}; the given network may have been trained on them"


def _drop(
    given: Given,
    task: Task,
    val: Validation,
    history: History,
    options: SearchOptions,
    device: Device,
) -> Drop | None:
    """How much worse than the given network the search's may get on D_val; None: no matter.

    The given network normalises by the statistics of the batch here, as the search does.
    """
    most = options.control.max_drop
    if most is None:
        return None
    if history.rows:  # an earlier process has measured it
        return Drop(**history.rows[0]["drop"])
    forward = make_forward(given.core, bn="batch", compile=device.compile)
    outputs = joined([forward(rows_of(val.inputs, rows)) for rows in val.batches()])
    return drop_from(figure_of(task, val, outputs), most)


def _bank(
    folder, graph, history, task: Task, data, options: SearchOptions, bank, device: Device
) -> dict:
    """Builds the memory bank; returns its manifest."""
    teachers = min(bank.teachers, len(history.rows) - 1)
    if teachers < bank.teachers:
        made = progress.count(teachers, "network")
        progress.say(f"{options.method.name} made {made} before the last one: so many teachers")
    if folder.has(MANIFEST):  # begun by an earlier process, perhaps on a fuller disk
        bank = replace(bank, kind=folder.read_json(MANIFEST)["kind"])
    kept = width(graph.model) if bank.features else 0
    free = cluster.on_chief(lambda: shutil.disk_usage(folder.path).free)
    planned = planned_bank(bank, graph.model, data, teachers, kept, task=task, free=free)
    progress.say(f"memory bank: {planned}")
    batches = partial(
        eval_batches,
        data,
        "train",
        options.sampling.batch_size,
        shuffle_seed=options.sampling.seed,
        part=cluster.part(),
    )
    return build_bank(
        folder,
        graph,
        history,
        lambda first: batches(first_batch=first),
        layout=planned,
        fingerprint=data.fingerprint,
        compile=device.compile,
    )


def planned_bank(
    bank: Bank,
    core: keras.Model,
    data: Dataset,
    teachers: int,
    features: int = 0,
    *,
    task: Task | None = None,
    free: float = math.inf,
) -> Layout:
    """The layout of the bank of a network's teachers on a training set.

    Args:
        features: kept per example. free: bytes on the disk.
        task: of the network; None: the bank's size doesn't matter.

    Raises:
        UserError: as `pruning.knowledge.bank.layout`.
    """
    shapes = [tuple(one.shape[1:]) for one in core.outputs]
    moved = data.moves and any(len(shape) > 1 for shape in shapes)
    numbers = [head.output.kind == NUMBERS for head in task.heads] if task else ()
    return layout(
        bank,
        len(data.train),
        shapes,
        teachers,
        features,
        numbers=numbers,
        free=free,
        moved=moved,
    )


def _test_front(
    folder: RunFolder, given: Given, task: Task, front: list[dict], data: Dataset, device: Device
) -> None:
    """Adds accuracies and latencies (ms per image) to the entries of a front, and draws them."""
    files = [folder.file(front_file(one["wanted"])) for one in front]
    models = [given.read_again(load_keras(file, compile=False)).core for file in files]
    for one, network in zip(front, models, strict=True):
        recalibrate(network, data, device)
        one["test"] = both_modes(network, task, data, "test", device)
        one["latency_ms"] = {}
    for batch in latency_batches(data):
        times = latencies(models, batch, compile=device.compile)
        for one, milliseconds in zip(front, times, strict=True):
            one["latency_ms"][str(batch)] = milliseconds
    folder.write("search_front.png", lambda path: plots.front(path, front))


def prepare(
    folder: RunFolder,
    model: keras.Model,
    task: Task,
    data: Dataset,
    options: SearchOptions,
    device: Device,
    sections: bool = False,
) -> tuple[ChannelGraph, Validation]:
    """What a search works on: theta_0, kept in the folder, and D_val.

    theta_0 is the given network adapted to D_subset or, for the supernet methods, the supernet
    that was trained from it on everything but D_val.

    Args:
        sections: as of `adapting.adapted`.

    Raises:
        UserError: the training set is too small for D_subset and D_val, or a loss isn't finite.
    """
    subset, validation = parts(data, options.sampling)
    held = normalised_inputs(data, validation)
    val = Validation(held.inputs, held.targets, options.sampling.batch_size, held.weights)
    if not options.method.supernet:
        start = adapted(folder, model, task, data, subset, options, device, sections=sections)
        return ChannelGraph(start), val
    rest = _rest(data, validation, options)
    start = train_supernet(folder, START, model, task, data, val, rest, options, device)
    graph = ChannelGraph(start)
    return graph, val


def _rest(data: Dataset, validation: np.ndarray, options: SearchOptions) -> np.ndarray:
    """Indices of the examples that a supernet is trained on."""
    kept = without_held_out(data, options.sampling.held_out).trained_on
    return np.setdiff1d(kept, validation)


def at_layers(options: SearchOptions, given: Given) -> SearchOptions:
    """The options with the layers to exclude by their names in the core."""
    return replace(options, control=located(options.control, given.core, given.places))


def check(
    given: Given,
    data: Dataset,
    options: SearchOptions,
    bank: Bank | None = DEFAULT_BANK,
) -> None:
    """Refuses at once what would stop the search later; changes nothing.

    Raises:
        UserError: no group that can be pruned, a layer to exclude that isn't there, a target that
            can't be reached, a training set that is too small for D_subset and D_val, a bank that
            can't hold its classes, or a method that can't aim at the budget.
    """
    measured = isinstance(options.budget, Latency)
    if measured and options.method.one_shot:
        raise UserError(
            f"{options.method.name} prunes in one step and can't aim at a measured latency: use a "
            "budget of FLOPs or parameters"
        )
    if measured and isinstance(options.method, SWP):
        raise UserError(
            "swp combines stages by sizes that add up, which latencies don't: use a budget of "
            "FLOPs or parameters"
        )
    rest = _rest(data, parts(data, options.sampling)[1], options)
    batch = getattr(options.method, "batch_size", None)
    if options.method.supernet and batch and batch > len(rest):
        raise UserError(
            f"supernet_batch_size {batch} is more than the {len(rest)} training examples beside "
            "D_val: choose a smaller one"
        )
    if bank:
        planned_bank(bank, given.core, data, bank.teachers)
    options = at_layers(options, given)
    graph = ChannelGraph(given.core, closed=given.closed)
    check_something_is_left(graph, least_widths(graph, options.control))
    budget = make_budget(options.budget, graph)
    smallest = smallest_mask(graph, options)
    left = smallest_in_words(graph, options.control, options.budget.round_to)
    if options.method.supernet:
        left = "the narrowest widths of the supernet"
    # How low a latency can get is known only once it is measured.
    if options.budget.rate is not None and not measured:
        lowest = budget.size(smallest) / budget.full
        most = partial(heaviest_in_words, graph)
        check_reachable(options.budget.rate, lowest, left, options.budget.label, most=most)
