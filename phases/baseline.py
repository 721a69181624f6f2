"""The network to prune: given, or trained here and kept as baseline.keras."""

from __future__ import annotations

from dataclasses import dataclass

import keras

from ..dataloader import Dataset
from ..nets.given import Given
from ..nets.graph import ChannelGraph
from ..nets.rebuild import copied
from ..options.training import BYOL, Baseline, Training
from ..pruning.knowledge.byol import HEADS, byol_loss, with_heads
from ..pruning.knowledge.distill import plain_loss
from ..training.task import Task
from ..training.trainer import METRICS, Objective, both_modes, train
from ..utils import progress
from ..utils.devices import Device
from ..utils.keras_files import load_keras, save_keras
from ..utils.runfiles import BASELINE
from ..utils.runfolder import RunFolder


@dataclass(frozen=True)
class Byol:
    """A teacher that is a moving average of the network (docs/method.md 3).

    weight: of its loss. momentum: of the average, in a step.
    """

    weight: float
    momentum: float

    @classmethod
    def of(cls, baseline: Baseline) -> Byol | None:
        """That of resolved settings; None: they have none."""
        if baseline.teacher != BYOL:
            return None
        assert baseline.byol_weight is not None and baseline.byol_momentum is not None
        return cls(baseline.byol_weight, baseline.byol_momentum)


def kept(folder: RunFolder, model: keras.Model) -> keras.Model:
    """The network that the folder has kept, else `model`."""
    return load_keras(folder.file(BASELINE)) if folder.has(BASELINE) else model


def keep(folder: RunFolder, model: keras.Model) -> None:
    """Writes the network as baseline.keras, unless the folder has one."""
    if not folder.has(BASELINE):
        folder.write(BASELINE, lambda path: save_keras(path, model))
        folder.seal(BASELINE)


def trained(
    folder: RunFolder,
    model: keras.Model,
    task: Task,
    data: Dataset,
    options: Training,
    device: Device,
    byol: Byol | None = None,
) -> keras.Model:
    """A fresh network after its training, which an earlier process may have begun or ended.

    Args:
        byol: the teacher that it learns from beside its task; None: none.

    Raises:
        UserError: as `training.trainer.train`.
    """
    path = folder.file(BASELINE)
    if not folder.has(BASELINE):
        if byol:
            _train_with_byol(folder, model, task, data, options, device, byol)
        else:
            objective = Objective(task, plain_loss(task, viewed=data.moves_targets))
            model = train(folder, "baseline", model, data, objective, options, device)
        keep(folder, model)
    return load_keras(path)


def _train_with_byol(
    folder: RunFolder,
    model: keras.Model,
    task: Task,
    data: Dataset,
    options: Training,
    device: Device,
    byol: Byol,
) -> None:
    """Trains `model` in place: the network that is trained has its layers and two more heads."""
    both = with_heads(model, options.seed)
    with device.strategy.scope():
        target = copied(both)
    views = {"views": 2, "jitter": True} if data.augments else {}
    loss = byol_loss(task, byol.weight, viewed=data.moves_targets)
    objective = Objective(
        task, loss, teachers=[target], extra=HEADS, momentum=byol.momentum, **views
    )
    train(folder, "baseline", both, data, objective, options, device)


def measure(
    folder: RunFolder,
    given: Given,
    task: Task,
    data: Dataset,
    device: Device,
    *,
    trained_here: bool,
) -> None:
    """Keeps the network to prune as baseline.keras; writes baseline.json and prints its figures.

    Args:
        trained_here: else `epochs` and `seconds` of its training are null.
    """
    model = given.to_write()
    keep(folder, model)
    rows = [row for row in folder.rows(METRICS) if row["phase"] == "baseline"]
    results = {
        "epochs": len(rows) if trained_here else None,
        "seconds": sum(row["seconds"] for row in rows) if trained_here else None,
        "parameters": model.count_params(),
        "flops": ChannelGraph(given.core).flops(),
        "test": both_modes(given, task, data, "test", device),
    }
    folder.write_json("baseline.json", results)
    test = results["test"]
    by_batch = f" (batch statistics {test['batch_top1']:.2f} %)" if "batch_top1" in test else ""
    progress.say(
        f"{folder.file(BASELINE)}: {results['parameters']:,} parameters, {results['flops']:,} FLOPs"
        f", test top-1 {test['top1']:.2f} %{by_batch}"
    )
