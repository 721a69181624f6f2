"""Whether a network, its data and its task go together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np

from ..dataloader import Dataset
from ..dataloader.checks import fits
from ..nets.rebuild import at_shapes
from ..options.kinds import CLASSES
from ..training.task import Task
from ..utils.errors import UserError
from ..utils.trees import parts_of


def input_of(model: keras.Model, data: Dataset) -> dict | list[dict]:
    """What an input is and how the data was normalised; a list of several, that never are."""
    shapes = [[None, *one.shape[1:]] for one in model.inputs]
    if len(shapes) == 1:
        return {"shape": shapes[0], "mean": data.mean, "std": data.std}
    return [
        {"name": one.name, "shape": shape} for one, shape in zip(model.inputs, shapes, strict=True)
    ]


def fitted(model: keras.Model, path: Path, data: Dataset, batch: dict[str, Any]) -> keras.Model:
    """Compares a network's inputs and outputs with a batch of the data, "inputs" and "targets".

    Returns:
        The network; where it leaves sizes open, the same for inputs of the data's size, since most
        runtimes take one alone.

    Raises:
        UserError: another number or other shapes of inputs, another number of targets.
    """
    remedy = "give the network's own data"
    taken = [tuple(one.shape[1:]) for one in model.inputs]
    there = [tuple(one.shape[1:]) for one in parts_of(batch["inputs"])]
    alike = [fits(one, wanted) for one, wanted in zip(there, taken, strict=False)]
    if len(taken) != len(there) or not all(alike):
        raise UserError(
            f"{path} takes inputs {_listed(taken)}, but {data.name} has {_listed(there)}: {remedy}"
        )
    count = len(parts_of(batch["targets"]))
    if count != len(model.outputs):
        raise UserError(
            f"{path} has {len(model.outputs)} output(s), but {data.name} has targets for {count}: "
            f"{remedy}"
        )
    return at_shapes(model, there)


def _listed(shapes: list[tuple]) -> str:
    return " and ".join(map(str, shapes))


def check_labels(model: keras.Model, path: Path, data: Dataset, task: Task) -> None:
    """Labels must be below the number of outputs; but for one that the loss leaves out.

    Raises:
        UserError: a label is not, or the task has another number of outputs.
    """
    if len(task.heads) != len(model.outputs):
        raise UserError(
            f"{path} has {len(model.outputs)} output(s), but the task is one of {len(task.heads)}: "
            "give the network's own task"
        )
    losses = keras.tree.flatten(task.aims.loss)
    ignored = [one.ignore_class for one in losses if getattr(one, "ignore_class", None) is not None]
    for split in (data.train, data.test):
        triples = zip(task.heads, model.outputs, parts_of(split.targets), strict=True)
        for head, output, labels in triples:
            if head.output.kind != CLASSES or np.dtype(labels.dtype).kind not in "iu":
                continue
            labels = labels[~np.isin(labels, ignored)] if ignored else labels
            if labels.size and labels.max() >= output.shape[-1]:
                place = f" at {head.output.name}" if len(task.heads) > 1 else ""
                raise UserError(
                    f"{path} tells {output.shape[-1]} classes apart{place}, but {data.name} has "
                    f"the label {labels.max()}: give the network's own data"
                )
