"""Pruning a network: search and fine-tuning, in one call or in two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import keras
import tensorflow as tf

from ekg_tf.dataloader import unreadable_named
from ekg_tf.nets.compiling import compile_like
from ekg_tf.options import recipes
from ekg_tf.options.bank import NO_BANK, Bank
from ekg_tf.options.budgets import Budget
from ekg_tf.options.data import Data, Sampling
from ekg_tf.options.finetuning import FINETUNINGS, Ensemble, FineTuning
from ekg_tf.options.methods import Method
from ekg_tf.options.training import Training
from ekg_tf.phases import pipeline
from ekg_tf.phases.finetuning import objective_of, pruned_file, training_data
from ekg_tf.phases.finetuning import run_finetuning as _finetuned
from ekg_tf.phases.opening import fit_of, work_on
from ekg_tf.phases.rehearsal import rehearse
from ekg_tf.phases.searching import check
from ekg_tf.phases.searching import run_search as _searched
from ekg_tf.reports.finetuning import report, tested
from ekg_tf.reports.networks import metric_of
from ekg_tf.reports.search import print_summary
from ekg_tf.reports.verdict import verdict
from ekg_tf.reports.written import write_if_missing
from ekg_tf.training.task import Knowledge
from ekg_tf.training.trainer import Extras, check_batch, needs_lamb
from ekg_tf.utils import devices, progress
from ekg_tf.utils.devices import Device
from ekg_tf.utils.errors import UserError
from ekg_tf.utils.keras_files import load_keras
from ekg_tf.utils.provenance import digest
from ekg_tf.utils.runfiles import BASELINE, EXPORTED, PRUNED
from ekg_tf.utils.runfolder import RunFolder

from .arguments import (
    AUTO,
    Aims,
    PathLike,
    Split,
    bank_of,
    check_model,
    control_of,
    folder_of,
    given_or,
    kept_of,
    path_of,
    reader,
    search_of,
    shown,
    training_of,
)


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

    def __repr__(self) -> str:
        """What became of the network, in a line; the figures are in `before` and `after`."""
        before, after = self.before, self.after
        said = verdict(
            flops=(before["flops"], after["flops"]),
            parameters=(before["parameters"], after["parameters"]),
            metric=metric_of(before, after),
            finetuned="latency_ms" in after,
        )
        return f"<Result in {self.folder}: {said}>"


@shown
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
        exclude: names of layers (of models and layers of layers for all their parts), or shell
            patterns, that keep all their filters: a layer's whole group of channels does
            (docs/control.md).
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
    finetune = given_or("finetune", finetune, Ensemble(), *FINETUNINGS)
    control = control_of(exclude, min_width, min_share, max_drop)
    search = search_of(budget, method, sampling, control)
    of_training = training_of(training, optimizer, seed)
    both = bank_of(bank, search.method, finetune)
    aims = Aims(loss, metrics, loss_weights, class_weight, knowledge)
    run = _Run(
        model, train, test, folder, data, aims, seed, overwrite, log, compile, val_batch_size
    )
    run.measures(deployed_latency)
    work, extras = run.work, run.extras(optimizer, callbacks, validation)
    plan = pipeline.Plan(search, both, finetune, of_training).resolved(run.data, lamb=run.lamb)
    pipeline.check_plan(work.given, run.data, plan, run.device)
    kept = plan.flags() | kept_of(optimizer, callbacks)
    run.check(kept)
    rehearse(work.given, work.task, run.data, run.device, plan.search)
    with run.open(kept) as opened:
        if not opened.finished:
            pipeline.search_phase(opened, *run.phase, plan, run.device)
            pipeline.finetune_phase(opened, *run.phase, plan, run.device, extras)
        write_if_missing(opened)
        figures = opened.read_json("result.json")
        return Result(
            run.compiled(load_keras(opened.file(EXPORTED), compile=False)),
            figures["before"],
            figures["after"],
            figures["search"]["front"],
            opened.path,
        )


@shown
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
    control = control_of(exclude, min_width, min_share, max_drop)
    search = search_of(budget, method, sampling, control)
    if bank is not None:
        bank = given_or("bank", bank, None, Bank)
    aims = Aims(loss, metrics, loss_weights, class_weight, knowledge)
    run = _Run(
        model, train, test, folder, data, aims, seed, overwrite, log, compile, val_batch_size
    )
    options = recipes.search(search, run.data)
    check(run.work.given, run.data, options, bank)
    kept = options.flags() | (bank.flags() if bank else {"bank": NO_BANK})
    run.check(kept)
    rehearse(*run.phase, run.device, options)
    with run.open(kept) as opened:
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


@shown
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
    source, finetune = path_of(searched), given_or("finetune", finetune, Ensemble(), *FINETUNINGS)
    of_training = training_of(training, optimizer, seed)
    pruned = source / pruned_file(source, rate)
    model = load_keras(source / BASELINE, compile=loss is None)
    aims = Aims(loss, metrics, loss_weights, class_weight, knowledge)
    run = _Run(
        model, train, test, folder, data, aims, seed, overwrite, log, compile, val_batch_size
    )
    run.measures(deployed_latency)
    work, extras = run.work, run.extras(optimizer, callbacks, validation)
    finetune = recipes.finetuning(finetune, run.data)
    wanted = recipes.training(of_training, run.data, lamb=run.lamb)
    check_batch(wanted, training_data(source, run.data), run.device)
    student = work.given.read_again(load_keras(pruned, compile=False)).core
    objective_of(source, student, work.task, run.data, finetune, seed, run.device)
    kept = finetune.flags() | wanted.flags() | {"rate": rate} | kept_of(optimizer, callbacks)
    with run.open(kept) as opened:
        if not opened.finished:
            tuned = _finetuned(
                opened, source, *run.phase, wanted, run.device, finetune, rate, extras
            )
            more, untuned = opened.read_json("finetune.json"), tested(source, rate)
            after = work.given.read_again(tuned)
            sides = work.given, after, work.task, run.data, run.device
            report(opened, *sides, more, untuned)
        write_if_missing(opened)
        figures = opened.read_json("result.json")
        result = run.compiled(load_keras(opened.file(EXPORTED), compile=False))
        return Result(result, figures["before"], figures["after"], [], opened.path)


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
        overwrite: bool,
        log: bool,
        compile: bool | None,
        val_batch_size: int,
    ):
        Training(seed=seed)  # refuses one that is none
        if not isinstance(val_batch_size, int) or val_batch_size < 1:
            raise UserError(f"val_batch_size={val_batch_size!r}: a whole number above 0 is needed")
        check_model(model)
        self._options, self._model = data, model
        self._folder, self._overwrite = folder, overwrite
        self._kept: dict[str, Any] = {}
        self.check({})
        self.work = work_on(
            model,
            reader(train, test, data, "prune"),
            aims=aims.compiled,
            class_weight=aims.class_weight,
            knowledge=aims.knowledge,
        )
        self.data = self.work.data
        self.phase = self.work.given, self.work.task, self.data
        strategy = tf.distribute.get_strategy()
        self.device: Device = devices.make(strategy, compile, val_batch_images=val_batch_size)
        # They stand in args.json, so that a folder isn't taken up with another network or other
        # data. Names of layers differ from one process to the next: the weights stand for it.
        given = {"model": digest(model.get_weights()), "data": self.data.fingerprint}
        more = {"seed": seed, "do_log": log, "compile": compile, "val_batch_size": val_batch_size}
        self._kept = given | (data or Data()).flags() | aims.flags() | more
        keras.utils.set_random_seed(seed)

    def measures(self, deployed_latency: bool) -> None:
        """Whether the latency of the result is measured in LiteRT or ONNX Runtime as well."""
        self.device = replace(self.device, deployed_latency=deployed_latency)

    @property
    def lamb(self) -> bool:
        """As `needs_lamb` of the network and its task."""
        return needs_lamb(self.work.given, self.work.task)

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
            read = reader(validation, validation, self._options, "validation")
            held_out = read(fit_of(self.work.given))
        return Extras(optimizer, tuple(callbacks), held_out)

    def compiled(self, model: keras.Model) -> keras.Model:
        """A network of the run, compiled as the given one is."""
        compile_like(self._model, model)
        return model

    def check(self, kept: dict[str, Any]) -> None:
        """Refuses a folder that can't be used; `kept` is what it keeps of the settings."""
        if self._folder is not None:
            RunFolder.check(path_of(self._folder), self._kept | kept, overwrite=self._overwrite)

    def open(self, kept: dict[str, Any]) -> RunFolder:
        """The run folder; `kept` is what it keeps of the settings."""
        path = folder_of(self._folder)
        return RunFolder.open(path, self._kept | kept, overwrite=self._overwrite)
