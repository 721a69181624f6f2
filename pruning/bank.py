"""The memory bank: logits of K interim sub-networks on the training set (method.md 2)."""

import os
from collections.abc import Iterable

import numpy as np

from nets.graph import ChannelGraph
from pruning.history import History
from pruning.segments import Segments
from utils.cli import UserError
from utils.runfolder import RunFolder

ARRAY, MANIFEST = "bank.npy", "bank.json"


def choose_teachers(losses: list[float], count: int) -> list[int]:
    """Steps of the teachers T_1 .. T_K by interpolating the loss between theta* and theta_0.

    T_k = argmin_i |(K - k)/K * L(theta*) + k/K * L(theta_0) - L(theta_i)|, without replacement,
    theta* excluded.

    Args:
        losses: validation loss of theta_0 .. theta* (the last one).
        count: K, at least 1.

    Raises:
        UserError: fewer interim networks than teachers.
    """
    free = list(range(len(losses) - 1))
    if len(free) < count:
        raise UserError(
            f"the search made {len(free)} interim networks, too few for {count} teachers: "
            "lower --num_teacher, --search_step or --search_target_rate"
        )
    teachers = []
    for k in range(1, count + 1):
        wanted = (count - k) / count * losses[-1] + k / count * losses[0]
        best = min(free, key=lambda step: abs(wanted - losses[step]))
        free.remove(best)
        teachers.append(best)
    return teachers


def build_bank(
    folder: RunFolder,
    graph: ChannelGraph,
    history: History,
    batches: Iterable[dict],
    *,
    examples: int,
    num_teachers: int,
    fingerprint: str,
    compile: bool,
) -> dict:
    """Writes bank.npy, float16 [examples, classes, K]; goes on after the last finished teacher.

    Args:
        batches: all training examples without augmentation, dicts with "image" float32 [b, h, w, c]
            and
            "index" int32 [b], in mixed order: batch norm takes the statistics of each batch.
        fingerprint: of the training set, kept in the manifest.

    Returns:
        The manifest: teachers (step, val_loss, flops), shape, dtype, fingerprint, done (teachers
        written).
    """
    path = folder.file(ARRAY)
    manifest = _open_manifest(folder, history, num_teachers, fingerprint, examples, graph)
    if manifest["done"] == num_teachers:
        return manifest
    segments = Segments(graph, compile=compile)
    bank = np.lib.format.open_memmap(path, mode="r+")
    for number in range(manifest["done"], num_teachers):
        mask = history.mask(graph, manifest["teachers"][number]["step"])
        weights = segments.weights(mask)
        seen = 0
        for batch in batches:
            logits = segments.logits(batch["image"], weights).numpy()
            bank[batch["index"].numpy(), :, number] = logits.astype(np.float16)
            seen += len(logits)
        if seen != examples or not np.isfinite(bank[:, :, number]).all():
            raise RuntimeError(
                f"teacher {number}: {seen} of {examples} rows, or a logit beyond float16"
            )
        bank.flush()
        manifest["done"] = number + 1
        folder.write_json(MANIFEST, manifest)
    return manifest


def _open_manifest(
    folder: RunFolder,
    history: History,
    num_teachers: int,
    fingerprint: str,
    examples: int,
    graph: ChannelGraph,
) -> dict:
    """The manifest of an unfinished bank, or of a new one with its empty array."""
    if folder.file(MANIFEST).exists() and folder.file(ARRAY).exists():
        return folder.read_json(MANIFEST)
    steps = choose_teachers([row["val_loss"] for row in history.rows], num_teachers)
    shape = (examples, graph.model.outputs[0].shape[-1], num_teachers)
    array = np.lib.format.open_memmap(folder.file(ARRAY), mode="w+", dtype=np.float16, shape=shape)
    array.flush()
    del array
    keys = ("step", "val_loss", "flops")
    manifest = {
        "teachers": [{key: history.rows[step][key] for key in keys} for step in steps],
        "shape": list(shape),
        "dtype": "float16",
        "dataset_fingerprint": fingerprint,
        "done": 0,
    }
    folder.write_json(MANIFEST, manifest)
    return manifest


def open_bank(folder: RunFolder | os.PathLike, manifest: dict, fingerprint: str) -> np.ndarray:
    """The finished bank, memory-mapped read-only, float16 [examples, classes, K].

    Raises:
        UserError: unfinished, of another training set, or not the array that the manifest
            describes.
    """
    path = os.path.join(os.fspath(getattr(folder, "path", folder)), ARRAY)
    if manifest["done"] != manifest["shape"][-1]:
        raise UserError(f"{path} is unfinished: run search.py on its folder again")
    if manifest["dataset_fingerprint"] != fingerprint:
        raise UserError(f"{path} belongs to another training set than the one given by --data_path")
    try:
        bank = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}; run search.py on its folder again") from None
    if list(bank.shape) != manifest["shape"]:
        raise UserError(f"{path} has shape {bank.shape}, its manifest says {manifest['shape']}")
    return bank
