"""A grid of commands: what is finished is skipped, the others run one after the other.

Every cell has a folder of its own, ROOT/<name>: `command.json` (its command), `log.txt` (what it
printed) and `run/` (what it wrote). A cell is finished when its result file is there, so a grid
that was killed goes on where it was, and the commands go on from their own run folders. Nothing
here imports TensorFlow.
"""

import fcntl
import json
import os
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.cli import UserError
from utils.files import atomic_write
from utils.jsonl import read_json

REPOSITORY = Path(__file__).resolve().parent.parent
ROOT = "{root}"  # stands for the grid's folder in a cell's arguments
COMMAND, LOG, RUN, LOCK = "command.json", "log.txt", "run", ".lock"


@dataclass(frozen=True)
class Cell:
    """One command of a grid.

    Args:
        name: of its folder.
        program: "search.py", relative to the repository, or ("-m", "package.module").
        args: its arguments, ROOT in them for the grid's folder; they define the result.
        result: (file, key): the JSON file in run/ that has something under this key once the cell
            is finished.
        needs: names of the cells that must be finished first.
        device: further arguments, which may differ between the runs of a cell.
    """

    name: str
    program: tuple[str, ...]
    args: tuple[str, ...]
    result: tuple[str, str]
    needs: tuple[str, ...] = ()
    device: tuple[str, ...] = ()

    def folder(self, root: Path) -> Path:
        """The cell's folder."""
        return root / self.name

    def run(self, root: Path) -> Path:
        """The folder that its command writes to."""
        return root / self.name / RUN

    def command(self, root: Path) -> list[str]:
        """The command for this grid's folder, to be run in any folder."""
        program = list(self.program)
        if program[0] != "-m":
            program[0] = str(REPOSITORY / program[0])
        args = [arg.replace(ROOT, str(root)) for arg in (*self.args, *self.device)]
        return [sys.executable, *program, *args]

    def shown(self, root: Path) -> str:
        """The command as one types it in the repository's folder."""
        args = [arg.replace(ROOT, str(root)) for arg in (*self.args, *self.device)]
        return shlex.join(["python", *self.program, *args])

    def read(self, root: Path) -> dict[str, Any] | None:
        """Its result, or None where it isn't finished.

        Raises:
            UserError: the file is damaged, or the folder holds the result of another command.
        """
        path = self.run(root) / self.result[0]
        if not path.exists():
            return None
        result = read_json(path)
        if not result.get(self.result[1]):
            return None
        self._check(root)
        return result

    def _check(self, root: Path) -> None:
        """Raises UserError unless the folder is that of this command."""
        path = self.folder(root) / COMMAND
        recorded = read_json(path)
        wanted = [*self.program, *self.args]
        if recorded != wanted:
            old = " ".join(arg for arg in recorded if arg not in wanted) or "fewer flags"
            new = " ".join(arg for arg in wanted if arg not in recorded) or "fewer flags"
            raise UserError(
                f"{self.folder(root)} holds the result of another command ({old}; now {new}): "
                "give another --train_path"
            )

    def claim(self, root: Path) -> None:
        """Makes the folder and records the command; raises UserError if it is another's."""
        folder = self.folder(root)
        self.run(root).mkdir(parents=True, exist_ok=True)
        if (folder / COMMAND).exists():
            self._check(root)
            return
        text = json.dumps([*self.program, *self.args]) + "\n"
        atomic_write(folder / COMMAND, lambda path: path.write_text(text, encoding="utf-8"))


class Lock:
    """The grid's folder for one process at a time; made if it is missing.

    Commands inherit the lock. One that a killed grid has left running keeps it, so that the next
    grid waits for that command instead of starting it a second time.
    """

    def __init__(self, root: Path):
        try:
            root.mkdir(parents=True, exist_ok=True)
            self.descriptor = os.open(root / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise UserError(f"cannot write in {root}: {error.strerror or error}") from error
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another grid in {root}, or for what it left running", flush=True)
            fcntl.flock(self.descriptor, fcntl.LOCK_EX)

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)


def ordered(cells: Iterable[Cell]) -> list[Cell]:
    """The cells without repetitions, each after those that it needs; first come, first."""
    unique = {cell.name: cell for cell in cells}
    found: dict[str, Cell] = {}

    def add(cell: Cell) -> None:
        for name in cell.needs:
            if name not in found:
                add(unique[name])
        found.setdefault(cell.name, cell)

    for cell in unique.values():
        add(cell)
    return list(found.values())


def show(cells: Sequence[Cell], root: Path) -> None:
    """Prints every cell's command and whether it is finished; runs nothing."""
    for cell in cells:
        state = "to run" if cell.read(root) is None else "finished"
        print(f"{state}: {cell.name}: {cell.shown(root)}")


def run(
    cells: Sequence[Cell], root: Path, after_each: Callable[[], None] = lambda: None
) -> list[str]:
    """Runs what isn't finished, in order; a cell that fails doesn't stop those that don't need it.

    Args:
        cells: as `ordered` gives them.
        after_each: called after every command.

    Returns:
        One line per cell that failed, or couldn't run for one that failed.

    Raises:
        UserError: a cell's folder holds another command's result, or can't be written.
    """
    failures: dict[str, str] = {}
    with Lock(root) as lock:
        todo = [cell for cell in cells if cell.read(root) is None]
        print(f"{len(cells)} cells, {len(cells) - len(todo)} of them finished", flush=True)
        for number, cell in enumerate(todo, 1):
            broken = [name for name in cell.needs if name in failures]
            print(f"[{number}/{len(todo)}] {cell.name}: {cell.shown(root)}", flush=True)
            if broken:
                failures[cell.name] = f"{cell.name} needs {broken[0]}, which failed"
            else:
                failure = _run_one(cell, root, lock)
                if failure:
                    failures[cell.name] = failure
            if cell.name in failures:
                print(f"    FAILED: {failures[cell.name]}", flush=True)
            after_each()
    return list(failures.values())


def _run_one(cell: Cell, root: Path, lock: Lock) -> str | None:
    """Runs a cell's command; a line that says what went wrong, or None."""
    cell.claim(root)
    log = cell.folder(root) / LOG
    begin, cpu_begin = time.perf_counter(), _cpu_seconds()
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    with open(log, "ab") as output:
        process = subprocess.Popen(
            cell.command(root),
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment,
            pass_fds=[lock.descriptor],
        )
        code = _wait(process)
    if code == 0 and cell.read(root) is not None:
        seconds, cpu = time.perf_counter() - begin, _cpu_seconds() - cpu_begin
        print(f"    done in {seconds:.0f} s ({cpu:.0f} s of CPU)", flush=True)
        return None
    said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["nothing"]
    what = f"exit code {code}" if code else f"it ended without {cell.result[0]}"
    return f"{cell.name}: {what}; the last line of {log}: {said[-1]}"


def _cpu_seconds() -> float:
    """CPU time of all commands that have ended, in seconds."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _wait(process: subprocess.Popen) -> int:
    """The exit code; a grid that is told to stop (SIGTERM, Ctrl-C) takes the command along."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    former = signal.signal(signal.SIGTERM, stop)
    try:
        return process.wait()
    finally:
        signal.signal(signal.SIGTERM, former)
        if process.poll() is None:
            process.terminate()
            process.wait()
