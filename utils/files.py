"""Whole files: written in one step, read with plain errors."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from utils.cli import UserError


def atomic_write(path: str | os.PathLike, write: Callable[[Path], Any]) -> None:
    """Calls write(temporary path) and moves the result to `path`, in one step on disk.

    The temporary file is in the same folder and has the same suffix (Keras chooses the format
    by it). Whatever happens, `path` holds either its old or its new content. Raises UserError
    when the folder is missing or not writable or the disk is full; other exceptions of `write`
    pass through.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        write(temporary)
        _fsync(temporary)
        os.replace(temporary, path)
        _fsync(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_bytes(path: str | os.PathLike) -> bytes:
    """The content of a file; raises UserError when it is missing or cannot be read."""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
