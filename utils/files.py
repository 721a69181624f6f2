"""Whole files: written in one step, read with plain errors."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import UserError

# Names that nobody else makes: what a killed process has left may be deleted by them.
TEMPORARY = re.compile(r"\.ekg_tf-[0-9a-f]{32}\.(tmp|old)(\.[^/]{0,16})?")


def new_name(folder: Path, kind: str, suffix: str = "") -> Path:
    """A new name in a folder that `TEMPORARY` matches."""
    return folder / f".ekg_tf-{uuid.uuid4().hex}.{kind}{suffix}"


def atomic_write(path: str | os.PathLike, write: Callable[[Path], Any]) -> None:
    """Calls write(temporary path) and moves the result to `path`, in one step on disk.

    The temporary file is in the same folder and has the same suffix (Keras chooses the format
    by it). Whatever happens, `path` holds either its old or its new content. A link's target is
    written, never the link; what is no file (a device, a pipe) is written to, never replaced.
    Raises UserError when the folder is missing or not writable, the disk is full or the name can't
    be one of a file; other exceptions of `write` pass through.
    """
    path = Path(path)
    try:
        if path.name in ("", "..") or path.is_dir():
            raise UserError(f"cannot write {os.fspath(path)!r}: it is a folder; name a file")
        if path.is_symlink():
            path = path.resolve()
        if path.exists() and not path.is_file():
            write(path)
            return
        temporary = new_name(path.parent, "tmp", path.suffix[:16])
        try:
            write(temporary)
            _fsync(temporary)
            os.replace(temporary, path)
            _fsync(path.parent)
        finally:
            with contextlib.suppress(OSError):  # what went wrong before is said
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def atomic_folder(path: str | os.PathLike, write: Callable[[Path], Any], mark: str) -> None:
    """Calls write(temporary path), which makes a folder, and puts that folder in `path`'s place.

    A folder that is there already is replaced if it holds the file `mark`, by which one of the
    same kind is known. It is moved aside first, so that a kill leaves the old or the new one, the
    old one perhaps under a name that `TEMPORARY` matches. Raises UserError for another folder, a
    link or a file at `path`, when the parent is missing or not writable or the disk is full; other
    exceptions of `write` pass through.
    """
    path = Path(path)
    if path.is_symlink() or (path.exists() and not (path / mark).is_file()):
        raise UserError(f"{path} is there and holds no {mark}: move it or give another place")
    temporary, old = new_name(path.parent, "tmp"), new_name(path.parent, "old")
    try:
        write(temporary)
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
        _fsync(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def replace_between(page: Path, begin: str, end: str, block: str) -> None:
    """Puts a block of text between two markers of a page, in place of what is there.

    Raises:
        UserError: a marker is missing.
    """
    text = page.read_text(encoding="utf-8")
    if begin not in text or end not in text:
        raise UserError(f"{page} lacks the markers {begin} and {end}")
    head, tail = text.split(begin)[0], text.split(end)[1]
    new = f"{head}{begin}\n\n{block}\n\n{end}{tail}"
    atomic_write(page, lambda path: path.write_text(new, encoding="utf-8"))


def is_file(path: str | os.PathLike) -> bool:
    """Whether there is a file, or a link to one; not for names that can't be one."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # a name that is too long, or with a zero byte
        return False


def printable(path: str | os.PathLike) -> str:
    """A path for messages: bytes of its name that aren't UTF-8 as \\xff."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def size_of(path: str | os.PathLike) -> int:
    """Bytes of a file, or of all files in a folder."""
    path = Path(path)
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_bytes(path: str | os.PathLike) -> bytes:
    """The content of a file; raises UserError when it is missing, no file or cannot be read."""
    try:
        if not Path(path).is_file() and Path(path).exists():
            raise UserError(f"{path} is no file")
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
