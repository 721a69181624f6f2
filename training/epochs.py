"""The epoch loop: every training in this project, resumable after each epoch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from ..op_utils import check_finite, distributed
from ..utils import cluster, progress
from ..utils.arrays import load_state, save_state
from ..utils.errors import UserError
from .diagnosis import first_cause

# Python wakes after so many steps or, if that is earlier, about so many seconds: to show progress
# and to look for NaN
INTERVAL_STEPS = 50
INTERVAL_SECONDS = 5

Series = dict[str, np.ndarray]


def fit(
    *,
    train_steps: Callable,
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    epoch_batches: Callable[[int], tf.data.Dataset],
    strategy: tf.distribute.Strategy,
    epochs: int,
    steps_per_epoch: int,
    log: Callable[[dict], None],
    log_keep: Callable[[int], None],
    evaluate: Callable[[], dict] | None,
    checkpoint: Path,
    what: str,
    shown: Callable[[dict], str] = lambda row: "",
    callbacks: keras.callbacks.CallbackList | None = None,
    rows: Sequence[dict] = (),
    moving: Sequence[keras.Model] = (),
) -> None:
    """Trains until `epochs` epochs are done, from `checkpoint` on if that file exists.

    A run that was killed at any moment and is called again with the same arguments ends with the
    same weights and the same log as one that was not: the row of an epoch is logged before its
    checkpoint is written, and log_keep(n), called first of all, must drop every row past the n
    finished epochs.

    Args:
        train_steps: as made by op_utils.make_train_step for this model and optimizer.
        epoch_batches: the batches of an epoch (counted from 0), a pure function of its number; at
            least `steps_per_epoch` of them. More are ignored. Of several machines, this one's part
            of every batch.
        log: takes the row of an epoch: "epoch" (counted from 1), "loss" and the other training
            metrics (means over steps), "lr" (at the first step), "seconds" (training alone),
            "images_per_second" (without the first step, which may trace, if there is another) and
            what `evaluate` returned, which takes precedence.
        checkpoint: an .npz; the next epoch is only begun when it is complete on disk.
        what: is being trained, in words. shown: what a line says of a finished epoch's row.
        callbacks: called at the beginning and end of the training and of every epoch, with the
            numbers of its row; they may stop it (`model.stop_training`).
        rows: of the epochs that an earlier process has logged; the callbacks are told of them, so
            that what they count goes on.
        moving: teachers that follow the model, kept in the checkpoint with it.
    Raises:
        NonFiniteLoss: a loss is NaN or infinite; the checkpoint stays that of the last good epoch.
        UserError: the checkpoint belongs to another network or optimizer.
        ValueError: an epoch has fewer than `steps_per_epoch` batches.
    """
    with strategy.scope():
        optimizer.build(model.trainable_variables)
    there = cluster.on_chief(Path(checkpoint).exists)
    done = restore(checkpoint, model, optimizer, moving) if there else 0
    log_keep(done)
    if done >= epochs:
        return
    told = _Told(callbacks, rows[:done])
    if done:
        progress.say(f"{what}: goes on after epoch {done} of {epochs}")
    steps = {"total": epochs * steps_per_epoch, "initial": done * steps_per_epoch}
    with progress.bar(what, **steps) as bar:
        last = shown(rows[done - 1]) if 0 < done <= len(rows) else ""
        for epoch in range(done, epochs):
            if cluster.on_chief(lambda: told.stopped):
                progress.say(f"{what}: a callback ended it after epoch {epoch} of {epochs}")
                break
            told.begin(epoch)
            row = {"epoch": epoch + 1, "lr": float(optimizer.learning_rate)}
            batches = iter(distributed(strategy, epoch_batches(epoch)))
            intervals = _intervals(train_steps, batches, steps_per_epoch)
            words = _Words(epoch, epochs, steps_per_epoch, last)
            before, again = epoch * steps_per_epoch, partial(epoch_batches, epoch)
            row |= _epoch(intervals, before, bar, words, again)
            if evaluate is not None:
                bar.to(bar.done, f"{words.place}, testing")
                testing = f"{what}: {words.place}, testing"
                with progress.doing(testing, after=progress.QUIET_SECONDS):
                    row |= evaluate()
            last = shown(row)
            words.end(row, last, bar)
            log(row)
            told.end(epoch, row)
            save(checkpoint, model, optimizer, epoch + 1, moving)
    if callbacks is not None:
        callbacks.on_train_end()  # which may put back the best weights
        save(checkpoint, model, optimizer, epochs, moving)


class _Told:
    """The callbacks, if there are any; told first of what an earlier process did."""

    def __init__(self, callbacks: keras.callbacks.CallbackList | None, rows: Sequence[dict]):
        self._callbacks = callbacks
        if callbacks is None:
            return
        callbacks.on_train_begin()
        for epoch, row in enumerate(rows):
            self.begin(epoch)
            self.end(epoch, row)

    @property
    def stopped(self) -> bool:
        return self._callbacks is not None and bool(self._callbacks.model.stop_training)

    def begin(self, epoch: int) -> None:
        if self._callbacks is not None:
            self._callbacks.on_epoch_begin(epoch)

    def end(self, epoch: int, row: dict) -> None:
        if self._callbacks is not None:
            self._callbacks.on_epoch_end(epoch, numbers_of(row))


def numbers_of(row: dict) -> dict[str, float]:
    """The numbers of an epoch's row by name, the user's metrics among them."""
    found = {key: value for key, value in row.items() if isinstance(value, (int, float))}
    for part in ("test_", "val_"):
        found |= {f"{part}{key}": one for key, one in row.get(f"{part}metrics", {}).items()}
    return found


def _intervals(train_steps: Callable, batches, steps: int) -> Iterator[tuple[Series, float]]:
    """The metrics of the next steps and the seconds they took, until the epoch is over."""
    done, size = 0, 1
    while done < steps:
        size = min(size, INTERVAL_STEPS, steps - done)
        start = time.perf_counter()
        try:
            series = train_steps(batches, tf.constant(size))
        except (tf.errors.OutOfRangeError, StopIteration):
            raise ValueError(f"the epoch has fewer than {steps} batches") from None
        series = {name: values.numpy() for name, values in series.items()}
        taken = time.perf_counter() - start
        yield series, taken
        done, size = done + size, max(1, int(size * INTERVAL_SECONDS / taken))
        size = int(cluster.agreed(np.array(size)))  # all machines take the same steps at a time


def _check(losses: np.ndarray, steps_before: int, again: Callable[[], tf.data.Dataset]) -> None:
    """Refuses losses of an epoch, so far, that aren't finite."""
    check_finite(
        losses,
        steps_before + 1,
        lambda place: first_cause(again(), place, losses[:place], steps_before),
    )


@dataclass(frozen=True)
class _Words:
    """What is said of an epoch.

    Attributes:
        epoch: counted from 0. steps: of an epoch. last: said of the epoch before it.
    """

    epoch: int
    epochs: int
    steps: int
    last: str

    @property
    def place(self) -> str:
        return f"epoch {self.epoch + 1} of {self.epochs}"

    def on_the_way(self, loss: float, speed: float) -> str:
        parts = (self.place, f"loss {loss:.4f}", self.last, f"{speed:,.0f} examples/s")
        return ", ".join(part for part in parts if part)

    def end(self, row: dict, now: str, bar: progress.Bar) -> None:
        seconds = progress.duration(row["seconds"])
        parts = (self.place, f"loss {row['loss']:.4f}", now, seconds)
        bar.note(", ".join(part for part in parts if part))


def _epoch(
    intervals: Iterator[tuple[Series, float]],
    steps_before: int,
    bar: progress.Bar,
    words: _Words,
    again: Callable[[], tf.data.Dataset],
) -> dict:
    """Runs an epoch; its means, seconds and speed. `again` gives its batches once more."""
    parts, seconds, images = [], [], []
    for series, taken in intervals:
        _check(np.concatenate([part["loss"] for part in (*parts, series)]), steps_before, again)
        images.append(float(series.pop("examples").sum()))
        seconds.append(taken)
        parts.append(series)
        said = words.on_the_way(float(series["loss"].mean()), images[-1] / taken)
        ended = sum(len(part["loss"]) for part in parts) == words.steps
        bar.advance(len(series["loss"]), said, line=not ended)  # it has a line of its own
    means = {
        name: float(np.concatenate([part[name] for part in parts]).mean(dtype=np.float64))
        for name in parts[0]
    }
    timed = slice(1 if len(seconds) > 1 else 0, None)
    speed = sum(images[timed]) / sum(seconds[timed])
    return means | {"seconds": sum(seconds), "images_per_second": speed}


# ---------------------------------------------------------------- checkpoints


def _variables(model, optimizer, moving) -> dict[str, keras.Variable]:
    """Numbered, because the names of layers differ between two networks made by the same code."""
    teachers = [(f"teacher{number}", one) for number, one in enumerate(moving)]
    return {
        f"{kind}/{i}": variable
        for kind, owner in (("model", model), ("optimizer", optimizer), *teachers)
        for i, variable in enumerate(owner.variables)
    }


def save(
    path: Path,
    model: keras.Model,
    optimizer: keras.Optimizer,
    epochs_done: int,
    moving: Sequence[keras.Model] = (),
) -> None:
    """Writes all variables of model, optimizer and the teachers that move, and the number of
    finished epochs, atomically.

    Of several machines the first one writes.
    """

    def write() -> None:
        variables = _variables(model, optimizer, moving)
        state = {key: variable.numpy() for key, variable in variables.items()}
        save_state(path, state | {"epochs_done": np.int64(epochs_done)})

    cluster.on_chief(write)


def restore(
    path: Path,
    model: keras.Model,
    optimizer: keras.Optimizer,
    moving: Sequence[keras.Model] = (),
) -> int:
    """Sets the variables that `save` wrote and returns the number of finished epochs.

    Raises UserError, with nothing changed, when the file belongs to another network or optimizer.
    """
    state = load_state(path)
    variables = _variables(model, optimizer, moving)
    for key in sorted((variables.keys() | {"epochs_done"}) ^ state.keys()):
        problem = "lacks" if key not in state else "has, but the training lacks,"
        raise UserError(f"{path} {problem} {key}: it is the checkpoint of another run; delete it")
    for key, variable in variables.items():
        if state[key].shape != tuple(variable.shape):
            raise UserError(
                f"{path}: {variable.path} has shape {state[key].shape} there and "
                f"{tuple(variable.shape)} here: it is the checkpoint of another run; delete it"
            )
    for key, variable in variables.items():
        variable.assign(state[key])
    return int(state["epochs_done"])
