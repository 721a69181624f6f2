"""JSON with only finite numbers, and JSON-lines files that survive being killed while writing."""

from __future__ import annotations

import json
import math
import os
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


def read_json(path: Path) -> Any:
    """The content of a JSON file; raises UserError when it is missing or damaged."""
    try:
        return json.loads(read_bytes(path))
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from None


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


def read_rows(path: Path) -> list[Row]:
    """The rows of the file, none when it is missing.

    A torn last line, left by a process killed while writing, is cut off the file as well.
    Raises UserError with the line number for a damaged earlier line.
    """
    if not path.exists():
        return []
    data = read_bytes(path)
    lines = data.splitlines(keepends=True)
    rows = []
    for number, line in enumerate(lines, 1):
        row = _parse(line)
        if row is not None:
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
    except ValueError:
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
