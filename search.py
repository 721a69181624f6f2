"""Phase 1: the search for a sub-network and its memory bank; by default EKG's greedy search (Lee &
Song, ECCV 2022), with --method also FFP's, SWP's, AutoSlim's, uniform widths or a global threshold.

    python search.py --arch ResNet-56 --dataset CIFAR10 --data_path DIR --trained_param res56.pkl \\
        --search_target_rate 0.45 --train_path ../run

Filters are ranked and removed by what D_val says, a part of the *training* set; the test split
is only read for the figures printed at the end and chooses nothing.
"""

from utils import cli, devices

devices.import_tensorflow()

import time
from functools import partial

import keras
import numpy as np
import tensorflow as tf

from dataloader import (
    Dataset,
    eval_batches,
    normalised_images,
    per_class_indices,
    train_batches,
    unreadable_named,
)
from nets.graph import ChannelGraph
from nets.head import ending_as, ends_in_softmax, load_logits, without_softmax
from nets.proof import agreement
from op_utils import check_finite, make_train_step
from pruning.bank import BankOptions, build_bank, layout
from pruning.budgets import check_reachable, make_budget
from pruning.current import Validation
from pruning.distill import plain_loss
from pruning.features import width
from pruning.history import History
from pruning.methods import ONE_SHOT, SEARCHES, SUPERNETS, smallest_mask
from pruning.search import SearchOptions
from utils import inputs, plots
from utils import options as flags
from utils.bank_flags import bank_of
from utils.checkpoint import load_keras, save_keras
from utils.defaults import fill_defaults
from utils.latency import latencies
from utils.measure import latency_batches
from utils.phases import Device, both_modes, recalibrate
from utils.runfolder import BASELINE, PRUNED, START, SUPERNET_ORDER, RunFolder, front_file
from utils.search_report import draw, print_summary, seconds_of, summary
from utils.supernet_training import micro_batches, seconds_before, take_order, train_supernet

ADAPT_BATCH, ADAPT_LEARNING_RATE = 256, 1e-3
DEFAULT_BANK = BankOptions()


def search(
    folder: RunFolder,
    model: keras.Model,
    data: Dataset,
    options: SearchOptions,
    device: Device,
    bank: BankOptions | None = DEFAULT_BANK,
) -> keras.Model:
    """Runs the search from wherever an earlier process stopped, then builds the bank.

    Args:
        model: the trained network, functional, of stock layers; it isn't changed. A final softmax
            is left out while searching.
        bank: kind and size of the memory bank; None for no bank.

    Returns:
        theta* as a smaller network of stock layers, before any fine-tuning; it ends in a softmax if
        `model` does.

    Raises:
        UserError: as `check`.
    """
    check(model, data, options, bank)
    if not folder.file(BASELINE).exists():
        save_keras(folder.file(BASELINE), model)
    if not folder.file(PRUNED).exists():
        graph, val, history, seconds = _searched(folder, model, data, options, device)
        teachers = []
        if bank:
            begin = time.perf_counter()
            teachers = _bank(folder, graph, history, data, options, bank, device)["teachers"]
            seconds |= {"bank": time.perf_counter() - begin}
        mask = history.mask(graph, len(history.rows) - 1)
        pruned = graph.pruned(mask)
        proof = {"masked_and_pruned": agreement(graph, mask, pruned, val.images)}
        results = summary(graph, history, options, teachers, seconds) | proof
        folder.write_json("search.json", results)
        draw(folder, history, options.target_rate, options.budget)
        for one in results["front"]:
            network = graph.pruned(history.mask(graph, one["step"]))
            save_keras(folder.file(front_file(one["wanted"])), ending_as(model, network))
        save_keras(folder.file(PRUNED), ending_as(model, pruned))
    results = folder.read_json("search.json")
    if "test" not in results:
        test = {"before": load_keras(folder.file(START)), "after": load_logits(folder.file(PRUNED))}
        for side, network in test.items():
            recalibrate(network, data, device)
            test[side] = both_modes(network, data, "test", device)
        _test_front(folder, results["front"], data, device)
        folder.write_json("search.json", results | {"test": test})
    return load_keras(folder.file(PRUNED))


def _searched(
    folder: RunFolder, model: keras.Model, data: Dataset, options: SearchOptions, device: Device
) -> tuple[ChannelGraph, Validation, History, dict]:
    """The search itself: the channel graph of theta_0, D_val, the history, seconds by part."""
    graph, val = prepare(folder, model, data, options, device)
    history = History(folder, (len(val.labels), data.num_classes))
    replicas = devices.replicas(device.strategy)
    method = SEARCHES[options.method]
    running = method(graph, val, history, options, compile=device.compile, devices=replicas)
    running.run(log=partial(folder.scalars, "search"))
    seconds = seconds_of(history)
    if options.method in SUPERNETS:
        seconds |= seconds_before(folder)
    return graph, val, history, seconds


def _bank(folder, graph, history, data, options: SearchOptions, bank, device: Device) -> dict:
    """Builds the memory bank; returns its manifest."""
    teachers = min(options.num_teacher, len(history.rows) - 1)
    if teachers < options.num_teacher:
        print(f"{options.method} made {teachers} networks before the last one: so many teachers")
    kept = width(graph.model) if bank.features else 0
    planned = layout(bank, len(data.train), data.num_classes, teachers, kept)
    size = " x ".join(f"{size:,}" for size in planned.shape)
    if planned.features:
        size += f" and {planned.features} features"
    print(f"memory bank: {planned.kind}, {size}, {planned.bytes / 1e6:,.1f} MB", flush=True)
    batches = partial(eval_batches, data, "train", options.batch_images, shuffle_seed=options.seed)
    return build_bank(
        folder,
        graph,
        history,
        lambda first: batches(first_batch=first),
        layout=planned,
        fingerprint=data.fingerprint,
        compile=device.compile,
    )


def _test_front(folder: RunFolder, front: list[dict], data: Dataset, device: Device) -> None:
    """Adds accuracies and latencies (ms per image) to the entries of a front, and draws them."""
    if not front:
        return
    models = [load_logits(folder.file(front_file(one["wanted"]))) for one in front]
    for one, network in zip(front, models, strict=True):
        recalibrate(network, data, device)
        one["test"] = both_modes(network, data, "test", device)
        one["latency_ms"] = {}
    for batch in latency_batches(data):
        times = latencies(models, batch, compile=device.compile)
        for one, milliseconds in zip(front, times, strict=True):
            one["latency_ms"][str(batch)] = milliseconds
    plots.front(folder.file("search_front.png"), front)


def prepare(
    folder: RunFolder, model: keras.Model, data: Dataset, options: SearchOptions, device: Device
) -> tuple[ChannelGraph, Validation]:
    """What a search works on: theta_0, kept in the folder, and D_val.

    theta_0 is the given network adapted to D_subset or, for the supernet methods, the supernet
    that was trained from it on everything but D_val.

    Raises:
        UserError: the training set is too small for D_subset and D_val, or a loss isn't finite.
    """
    subset, validation = _parts(data, options)
    val = Validation(*normalised_images(data, validation), options.batch_images)
    model = without_softmax(model)
    if options.method not in SUPERNETS:
        return ChannelGraph(_adapted(folder, model, data, subset, options, device)), val
    rest = np.setdiff1d(np.arange(len(data.train)), validation)
    graph = ChannelGraph(train_supernet(folder, START, model, data, val, rest, options, device))
    take_order(folder, graph)
    return graph, val


def check(
    model: keras.Model,
    data: Dataset,
    options: SearchOptions,
    bank: BankOptions | None = DEFAULT_BANK,
) -> None:
    """Refuses at once what would stop the search later; changes nothing.

    Raises:
        UserError: several inputs or outputs, neither logits nor softmax probabilities, a graph that
            can't be read, a target that can't be reached, a training set that is too small for
            D_subset and D_val, a bank that can't hold its classes, or a method that can't aim at
            the budget.
    """
    if options.budget == "latency" and options.method in ONE_SHOT:
        raise cli.UserError(
            f"--method {options.method} prunes in one step and can't aim at a measured latency: "
            "use --budget flops or params"
        )
    if options.budget == "latency" and options.method == "swp":
        raise cli.UserError(
            "--method swp combines stages by sizes that add up, which latencies don't: use "
            "--budget flops or params"
        )
    _parts(data, options)
    if bank:
        layout(bank, len(data.train), data.num_classes, options.num_teacher)
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise cli.UserError(
            f"{model.name} has {len(model.inputs)} inputs and {len(model.outputs)} outputs: the "
            "search takes networks with one of each"
        )
    ends_in_softmax(model)
    graph = ChannelGraph(model)
    budget = make_budget(options.budget, graph)
    smallest = smallest_mask(graph, options)
    left = f"{options.round_to} filter(s) in each of {len(graph.gates)} groups"
    if options.method in SUPERNETS:
        left = "the narrowest widths of the supernet"
    # How low a latency can get is known only once it is measured.
    if options.budget != "latency":
        lowest = budget.size(smallest) / budget.full
        check_reachable(options.target_rate, lowest, left, options.budget)


def _parts(data: Dataset, options: SearchOptions) -> list[np.ndarray]:
    """Indices of D_subset and D_val."""
    sizes = options.subset_per_class, options.val_per_class
    return per_class_indices(data.train.labels, sizes, options.seed)


def _adapted(folder, model, data, subset, options: SearchOptions, device: Device) -> keras.Model:
    """theta_0: the given network after one epoch of SGD on D_subset (method.md 1, step 1)."""
    path = folder.file(START)
    if path.exists():
        return load_keras(path)
    batch = min(ADAPT_BATCH, len(subset))
    batches = train_batches(
        data, subset, batch, seed=options.seed, epoch=0, views=1, augment=False, jitter=False
    )
    with device.strategy.scope():
        start = keras.models.clone_model(model)
        start.set_weights(model.get_weights())
        optimizer = keras.optimizers.SGD(ADAPT_LEARNING_RATE)
    steps = make_train_step(
        start,
        optimizer,
        plain_loss(),
        device.strategy,
        accum=micro_batches(batch, device.strategy.num_replicas_in_sync, options.batch_images),
        compile=device.compile,
    )
    count = len(subset) // batch
    distributed = iter(device.strategy.experimental_distribute_dataset(batches))
    check_finite(steps(distributed, tf.constant(count))["loss"], 1)
    save_keras(path, start)
    return load_keras(path)


@unreadable_named()
def main(argv: list[str] | None = None) -> None:
    """The command line of phase 1."""
    parser = cli.Parser(description="Searches a sub-network and builds its memory bank.")
    flags.add_run(parser)
    flags.add_data(parser)
    inputs.add_own(parser)
    flags.add_device(parser)
    flags.add_search(parser)
    args = parser.parse_args(argv)
    if not (args.trained_param or args.model):
        raise cli.UserError(
            "--trained_param (or --model) is missing: the search needs a trained network"
        )
    device = flags.device_of(args)
    keras.utils.set_random_seed(args.seed)
    data, network = inputs.data_and_network(args)
    fill_defaults(args, data)
    bank = bank_of(args)
    check(network, data, flags.search_of(args), bank)  # before there is a folder
    with flags.open_folder(args, START, SUPERNET_ORDER) as folder:
        search(folder, network, data, flags.search_of(args), device, bank)
        print_summary(folder.read_json("search.json"))


if __name__ == "__main__":
    cli.run(main)
