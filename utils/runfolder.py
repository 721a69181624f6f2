"""The folder of one run: arguments, versions, logs and results, safe against being killed."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from . import cluster, jsonl, provenance
from .errors import UserError
from .events import Events
from .files import TEMPORARY
from .jsonl import Row
from .locks import LOCK, Lock
from .runfiles import (
    CARD,
    COMMANDS,
    FORMAT,
    KNOWN,
    MANIFEST,
    NEEDED,
    checksum,
    is_known,
    read_file,
    read_manifest,
)
from .shared_folder import await_file, check_shared, compare_commands

_MARKS = ("args.json", "versions.json", MANIFEST)  # by which a folder is known as ours


class RunFolder:
    """A folder that belongs to one command and is locked while that command runs.

    Every file of a run is named by file() and matches runfiles.KNOWN. files.json names those that
    the run has written, before they are there: only these may `overwrite` delete, and never through
    a link.
    Open it by RunFolder.open.

    Where several machines run the command (`utils.cluster`), they share the folder, and all of them
    come by every call: the chief alone reads and writes what is small, and tells the others;
    `write` makes large files that every machine reads for itself.
    """

    IGNORED_ARGS = (
        *("train_path", "gpu_id", "overwrite", "resume", "do_log", "until"),
        *("memory", "data_memory", "data_workers", "deployed_latency", "dry_run"),
    )

    def __init__(self, path: Path, lock: Lock | None, do_log: bool):
        self.path = path
        self.do_log = do_log
        self._lock = lock
        self._events = Events(path / "tensorboard", self._note_events)
        self._repaired: set[str] = set()
        self._files: dict[str, str | None] = {}  # {name: checksum once it is sealed}

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
        folder = cls(Path(path), None, bool(args.get("do_log", False)))
        cluster.together(lambda: compare_commands(args, set(ignore)))
        cluster.on_chief(folder._take)
        try:
            check_shared(folder.path)
            cluster.on_chief(lambda: folder._claim(args, overwrite, set(ignore)))
        except BaseException:
            if folder._lock is not None:
                folder._lock.close(forget=True)
            raise
        return folder

    @classmethod
    def check(
        cls,
        path: str | os.PathLike,
        args: dict[str, Any] | None = None,
        *,
        overwrite: bool = False,
    ) -> None:
        """Refuses what `open` would refuse of what is there; writes nothing and takes no lock.

        Args:
            args: as of `open`; None: they aren't known yet.

        Raises:
            UserError: as `open`, but for another process in the folder.
        """
        folder = cls(Path(path), None, False)
        cluster.on_chief(lambda: folder._examine(args or {}, overwrite, set(cls.IGNORED_ARGS)))

    @classmethod
    def again(cls, path: Path) -> RunFolder:
        """Takes up a folder that holds a run, to add to what was written of it.

        Raises:
            UserError: no run in it, or as `open`.
        """
        if not (path / "args.json").is_file():
            raise UserError(f"{path} holds no run: give a run folder")
        lock = Lock(path)
        folder = cls(path, lock, False)
        try:
            if not folder._is_ours():
                raise UserError(f"{path} holds no run: give a run folder")
            folder._files = read_manifest(path)
        except BaseException:
            lock.close(forget=True)
            raise
        return folder

    def _take(self) -> None:
        self._lock = Lock(self.path)

    def _examine(self, args: dict[str, Any], overwrite: bool, ignore: set[str]) -> bool:
        """Whether the folder holds a run of ours. Raises UserError where `args` can't use it."""
        try:
            if not self.path.exists():
                return False
            if not self.path.is_dir():
                raise UserError(f"{self.path} is a file: give a folder")
            if not self._is_ours():
                self._refuse_foreign(overwrite)
                return False
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise UserError(f"cannot read {self.path}: {why}") from error
        self._files = read_manifest(self.path)
        if not overwrite:
            arguments = json.loads(jsonl.dumps(args))
            self._compare(self._old_arguments(arguments), arguments, ignore)
        return True

    def _claim(self, args: dict[str, Any], overwrite: bool, ignore: set[str]) -> None:
        ours = self._examine(args, overwrite, ignore)
        self._delete_temporary()  # of a process that was killed
        arguments = json.loads(jsonl.dumps(args))
        if ours and not overwrite:
            old = self._old_arguments(arguments)
            if not arguments.keys() <= old.keys():
                self.write_json("args.json", arguments | old)
            return
        if ours:
            self._delete_written()
        self._files = {}
        self._save_manifest()
        self.write_json("versions.json", provenance.versions() | {"format": FORMAT})
        self.write_json("args.json", arguments)  # last: it marks the folder as ours

    def _delete_temporary(self) -> None:
        """What a killed process has left: we hold the lock, and the names are ours alone."""
        for entry in self.path.iterdir():
            if TEMPORARY.fullmatch(entry.name) and not entry.is_symlink() and entry.is_file():
                entry.unlink()

    def _is_ours(self) -> bool:
        try:
            program = jsonl.read_json(self.path / "versions.json")["program"]
        except (UserError, LookupError, TypeError):
            return False
        return program == provenance.PROGRAM and (self.path / "args.json").exists()

    def _refuse_foreign(self, overwrite: bool) -> None:
        marks = (LOCK, *_MARKS[1:])
        entries = [
            e
            for e in self.path.iterdir()
            if e.name not in marks and not (TEMPORARY.fullmatch(e.name) and e.is_file())
        ]
        if entries and not overwrite:
            raise UserError(
                f"{self.path} is not empty and holds no run of ours: give another folder, "
                "or set overwrite, which leaves the other files alone"
            )
        known = [path for path in self._known() if path in entries and path.name != CARD]
        in_the_way = [str(path.relative_to(self.path)) for path in known]
        if in_the_way:
            raise UserError(
                f"{self.path} holds no run, but files with the names of ours "
                f"({', '.join(in_the_way[:3])}): move them or give another folder"
            )

    def _old_arguments(self, new: Row) -> Row:
        old = self.read_json("args.json")
        if new and not old:
            raise UserError(f"{self.path / 'args.json'} is damaged: it holds no arguments")
        return old

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
        return sorted({p for pattern in KNOWN for p in self.path.glob(pattern)})

    def _delete_written(self) -> None:
        for name in sorted(self._files):
            path = self.path / name
            if name in _MARKS or self._behind_link(name) or not path.is_file():
                continue
            if name != CARD or self.may_write(CARD):
                path.unlink()
        phases = {(self.path / name).parent for name in self._files if "/" in name}
        for folder in sorted(phases | {phase.parent for phase in phases}, reverse=True):
            if not self._behind_link(folder.relative_to(self.path).as_posix()):
                with contextlib.suppress(OSError):  # something of the user's is in it
                    folder.rmdir()
        (self.path / "args.json").unlink()  # last: until here a killed overwriting can be repeated

    def _behind_link(self, name: str) -> bool:
        """Whether a file, or a folder that it is in, is a link."""
        parts = name.split("/")
        steps = (self.path.joinpath(*parts[: count + 1]) for count in range(len(parts)))
        return any(step.is_symlink() for step in steps)

    def _save_manifest(self) -> None:
        jsonl.write_json(self.path / MANIFEST, {"format": FORMAT, "files": self._files})

    def _note(self, name: str) -> None:
        """Remembers that a file is ours, before it is there."""
        if name in self._files or self._lock is None:
            return
        path = self.path / name
        if name not in _MARKS and (path.is_symlink() or path.exists()):
            raise UserError(f"{path} was not written by this run: move it, or give another folder")
        self._files[name] = None
        self._save_manifest()

    # ------------------------------------------------------------ files

    @property
    def finished(self) -> bool:
        """Whether the run has written result.json."""
        return self.has("result.json")

    def has(self, name: str) -> bool:
        """Whether one of the run's files is there."""
        return cluster.on_chief(self.path.joinpath(self._checked(name)).exists)

    def file(self, name: str) -> Path:
        """The path of one of the run's files, to be written or read.

        Raises:
            ValueError: a name not in runfiles.KNOWN.
            UserError: a file of that name that the run has not written.
        """
        self._note(self._checked(name))
        return self.path / name

    def may_write(self, name: str) -> bool:
        """Whether a file isn't there, or is as the run has sealed it: ours, and not changed."""
        path = self.path / self._checked(name)
        if not path.exists() and not path.is_symlink():
            return True
        known = self._files.get(name)
        return known is not None and path.is_file() and checksum(path) == known

    def drop(self, name: str) -> None:
        """Deletes a file that the run has written, if it is there and no link."""

        def unlink() -> None:
            path = self.path / self._checked(name)
            if name in self._files and not path.is_symlink():
                path.unlink(missing_ok=True)

        cluster.on_chief(unlink)

    def note_command(self, command: str) -> None:
        """Adds the command by which the run is made to commands.json, unless it was the last; of
        several machines that of the chief."""

        def note() -> None:
            commands = self.read_json(COMMANDS).get("commands", []) if self.has(COMMANDS) else []
            if commands[-1:] != [command]:
                self.write_json(COMMANDS, {"commands": [*commands, command]})

        cluster.on_chief(note)

    def write(self, name: str, write: Callable[[Path], Any]) -> Path:
        """Calls write(path) once, on the chief; then every machine sees the file. Returns its path.

        Raises:
            UserError: as `write` and `file`, on every machine, or a file that doesn't arrive there.
        """
        path = self.path / self._checked(name)

        def make() -> str | None:
            self._note(name)
            write(path)
            # A name without a file: there was nothing to write.
            return checksum(path) if cluster.size() > 1 and path.exists() else None

        wanted = cluster.on_chief(make)
        if cluster.size() > 1 and wanted:
            cluster.together(lambda: await_file(path, wanted))
        return path

    def _checked(self, name: str) -> str:
        if not is_known(name):
            raise ValueError(f"{name!r} is not in runfiles.KNOWN: overwriting would miss it")
        return name

    def seal(self, *names: str) -> None:
        """Keeps the checksums of finished files that a later phase reads."""

        def keep() -> None:
            for name in names:
                self._files[self._checked(name)] = checksum(self.path / name)
            self._save_manifest()

        cluster.on_chief(keep)

    def seal_open(self, *names: str) -> None:
        """Seals those files that aren't, since a process was killed before it could."""

        def keep() -> None:
            if still_open := [name for name in names if self._files.get(name) is None]:
                self.seal(*still_open)

        cluster.on_chief(keep)

    def write_json(self, name: str, obj: Any) -> None:
        """Writes a JSON file atomically, keys sorted; NaN and infinities become null.

        A file that was sealed isn't any more: a process may be killed before it is sealed again.
        """

        def write() -> None:
            path = self.file(name)
            if self._files.get(name) is not None:
                self._files[name] = None
                self._save_manifest()
            jsonl.write_json(path, obj)

        cluster.on_chief(write)

    def read_json(self, name: str) -> dict[str, Any]:
        """The object of a JSON file; raises UserError when it is missing or damaged."""
        return cluster.on_chief(lambda: read_file(self.path, self._checked(name)))

    # ------------------------------------------------------------ rows (JSON lines)

    def append(self, name: str, row: Row) -> None:
        """Adds one JSON line and waits until it is on the disk; NaN and infinities become null."""

        def add() -> None:
            path = self.file(name)
            if name not in self._repaired:
                jsonl.read_rows(path)  # a torn last line would swallow this row
                self._repaired.add(name)
            jsonl.append_row(path, row)

        cluster.on_chief(add)

    def rows(self, name: str) -> list[Row]:
        """The rows of a JSON-lines file, none when it is missing.

        A torn last line, left by a process killed while writing, is cut off the file as well.
        Raises UserError with the line number for a damaged earlier line.
        """
        needed = NEEDED.get(name, ())
        return cluster.on_chief(lambda: jsonl.read_rows(self.file(name), needed))

    def truncate(self, name: str, keep: int | Callable[[Row], bool]) -> None:
        """Keeps the first `keep` rows, or those for which keep(row) holds, atomically."""
        rows = self.rows(name)
        kept = [row for row in rows if keep(row)] if callable(keep) else rows[:keep]
        if len(kept) < len(rows):
            cluster.on_chief(lambda: jsonl.write_rows(self.file(name), kept))

    # ------------------------------------------------------------ TensorBoard, end

    def scalars(self, phase: str, step: int, values: dict[str, float]) -> None:
        """Writes TensorBoard scalars under tensorboard/<phase>; does nothing unless do_log.

        Raises:
            UserError: they can't be written.
        """
        if self.do_log and cluster.is_chief():
            self._events.scalars(phase, step, values)

    def _note_events(self, paths: set[Path]) -> None:
        self._files |= {path.relative_to(self.path).as_posix(): None for path in paths}
        self._save_manifest()

    def close(self) -> None:
        """Closes the event files and gives the folder free; harmless when repeated."""
        self._events.close()
        if self._lock is not None:
            self._lock.close()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
