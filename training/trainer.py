"""What the phases share: training in a run folder, batch-norm statistics, accuracies."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import keras
import numpy as np
import tensorflow as tf

from ..dataloader import Dataset, eval_batches, train_batches
from ..nets.given import Given
from ..nets.rebuild import to_policy
from ..nets.stateless import batch_norms
from ..op_utils import make_train_step
from ..options.training import LAMB, Training
from ..utils import cluster, progress
from ..utils.devices import Device
from ..utils.errors import UserError
from ..utils.runfolder import RunFolder
from ..utils.trees import mapped, tree_of
from . import schedules
from .epochs import fit, numbers_of
from .evaluation import evaluate, make_evaluate, reestimate_bn
from .metrics import UserMetrics
from .task import Task

METRICS = "metrics.jsonl"
PHASES = {"baseline": "baseline", "supernet": "supernet", "finetune": "fine-tuning"}
BN_IMAGES = 10_240  # training images that batch-norm statistics are re-estimated on, at most


@dataclass(frozen=True)
class Objective:
    """What a training minimises and what it feeds on.

    With `forward_of` there is no loss_fn: it is called with the network that is trained and gives
    the `forward` of op_utils.make_train_step; batches then hold "step", int32 [batch], the number
    of the training step (from 0). `indices` are the training examples to use, by default all but
    those held out.
    """

    task: Task
    loss_fn: Callable | None
    views: int = 1
    jitter: bool = False
    rows: Mapping[str, np.ndarray] | None = None  # per-example arrays that join the batches
    teachers: Sequence[keras.Model] = ()
    forward_of: Callable[[keras.Model], Callable] | None = None
    indices: np.ndarray | None = None
    extra: int = 0  # outputs that the network has beside the task's, behind them
    momentum: float | None = None  # with which the teachers follow the network; None: they don't


@dataclass(frozen=True)
class Extras:
    """What Python users add to a fine-tuning; none of it is on the command line.

    Attributes:
        optimizer: in place of that of the options; it is copied, not used itself.
        callbacks: Keras callbacks, called at the beginning and end of the training and of epochs.
        validation: a data set whose test split gives the `val_` figures of their logs.
    """

    optimizer: keras.optimizers.Optimizer | None = None
    callbacks: Sequence[keras.callbacks.Callback] = ()
    validation: Dataset | None = None


NO_EXTRAS = Extras()


def needs_lamb(given: Given, task: Task) -> bool:
    """Whether no rate of SGD is known to fit a network: the papers' suits batch norms, which take
    the size of the weights out, and cross-entropy. Losses of plain numbers have the size of their
    unit."""
    return task.has_numbers or not batch_norms(given.core, frozen=True)


def check_batch(options: Training, data: Dataset, device: Device) -> None:
    """Raises UserError for a batch too large or not divisible over devices and micro-batches."""
    replicas, size = device.strategy.num_replicas_in_sync, options.batch_size
    if size % (replicas * options.accum):
        raise UserError(
            f"a batch size of {size} is not divisible by {replicas} devices x "
            f"{options.accum} micro-batches (accum)"
        )
    if size > len(data.trained_on):
        raise UserError(
            f"a batch size of {size} is more than the {len(data.trained_on)} training images: "
            "lower batch_size"
        )


def train(
    folder: RunFolder,
    phase: str,
    model: keras.Model,
    data: Dataset,
    objective: Objective,
    options: Training,
    device: Device,
    extras: Extras = NO_EXTRAS,
) -> keras.Model:
    """Trains `model` on the training split, resuming from `<phase>_state.npz` in the folder.

    One row an epoch goes to metrics.jsonl; its `test_` columns are for the curves and choose
    nothing: the network of the last epoch is returned, its moving statistics re-estimated.

    Raises:
        UserError: as `check_batch`; non-finite loss.
    """
    check_batch(options, data, device)
    if objective.indices is None:
        objective = replace(objective, indices=data.trained_on)
    steps_per_epoch = schedules.steps_in(1, len(objective.indices), options.batch_size)
    # The seeds of dropout and the like are drawn in cloning: not from what this process did before,
    # so that a resumed run goes on with the same ones.
    keras.utils.set_random_seed(options.seed)
    with progress.doing(f"{PHASES[phase]}: preparing the first step (this can take a minute)"):
        ready = _prepared(model, objective, options, device, extras, steps_per_epoch)
    trained, optimizer, train_steps = ready
    shared = shares(objective.task)
    test_batches = _batches(data, "test", device, shared)
    own = _without_extra(trained, objective)
    tested = make_evaluate(own, objective.task, compile=device.compile, shared=shared)
    evaluations = [("test_", partial(tested, test_batches))]
    if extras.validation is not None:
        held_out = _batches(extras.validation, "test", device, shared)
        evaluations.append(("val_", partial(tested, held_out)))

    def log(row: dict) -> None:
        folder.append(METRICS, {"phase": phase, **row})
        folder.scalars(phase, row["epoch"], numbers_of(row))

    fit(
        train_steps=train_steps,
        model=trained,
        optimizer=optimizer,
        epoch_batches=partial(_epoch_batches, data, objective, options, steps_per_epoch),
        strategy=device.strategy,
        epochs=options.epochs,
        steps_per_epoch=steps_per_epoch,
        log=log,
        log_keep=lambda done: folder.truncate(
            METRICS, lambda row: row["phase"] != phase or row["epoch"] <= done
        ),
        evaluate=lambda: {
            f"{part}{key}": value for part, run in evaluations for key, value in run().items()
        },
        checkpoint=folder.file(f"{phase}_state.npz"),
        moving=() if objective.momentum is None else objective.teachers,
        what=PHASES[phase],
        shown=_figure,
        callbacks=_callbacks(extras, own),
        rows=[row for row in folder.rows(METRICS) if row["phase"] == phase],
    )
    model.set_weights(trained.get_weights())
    if batch_norms(model):
        images = progress.count(min(BN_IMAGES, len(data.trained_on)), "training example")
        with progress.doing(f"{PHASES[phase]}: re-estimating batch norms on {images}"):
            recalibrate(model, data, device)
    return model


def _prepared(
    model: keras.Model,
    objective: Objective,
    options: Training,
    device: Device,
    extras: Extras,
    steps_per_epoch: int,
) -> tuple[keras.Model, keras.optimizers.Optimizer, Callable]:
    """The network to train, its optimizer and the compiled step."""
    with device.strategy.scope():
        # Cloned in any case: under MirroredStrategy variables must be made in its scope.
        policy = "mixed_bfloat16" if options.mixed_precision else "float32"
        trained = to_policy(model, policy)
        optimizer = _optimizer(extras, options, steps_per_epoch)
    train_steps = make_train_step(
        trained,
        optimizer,
        objective.loss_fn,
        device.strategy,
        accum=options.accum,
        weight_decay=options.weight_decay,
        compile=device.compile,
        teachers=objective.teachers,
        momentum=objective.momentum,
        forward=objective.forward_of and objective.forward_of(trained),
    )
    return trained, optimizer, train_steps


def _figure(row: dict) -> str:
    """What is said of an epoch on the test split: the user's metric, top-1, or the loss."""
    for name, value in row.get("test_metrics", {}).items():
        return f"test {name} {value:.4f}"
    if "test_top1" in row:
        return f"test top-1 {row['test_top1']:.2f} %"
    return f"test loss {row['test_loss']:.4f}" if "test_loss" in row else ""


def _optimizer(extras: Extras, options: Training, steps_per_epoch: int):
    given = extras.optimizer
    if given is not None:
        return type(given).from_config(given.get_config())
    rate = _schedule(options, steps_per_epoch)
    if options.optimizer == LAMB:
        return keras.optimizers.Lamb(rate)
    return keras.optimizers.SGD(rate, 0.9, nesterov=True)


def _callbacks(extras: Extras, model: keras.Model) -> keras.callbacks.CallbackList | None:
    """The user's callbacks, told of the network; None without any."""
    if not extras.callbacks:
        return None
    model.stop_training = False
    return keras.callbacks.CallbackList(list(extras.callbacks), model=model)


def _epoch_batches(
    data: Dataset, objective: Objective, options: Training, steps_per_epoch: int, epoch: int
) -> tf.data.Dataset:
    """The training batches of an epoch, counted from 0."""
    batches = train_batches(
        data,
        objective.indices,
        options.batch_size,
        seed=options.seed,
        epoch=epoch,
        views=objective.views,
        augment=True,
        jitter=objective.jitter,
        rows=objective.rows,
        part=cluster.part(),
    )
    if not objective.forward_of:
        return batches
    if data.moves_targets:
        batches = batches.map(_of_only_view)
    return _numbered(batches, epoch * steps_per_epoch)


def _of_only_view(batch: dict) -> dict:
    """Targets and weights [b, 1, ...] without the axis of the views."""
    moved = {
        key: mapped(lambda x: x[:, 0], batch[key]) for key in ("targets", "weights") if key in batch
    }
    return batch | moved


def _numbered(batches: tf.data.Dataset, first: int) -> tf.data.Dataset:
    """Adds "step", int32 [batch], to every batch: its number, counted from `first`."""

    def add(number, batch):
        step = tf.fill(tf.shape(batch["index"]), tf.cast(number, tf.int32))
        return batch | {"step": tf.ensure_shape(step, batch["index"].shape)}

    return batches.enumerate(first).map(add)


def _without_extra(model: keras.Model, objective: Objective) -> keras.Model:
    """The model without the outputs that the task doesn't have."""
    if not objective.extra:
        return model
    return keras.Model(model.inputs, tree_of(model.outputs[: -objective.extra]))


def _schedule(options: Training, steps_per_epoch: int):
    total_steps = max(1, options.epochs * steps_per_epoch)
    if options.schedule == "cosine":
        return schedules.cosine(options.learning_rate, total_steps)
    return schedules.step_decay(
        options.learning_rate, options.decay_points, options.decay_rate, total_steps
    )


def recalibrate(model: keras.Model, data: Dataset, device: Device, *, frozen: bool = False) -> None:
    """Re-estimates the moving statistics in place on at most BN_IMAGES of the images trained on.

    Args:
        frozen: those of frozen batch norms, too.
    """
    indices = np.random.default_rng(0).permutation(data.trained_on)[:BN_IMAGES]
    part = cluster.part()
    batches = eval_batches(data, "train", device.val_batch_images, indices=indices, part=part)
    reestimate_bn(model, batches, compile=device.compile, frozen=frozen, shared=True)


def shares(task: Task) -> bool:
    """Whether the machines share out an evaluation's batches; else each runs all of them."""
    return cluster.size() > 1 and not UserMetrics(task).any


def _batches(data: Dataset, split: str, device: Device, shared: bool) -> tf.data.Dataset:
    part = cluster.part() if shared else cluster.WHOLE
    return eval_batches(data, split, device.val_batch_images, part=part)


def both_modes(
    model: Given | keras.Model, task: Task, data: Dataset, split: str, device: Device
) -> dict:
    """The figures of `evaluate` by moving and (keys `batch_`) by batch statistics.

    A network without batch norms that could do either has the first alone.

    Args:
        model: a core; or a given network, which is run as it is for the first, and whose core is
            for the second.
    """
    shared = shares(task)
    batches = _batches(data, split, device, shared)
    whole, core = (model.as_core(), model.core) if isinstance(model, Given) else (model, model)
    settings = {"compile": device.compile, "shared": shared}
    inference = evaluate(whole, task, batches, bn="inference", errors=True, **settings)
    if not batch_norms(core):
        return inference
    by_batch = evaluate(core, task, batches, bn="batch", **settings)
    own = {f"batch_{key}": value for key, value in by_batch.items() if key != "examples"}
    return inference | own
