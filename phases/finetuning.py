"""Phase 2 in a run folder: fine-tuning of the network that a search has found.

The test split is read after every epoch for the curves; it chooses nothing, the network of the last
epoch is kept.
"""

from pathlib import Path
from typing import Any

import keras

from ..dataloader import Dataset, examples_of, without_held_out
from ..nets.given import Given
from ..nets.graph import ChannelGraph
from ..nets.rebuild import rebuilt
from ..nets.zoo.pkl_weights import save_pkl, to_pkl
from ..options.bank import ONLINE
from ..options.data import Sampling
from ..options.fields import settings_of
from ..options.finetuning import CODE, Contrastive, Ensemble, FineTuning, Hinton, Single
from ..options.training import Training
from ..pruning.knowledge.bank import MANIFEST
from ..pruning.knowledge.bank_reader import (
    best_teacher,
    online_masks,
    open_bank,
    open_features,
    read_manifest,
)
from ..pruning.knowledge.contrast import ckt_loss, with_projection
from ..pruning.knowledge.distill import ensemble_loss, kd_loss, plain_loss, single_loss
from ..reports.finetuning import draw
from ..training.task import Task
from ..training.trainer import METRICS, NO_EXTRAS, Extras, Objective, train
from ..utils import cluster, progress
from ..utils.devices import Device
from ..utils.errors import UserError
from ..utils.jsonl import believed, read_json
from ..utils.keras_files import load_keras
from ..utils.runfiles import BASELINE, EXPORTED, PRUNED, START, front_file, read_file, verify
from ..utils.runfolder import RunFolder
from .searching import save_finished

WEIGHTS = "trained_param.pkl"


def run_finetuning(
    folder: RunFolder,
    search_path: Path,
    given: Given,
    task: Task,
    data: Dataset,
    training: Training,
    device: Device,
    finetuning: FineTuning,
    rate: float | None = None,
    extras: Extras = NO_EXTRAS,
) -> keras.Model:
    """Fine-tunes the pruned network of a finished search; resumes what an earlier process began.

    Writes pruned.keras, trained_param.pkl, finetune.json and training_curves.png to the folder.

    Args:
        search_path: run folder with the finished search, its start network and its bank.
        given: the network that was searched. task: what it is trained for.
        training, finetuning: resolved (`options.recipes`).
        rate: fine-tune the network that the search kept at this rate on its way; None = its last.
        extras: optimizer and callbacks of the user's.

    Returns:
        The fine-tuned network with the ends of the given one, moving statistics re-estimated, read
        back from pruned.keras.

    Raises:
        UserError: the search isn't finished, or its bank belongs to other data or lacks what the
            method needs.
    """
    if folder.has(EXPORTED):
        return load_keras(folder.file(EXPORTED), compile=False)
    data = training_data(search_path, data)
    student = given.read_again(
        load_keras(search_path / pruned_file(search_path, rate), compile=False)
    ).core
    # Frozen batch norms as well: a smaller network has other statistics. `finished` freezes again.
    given.thaw(student)
    if finetuning.from_scratch:
        keras.utils.set_random_seed(training.seed)
        student = rebuilt(student, carry=lambda old, new: None)
    trained, objective = objective_of(
        search_path, student, task, data, finetuning, training.seed, device
    )
    # It shares the student's layers.
    train(folder, "finetune", trained, data, objective, training, device, extras)
    rows = [row for row in folder.rows(METRICS) if row["phase"] == "finetune"]
    seconds = {"epochs": len(rows), "seconds": sum(row["seconds"] for row in rows)}
    folder.write_json("finetune.json", _described(finetuning) | {"rate": rate} | seconds)
    _save_weights(folder, student)
    draw(folder)
    with progress.doing(f"writing {folder.file(EXPORTED)}"):
        save_finished(folder, EXPORTED, given, student, examples_of(data))
    return load_keras(folder.file(EXPORTED), compile=False)


def training_data(search_path: Path, data: Dataset) -> Dataset:
    """The data without the examples that the search has held out for D_val.

    Raises:
        UserError: the search's args.json is missing or damaged.
    """
    path = search_path / "args.json"
    share = cluster.on_chief(lambda: read_json(path).get("val_held_out"))
    with believed(path):
        return without_held_out(data, Sampling(held_out=share).held_out)


def pruned_file(search_path: Path, rate: float | None) -> str:
    """Name of the network to fine-tune in a search's folder.

    Raises:
        UserError: the search isn't finished, kept no network at this rate, or one of its files is
            damaged.
    """
    return cluster.on_chief(lambda: _pruned_file(search_path, rate))


def _pruned_file(search_path: Path, rate: float | None) -> str:
    if not (search_path / PRUNED).exists():
        raise UserError(f"{search_path} holds no finished search: run the search on it first")
    name = PRUNED if rate is None else front_file(rate)
    verify(search_path, "search.json")
    with believed(search_path / "search.json"):
        kept = [f"{one['wanted']:g}" for one in read_file(search_path, "search.json")["front"]]
    if not (search_path / name).exists():
        raise UserError(
            f"{search_path} has no network at the rate {rate:g}: its search kept "
            f"{' '.join(kept) or 'none'} on the way"
        )
    verify(search_path, BASELINE, START, name)
    return name


def _described(finetuning: FineTuning) -> dict:
    """What finetune.json says of how the student learned."""
    values = {one.name: getattr(finetuning, one.name) for one in settings_of(type(finetuning))}
    return {"method": finetuning.method, "teacher": finetuning.teacher} | values


def _save_weights(folder: RunFolder, model: keras.Model) -> None:
    try:
        arrays = to_pkl(model)
    except UserError as error:  # the layout has names for our own architectures' weights alone
        progress.say(f"{WEIGHTS} is not written: {error}")
        return
    folder.write(WEIGHTS, lambda path: save_pkl(path, arrays))


def objective_of(
    search_path: Path,
    student: keras.Model,
    task: Task,
    data: Dataset,
    finetuning: FineTuning,
    seed: int,
    device: Device,
) -> tuple[keras.Model, Objective]:
    """What is trained, which has the student's layers, and how.

    Args:
        finetuning: resolved (`options.recipes`).

    Raises:
        UserError: the search's bank belongs to other data or lacks what the method needs.
    """
    views = {"views": 2, "jitter": True} if finetuning.views == 2 else {}
    viewed = {"viewed": data.moves_targets}
    if isinstance(finetuning, Hinton | Single):
        with device.strategy.scope():
            start = load_keras(search_path / START, compile=False)
        if isinstance(finetuning, Hinton):
            loss = kd_loss(task, finetuning.temperature, finetuning.alpha, **viewed)
            return student, Objective(task, loss, teachers=[start], **views)
        loss = single_loss(task, finetuning.temperature, **viewed)
        return student, Objective(task, loss, teachers=[start], **views)
    if not isinstance(finetuning, Ensemble | Contrastive):
        return student, Objective(task, plain_loss(task, **viewed), **views)
    manifest = cluster.on_chief(lambda: _verified_manifest(search_path))
    if isinstance(finetuning, Contrastive):
        rows = open_features(search_path, manifest, data.fingerprint)
        student = with_projection(student, manifest["features"], seed)
        loss = ckt_loss(task, finetuning.loss, **viewed)
        return student, Objective(task, loss, rows=rows, extra=1, **views)
    online = manifest["kind"] == ONLINE
    taught: dict[str, Any] = (
        {"teachers": _online_teachers(search_path, manifest, data, device)}
        if online
        else {"rows": open_bank(search_path, manifest, data.fingerprint)}
    )
    with believed(search_path / MANIFEST):
        best = best_teacher(manifest) if finetuning.rule == CODE else 0
    loss = ensemble_loss(task, finetuning.temperature, rule=finetuning.rule, best=best, **viewed)
    return student, Objective(task, loss, **taught, **views)


def _verified_manifest(search_path: Path) -> dict:
    manifest = read_manifest(search_path)
    verify(search_path, MANIFEST, *manifest["shapes"])
    return manifest


def _online_teachers(
    search_path: Path, manifest: dict, data: Dataset, device: Device
) -> list[keras.Model]:
    """The teachers of an online bank as pruned networks."""
    graph = ChannelGraph(load_keras(search_path / START, compile=False))
    masks = online_masks(search_path, manifest, data.fingerprint, graph.num_units)
    with device.strategy.scope():
        return [graph.pruned(mask) for mask in masks]
