"""The memory bank: logits of K interim sub-networks on the training set (docs/method.md 2).

Two kinds, both one memory-mapped file `bank.npy` whose row n belongs to training example n:

* "full": float16 [examples, classes, K], all logits;
* "topk": records [examples, K] of the k largest logits (float16 [k]), their classes (int16 [k]) and
  "rest" (float16), the log-sum-exp of all other logits, whose mass is spread evenly over their
  classes on reading (`distill.expanded`). 1.28 million x 1000 classes x 5: 0.4 instead of 13 GB.

For FFP's contrastive transfer (docs/method.md 5) `bank_features.npy`, float16 [examples, width],
holds the mean over the K teachers of their penultimate features, each of unit length.
"""

import math
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from ...nets.graph import ChannelGraph
from ...options.bank import MANY_CLASSES, Bank
from ...utils.errors import UserError
from ...utils.runfolder import RunFolder
from ..engine.features import FeaturePass
from ..engine.segments import Segments
from ..history import History

ARRAY, FEATURES, MANIFEST = "bank.npy", "bank_features.npy", "bank.json"
BLOCK_SECONDS = 60.0  # a killed build loses at most about so much work


@dataclass(frozen=True)
class Layout:
    """Shape and type of the bank's array; `features` are kept per example (0: none)."""

    kind: str
    shape: tuple[int, ...]
    dtype: np.dtype
    features: int = 0

    @property
    def arrays(self) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
        """{file: (dtype, shape)}."""
        found = {ARRAY: (self.dtype, self.shape)}
        if self.features:
            found[FEATURES] = np.dtype(np.float16), (self.shape[0], self.features)
        return found

    @property
    def bytes(self) -> int:
        """Of all arrays on the disk."""
        return sum(dtype.itemsize * math.prod(shape) for dtype, shape in self.arrays.values())


def layout(
    options: Bank, examples: int, classes: int, num_teachers: int, features: int = 0
) -> Layout:
    """The bank's layout for a training set.

    Args:
        features: how many penultimate features are kept of every example.

    Raises:
        UserError: more logits are to be kept than there are classes, or more classes than int16
            numbers.
    """
    kind = options.kind or ("topk" if classes >= MANY_CLASSES else "full")
    if kind == "full":
        return Layout(kind, (examples, classes, num_teachers), np.dtype(np.float16), features)
    if options.k > classes:
        raise UserError(f"k {options.k} of the bank is more than the {classes} classes of the data")
    if classes > np.iinfo(np.int16).max:
        raise UserError(f"{classes} classes are too many for a topk bank: use a full one")
    k = (options.k,)
    dtype = np.dtype([("logits", "<f2", k), ("classes", "<i2", k), ("rest", "<f2")])
    return Layout(kind, (examples, num_teachers), dtype, features)


def compressed(logits: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Rows of a "topk" bank from all logits.

    Args:
        logits: float32 [b, classes]. dtype: of `layout`.

    Returns:
        Records [b] of `dtype`; ties go to either class.
    """
    k = dtype["logits"].shape[0]
    order = np.argpartition(-logits, k - 1, axis=-1)
    top, others = order[:, :k], np.take_along_axis(logits, order[:, k:], -1)
    rows = np.empty(len(logits), dtype)
    rows["logits"] = np.take_along_axis(logits, top, -1)
    rows["classes"] = top
    rows["rest"] = -np.inf
    if others.shape[1]:
        largest = others.max(-1, keepdims=True)
        rows["rest"] = (largest + np.log(np.exp(others - largest).sum(-1, keepdims=True)))[:, 0]
    return rows


def choose_teachers(losses: list[float], count: int) -> list[int]:
    """Steps of the teachers T_1 .. T_K by interpolating the loss between theta* and theta_0.

    T_k = argmin_i |(K - k)/K * L(theta*) + k/K * L(theta_0) - L(theta_i)|, without replacement,
    theta* excluded.

    Args:
        losses: validation loss of theta_0 .. theta* (the last one).
        count: K, at least 1.

    Raises:
        ValueError: fewer interim networks than teachers.
    """
    free = list(range(len(losses) - 1))
    if len(free) < count:
        raise ValueError(f"{len(free)} interim networks are too few for {count} teachers")
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
    batches: Callable[[int], Iterable[dict]],
    *,
    layout: Layout,
    fingerprint: str,
    compile: bool,
) -> dict:
    """Writes bank.npy in blocks of batches; goes on after the last finished block.

    Every image is read once and shown to all K teachers.

    Args:
        batches: batches(i) gives the training set's batches from number i on, without augmentation,
            as dicts with "inputs" float32 [b, h, w, c] and "index" int32 [b]; the same ones every
            time and in mixed order: batch norm takes the statistics of each batch.
        layout: of the training set, from `layout`.
        fingerprint: of the training set, kept in the manifest.

    Returns:
        The manifest: teachers (step, val_loss, flops), kind, shape, features (their number, or 0),
        fingerprint, examples and batches done, complete (whether all are).

    Raises:
        UserError: the disk is too small.
        RuntimeError: the batches hold another number of examples; a logit beyond float16.
    """
    wide = layout.features
    manifest = _open_manifest(folder, history, layout, fingerprint)
    if manifest["complete"]:
        return manifest
    segments = Segments(graph, compile=compile)
    masks = [history.mask(graph, teacher["step"]) for teacher in manifest["teachers"]]
    teachers = [segments.weights(mask) for mask in masks]
    bank = np.lib.format.open_memmap(folder.file(ARRAY), mode="r+")
    kept = np.lib.format.open_memmap(folder.file(FEATURES), mode="r+") if wide else None
    both = FeaturePass(segments) if wide else None
    flushed = time.monotonic()
    for batch in batches(manifest["batches_done"]):
        index, means = batch["index"].numpy(), np.zeros((len(batch["index"]), wide), np.float32)
        for number, (weights, mask) in enumerate(zip(teachers, masks, strict=True)):
            if both is None:
                logits = segments.logits(batch["inputs"], weights).numpy()
            else:
                logits, found = both.run(batch["inputs"], weights, mask)
                length = np.linalg.norm(found, axis=-1, keepdims=True)
                means += found / np.maximum(length, 1e-12) / len(teachers)
            _write(bank, layout, index, number, logits)
        if kept is not None:
            kept[index] = means
        manifest["batches_done"] += 1
        manifest["examples_done"] += len(batch["index"])
        if time.monotonic() - flushed > BLOCK_SECONDS:
            _flush(bank, kept)
            folder.write_json(MANIFEST, manifest)
            flushed = time.monotonic()
    if manifest["examples_done"] != layout.shape[0]:
        raise RuntimeError(f"{manifest['examples_done']} of {layout.shape[0]} rows were written")
    _flush(bank, kept)
    manifest["complete"] = True
    folder.write_json(MANIFEST, manifest)
    return manifest


def _flush(*arrays: np.memmap | None) -> None:
    for array in arrays:
        if array is not None:
            array.flush()


def _write(bank: np.ndarray, layout: Layout, index: np.ndarray, number: int, logits) -> None:
    """Puts a teacher's logits, float32 [b, classes], into the rows `index`."""
    if not (np.abs(logits) <= np.finfo(np.float16).max).all():
        raise RuntimeError(f"teacher {number}: a logit is not finite or beyond float16")
    if layout.kind == "full":
        bank[index, :, number] = logits.astype(np.float16)
    else:
        bank[index, number] = compressed(logits, layout.dtype)


def _open_manifest(folder: RunFolder, history: History, layout: Layout, fingerprint: str) -> dict:
    """The manifest of an unfinished bank, or of a new one with its empty arrays."""
    if folder.file(MANIFEST).exists() and folder.file(ARRAY).exists():
        return folder.read_json(MANIFEST)
    count = layout.shape[-1]
    steps = choose_teachers([row["val_loss"] for row in history.rows], count)
    # The file has holes at first: a full disk would only show as a crash half-way.
    free = shutil.disk_usage(folder.path).free
    if free < layout.bytes:
        raise UserError(
            f"the memory bank needs {layout.bytes / 1e9:.1f} GB, {folder.path} has "
            f"{free / 1e9:.1f} GB free: use a topk bank, fewer teachers or another folder"
        )
    for name, (dtype, shape) in layout.arrays.items():
        np.lib.format.open_memmap(folder.file(name), mode="w+", dtype=dtype, shape=shape).flush()
    keys = ("step", "val_loss", "flops")
    manifest = {
        "teachers": [{key: history.rows[step][key] for key in keys} for step in steps],
        "kind": layout.kind,
        "shape": list(layout.shape),
        "features": layout.features,
        "dataset_fingerprint": fingerprint,
        "batches_done": 0,
        "examples_done": 0,
        "complete": False,
    }
    folder.write_json(MANIFEST, manifest)
    return manifest
