"""The public functions; `ekg_tf` gives them by name.

result = prune(model, (x_train, y_train), (x_test, y_test), "run", budget=0.5)
"""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar, cast

from ekg_tf.utils import devices, progress

with progress.shown(0):  # a line of ours would be a surprise here
    devices.import_tensorflow()

import keras
import numpy as np
import tensorflow as tf

from ekg_tf.dataloader import Dataset, given_data, own, unreadable_named
from ekg_tf.dataloader.fit import Fit
from ekg_tf.deployment import exporting
from ekg_tf.deployment import formats as deployment
from ekg_tf.nets import layer_kinds
from ekg_tf.nets.flatten import flatten
from ekg_tf.nets.given import Given, check_weights, compile_like
from ekg_tf.nets.graph import ChannelGraph
from ekg_tf.nets.keras_graph import Compiled, has_graph
from ekg_tf.nets.rebuild import at_shapes
from ekg_tf.nets.zoo.load import check_own
from ekg_tf.options import recipes
from ekg_tf.options.bank import NO_BANK, Bank
from ekg_tf.options.budgets import Budget, Flops
from ekg_tf.options.control import Control
from ekg_tf.options.data import Data, Sampling
from ekg_tf.options.finetuning import FINETUNINGS, Contrastive, Ensemble, FineTuning
from ekg_tf.options.kinds import FORMATS
from ekg_tf.options.methods import EKG, FFP, METHODS, SCORES, Method
from ekg_tf.options.scored import Scored
from ekg_tf.options.search import SearchOptions
from ekg_tf.options.training import Training
from ekg_tf.phases import pipeline
from ekg_tf.phases.finetuning import objective_of, pruned_file, training_data
from ekg_tf.phases.finetuning import run_finetuning as _finetuned
from ekg_tf.phases.opening import fit_of, work_on
from ekg_tf.phases.rehearsal import rehearse, rehearse_network
from ekg_tf.phases.scoring import run_scored
from ekg_tf.phases.searching import check
from ekg_tf.phases.searching import run_search as _searched
from ekg_tf.phases.sensitivity import run_sensitivity
from ekg_tf.pruning.methods.scored import check as check_scored
from ekg_tf.pruning.sensitivity import SHARES
from ekg_tf.reports import inspection
from ekg_tf.reports import sensitivity as sensitivity_report
from ekg_tf.reports.finetuning import report, tested
from ekg_tf.reports.search import print_summary
from ekg_tf.training.task import Knowledge
from ekg_tf.training.trainer import Extras, check_batch
from ekg_tf.utils.devices import Device
from ekg_tf.utils.errors import UserError
from ekg_tf.utils.keras_files import load_keras
from ekg_tf.utils.provenance import digest
from ekg_tf.utils.runfolder import (
    BASELINE,
    EXPORTED,
    PRUNED,
    RunFolder,
)
from ekg_tf.utils.trees import tree_of

AUTO: Literal["auto"] = "auto"
PathLike = str | os.PathLike[str]
# One split: (x, y) or (x, y, weights), a finite tf.data.Dataset of such, or what `prune` says.
Split = Any


Taken = ParamSpec("Taken")
Made = TypeVar("Made")


def _shown(function: Callable[Taken, Made]) -> Callable[Taken, Made]:
    """Shows of a call what its argument `verbose` says."""

    @functools.wraps(function)
    def call(*args: Taken.args, **kwargs: Taken.kwargs) -> Made:
        with progress.shown(cast(progress.Verbose, kwargs.get("verbose", "auto"))):
            return function(*args, **kwargs)

    return call


@dataclass(frozen=True)
class Report:
    """What can be pruned in a network; `print` shows it as a table.

    Attributes:
        groups: {"layers", "width", "prunable", "reason"} of every group of channels; layers that
            aren't prunable are listed one by one, with the reason.
        flops, parameters: of the whole network; multiply-accumulates for one example.
        lowest_flops, lowest_parameters: the shares that can be reached, 0 .. 1.
        figures: all of it as plain data.
    """

    groups: list[dict[str, Any]]
    flops: int
    parameters: int
    lowest_flops: float
    lowest_parameters: float
    figures: dict[str, Any]

    def __str__(self) -> str:
        return inspection.text(self.figures)


@dataclass(frozen=True)
class Result:
    """What a search, and a fine-tuning after it, made.

    Attributes:
        model: the pruned network of stock layers, as in the folder's pruned.keras (after a search
            alone: search_pruned.keras).
        before, after: figures of both networks: "parameters", "flops", "test" and, after a
            fine-tuning, "latency_ms".
        front: one dict for each rate that was to be kept on the way.
        folder: the run folder.
    """

    model: keras.Model
    before: dict[str, Any]
    after: dict[str, Any]
    front: list[dict[str, Any]]
    folder: Path


def inspect(
    model: keras.Model,
    *,
    input_shape: Sequence[Any] | None = None,
    exclude: str | Sequence[str] = (),
    min_width: int = 1,
    min_share: float = 0.0,
) -> Report:
    """What can be pruned in a network, and how far.

    Args:
        model: functional or Sequential; it isn't changed.
        input_shape: of one example, such as (224, 224, 3), at which FLOPs are counted where the
            network leaves it open; a list of several where it has several inputs.
        exclude, min_width, min_share: as of `prune`.

    Raises:
        UserError: the network's graph can't be read, its inputs are of open size, or it lacks a
            layer to exclude.

    Examples:
        >>> report = ekg.inspect(model)
        >>> report.lowest_flops < 1
        True
        >>> [group["prunable"] for group in report.groups]
        [True, True, False]
    """
    _check_model(model)
    check_weights(model)
    control = _control(exclude, min_width, min_share, None)
    flat = flatten(model).model
    if input_shape is not None:
        one = all(isinstance(size, int) for size in input_shape)
        flat = at_shapes(flat, [input_shape] if one else input_shape)
    figures = inspection.inspection(ChannelGraph(flat), control)
    return Report(
        groups=figures["groups"],
        flops=figures["flops"],
        parameters=figures["parameters"],
        lowest_flops=figures["lowest_rate"],
        lowest_parameters=figures["lowest_parameters"],
        figures=figures,
    )


@dataclass(frozen=True)
class Sensitivity:
    """How much each group of a network costs; `print` shows the rise of the loss as a table.

    Attributes:
        shares: of a group's filters that were removed, float [shares].
        groups: {"layers", "width", "removed": filters [shares], "flops": share of the network's
            that remains [shares], "rise": of the loss [shares], "figures": [shares]} of every
            group, in the order of the network.
        whole: figures of the whole network on the same examples: "loss", and "top1" in percent or
            the user's metrics.
        figures: all of it as plain data.
    """

    shares: tuple[float, ...]
    groups: list[dict[str, Any]]
    whole: dict[str, float]
    figures: dict[str, Any]

    def __str__(self) -> str:
        return sensitivity_report.text(self.figures)

    def draw(self, path: PathLike) -> None:
        """Writes the heat map, groups against shares, as a PNG.

        Raises:
            UserError: the file can't be written.
        """
        sensitivity_report.draw(path, self.figures)


@unreadable_named()
def sensitivity(
    model: keras.Model,
    data: Split,
    *,
    shares: Sequence[float] = SHARES,
    score: str = "taylor",
    preprocessing: Data | None = None,
    sampling: Sampling | None = None,
    loss: Any = None,
    metrics: Any = None,
    loss_weights: Any = None,
    class_weight: Mapping[int, float] | None = None,
    compile: bool | None = None,
) -> Sensitivity:
    """How much the loss rises when each group of filters alone loses a share of them.

    The weakest filters go first. The network runs on D_val by the statistics of the batch, as in a
    search, and isn't fine-tuned (docs/control.md).

    Args:
        model: as of `prune`.
        data: as `train` of `prune`; D_val is drawn from it.
        shares: of a group's filters, strictly between 0 and 1, rising.
        score: how filters are ranked: "taylor", "l1", "fpgm" or "random".
        preprocessing: normalisation, as `data` of `prune`.
        sampling: how many examples D_val has, and their batches.
        loss, metrics, loss_weights, class_weight, compile: as of `prune`.

    Raises:
        UserError: as `prune`.

    Examples:
        >>> found = ekg.sensitivity(model, (x_train, y_train), shares=(0.25, 0.5))
        >>> [len(group["rise"]) for group in found.groups]
        [2, 2]
    """
    shares = tuple(float(one) for one in shares)
    if not shares or list(shares) != sorted(set(shares)) or not 0 < shares[0] <= shares[-1] < 1:
        raise UserError(f"shares={shares}: give rising numbers strictly between 0 and 1")
    if score not in SCORES:
        raise UserError(f"score={score!r} is none of {', '.join(SCORES)}")
    if has_graph(model):
        check_own(model, model.name)
    work = work_on(
        model,
        _reader(data, data, preprocessing, "sensitivity"),
        aims=Aims(loss, metrics, loss_weights).compiled,
        class_weight=class_weight,
    )
    wanted = _given("sampling", sampling, Sampling(), Sampling)
    device = devices.make(tf.distribute.get_strategy(), compile)
    found = run_sensitivity(work, recipes.sampling(wanted, work.data), device, shares, score=score)
    return Sensitivity(shares, found["groups"], found["whole"], found)


@_shown
@unreadable_named()
def prune(
    model: keras.Model,
    train: Split,
    test: Split,
    folder: PathLike | None,
    *,
    budget: float | Budget | None = None,
    method: Method | None = None,
    exclude: str | Sequence[str] = (),
    min_width: int = 1,
    min_share: float = 0.0,
    max_drop: float | None = None,
    finetune: FineTuning | None = None,
    bank: Bank | Literal["auto"] | None = AUTO,
    training: Training | None = None,
    data: Data | None = None,
    sampling: Sampling | None = None,
    loss: Any = None,
    metrics: Any = None,
    loss_weights: Any = None,
    class_weight: Mapping[int, float] | None = None,
    knowledge: Knowledge | None = None,
    optimizer: keras.optimizers.Optimizer | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    validation: Split | None = None,
    seed: int = 0,
    overwrite: bool = False,
    log: bool = True,
    compile: bool | None = None,
    val_batch_size: int = devices.VAL_BATCH_IMAGES,
    deployed_latency: bool = True,
    verbose: progress.Verbose = "auto",
) -> Result:
    """Searches a smaller network and fine-tunes it.

    Runs under the current tf.distribute strategy and sets Keras's random seed. A call that was
    killed is taken up where it was by the same call, a finished one gives its result again.

    Args:
        model: trained and functional (or Sequential, or subclassed), with any inputs and outputs;
            it isn't changed.
        train, test: each (x, y) or (x, y, sample weights) of arrays, or lists or dicts of them as
            the network has several inputs or outputs; a finite tf.data.Dataset or a
            keras.utils.PyDataset of such batches; or anything with `__len__` and `__getitem__`
            that gives an example. Filters are chosen on a part of train; test is for the figures
            that are printed.
        folder: of the run; None: a temporary one, which can't be resumed.
        budget: the share of the FLOPs that may remain, or `Flops`, `Parameters`, `Latency`; by
            default 0.5, with `max_drop` none.
        method: `EKG` (default), `FFP`, `SWP`, `AutoSlim`, `Uniform` or `GlobalThreshold`.
        exclude: names of layers, or shell patterns, that keep all their filters: a layer's whole
            group of channels does (docs/control.md).
        min_width, min_share: filters, and share of its filters, that a group keeps at least.
        max_drop: the share of the given network's metric on D_val that may be lost before the
            fine-tuning: with 0.01 the search ends before it is more than 1 % worse, or at the
            budget, whichever comes first. Top-1 of a classifier, else the first metric of which
            Keras knows whether larger is better, else the loss.
        finetune: `Ensemble` (default), `Single`, `Contrastive`, `Hinton` or `Plain`.
        bank: the memory bank; "auto": where the fine-tuning replays it; None: none.
        training: length, rate and batches of the fine-tuning.
        data: normalisation and augmentation. The fine-tuning of a classifier of images shifts and
            mirrors them: a network that was trained without this may lose by it
            (`Data(flip=False, crop=0)`); `Data(augment=...)` takes a function or Keras layers.
        sampling: which examples the search adapts to and decides by.
        loss, metrics, loss_weights: as `keras.Model.compile` takes them, in place of what the model
            is compiled with. A model that is compiled with nothing needs a loss, unless its output
            is classes.
        class_weight: {class: weight of its examples' loss}.
        knowledge: (teacher's outputs, student's outputs) -> float32 [n], how far the student is
            from the teacher, in place of what docs/method.md 3 has for the kind of an output; both
            as the network gives them.
        optimizer: of the fine-tuning, copied, with its own learning rate and without the weight
            decay of `training` unless that is said; None: the paper's SGD.
        callbacks: Keras callbacks of the fine-tuning, called at the beginning and end of the
            training and of epochs, never of batches.
        validation: a split as test, whose figures come to the callbacks as val_loss and so on.
        seed: of the order of examples, of augmentation and of fresh weights.
        overwrite: delete a former run in the folder.
        log: write TensorBoard events.
        compile: XLA; None: where there is a GPU.
        val_batch_size: examples per evaluation batch.
        deployed_latency: measure the latency in LiteRT or ONNX Runtime as well, where one is
            installed.
        verbose: what is shown: "auto" (bars in a terminal and in notebooks, else lines), 0
            (nothing but warnings), 1 (bars) or 2 (lines), as in `keras.Model.fit`.

    Returns:
        The result; its model has the inputs and outputs of `model` and is compiled as that is.

    Raises:
        UserError: anything that is wrong with the arguments, the network or the data, before any
            work where it can be known.

    Examples:
        >>> result = ekg.prune(model, (x_train, y_train), (x_test, y_test), "run", budget=0.5)
        >>> result.after["flops"] <= 0.5 * result.before["flops"]
        True
        >>> result.model.save("small.keras")
    """
    finetune = _given("finetune", finetune, Ensemble(), *FINETUNINGS)
    control = _control(exclude, min_width, min_share, max_drop)
    search = _search(budget, method, sampling, control)
    of_training = _training(training, optimizer, seed)
    both = _bank(bank, search.method, finetune)
    aims = Aims(loss, metrics, loss_weights, class_weight, knowledge)
    run = _Run(model, train, test, folder, data, aims, seed, log, compile, val_batch_size)
    run.measures(deployed_latency)
    work, extras = run.work, run.extras(optimizer, callbacks, validation)
    plan = pipeline.Plan(search, both, finetune, of_training).resolved(run.data)
    pipeline.check_plan(work.given, run.data, plan, run.device)
    rehearse(work.given, work.task, run.data, run.device)
    with run.open(plan.flags() | _kept_of(optimizer, callbacks), overwrite) as opened:
        if not opened.finished:
            pipeline.search_phase(opened, *run.phase, plan, run.device)
            pipeline.finetune_phase(opened, *run.phase, plan, run.device, extras)
        figures = opened.read_json("result.json")
        return Result(
            run.compiled(load_keras(opened.file(EXPORTED), compile=False)),
            figures["before"],
            figures["after"],
            figures["search"]["front"],
            opened.path,
        )


@_shown
@unreadable_named()
def run_search(
    model: keras.Model,
    train: Split,
    test: Split,
    folder: PathLike | None,
    *,
    budget: float | Budget | None = None,
    method: Method | None = None,
    exclude: str | Sequence[str] = (),
    min_width: int = 1,
    min_share: float = 0.0,
    max_drop: float | None = None,
    bank: Bank | None = None,
    data: Data | None = None,
    sampling: Sampling | None = None,
    loss: Any = None,
    metrics: Any = None,
    loss_weights: Any = None,
    class_weight: Mapping[int, float] | None = None,
    knowledge: Knowledge | None = None,
    seed: int = 0,
    overwrite: bool = False,
    log: bool = True,
    compile: bool | None = None,
    val_batch_size: int = devices.VAL_BATCH_IMAGES,
    verbose: progress.Verbose = "auto",
) -> Result:
    """The search alone; `run_finetuning` may follow, as often as wanted.

    Args:
        bank: the memory bank; None: none.
        others: as of `prune`.

    Returns:
        The result, before any fine-tuning.

    Raises:
        UserError: as `prune`.

    Examples:
        >>> searched = ekg.run_search(
        ...     model,
        ...     (x_train, y_train),
        ...     (x_test, y_test),
        ...     "searched",
        ...     budget=ekg.Flops(0.5, keep=(0.8,)),
        ...     bank=ekg.Bank(teachers=2),
        ... )
        >>> [network["wanted"] for network in searched.front]
        [0.8]
    """
    control = _control(exclude, min_width, min_share, max_drop)
    search = _search(budget, method, sampling, control)
    if bank is not None:
        bank = _given("bank", bank, None, Bank)
    aims = Aims(loss, metrics, loss_weights, class_weight, knowledge)
    run = _Run(model, train, test, folder, data, aims, seed, log, compile, val_batch_size)
    options = recipes.search(search, run.data)
    check(run.work.given, run.data, options, bank)
    rehearse(*run.phase, run.device)
    kept = options.flags() | (bank.flags() if bank else {"bank": NO_BANK})
    with run.open(kept, overwrite) as opened:
        _searched(opened, *run.phase, options, run.device, bank)
        figures = opened.read_json("search.json")
        print_summary(figures, str(opened.file(PRUNED)))
        sides = [
            {
                "parameters": figures["parameters"][side],
                "flops": figures["flops"][side],
                "test": figures["test"][side],
            }
            for side in ("before", "after")
        ]
        model = run.compiled(load_keras(opened.file(PRUNED), compile=False))
        return Result(model, sides[0], sides[1], figures["front"], opened.path)


@_shown
@unreadable_named()
def run_finetuning(
    searched: PathLike,
    train: Split,
    test: Split,
    folder: PathLike | None = None,
    *,
    finetune: FineTuning | None = None,
    training: Training | None = None,
    data: Data | None = None,
    rate: float | None = None,
    loss: Any = None,
    metrics: Any = None,
    loss_weights: Any = None,
    class_weight: Mapping[int, float] | None = None,
    knowledge: Knowledge | None = None,
    optimizer: keras.optimizers.Optimizer | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    validation: Split | None = None,
    seed: int = 0,
    overwrite: bool = False,
    log: bool = True,
    compile: bool | None = None,
    val_batch_size: int = devices.VAL_BATCH_IMAGES,
    deployed_latency: bool = True,
    verbose: progress.Verbose = "auto",
) -> Result:
    """The fine-tuning of a finished search.

    Args:
        searched: folder of `run_search`, which is only read.
        train, test: those of the search.
        folder: of this run; None: a temporary one.
        rate: fine-tune the network that the search kept at this rate on its way; None: its last.
        others: as of `prune`.

    Returns:
        The result.

    Raises:
        UserError: as `prune`; the search isn't finished, or its bank is of other data or missing.

    Examples:
        >>> once = ekg.Training(epochs=1)
        >>> tuned = ekg.run_finetuning(
        ...     searched.folder, (x_train, y_train), (x_test, y_test), training=once
        ... )
        >>> tuned.model.count_params() == searched.model.count_params()
        True
    """
    source, finetune = _path(searched), _given("finetune", finetune, Ensemble(), *FINETUNINGS)
    of_training = _training(training, optimizer, seed)
    pruned = source / pruned_file(source, rate)
    model = load_keras(source / BASELINE, compile=loss is None)
    aims = Aims(loss, metrics, loss_weights, class_weight, knowledge)
    run = _Run(model, train, test, folder, data, aims, seed, log, compile, val_batch_size)
    run.measures(deployed_latency)
    work, extras = run.work, run.extras(optimizer, callbacks, validation)
    finetune = recipes.finetuning(finetune, run.data)
    wanted = recipes.training(of_training, run.data)
    check_batch(wanted, training_data(source, run.data), run.device)
    student = work.given.read_again(load_keras(pruned, compile=False)).core
    objective_of(source, student, work.task, run.data, finetune, seed, run.device)
    kept = finetune.flags() | wanted.flags() | {"rate": rate} | _kept_of(optimizer, callbacks)
    with run.open(kept, overwrite) as opened:
        if not opened.finished:
            tuned = _finetuned(
                opened, source, *run.phase, wanted, run.device, finetune, rate, extras
            )
            more, untuned = opened.read_json("finetune.json"), tested(source, rate)
            after = work.given.read_again(tuned)
            sides = work.given, after, work.task, run.data, run.device
            report(opened, *sides, more, untuned)
        figures = opened.read_json("result.json")
        result = run.compiled(load_keras(opened.file(EXPORTED), compile=False))
        return Result(result, figures["before"], figures["after"], [], opened.path)


@_shown
def search_with(
    model: keras.Model,
    score: Callable[[keras.Model], float],
    folder: PathLike | None = None,
    *,
    budget: float | Budget | None = None,
    exclude: str | Sequence[str] = (),
    min_width: int = 1,
    min_share: float = 0.0,
    max_drop: float | None = None,
    step: float = 0.2,
    proposals: int = 8,
    examples: Any = None,
    seed: int = 0,
    overwrite: bool = False,
    compile: bool | None = None,
    verbose: progress.Verbose = "auto",
) -> Result:
    """A search by a function of one's own, for loops of one's own: a detector, a GAN, a metric.

    Filters are ranked by their weights; in every step the cheapest proposals are pruned for real,
    and `score` decides. Nothing is fine-tuned: train the result as the network was trained. It is a
    plain functional network: what a subclass adds to `fit`, such as a detector's own loss, isn't
    part of it.

    Args:
        model: functional, Sequential or (with examples) subclassed, whatever its outputs mean.
        score: (network, the given one with fewer filters, compiled as it is) -> a finite number,
            larger is better. It may train the network that it gets. Batch norms keep the moving
            statistics of the whole network.
        folder: of the run; None: a temporary one. A killed call is taken up by the same call.
        budget: the share of the FLOPs that may remain, or `Flops`, `Parameters`, `Latency`; by
            default 0.5, with `max_drop` none.
        exclude, min_width, min_share: as of `prune`.
        max_drop: the share of the given network's score that may be lost: the search ends before
            more is, or at the budget.
        step: share of a group's filters that it offers at a time.
        proposals: networks that are scored in a step, at most.
        examples: a few inputs, float32 [n, ...], as the network takes them (several as a tuple); by
            default drawn at random.
        seed, overwrite, compile, verbose: as of `prune`.

    Returns:
        The result; "score" stands beside the sizes in `before` and `after`.

    Raises:
        UserError: a network that can't be pruned, a target that can't be reached, a score that
            isn't a finite number.

    Examples:
        >>> def score(network):
        ...     return -network.evaluate(x_test, y_test, verbose=0)[0]
        >>> small = ekg.search_with(model, score, budget=0.7).model
        >>> small.count_params() < model.count_params()
        True
    """
    control = _control(exclude, min_width, min_share, max_drop)
    wanted = budget if isinstance(budget, Budget) else Flops(budget)
    options = Scored(wanted, control, step=step, proposals=proposals)
    Training(seed=seed)
    _check_model(model)
    check_weights(model)
    if has_graph(model):
        check_own(model, model.name)
    given = Given.read(model, examples, plain=True)
    inputs = _some_inputs(given) if examples is None else examples
    check_scored(ChannelGraph(given.core), options)
    graph = rehearse_network(given, inputs)[0]
    device = devices.make(tf.distribute.get_strategy(), compile)
    keras.utils.set_random_seed(seed)
    kept = options.budget.flags() | control.flags()
    kept |= {"step": step, "proposals": proposals, "seed": seed}
    kept |= {"model": digest(model.get_weights()), "score": _words(score)}
    with RunFolder.open(_folder(folder), kept, overwrite=overwrite) as opened:
        pruned = run_scored(opened, given, graph, score, options, inputs, compile=device.compile)
        compile_like(model, pruned)
        figures = opened.read_json("result.json")
        return Result(pruned, figures["before"], figures["after"], [], opened.path)


def _some_inputs(given: Given) -> Any:
    """A few random inputs from 0 to 1, float32 [4, ...]."""
    for one in given.core.inputs:
        if None in one.shape[1:]:
            raise UserError(
                f"{given.model.name} takes inputs of open size {tuple(one.shape)}: give some as "
                "examples="
            )
    rng = np.random.default_rng(0)
    return tree_of(rng.random((4, *one.shape[1:])).astype(np.float32) for one in given.core.inputs)


def _folder(folder: PathLike | None) -> PathLike:
    """The run folder, or a temporary one."""
    if folder is not None:
        return _path(folder)
    folder = tempfile.mkdtemp(prefix="ekg_tf_")
    progress.say(f"no folder given: working in {folder}; this run can't be resumed")
    return folder


def register(
    layer: type[keras.Layer], weights: Mapping[str, int], sizes: Sequence[str] = ()
) -> None:
    """Makes a layer of one's own known: one that works channel by channel, channels last.

    Args:
        layer: its class; `call(x)` gives the shape of x, and no channel depends on another one.
        weights: {name of a weight: its axis that runs along the channels, counted from the end};
            weights that aren't named stay whole.
        sizes: entries of its configuration that hold the number of channels.

    Raises:
        UserError: not a layer class, or an axis that is not negative.

    Examples:
        >>> class ChannelShift(keras.layers.Layer):
        ...     def build(self, shape):
        ...         self.shift = self.add_weight(shape=(shape[-1],), name="shift")
        ...
        ...     def call(self, x):
        ...         return x + self.shift
        >>> ekg.register(ChannelShift, {"shift": -1})
    """
    layer_kinds.register_per_channel(layer, weights, sizes)


@_shown
@unreadable_named()
def export(
    network: PathLike,
    formats: Sequence[str],
    train: Split,
    test: Split,
    *,
    int8: bool = False,
    out: PathLike | None = None,
    reference: PathLike | None = None,
    calibration_images: int = 256,
    data: Data | None = None,
    loss: Any = None,
    metrics: Any = None,
    verbose: progress.Verbose = "auto",
) -> dict[str, Any]:
    """Writes a network in formats for deployment; each is run by its own runtime and measured.

    Args:
        network: a .keras file, such as the pruned.keras of a run.
        formats: of "savedmodel", "litert" and "onnx".
        train, test: as of `prune`; int8 kinds are calibrated on train, test is measured on.
        int8: int8 LiteRT and ONNX as well.
        out: folder to write to; None: the network's own.
        reference: the unpruned network, measured for comparison.
        calibration_images: of train.
        data: the normalisation.
        loss, metrics, verbose: as of `prune`.

    Returns:
        The figures, one dict per format under "exports".

    Raises:
        UserError: a file that can't be read, an extra that isn't installed, a format that can't
            take the network.

    Examples:
        >>> figures = ekg.export("small.keras", ["litert"], (x_train, y_train), (x_test, y_test))
        >>> [one["file"] for one in figures["exports"]]
        ['small.keras', 'small.tflite']
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise UserError(f"formats {tuple(formats)}: choose from {', '.join(FORMATS)}")
    path = _path(network)
    model = exporting.load_float32(path)
    folder = path.parent if out is None else _path(out)
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: make it first")
    reader = _reader(train, test, data, "export")
    work = work_on(model, reader, aims=Compiled(loss, metrics=metrics))
    return exporting.export(
        model,
        path,
        deployment.chosen(list(formats), int8),
        work.data,
        work.task,
        out=folder,
        reference=None if reference is None else _path(reference),
        calibration_images=calibration_images,
    )


# ---------------------------------------------------------------- what they share


def _given(name: str, value: Any, default: Any, *kinds: type) -> Any:
    """The value, or the default for None.

    Raises:
        UserError: it is none of these kinds, such as a class instead of its instance.
    """
    value = default if value is None else value
    if not isinstance(value, kinds):
        wanted = ", ".join(f"{kind.__name__}()" for kind in kinds)
        raise UserError(f"{name}={value!r}: give {wanted}")
    return value


def _control(exclude: Any, min_width: int, min_share: float, max_drop: float | None) -> Control:
    return Control(exclude, min_width, min_share, max_drop)


def _path(value: PathLike) -> Path:
    """A path, "~" in front being one's home.

    Raises:
        UserError: no path.
    """
    try:
        return Path(value).expanduser()
    except TypeError:
        raise UserError(f"{value!r} is no path") from None


def _check_model(model: Any) -> None:
    if not isinstance(model, keras.Model):
        raise UserError(
            f"the model is a {type(model).__name__}: give a keras.Model, which "
            "keras.models.load_model reads from a file"
        )


def _search(
    budget: float | Budget | None,
    method: Method | None,
    sampling: Sampling | None,
    control: Control,
) -> SearchOptions:
    return SearchOptions(
        budget if isinstance(budget, Budget) else Flops(budget),
        _given("method", method, EKG(), *METHODS.values()),
        _given("sampling", sampling, Sampling(), Sampling),
        control,
    )


def _training(training: Training | None, optimizer: Any, seed: int) -> Training:
    """The training of a fine-tuning; an optimizer of the caller's has no L2 unless that is said."""
    found: Training = _given("training", training, Training(), Training)
    if optimizer is not None and found.weight_decay is None:
        found = replace(found, weight_decay=0.0)
    return replace(found, seed=seed)


def _bank(bank: Bank | Literal["auto"] | None, method: Method, finetune: FineTuning) -> Bank | None:
    """The bank that both phases agree on."""
    if isinstance(bank, str):
        if bank != AUTO:
            raise UserError(f"bank={bank!r}: give a Bank, None or {AUTO!r}")
        features = isinstance(finetune, Contrastive) or isinstance(method, FFP)
        return Bank(features=features) if finetune.replays else None
    given: Bank | None = None if bank is None else _given("bank", bank, None, Bank)
    kind = type(finetune).__name__
    if given is None and finetune.replays:
        raise UserError(f"finetune={kind}() replays the memory bank: bank=None leaves it without")
    if given and isinstance(finetune, Contrastive) and not given.features:
        raise UserError(f"finetune={kind}() needs the features: bank=Bank(features=True)")
    return given


@dataclass(frozen=True)
class Aims:
    """What the caller says of the task in place of what the model is compiled with."""

    loss: Any = None
    metrics: Any = None
    loss_weights: Any = None
    class_weight: Mapping[int, float] | None = None
    knowledge: Knowledge | None = None

    @property
    def compiled(self) -> Compiled:
        """The part of it that Keras knows."""
        return Compiled(self.loss, self.loss_weights, self.metrics)

    def flags(self) -> dict[str, Any]:
        """{setting: words by which it is known}, of what was said."""
        said = {key: value for key, value in vars(self).items() if value is not None}
        return {key: _words(value) for key, value in said.items()}


def _words(value: Any) -> Any:
    """What stands for a value in a run folder: names, numbers and configurations."""
    if isinstance(value, Mapping):
        return {str(key): _words(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_words(one) for one in value]
    if value is None or isinstance(value, str | int | float):
        return value
    name = getattr(value, "__qualname__", type(value).__qualname__)
    if not hasattr(value, "get_config"):
        return name
    return {"class": name} | {key: str(one) for key, one in value.get_config().items()}


def _kept_of(optimizer: Any, callbacks: Sequence[Any]) -> dict[str, Any]:
    """What a run folder keeps of an optimizer and callbacks."""
    kept = {} if optimizer is None else {"optimizer": _words(optimizer)}
    return kept | ({"callbacks": [type(one).__name__ for one in callbacks]} if callbacks else {})


def _reader(train: Split, test: Split, data: Data | None, caller: str) -> Callable[[Fit], Dataset]:
    """A function that reads both splits as a network needs them."""
    options = _given("data", data, Data(), Data)

    def read(fit: Fit) -> Dataset:
        return own.dataset(*given_data.read(train, test, fit, options, caller), options)

    return read


class _Run:
    """A call's network, data and device, and the folder that belongs to them."""

    def __init__(
        self,
        model: keras.Model,
        train: Split,
        test: Split,
        folder: PathLike | None,
        data: Data | None,
        aims: Aims,
        seed: int,
        log: bool,
        compile: bool | None,
        val_batch_size: int,
    ):
        Training(seed=seed)  # refuses one that is none
        if not isinstance(val_batch_size, int) or val_batch_size < 1:
            raise UserError(f"val_batch_size={val_batch_size!r}: a whole number above 0 is needed")
        _check_model(model)
        if has_graph(model):
            check_own(model, model.name)
        self._options, self._model = data, model
        self.work = work_on(
            model,
            _reader(train, test, data, "prune"),
            aims=aims.compiled,
            class_weight=aims.class_weight,
            knowledge=aims.knowledge,
        )
        self.data = self.work.data
        self.phase = self.work.given, self.work.task, self.data
        strategy = tf.distribute.get_strategy()
        self.device: Device = devices.make(strategy, compile, val_batch_images=val_batch_size)
        self._folder = folder
        # They stand in args.json, so that a folder isn't taken up with another network or other
        # data. Names of layers differ from one process to the next: the weights stand for it.
        given = {"model": digest(model.get_weights()), "data": self.data.fingerprint}
        more = {"seed": seed, "do_log": log, "compile": compile, "val_batch_size": val_batch_size}
        self._kept = given | (data or Data()).flags() | aims.flags() | more
        keras.utils.set_random_seed(seed)

    def measures(self, deployed_latency: bool) -> None:
        """Whether the latency of the result is measured in LiteRT or ONNX Runtime as well."""
        self.device = replace(self.device, deployed_latency=deployed_latency)

    def extras(self, optimizer: Any, callbacks: Sequence[Any], validation: Split | None) -> Extras:
        """Optimizer, callbacks and validation data of the fine-tuning.

        Raises:
            UserError: something else than these.
        """
        if optimizer is not None and not isinstance(optimizer, keras.optimizers.Optimizer):
            raise UserError(f"optimizer={optimizer!r}: give a keras.optimizers.Optimizer")
        for one in callbacks:
            if not isinstance(one, keras.callbacks.Callback):
                raise UserError(f"callbacks hold {one!r}: give keras.callbacks.Callback objects")
        held_out = None
        if validation is not None:
            read = _reader(validation, validation, self._options, "validation")
            held_out = read(fit_of(self.work.given))
        return Extras(optimizer, tuple(callbacks), held_out)

    def compiled(self, model: keras.Model) -> keras.Model:
        """A network of the run, compiled as the given one is."""
        compile_like(self._model, model)
        return model

    def open(self, kept: dict[str, Any], overwrite: bool) -> RunFolder:
        """The run folder; `kept` is what it keeps of the settings."""
        return RunFolder.open(_folder(self._folder), self._kept | kept, overwrite=overwrite)
