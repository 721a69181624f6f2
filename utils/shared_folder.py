"""A run folder that several machines share (`utils.cluster`): what has to be the same for all."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import cluster, jsonl, provenance
from .errors import UserError
from .files import new_name
from .runfiles import checksum

_SEEN_SECONDS = 60.0  # until a file that one machine has written must be there for the others
_SAME = ("python", "tensorflow", "keras", "numpy", "git")  # on every machine of a cluster


def check_shared(path: Path) -> None:
    """Raises UserError where the machines don't see the same folder."""
    if cluster.size() == 1:
        return
    name = cluster.on_chief(lambda: new_name(path, "tmp").name)
    mark = path / name
    cluster.on_chief(mark.touch)

    def check() -> None:
        if not _comes(mark.exists):
            raise UserError(
                f"{path} is not the folder that the first machine writes to: several "
                "machines need one that all of them see (NFS or the like)"
            )

    try:
        cluster.together(check)
    finally:
        if cluster.is_chief():
            mark.unlink()


def compare_commands(args: dict[str, Any], ignore: set[str]) -> None:
    """Raises UserError where this machine's command, data or versions aren't the chief's."""
    if cluster.size() == 1:
        return
    kept = {name: one for name, one in args.items() if name not in ignore}
    programs = {name: one for name, one in provenance.versions().items() if name in _SAME}
    own = json.loads(jsonl.dumps(kept | programs))
    first = cluster.on_chief(lambda: own)
    names = sorted(own.keys() | first.keys())
    differing = [name for name in names if own.get(name) != first.get(name)]
    if differing:
        name = differing[0]
        raise UserError(
            f"this machine has other settings or data than the first one ({name}: "
            f"{own.get(name)}, there {first.get(name)}): start the same command on each"
        )


def _comes(condition: Callable[[], bool]) -> bool:
    """Whether it becomes true within a minute: what a network disk shows may be that old."""
    until = time.monotonic() + _SEEN_SECONDS
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def await_file(path: Path, wanted: str) -> None:
    """Waits for the chief's file; raises UserError if it isn't there, or is another."""
    if not _comes(lambda: path.exists() and checksum(path) == wanted):
        raise UserError(f"{path} is not what the first machine has written: is the folder shared?")
