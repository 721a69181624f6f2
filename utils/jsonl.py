"""JSON with only finite numbers, and JSON-lines files that survive being killed while writing."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .errors import UserError
from .files import atomic_write, read_bytes

Row = dict[str, Any]


def dumps(obj: Any, indent: int | None = None) -> str:
    """JSON text of plain values, paths, numpy arrays and scalars, and eager tensors.

    NaN and infinities, which JSON lacks, become null. Raises TypeError for other types.
    """
    return json.dumps(_plain(obj), indent=indent, sort_keys=indent is not None, allow_nan=False)


def read_json(path: Path, *needed: str) -> dict[str, Any]:
    """The object of a JSON file.

    Args:
        needed: keys that it has to have.

    Raises:
        UserError: missing or damaged: no JSON, another value than an object, or one without a key.
    """
    try:
        found = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}") from None
    if not isinstance(found, dict):
        kinds = {type(None): "null", list: "a list", str: "a text", bool: "true or false"}
        kind = kinds.get(type(found), "a number")
        raise UserError(f"{path} is damaged: it holds {kind} instead of an object")
    check_keys(found, needed, str(path))
    return found


def check_keys(found: dict[str, Any], needed: Iterable[str], place: str) -> None:
    """Raises UserError, naming the place, for an object without one of the needed keys."""
    for key in needed:
        if key not in found:
            raise UserError(f"{place} is damaged: it lacks {key!r}")


@contextmanager
def believed(path: Path) -> Iterator[None]:
    """Says that a file is damaged where what it holds can't be used as what it should be."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        kind = "lacks" if isinstance(error, KeyError) else "holds something else than figures:"
        raise UserError(f"{path} is damaged: it {kind} {error}") from error


def write_json(path: str | os.PathLike, obj: Any) -> None:
    """Writes a JSON file atomically, keys sorted; NaN and infinities become null."""
    text = dumps(obj, indent=2) + "\n"
    atomic_write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def append_row(path: Path, row: Row) -> None:
    """Adds one line and waits until it is on the disk; raises UserError if that fails."""
    try:
        with path.open("ab") as file:
            file.write(dumps(row).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def read_rows(path: Path, needed: Iterable[str] = ()) -> list[Row]:
    """The rows of the file, none when it is missing.

    A torn last line, left by a process killed while writing, is cut off the file as well.
    Raises UserError with the line number for a damaged earlier line, or one without a key that is
    needed.
    """
    if not path.exists():
        return []
    data = read_bytes(path)
    lines = data.splitlines(keepends=True)
    rows = []
    for number, line in enumerate(lines, 1):
        row = _parse(line)
        if row is not None:
            check_keys(row, needed, f"{path}, line {number},")
            rows.append(row)
        elif number < len(lines):
            raise UserError(f"{path} is damaged in line {number}: give another folder")
    if len(rows) < len(lines) or (data and not data.endswith(b"\n")):
        write_rows(path, rows)
    return rows


def write_rows(path: Path, rows: list[Row]) -> None:
    """Replaces the whole file, atomically."""
    text = "".join(dumps(row) + "\n" for row in rows)
    atomic_write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _parse(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "__array__"):
        return _plain(np.asarray(value).tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
