"""What a run folder holds, read for a report: data that may be damaged, never anything to run."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...utils.errors import UserError
from ...utils.files import read_bytes
from ...utils.jsonl import read_json
from ...utils.runfiles import COMMANDS
from .markup import clean

Row = dict[str, Any]
# What may differ between runs that differ only in their random seed.
SEEDS = ("seed", "search_seed")
PLACES = ("train_path", "search_path", "overwrite", "resume", "do_log", "until", "gpu_id")


@dataclass(frozen=True)
class Run:
    """A run folder; what it lacks is None or empty.

    Attributes:
        name: by which the page calls it.
        place: the folder, as it was given.
        args, versions: of args.json and versions.json. commands: by which it was made.
        baseline, search, finetune, result: of the files of these names.
        history: the steps of the search. metrics: the epochs of trainings.
        pruned: name of the file with the pruned network.
    """

    name: str
    place: str
    args: Row
    versions: Row
    commands: list[str] = field(default_factory=list)
    baseline: Row | None = None
    search: Row | None = None
    finetune: Row | None = None
    result: Row | None = None
    history: list[Row] = field(default_factory=list)
    metrics: list[Row] = field(default_factory=list)
    pruned: str | None = None

    @property
    def finetuned(self) -> bool:
        """Whether a fine-tuning has ended."""
        return self.result is not None and "test" in self.result["after"]

    @property
    def finished(self) -> bool:
        """Whether what was begun has ended."""
        tuning = any(row["phase"] == "finetune" for row in self.metrics)
        return self.result is not None or (self.searched and not tuning)

    @property
    def searched(self) -> bool:
        """Whether a search has ended."""
        return self.search is not None and "test" in self.search

    @property
    def sides(self) -> tuple[Row, Row] | None:
        """Figures (before, after) of the last phase that has ended: "flops", "parameters", perhaps
        "test", "latency_ms", "score"."""
        if self.result is not None:
            return self.result["before"] or {}, self.result["after"]
        if self.search is None:
            return None
        keys = [key for key in ("flops", "parameters", "test") if key in self.search]
        before, after = (
            {key: self.search[key][side] for key in keys} for side in ("before", "after")
        )
        return before, after

    @property
    def network(self) -> list[Row]:
        """The network in outline, empty for folders of older versions."""
        for one in (self.result, self.search):
            if one is not None and one.get("network"):
                return one["network"]
        return []

    @property
    def settings(self) -> Row:
        """The settings that say how it was made, without seeds and places."""
        return {key: one for key, one in self.args.items() if key not in (*SEEDS, *PLACES)}


def read_run(folder: Path, name: str | None = None) -> Run:
    """What a folder holds; nothing in it is changed.

    Raises:
        UserError: no run folder, one without anything to show, or a damaged file.
    """
    if not (folder / "args.json").is_file():
        raise UserError(f"{folder} holds no run: give a run folder")
    pruned = [one for one in ("pruned.keras", "search_pruned.keras") if (folder / one).is_file()]
    run = Run(
        clean(name or folder.resolve().name or folder),
        clean(folder),
        _object(folder, "args.json"),
        _object(folder, "versions.json"),
        [str(one) for one in _object(folder, COMMANDS, {"commands": []})["commands"]],
        *(_object(folder, f"{one}.json", None) for one in _FILES),
        rows(folder / "history.jsonl"),
        rows(folder / "metrics.jsonl"),
        pruned[0] if pruned else None,
    )
    if not (run.history or run.metrics or run.sides):
        raise UserError(f"{folder} holds no search and no fine-tuning yet: nothing to report")
    return run


_FILES = ("baseline", "search", "finetune", "result")
_NEEDED: Any = object()


def _object(folder: Path, name: str, default: Any = _NEEDED) -> Any:
    """The object in a JSON file, or the default where there is no such file."""
    if default is not _NEEDED and not (folder / name).is_file():
        return default
    found = read_json(folder / name)
    if not isinstance(found, dict):
        raise UserError(f"{folder / name} is damaged: no object")
    return cleaned(found)


def cleaned(value: Any) -> Any:
    """A JSON value whose texts, keys among them, a page can hold."""
    if isinstance(value, dict):
        return {clean(key): cleaned(one) for key, one in value.items()}
    if isinstance(value, list):
        return [cleaned(one) for one in value]
    return clean(value) if isinstance(value, str) else value


def rows(path: Path) -> list[Row]:
    """The rows of a JSON-lines file up to a torn last one; unlike `utils.jsonl.read_rows` it leaves
    the file, which another process may be writing.

    Raises:
        UserError: a damaged line before the last.
    """
    if not path.is_file():
        return []
    found = []
    lines = read_bytes(path).splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            found.append(cleaned(row))
        elif number < len(lines):
            raise UserError(f"{path} is damaged in line {number}")
    return found


def named(folders: list[Path]) -> list[str]:
    """Names by which to tell folders apart: as much of the end of their paths as that takes."""
    parts = [one.resolve().parts for one in folders]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(one[-count:]) for one in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({number})" for number, name in enumerate(names, 1)]


def number(value: Any) -> float | None:
    """A finite number, or None."""
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if plain and math.isfinite(value) else None
