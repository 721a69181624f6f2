"""A grid of commands: what is finished is skipped, the others run one by one or side by side.

Every cell has a folder of its own, ROOT/<name>: `command.json` (its command), `log.txt` (what it
printed), `run/` (what it wrote) and, unless it was interrupted, `time.json` (the seconds it took).
Before a cell begins, it is said how long others took whose names differ in numbers alone. A cell is
finished when its result file is there, so a grid that was killed goes on where it was, and the
commands go on from their own run folders. Grids of several processes, on one machine or on several
with a shared disk, share out one folder's cells: who holds a cell's lock runs it. Nothing here
imports TensorFlow.
"""

import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...utils import progress
from ...utils.errors import UserError
from ...utils.files import atomic_write
from ...utils.jsonl import read_json, write_json
from ...utils.locks import Lock, Taken
from ...utils.provenance import cores

REPOSITORY = Path(__file__).resolve().parents[2]
ROOT = "{root}"  # stands for the grid's folder in a cell's arguments
COMMAND, LOG, RUN, TIME = "command.json", "log.txt", "run", "time.json"
POLL_SECONDS = 0.05
OTHERS_SECONDS = 1.0  # between two looks at cells that other grids run
# A cell is a command of its own, whatever started the grid (docs/machines.md).
OF_CLUSTERS = ("TF_CONFIG", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS")


@dataclass(frozen=True)
class Slot:
    """Where one cell at a time runs: further arguments of its command, and its CPU cores."""

    flags: tuple[str, ...] = ()
    cores: frozenset[int] = frozenset(cores())


def slots(gpu_ids: list[int] | None, jobs: int) -> list[Slot]:
    """Shares out the GPUs and the cores among `jobs` cells that run at a time.

    Args:
        gpu_ids: numbers of the GPUs, [] for the CPU, or None for the programs' default.

    Raises:
        UserError: fewer GPUs or cores than jobs, devices that aren't named, or a system that can't
            share out its cores.
    """
    if gpu_ids is None and jobs == 1:
        return [Slot()]
    if gpu_ids is None:
        raise UserError(f"--jobs {jobs} needs to know its devices: give --gpu_id, or --gpu_id cpu")
    if jobs > 1 and not hasattr(os, "sched_setaffinity"):
        raise UserError("--jobs: this system can't share out its CPU cores; leave it out")
    every = sorted(cores())
    if len(every) < jobs or (gpu_ids and len(gpu_ids) < jobs):
        what = f"{len(gpu_ids)} GPUs" if gpu_ids else f"{len(every)} CPU cores"
        raise UserError(f"--jobs {jobs} is more than the {what}")
    shares = [",".join(map(str, gpu_ids[job::jobs])) or "cpu" for job in range(jobs)]
    return [
        Slot(("--gpu_id", share), frozenset(every[job::jobs])) for job, share in enumerate(shares)
    ]


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
    """

    name: str
    program: tuple[str, ...]
    args: tuple[str, ...]
    result: tuple[str, str]
    needs: tuple[str, ...] = ()

    def folder(self, root: Path) -> Path:
        """The cell's folder."""
        return root / self.name

    def run(self, root: Path) -> Path:
        """The folder that its command writes to."""
        return root / self.name / RUN

    @property
    def kind(self) -> str:
        """Its name without numbers: cells of one kind take about as long."""
        return re.sub(r"\d+(\.\d+)?", "#", self.name)

    def command(self, root: Path, slot: Slot) -> list[str]:
        """The command for this grid's folder, to be run in any folder."""
        program = list(self.program)
        if program[0] != "-m":
            program[0] = str(REPOSITORY / program[0])
        args = [arg.replace(ROOT, str(root)) for arg in (*self.args, *slot.flags)]
        return [sys.executable, *program, *args]

    def shown(self, root: Path, slot: Slot) -> str:
        """The command as one types it in the repository's folder."""
        args = [arg.replace(ROOT, str(root)) for arg in (*self.args, *slot.flags)]
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
        if not path.exists():
            raise UserError(
                f"{self.folder(root)} holds a result that no grid has made ({COMMAND} is missing): "
                "delete the folder or give another --train_path"
            )
        recorded = read_json(path, "command")["command"]
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
        text = json.dumps({"command": [*self.program, *self.args]}) + "\n"
        atomic_write(folder / COMMAND, lambda path: path.write_text(text, encoding="utf-8"))


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


def show(cells: Sequence[Cell], root: Path, slot: Slot) -> None:
    """Prints every cell's command and whether it is finished; runs nothing."""
    for cell in cells:
        state = "to run" if cell.read(root) is None else "finished"
        print(f"{state}: {cell.name}: {cell.shown(root, slot)}")


def expected(cell: Cell, root: Path) -> str:
    """How long a cell will take, as others of its kind took, in words; "" where none is known."""
    known = []
    for path in root.glob(f"*/{TIME}"):
        if Cell(path.parent.name, (), (), ("", "")).kind == cell.kind:
            known.append(float(read_json(path, "seconds")["seconds"]))
    return f" (about {progress.duration(sum(known) / len(known))})" if known else ""


class Command:
    """A cell's command while it runs, on the cores of its slot, printing to the cell's log.

    It inherits the cell's lock. A command that a killed grid has left running keeps it, so that the
    next grid waits for that command instead of starting it a second time.
    """

    def __init__(self, cell: Cell, root: Path, slot: Slot, lock: Lock):
        self.cell, self.slot, self._root, self._lock = cell, slot, root, lock
        cell.claim(root)
        self._log = cell.folder(root) / LOG
        self._begin, self._fresh = time.perf_counter(), not self._log.exists()
        paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
        alone = {name: text for name, text in os.environ.items() if name not in OF_CLUSTERS}
        environment = alone | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
        with open(self._log, "ab") as output:
            self._process = subprocess.Popen(
                cell.command(root, slot),
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environment,
                pass_fds=[lock.descriptor],
            )
        if slot.cores != cores():
            os.sched_setaffinity(self._process.pid, slot.cores)

    def ended(self) -> bool:
        """Whether it has; then `failure` tells how."""
        pid, status, usage = os.wait4(self._process.pid, os.WNOHANG)
        if pid:
            self._process.returncode = os.waitstatus_to_exitcode(status)
            self._cpu = usage.ru_utime + usage.ru_stime
            self._lock.close()
        return bool(pid)

    def failure(self) -> str | None:
        """A line that says what went wrong, or None; prints the times of a good end."""
        code, name = self._process.returncode, self.cell.name
        if code == 0 and self.cell.read(self._root) is not None:
            seconds = time.perf_counter() - self._begin
            print(f"    {name}: done in {seconds:.0f} s ({self._cpu:.0f} s of CPU)", flush=True)
            if self._fresh:
                write_json(self.cell.folder(self._root) / TIME, {"seconds": seconds})
            return None
        said = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        what = f"exit code {code}" if code else f"it ended without {self.cell.result[0]}"
        return f"{name}: {what}; the last line of {self._log}: {(said or ['nothing'])[-1]}"

    def stop(self) -> None:
        """Ends it if it still runs, and waits for its end."""
        self._process.terminate()
        self._process.wait()
        self._lock.close()


def run(
    cells: Sequence[Cell],
    root: Path,
    after_each: Callable[[], None] = lambda: None,
    places: Sequence[Slot] = (Slot(),),
    seconds: float = math.inf,
) -> list[str]:
    """Runs what isn't finished, in order; a cell that fails doesn't stop those that don't need it.

    Args:
        cells: as `ordered` gives them.
        after_each: called after every command.
        places: where cells run; as many run side by side. A cell may overtake one that waits for
            what it needs.
        seconds: after so many no further cell is begun; which ones these are is said.

    Returns:
        One line per cell that failed, or couldn't run for one that failed.

    Raises:
        UserError: a cell's folder holds another command's result, or can't be written.
    """
    failures: dict[str, str] = {}
    with _stopped_by_signal():
        waiting = [cell for cell in cells if cell.read(root) is None]
        print(f"{len(cells)} cells, {len(cells) - len(waiting)} of them finished", flush=True)
        free, running, said, begin = list(places), [], False, time.perf_counter()
        try:
            while waiting or running:
                if waiting and time.perf_counter() - begin > seconds:
                    names = ", ".join(cell.name for cell in waiting)
                    print(f"time is over, not begun: {names}", flush=True)
                    waiting = []
                open_names = {cell.name for cell in (*waiting, *(one.cell for one in running))}
                ready = [cell for cell in waiting if open_names.isdisjoint(cell.needs)]
                for cell in ready:
                    broken = [name for name in cell.needs if name in failures]
                    if broken:
                        waiting.remove(cell)
                        _failed(failures, cell, f"{cell.name} needs {broken[0]}, which failed")
                        after_each()
                    elif free and (lock := _claimed(cell, root)):
                        waiting.remove(cell)
                        if cell.read(root) is not None:  # by another grid, meanwhile
                            lock.close()
                            continue
                        takes = expected(cell, root)
                        print(f"{cell.name}{takes}: {cell.shown(root, free[0])}", flush=True)
                        running.append(Command(cell, root, free.pop(0), lock))
                ended = [one for one in running if one.ended()]
                for one in ended:
                    running.remove(one)
                    free.append(one.slot)
                    if failure := one.failure():
                        _failed(failures, one.cell, failure)
                    after_each()
                if ended:  # what waited for it may be ready now
                    continue
                if waiting and not running and not said:
                    print(f"waiting for other grids in {root}, or what they left running")
                    said = True
                time.sleep(POLL_SECONDS if running else OTHERS_SECONDS if waiting else 0)
        finally:
            for one in running:
                one.stop()
    return list(failures.values())


def _claimed(cell: Cell, root: Path) -> Lock | None:
    """The cell's lock; None where another grid holds it."""
    try:
        return Lock(cell.folder(root))
    except Taken:
        return None


def _failed(failures: dict[str, str], cell: Cell, failure: str) -> None:
    failures[cell.name] = failure
    print(f"    FAILED: {failure}", flush=True)


@contextmanager
def _stopped_by_signal() -> Iterator[None]:
    """SIGTERM ends a grid as Ctrl-C does: it takes its commands along."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    former = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)
