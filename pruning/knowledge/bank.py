"""The memory bank: outputs of K interim sub-networks on the training set (docs/method.md 2).

Kinds of it, all memory-mapped files whose row n belongs to training example n:

* "full": float16 [examples, ..., K], of plain numbers float32: all outputs, in `bank.npy`, or
  `bank_0.npy`, `bank_1.npy`, ... of a network with several;
* "topk", for logits of classes: records [examples, K] of the k largest logits (float16 [k]), their
  classes (int16 [k]) and "rest" (float16), the log-sum-exp of all other logits, whose mass is
  spread evenly over their classes on reading (`distill.expanded`). 1.28 million x 1000 classes x 5:
  0.4 instead of 13 GB;
* "online": no file; the teachers run beside the student in the fine-tuning, as pruned networks.

For FFP's contrastive transfer (docs/method.md 5) `bank_features.npy`, float16 [examples, width],
holds the mean over the K teachers of their penultimate features, each of unit length.
"""

import math
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...nets.graph import ChannelGraph
from ...options.bank import FULL, MANY_CLASSES, ONLINE, TOPK, Bank
from ...utils import cluster, progress
from ...utils.errors import UserError
from ...utils.jsonl import read_json, write_json
from ...utils.runfolder import RunFolder
from ...utils.threads import pool, side_by_side
from ...utils.trees import parts_of
from ..engine.features import FeaturePass
from ..engine.segments import Segments
from ..history import History

FEATURES, MANIFEST = "bank_features.npy", "bank.json"
_PROGRESS = ("batches_done", "examples_done", "complete")  # of a manifest
BLOCK_SECONDS = 60.0  # a killed build loses at most about so much work
DISK_SHARE = 0.5  # of the free disk that a bank may take unasked


def file_of(number: int, count: int) -> str:
    """Name of the file with the bank of output `number` out of `count`."""
    return "bank.npy" if count == 1 else f"bank_{number}.npy"


@dataclass(frozen=True)
class Layout:
    """Shapes and types of the bank's arrays; `features` are kept per example (0: none).

    Attributes:
        kind: "full", "topk" or "online".
        examples, teachers: how many.
        outputs: shape and type of what is kept of an example and all teachers, for each output.
    """

    kind: str
    examples: int
    teachers: int
    outputs: tuple[tuple[tuple[int, ...], np.dtype], ...]
    features: int = 0

    @property
    def arrays(self) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
        """{file: (dtype, shape)}."""
        found = {
            file_of(number, len(self.outputs)): (dtype, (self.examples, *shape))
            for number, (shape, dtype) in enumerate(self.outputs)
        }
        if self.features:
            found[FEATURES] = np.dtype(np.float16), (self.examples, self.features)
        return found

    @property
    def bytes(self) -> int:
        """Of all arrays on the disk."""
        return sum(dtype.itemsize * math.prod(shape) for dtype, shape in self.arrays.values())

    def __str__(self) -> str:
        sizes = " and ".join(
            " x ".join(f"{size:,}" for size in shape) for _, shape in self.arrays.values()
        )
        if self.kind == ONLINE:
            teachers = progress.count(self.teachers, "teacher")
            beside = f"online, {teachers} run beside the student"
            return beside + (f"; features {sizes}" if sizes else "")
        teachers = progress.count(self.teachers, "teacher")
        examples = progress.count(self.examples, "training example")
        kept = {FULL: "all outputs", TOPK: "the largest outputs"}[self.kind]
        return f"{kept} of {teachers} on {examples}, {self.bytes / 2**20:,.1f} MiB on disk"


def layout(
    options: Bank,
    examples: int,
    outputs: Sequence[tuple[int, ...]],
    num_teachers: int,
    features: int = 0,
    *,
    numbers: Sequence[bool] = (),
    free: float = math.inf,
    moved: bool = False,
) -> Layout:
    """The bank's layout for a training set.

    Args:
        outputs: shape of every output of an example.
        features: how many penultimate features are kept of every example.
        numbers: of every output, whether it is plain numbers, which may be beyond float16.
        free: bytes on the disk; where a kind is left open, a bank beyond half of them is online.
        moved: whether training moves what is seen in an image (flips, crops) while an output has a
            place for each pixel: rows of a written bank would not fit, so it is online.

    Raises:
        UserError: more logits are to be kept than there are classes, more classes than int16
            numbers, a topk bank of another output than classes, or a full one of moved images.
    """
    several = len(outputs) > 1 or len(outputs[0]) > 1
    classes = outputs[0][-1]
    kind = options.kind or (TOPK if classes >= MANY_CLASSES and not several else FULL)
    wide = numbers or [False] * len(outputs)
    full = tuple(
        ((*shape, num_teachers), np.dtype(np.float32 if one else np.float16))
        for shape, one in zip(outputs, wide, strict=True)
    )
    if kind == FULL:
        found = Layout(kind, examples, num_teachers, full, features)
        if not moved and (options.kind or found.bytes <= DISK_SHARE * free):
            return found
        if options.kind:
            raise UserError(
                "a full bank keeps a value for each pixel of the images as they are, but training "
                "flips or shifts them: use an online bank, or no flips and crops"
            )
        kind = ONLINE
    if kind == ONLINE:
        return Layout(kind, examples, num_teachers, (), features)
    if several:
        raise UserError("a topk bank is for one output of classes: use a full or an online one")
    if options.k > classes:
        raise UserError(f"k {options.k} of the bank is more than the {classes} classes of the data")
    if classes > np.iinfo(np.int16).max:
        raise UserError(f"{classes} classes are too many for a topk bank: use a full one")
    k = (options.k,)
    dtype = np.dtype([("logits", "<f2", k), ("classes", "<i2", k), ("rest", "<f2")])
    return Layout(kind, examples, num_teachers, (((num_teachers,), dtype),), features)


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
    """Writes the bank's arrays in blocks of batches; goes on after the last finished block.

    Every example is read once and shown to all K teachers. Several machines take the batches in
    turn; the first one writes all rows.

    Args:
        batches: batches(i) gives the training set's batches from number i on, without augmentation,
            as dicts with "inputs" float32 [b, ...] and "index" int32 [b]; the same ones every
            time and in mixed order: batch norm takes the statistics of each batch. Of several
            machines, each gets its own ones of these.
        layout: of the training set, from `layout`.
        fingerprint: of the training set, kept in the manifest.

    Returns:
        The manifest: teachers (step, val_loss, flops; of an online bank also their removed units),
        kind, shapes by file, features (their number, or 0), fingerprint, examples and batches done,
        complete (whether all are).

    Raises:
        UserError: the disk is too small, or an output is beyond the bank's type.
        RuntimeError: the batches hold another number of examples.
    """
    manifest = cluster.on_chief(lambda: _open_manifest(folder, graph, history, layout, fingerprint))
    if manifest["complete"]:
        return manifest
    segments = Segments(graph, compile=compile)
    masks = [history.mask(graph, teacher["step"]) for teacher in manifest["teachers"]]
    teachers = [segments.weights(mask) for mask in masks]
    both = FeaturePass(segments) if layout.features else None

    def outputs_of(batch: dict, number: int) -> tuple[Any, np.ndarray | None]:
        if both is None:
            return segments.outputs_from(batch["inputs"], teachers[number]), None
        outputs, found = both.run(batch["inputs"], teachers[number], masks[number])
        return outputs, found / np.maximum(np.linalg.norm(found, axis=-1, keepdims=True), 1e-12)

    # On the CPU, teachers side by side keep all cores busy.
    workers = side_by_side(compile=compile)
    own = _ahead(outputs_of, batches(manifest["batches_done"]), len(masks), workers)
    store, left = _Store(folder, layout, manifest) if cluster.is_chief() else None, True
    done = manifest["examples_done"]
    if done:
        progress.say(f"memory bank: goes on after {done:,} of {layout.examples:,} examples")
    with progress.bar("memory bank", layout.examples, initial=done) as bar:
        while left:
            found = next(own, None)
            told = cluster.collected([] if found is None else _rows(*found, layout))
            left = all(told)  # the last round is of fewer batches, or of none
            cluster.on_chief(lambda told=told: store.add(told))
            bar.to(manifest["examples_done"])
    manifest = cluster.on_chief(lambda: store.finished())
    folder.seal(MANIFEST, *layout.arrays)
    return manifest


def _ahead(
    function: Callable[[dict, int], Any], batches: Iterable[dict], count: int, workers: int
) -> Iterator[tuple[dict, list]]:
    """(batch, [function(batch, i) for i in 0 .. count - 1]) for all batches in order.

    The calls of a batch and of the next one run side by side, as many as `workers`.
    """
    pending: deque = deque()
    with pool(workers) as running:
        for batch in batches:
            pending.append((batch, [running.submit(function, batch, i) for i in range(count)]))
            if len(pending) > 1:
                first, calls = pending.popleft()
                yield first, [call.result() for call in calls]
        for first, calls in pending:
            yield first, [call.result() for call in calls]


def _rows(
    batch: dict, found: list[tuple[Any, np.ndarray | None]], layout: Layout
) -> list[np.ndarray]:
    """What is kept of a batch: the examples' numbers, then the rows of each of the bank's arrays.

    Args:
        found: every teacher's outputs, tree of float32 [b, ...], and features of length 1,
            float32 [b, features], or None.
    """
    index = batch["index"].numpy()
    shapes = layout.arrays.values()
    kept = [np.zeros((len(index), *shape[1:]), dtype) for dtype, shape in shapes]
    means = np.zeros((len(index), layout.features), np.float32)
    for number, (outputs, features) in enumerate(found):
        if features is not None:
            means += features / len(found)
        if layout.outputs:
            banks = kept[: len(layout.outputs)]
            _write(banks, layout, number, [np.asarray(x) for x in parts_of(outputs)])
    if layout.features:
        kept[-1][:] = means
    return [index, *kept]


class _Store:
    """The bank's files, written by one machine.

    Args:
        manifest: of the unfinished bank; it is kept up to date.
    """

    def __init__(self, folder: RunFolder, layout: Layout, manifest: dict):
        self._folder, self._layout, self._manifest = folder, layout, manifest
        self._arrays = [_opened(folder.file(name), layout, name) for name in layout.arrays]
        self._flushed = time.monotonic()

    def add(self, every: Iterable[Sequence[np.ndarray]]) -> None:
        """Puts the `_rows` of some batches into the arrays; empty ones are of no batch."""
        for index, *rows in filter(None, every):
            for array, values in zip(self._arrays, rows, strict=True):
                array[index] = values
            self._manifest["batches_done"] += 1
            self._manifest["examples_done"] += len(index)
        if time.monotonic() - self._flushed > BLOCK_SECONDS:
            self._keep()
            self._flushed = time.monotonic()

    def _keep(self) -> None:
        for array in self._arrays:
            array.flush()
        write_json(self._folder.file(MANIFEST), self._manifest)

    def finished(self) -> dict:
        """The manifest of the complete bank, on the disk like its arrays.

        Raises:
            RuntimeError: rows are missing.
        """
        done = self._manifest["examples_done"]
        if done != self._layout.examples:
            raise RuntimeError(f"{done} of {self._layout.examples} rows were written")
        self._manifest["complete"] = True
        self._keep()
        return self._manifest


def _opened(path: Path, layout: Layout, name: str) -> np.ndarray:
    """One of the bank's arrays, to be written.

    Raises:
        UserError: another one than it has to be.
    """
    try:
        array = np.lib.format.open_memmap(path, mode="r+")
        alike = (array.dtype, array.shape) == layout.arrays[name]
    except (OSError, ValueError, EOFError):
        alike = False
    if not alike:
        raise UserError(f"{path} is damaged: delete it, and the bank is built again")
    return array


def _write(banks: list, layout: Layout, number: int, outputs: list) -> None:
    """Puts a teacher's outputs, float32 [b, ...] each, into a batch's rows of the bank."""
    for bank, values in zip(banks, outputs, strict=True):
        dtype = bank.dtype if layout.kind == FULL else np.dtype(np.float16)
        if not (np.abs(values) <= np.finfo(dtype).max).all():
            raise UserError(
                f"an output of teacher {number} isn't finite or is beyond {dtype}, in which the "
                "memory bank keeps it: use an online bank"
            )
        if layout.kind == FULL:
            bank[..., number] = values.astype(dtype)
        else:
            bank[:, number] = compressed(values, bank.dtype)


def _reserve(path: Path) -> None:
    """Takes the room of a file that has holes.

    Whoever writes into a mapped hole of a disk that has become full is killed by the system.
    """
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def _open_manifest(
    folder: RunFolder, graph: ChannelGraph, history: History, layout: Layout, fingerprint: str
) -> dict:
    """The manifest of an unfinished bank, or of a new one with its empty arrays; on one machine.

    Raises:
        UserError: the disk is too small, or the manifest that is there is of another search.
    """
    files = [folder.file(name) for name in (MANIFEST, *layout.arrays)]
    manifest = _new_manifest(graph, history, layout, fingerprint)
    if all(file.exists() for file in files):
        found = read_json(files[0])
        if any(found.get(key) != value for key, value in manifest.items() if key not in _PROGRESS):
            raise UserError(
                f"{files[0]} is damaged: its teachers aren't those of this search; delete it, and "
                "the bank is built again"
            )
        return found
    # The file has holes at first: a full disk would only show as a crash half-way.
    free = shutil.disk_usage(folder.path).free
    if free < layout.bytes:
        raise UserError(
            f"the memory bank needs {layout.bytes / 1e9:.1f} GB, {folder.path} has "
            f"{free / 1e9:.1f} GB free: use a topk or an online bank, fewer teachers or another "
            "folder"
        )
    for name, (dtype, shape) in layout.arrays.items():
        np.lib.format.open_memmap(folder.file(name), mode="w+", dtype=dtype, shape=shape).flush()
        _reserve(folder.file(name))
    write_json(files[0], manifest)
    return manifest


def _new_manifest(
    graph: ChannelGraph, history: History, layout: Layout, fingerprint: str
) -> dict[str, Any]:
    """The manifest of a bank of which nothing is done, as JSON gives it back."""
    steps = choose_teachers([row["val_loss"] for row in history.rows], layout.teachers)
    teachers: list[dict[str, Any]] = [
        {key: history.rows[step][key] for key in ("step", "val_loss", "flops")} for step in steps
    ]
    if layout.kind == ONLINE:
        for teacher in teachers:
            removed = np.flatnonzero(history.mask(graph, teacher["step"])[:-1] == 0)
            teacher["removed_units"] = removed.tolist()
    return {
        "teachers": teachers,
        "kind": layout.kind,
        "shapes": {name: list(shape) for name, (_, shape) in layout.arrays.items()},
        "features": layout.features,
        "dataset_fingerprint": fingerprint,
        "batches_done": 0,
        "examples_done": 0,
        "complete": not layout.arrays,
    }
