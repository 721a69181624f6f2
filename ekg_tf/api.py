"""The public functions; `ekg_tf` gives them by name.

result = prune(model, (x_train, y_train), (x_test, y_test), "run", budget=0.5)
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ekg_tf.utils import devices

devices.import_tensorflow()

import keras
import tensorflow as tf

from ekg_tf.dataloader import Dataset, examples_of, own, own_function
from ekg_tf.deployment import exporting
from ekg_tf.deployment import formats as deployment
from ekg_tf.nets import layer_kinds
from ekg_tf.nets.flatten import flatten
from ekg_tf.nets.given import Given
from ekg_tf.nets.graph import ChannelGraph
from ekg_tf.nets.keras_graph import has_graph
from ekg_tf.nets.zoo.load import check_fits, check_own
from ekg_tf.options import recipes
from ekg_tf.options.bank import NO_BANK, Bank
from ekg_tf.options.budgets import Budget, Flops
from ekg_tf.options.data import Data, Sampling
from ekg_tf.options.finetuning import FINETUNINGS, Contrastive, Ensemble, FineTuning
from ekg_tf.options.kinds import FORMATS
from ekg_tf.options.methods import EKG, FFP, METHODS, Method
from ekg_tf.options.search import SearchOptions
from ekg_tf.options.training import Training
from ekg_tf.phases import pipeline
from ekg_tf.phases.finetuning import objective_of, pruned_file
from ekg_tf.phases.finetuning import run_finetuning as _finetuned
from ekg_tf.phases.rehearsal import rehearse
from ekg_tf.phases.searching import check
from ekg_tf.phases.searching import run_search as _searched
from ekg_tf.reports import inspection
from ekg_tf.reports.finetuning import report, tested
from ekg_tf.reports.search import print_summary
from ekg_tf.training.trainer import check_batch
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

AUTO: Literal["auto"] = "auto"
PathLike = str | os.PathLike[str]
# One split: (inputs [n, ...], labels [n]) or a finite tf.data.Dataset of such.
Split = Any


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


def inspect(model: keras.Model) -> Report:
    """What can be pruned in a network, and how far.

    Args:
        model: functional or Sequential; it isn't changed.

    Raises:
        UserError: the network's graph can't be read.

    Example:
        >>> print(ekg.inspect(model))  # doctest: +SKIP
    """
    figures = inspection.inspection(ChannelGraph(flatten(model).model))
    return Report(
        groups=figures["groups"],
        flops=figures["flops"],
        parameters=figures["parameters"],
        lowest_flops=figures["lowest_rate"],
        lowest_parameters=figures["lowest_parameters"],
        figures=figures,
    )


def prune(
    model: keras.Model,
    train: Split,
    test: Split,
    folder: PathLike | None,
    *,
    budget: float | Budget = 0.5,
    method: Method | None = None,
    finetune: FineTuning | None = None,
    bank: Bank | Literal["auto"] | None = AUTO,
    training: Training | None = None,
    data: Data | None = None,
    sampling: Sampling | None = None,
    seed: int = 0,
    overwrite: bool = False,
    log: bool = True,
    compile: bool | None = None,
    val_batch_size: int = devices.VAL_BATCH_IMAGES,
) -> Result:
    """Searches a smaller network and fine-tunes it.

    Runs under the current tf.distribute strategy and sets Keras's random seed. A call that was
    killed is taken up where it was by the same call, a finished one gives its result again.

    Args:
        model: trained and functional (or Sequential), float32 [n, ...] -> logits or softmax
            probabilities [n, classes]; it isn't changed.
        train, test: each a pair of arrays (examples [n, ...], integer labels [n]) or a finite
            tf.data.Dataset of such. Filters are chosen on a part of train; test is for the figures
            that are printed.
        folder: of the run; None: a temporary one, which can't be resumed.
        budget: the share of the FLOPs that may remain, or `Flops`, `Parameters`, `Latency`.
        method: `EKG` (default), `FFP`, `SWP`, `AutoSlim`, `Uniform` or `GlobalThreshold`.
        finetune: `Ensemble` (default), `Single`, `Contrastive`, `Hinton` or `Plain`.
        bank: the memory bank; "auto": where the fine-tuning replays it; None: none.
        training: length, rate and batches of the fine-tuning.
        data: normalisation and augmentation. Fine-tuning shifts and mirrors images: a network that
            was trained without this may lose by it (`Data(flip=False, crop=0)`).
        sampling: which examples the search adapts to and decides by.
        seed: of the order of examples, of augmentation and of fresh weights.
        overwrite: delete a former run in the folder.
        log: write TensorBoard events.
        compile: XLA; None: where there is a GPU.
        val_batch_size: examples per evaluation batch.

    Returns:
        The result; its model ends in a softmax if `model` does.

    Raises:
        UserError: anything that is wrong with the arguments, the network or the data, before any
            work where it can be known.
    """
    finetune = _given("finetune", finetune, Ensemble(), *FINETUNINGS)
    search = _search(budget, method, sampling)
    of_training = _given("training", training, Training(), Training)
    both = _bank(bank, search.method, finetune)
    run = _Run(model, train, test, folder, data, seed, log, compile, val_batch_size)
    plan = pipeline.Plan(search, both, finetune, replace(of_training, seed=seed)).resolved(run.data)
    pipeline.check_plan(run.given, run.data, plan, run.device)
    rehearse(run.given, run.data, run.device)
    with run.open(plan.flags(), overwrite) as opened:
        if not opened.finished:
            pipeline.search_phase(opened, run.given, run.data, plan, run.device)
            pipeline.finetune_phase(opened, run.given, run.data, plan, run.device)
        figures = opened.read_json("result.json")
        return Result(
            load_keras(opened.file(EXPORTED)),
            figures["before"],
            figures["after"],
            figures["search"]["front"],
            opened.path,
        )


def run_search(
    model: keras.Model,
    train: Split,
    test: Split,
    folder: PathLike | None,
    *,
    budget: float | Budget = 0.5,
    method: Method | None = None,
    bank: Bank | None = None,
    data: Data | None = None,
    sampling: Sampling | None = None,
    seed: int = 0,
    overwrite: bool = False,
    log: bool = True,
    compile: bool | None = None,
    val_batch_size: int = devices.VAL_BATCH_IMAGES,
) -> Result:
    """The search alone; `run_finetuning` may follow, as often as wanted.

    Args:
        bank: the memory bank; None: none.
        others: as of `prune`.

    Returns:
        The result, before any fine-tuning.

    Raises:
        UserError: as `prune`.
    """
    search = _search(budget, method, sampling)
    if bank is not None:
        bank = _given("bank", bank, None, Bank)
    run = _Run(model, train, test, folder, data, seed, log, compile, val_batch_size)
    options = recipes.search(search, run.data)
    check(run.given, run.data, options, bank)
    rehearse(run.given, run.data, run.device)
    kept = options.flags() | (bank.flags() if bank else {"bank": NO_BANK})
    with run.open(kept, overwrite) as opened:
        _searched(opened, run.given, run.data, options, run.device, bank)
        figures = opened.read_json("search.json")
        print_summary(figures)
        sides = [
            {
                "parameters": figures["parameters"][side],
                "flops": figures["flops"][side],
                "test": figures["test"][side],
            }
            for side in ("before", "after")
        ]
        model = load_keras(opened.file(PRUNED))
        return Result(model, sides[0], sides[1], figures["front"], opened.path)


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
    seed: int = 0,
    overwrite: bool = False,
    log: bool = True,
    compile: bool | None = None,
    val_batch_size: int = devices.VAL_BATCH_IMAGES,
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
    """
    source, finetune = Path(searched), _given("finetune", finetune, Ensemble(), *FINETUNINGS)
    of_training = _given("training", training, Training(), Training)
    pruned = source / pruned_file(source, rate)
    model = load_keras(source / BASELINE)
    run = _Run(model, train, test, folder, data, seed, log, compile, val_batch_size)
    finetune = recipes.finetuning(finetune, run.data)
    wanted = recipes.training(replace(of_training, seed=seed), run.data)
    check_batch(wanted, run.data, run.device)
    student = run.given.read_again(load_keras(pruned)).core
    objective_of(source, student, run.data, finetune, seed, run.device)
    with run.open(finetune.flags() | wanted.flags() | {"rate": rate}, overwrite) as opened:
        if not opened.finished:
            tuned = _finetuned(
                opened, source, run.given, run.data, wanted, run.device, finetune, rate
            )
            more, untuned = opened.read_json("finetune.json"), tested(source, rate)
            after = run.given.read_again(tuned)
            report(opened, run.given, after, run.data, run.device, more, untuned)
        figures = opened.read_json("result.json")
        result = load_keras(opened.file(EXPORTED))
        return Result(result, figures["before"], figures["after"], [], opened.path)


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

    Example:
        >>> ekg.register(ChannelScale, {"scale": -1})  # doctest: +SKIP
    """
    layer_kinds.register_per_channel(layer, weights, sizes)


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

    Returns:
        The figures, one dict per format under "exports".

    Raises:
        UserError: a file that can't be read, an extra that isn't installed, a format that can't
            take the network.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise UserError(f"formats {tuple(formats)}: choose from {', '.join(FORMATS)}")
    path = Path(network)
    model = exporting.load_float32(path)
    folder = path.parent if out is None else Path(out)
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: make it first")
    return exporting.export(
        model,
        path,
        deployment.chosen(list(formats), int8),
        _dataset(model, train, test, data, "export"),
        out=folder,
        reference=None if reference is None else Path(reference),
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


def _search(
    budget: float | Budget, method: Method | None, sampling: Sampling | None
) -> SearchOptions:
    return SearchOptions(
        budget if isinstance(budget, Budget) else Flops(budget),
        _given("method", method, EKG(), *METHODS.values()),
        _given("sampling", sampling, Sampling(), Sampling),
    )


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


def _dataset(
    model: keras.Model, train: Split, test: Split, data: Data | None, caller: str
) -> Dataset:
    check_own(model, model.name)
    shape = tuple(model.inputs[0].shape[1:]) if has_graph(model) else _shape_of(train, model)
    splits = own_function.checked((_unnamed(train), _unnamed(test)), shape, caller)
    dataset = own.dataset(*splits, _given("data", data, Data(), Data))
    if has_graph(model):
        check_fits(model.name, model, dataset.num_classes, dataset.image_shape)
    return dataset


def _shape_of(split: Split, model: keras.Model) -> tuple[int, ...]:
    """Shape of the examples, for a subclassed network, whose graph doesn't say it.

    Raises:
        UserError: no pair of arrays.
    """
    plain = _unnamed(split)
    if not isinstance(plain, tuple) or not hasattr(plain[0], "shape"):
        raise UserError(
            f"{model.name} is no functional network, so its data has to be a pair of arrays "
            "(examples, labels)"
        )
    return tuple(plain[0].shape[1:])


def _unnamed(split: Split) -> Split:
    """A pair of arrays whose only input and only output come by name, without the names."""
    if not isinstance(split, (tuple, list)):
        return split
    sides = [next(iter(one.values())) if _named_alone(one) else one for one in split]
    return tuple(sides)


def _named_alone(one: Any) -> bool:
    return isinstance(one, Mapping) and len(one) == 1


class _Run:
    """A call's network, data and device, and the folder that belongs to them."""

    def __init__(
        self,
        model: keras.Model,
        train: Split,
        test: Split,
        folder: PathLike | None,
        data: Data | None,
        seed: int,
        log: bool,
        compile: bool | None,
        val_batch_size: int,
    ):
        self.data = _dataset(model, train, test, data, "prune")
        self.given = Given.read(model, examples_of(self.data))
        check_fits(model.name, self.given.core, self.data.num_classes, self.data.image_shape)
        strategy = tf.distribute.get_strategy()
        self.device: Device = devices.make(strategy, compile, val_batch_images=val_batch_size)
        self._folder = folder
        # They stand in args.json, so that a folder isn't taken up with another network or other
        # data. Names of layers differ from one process to the next: the weights stand for it.
        given = {"model": digest(model.get_weights()), "data": self.data.fingerprint}
        more = {"seed": seed, "do_log": log, "compile": compile, "val_batch_size": val_batch_size}
        self._kept = given | (data or Data()).flags() | more
        keras.utils.set_random_seed(seed)

    def open(self, kept: dict[str, Any], overwrite: bool) -> RunFolder:
        """The run folder; `kept` is what it keeps of the settings."""
        folder = self._folder
        if folder is None:
            folder = tempfile.mkdtemp(prefix="ekg_tf_")
            print(f"no folder given: working in {folder}; this run can't be resumed", flush=True)
        return RunFolder.open(folder, self._kept | kept, overwrite=overwrite)
