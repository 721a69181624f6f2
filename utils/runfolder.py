"""The folder of one run: arguments, versions, logs and results, safe against being killed."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from . import jsonl, provenance
from .errors import UserError
from .jsonl import Row
from .locks import LOCK, Lock

_TEMPORARY = re.compile(r"\..+\.\d+\.tmp(\..+)?")  # the names that files.atomic_write gives
_PHASES = ("baseline", "supernet", "search", "bank", "finetune")
_SUFFIXES = (".json", ".npy", ".keras", "_*.npy", "_*.npz", "_*.f32", "_*.keras")

BASELINE = "baseline.keras"  # the network as given or trained, before everything
START = "search_start.keras"  # theta_0, with which the search begins
SUPERNET_ORDER = "supernet_order.npz"  # the channels' order, with which a supernet begins
EXPORTED = "pruned.keras"  # the result
PRUNED = "search_pruned.keras"  # theta*, before its fine-tuning


def front_file(rate: float) -> str:
    """Name of the network that a search keeps on its way at a rate that was asked for."""
    return f"search_pruned_{rate:g}.keras"


class RunFolder:
    """A folder that belongs to one command and is locked while that command runs.

    Every file of a run is named by file() and matches KNOWN, which is therefore all that
    `overwrite` may delete. Open it by RunFolder.open.
    """

    KNOWN = (
        "args.json",
        "versions.json",
        "result.json",
        *(phase + suffix for phase in _PHASES for suffix in _SUFFIXES),
        "history.jsonl",
        "metrics.jsonl",
        "trained_param.pkl",
        "pruned.keras",
        "widths.png",
        "search_curve.png",
        "search_front.png",
        "training_curves.png",
        "potential.jsonl",
        "potential.json",
        "potential.png",
        "tensorboard/*/events.out.tfevents.*",
    )
    IGNORED_ARGS = (
        *("train_path", "gpu_id", "overwrite", "resume", "do_log", "until"),
        *("data_memory", "data_workers"),
    )

    def __init__(self, path: Path, lock: Lock | None, do_log: bool):
        self.path = path
        self.do_log = do_log
        self._lock = lock
        self._writers: dict[str, Any] = {}
        self._repaired: set[str] = set()

    @classmethod
    def open(
        cls,
        path: str | os.PathLike,
        args: dict[str, Any],
        *,
        overwrite: bool = False,
        ignore: Iterable[str] = IGNORED_ARGS,
    ) -> RunFolder:
        """Creates the folder, or reopens it to go on with the same arguments, and locks it.

        A new folder gets args.json (all of `args`) and versions.json. `args["do_log"]` switches
        the TensorBoard events on. Arguments in `ignore` may differ on reopening.
        With `overwrite` the files of the former run are deleted first, and no others.
        An argument that the folder's args.json lacks is added to it: the phases of a run may be
        commands of their own. Raises UserError when the path is a file or not writable, another
        process uses the folder, it holds other files than ours, or an argument differs.
        """
        path = Path(path)
        lock = Lock(path)
        folder = cls(path, lock, bool(args.get("do_log", False)))
        try:
            folder._claim(args, overwrite, set(ignore))
        except BaseException:
            lock.close(forget=True)
            raise
        return folder

    def _claim(self, args: dict[str, Any], overwrite: bool, ignore: set[str]) -> None:
        for entry in self.path.iterdir():
            if _TEMPORARY.fullmatch(entry.name) and entry.is_file():
                entry.unlink()  # left behind by a killed run: we hold the lock
        arguments = json.loads(jsonl.dumps(args))
        if not self._is_ours():
            self._refuse_foreign(overwrite)
        elif overwrite:
            self._delete_known()
        else:
            old = self.read_json("args.json")
            self._compare(old, arguments, ignore)
            if not arguments.keys() <= old.keys():
                self.write_json("args.json", arguments | old)
            return
        self.write_json("versions.json", provenance.versions())
        self.write_json("args.json", arguments)  # last: it marks the folder as ours

    def _is_ours(self) -> bool:
        try:
            program = self.read_json("versions.json")["program"]
        except (UserError, LookupError, TypeError):
            return False
        return program == provenance.PROGRAM and self.file("args.json").exists()

    def _refuse_foreign(self, overwrite: bool) -> None:
        entries = [e for e in self.path.iterdir() if e.name not in (LOCK, "versions.json")]
        if entries and not overwrite:
            raise UserError(
                f"{self.path} is not empty and holds no run of ours: give another folder, "
                "or set overwrite, which leaves the other files alone"
            )
        in_the_way = [str(p.relative_to(self.path)) for p in self._known() if p in entries]
        if in_the_way:
            raise UserError(
                f"{self.path} holds no run, but files with the names of ours "
                f"({', '.join(in_the_way[:3])}): move them or give another folder"
            )

    def _compare(self, old: Row, new: Row, ignore: set[str]) -> None:
        differing = [
            f"{name}: {old[name]} -> {new[name]}"
            for name in sorted(old.keys() & new.keys())
            if name not in ignore and old[name] != new[name]
        ]
        if differing:
            raise UserError(
                f"{self.path} holds a run with other arguments ({'; '.join(differing)}): give "
                "another folder, or set overwrite, which deletes that run"
            )

    def _known(self) -> list[Path]:
        return sorted({p for pattern in self.KNOWN for p in self.path.glob(pattern)})

    def _delete_known(self) -> None:
        marks = [self.file("args.json"), self.file("versions.json")]
        for path in self._known():
            if path.is_file() and path not in marks:
                path.unlink()
        for phase in self.path.glob("tensorboard/*"):
            if phase.is_dir() and not any(phase.iterdir()):
                phase.rmdir()
        marks[0].unlink()  # last: until here a killed overwriting can be repeated

    # ------------------------------------------------------------ files

    @property
    def finished(self) -> bool:
        """Whether the run has written result.json."""
        return self.file("result.json").exists()

    def file(self, name: str) -> Path:
        """The path of one of the run's files; raises ValueError for a name not in KNOWN."""
        if not any(fnmatch(name, pattern) for pattern in self.KNOWN):
            raise ValueError(f"{name!r} is not in RunFolder.KNOWN: overwriting would miss it")
        return self.path / name

    def write_json(self, name: str, obj: Any) -> None:
        """Writes a JSON file atomically, keys sorted; NaN and infinities become null."""
        jsonl.write_json(self.file(name), obj)

    def read_json(self, name: str) -> Any:
        """The content of a JSON file; raises UserError when it is missing or damaged."""
        return jsonl.read_json(self.file(name))

    # ------------------------------------------------------------ rows (JSON lines)

    def append(self, name: str, row: Row) -> None:
        """Adds one JSON line and waits until it is on the disk; NaN and infinities become null."""
        path = self.file(name)
        if name not in self._repaired:
            jsonl.read_rows(path)  # a torn last line would swallow this row
            self._repaired.add(name)
        jsonl.append_row(path, row)

    def rows(self, name: str) -> list[Row]:
        """The rows of a JSON-lines file, none when it is missing.

        A torn last line, left by a process killed while writing, is cut off the file as well.
        Raises UserError with the line number for a damaged earlier line.
        """
        return jsonl.read_rows(self.file(name))

    def truncate(self, name: str, keep: int | Callable[[Row], bool]) -> None:
        """Keeps the first `keep` rows, or those for which keep(row) holds, atomically."""
        rows = self.rows(name)
        kept = [row for row in rows if keep(row)] if callable(keep) else rows[:keep]
        if len(kept) < len(rows):
            jsonl.write_rows(self.file(name), kept)

    # ------------------------------------------------------------ TensorBoard, end

    def scalars(self, phase: str, step: int, values: dict[str, float]) -> None:
        """Writes TensorBoard scalars under tensorboard/<phase>; does nothing unless do_log."""
        if not self.do_log:
            return
        import tensorflow as tf

        if phase not in self._writers:
            folder = self.path / "tensorboard" / phase
            self._writers[phase] = tf.summary.create_file_writer(str(folder))
        # tf.summary.scalar needs the tensorboard package, tf.summary.write does not
        metadata = tf.compat.v1.SummaryMetadata(data_class="DATA_CLASS_SCALAR")
        metadata.plugin_data.plugin_name = "scalars"
        with self._writers[phase].as_default():
            for name, value in values.items():
                tf.summary.write(name, tf.constant(float(value)), step=step, metadata=metadata)
        self._writers[phase].flush()

    def close(self) -> None:
        """Closes the event files and gives the folder free; harmless when repeated."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()
        if self._lock is not None:
            self._lock.close()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
