"""Phase 1 of EKG (Lee & Song, ECCV 2022): the greedy sub-network search and the memory bank.

    python search.py --arch ResNet-56 --dataset CIFAR10 --data_path DIR --trained_param res56.pkl \\
        --search_target_rate 0.45 --train_path ../run

Filters are ranked and removed by what D_val says, a part of the *training* set; the test split
is only read for the figures printed at the end and chooses nothing.
"""

from utils import cli, devices

devices.quiet()

import math
import time
from functools import partial

import keras
import numpy as np
import tensorflow as tf

from dataloader import Dataset, eval_batches, per_class_indices, train_batches
from nets.graph import ChannelGraph
from nets.head import ending_as, ends_in_softmax, load_logits, without_softmax
from op_utils import check_finite, make_train_step
from pruning.bank import build_bank
from pruning.distill import plain_loss
from pruning.evaluator import Validation
from pruning.greedy import GreedySearch, SearchOptions
from pruning.history import History
from utils import inputs, plots
from utils import options as flags
from utils.checkpoint import load_keras, save_keras
from utils.phases import Device, both_modes, recalibrate
from utils.report import before_after
from utils.runfolder import BASELINE, PRUNED, START, RunFolder

ADAPT_BATCH, ADAPT_LEARNING_RATE = 256, 1e-3


def search(
    folder: RunFolder, model: keras.Model, data: Dataset, options: SearchOptions, device: Device
) -> keras.Model:
    """Runs the search from wherever an earlier process stopped, then builds the bank.

    Args:
        model: the trained network, functional, of stock layers; it isn't changed. A final softmax
            is left out while searching.

    Returns:
        theta* as a smaller network of stock layers, before any fine-tuning; it ends in a softmax if
        `model` does.

    Raises:
        UserError: as `check`.
    """
    check(model, data, options)
    if not folder.file(BASELINE).exists():
        save_keras(folder.file(BASELINE), model)
    if not folder.file(PRUNED).exists():
        _search_and_fill_bank(folder, model, data, options, device)
    results = folder.read_json("search.json")
    if "test" not in results:
        test = {"before": load_keras(folder.file(START)), "after": load_logits(folder.file(PRUNED))}
        for side, network in test.items():
            recalibrate(network, data, device)
            test[side] = both_modes(network, data, "test", device)
        folder.write_json("search.json", results | {"test": test})
    return load_keras(folder.file(PRUNED))


def _search_and_fill_bank(
    folder: RunFolder, model: keras.Model, data: Dataset, options: SearchOptions, device: Device
) -> None:
    subset, validation = _parts(data, options)
    start = _adapted(folder, without_softmax(model), data, subset, options, device)
    graph = ChannelGraph(start)
    images = (data.train.images[validation] - data.mean) / data.std
    labels = data.train.labels[validation]
    val = Validation(images.astype(np.float32), labels, options.batch_images)
    history = History(folder, (len(labels), data.num_classes))
    greedy = GreedySearch(graph, val, history, options, compile=device.compile)
    greedy.run(log=partial(folder.scalars, "search"))
    begin = time.perf_counter()
    manifest = build_bank(
        folder,
        graph,
        history,
        eval_batches(data, "train", options.batch_images, shuffle_seed=options.seed),
        examples=len(data.train.labels),
        num_teachers=options.num_teacher,
        fingerprint=data.fingerprint,
        compile=device.compile,
    )
    seconds = _seconds(history) | {"bank": time.perf_counter() - begin}
    folder.write_json("search.json", summary(graph, history, manifest, seconds))
    draw(folder, history, options.target_rate)
    pruned = graph.pruned(history.mask(graph, len(history.rows) - 1))
    save_keras(folder.file(PRUNED), ending_as(model, pruned))


def check(model: keras.Model, data: Dataset, options: SearchOptions) -> None:
    """Refuses at once what would stop the search later; changes nothing.

    Raises:
        UserError: the target can't be reached, the training set is too small for D_subset and
            D_val, or the network gives neither logits nor softmax probabilities.
    """
    ends_in_softmax(model)
    _parts(data, options)
    graph = ChannelGraph(model)
    least = np.zeros(graph.gates.num_units + 1, np.float32)
    least[[gate.start for gate in graph.gates]] = 1
    least[-1] = 1
    lowest = graph.flops(least) / graph.flops()
    if lowest > options.target_rate:
        # Rounded up, so that the rate that the message names can be reached.
        raise cli.UserError(
            f"--search_target_rate {options.target_rate} can't be reached: with one filter in each "
            f"of {len(graph.gates)} groups {math.ceil(lowest * 1e4) / 1e4} of the FLOPs remain"
        )


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
    steps = make_train_step(start, optimizer, plain_loss(), device.strategy, compile=device.compile)
    count = len(subset) // batch
    distributed = iter(device.strategy.experimental_distribute_dataset(batches))
    check_finite(steps(distributed, tf.constant(count))["loss"], 1)
    save_keras(path, start)
    return load_keras(path)


def _seconds(history: History) -> dict[str, float]:
    """Seconds of the whole search by part, over all the processes that worked on it."""
    total: dict[str, float] = {}
    for row in history.rows:
        for part, seconds in row["seconds"].items():
            total[part] = total.get(part, 0.0) + seconds
    return total


def summary(graph: ChannelGraph, history: History, manifest: dict, seconds: dict) -> dict:
    """What search.json holds: the outcome of the search in figures."""
    first, last = history.rows[0], history.rows[-1]
    mask = history.mask(graph, len(history.rows) - 1)
    return {
        "steps": len(history.rows) - 1,
        "evaluations": sum(row["evaluations"] for row in history.rows),
        "flops": {"before": first["flops"], "after": last["flops"]},
        "flops_rate": last["flops_rate"],
        "parameters": {"before": graph.parameters(), "after": graph.parameters(mask)},
        "val_loss": {"before": first["val_loss"], "after": last["val_loss"]},
        "val_accuracy": {"before": first["val_accuracy"], "after": last["val_accuracy"]},
        "gates": [gate.name for gate in graph.gates],
        "widths": {"before": first["widths"], "after": last["widths"]},
        "layers": {
            name: [len(out_units), int(np.count_nonzero(mask[out_units]))]
            for name, (_, out_units) in graph.units.items()
        },
        "teachers": manifest["teachers"],
        "seconds": seconds,
    }


def draw(folder: RunFolder, history: History, target_rate: float) -> None:
    """widths.png and search_curve.png of a finished search."""
    results = folder.read_json("search.json")
    widths = results["widths"]
    plots.widths(
        folder.file("widths.png"),
        results["gates"],
        widths["before"],
        widths["after"],
        title="Filters kept in each channel group",
    )
    plots.search_curve(
        folder.file("search_curve.png"),
        [row["flops_rate"] for row in history.rows],
        [row["val_loss"] for row in history.rows],
        val_accuracy=[row["val_accuracy"] / 100 for row in history.rows],
        target=target_rate,
    )


def print_summary(results: dict) -> None:
    """Prints the before -> after block and the seconds of a search's search.json."""
    rows = [
        (title, results[key]["before"], results[key]["after"], spec)
        for title, key, spec in (
            ("parameters", "parameters", ",.0f"),
            ("FLOPs (multiply-accumulates)", "flops", ",.0f"),
            ("D_val loss", "val_loss", ".4f"),
            ("D_val top-1 %", "val_accuracy", ".2f"),
        )
    ]
    for mode, key in (("moving statistics", "top1"), ("batch statistics", "batch_top1")):
        sides = (results["test"][side][key] for side in ("before", "after"))
        rows.append((f"test top-1 %, {mode}, not fine-tuned", *sides, ".2f"))
    print(before_after(rows))
    seconds = ", ".join(f"{part} {value:.1f}" for part, value in results["seconds"].items())
    print(f"{results['steps']} steps, {results['evaluations']} evaluations; seconds: {seconds}")


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
    flags.fill_defaults(args, data)
    check(network, data, flags.search_of(args))  # before there is a folder
    with flags.open_folder(args, START) as folder:
        search(folder, network, data, flags.search_of(args), device)
        print_summary(folder.read_json("search.json"))


if __name__ == "__main__":
    cli.run(main)
