"""How much memory a file may unpack to, known from its header before memory is taken.

A file may unpack to 1 GiB or to 32 times its own size, whichever is more, but to no more than half
of the machine's memory. EKG_TF_UNPACKED_GIB in the environment takes the place of all that.
"""

from __future__ import annotations

import contextlib
import copy
import os
import zipfile
from pathlib import Path
from typing import BinaryIO

from .errors import UserError

UNPACKED = "EKG_TF_UNPACKED_GIB"
FLOOR, TIMES, SHARE = 2**30, 32, 0.5
IMAGE, CONFIG = 1 / 8, 1 / 128  # of the limit: an image as float32, a network's configuration
GIB = 2**30
CHUNK = 2**20  # bytes that are unpacked at a time


def machine_bytes() -> int:
    """The machine's memory, or what a container may use of it."""
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else ""
    return min(there, int(text)) if text.isdigit() else there


def most(file_bytes: int | None = None) -> int:
    """Bytes that a file may unpack to.

    Args:
        file_bytes: its size on the disk; None: whatever that is.

    Raises:
        UserError: the environment's number is none.
    """
    said = os.environ.get(UNPACKED)
    if said is not None:
        with contextlib.suppress(ValueError, OverflowError):
            if float(said) > 0:
                return int(float(said) * GIB)
        raise UserError(f"{UNPACKED}={said!r} in the environment: a number of GiB is expected")
    whole = int(SHARE * machine_bytes())
    return whole if file_bytes is None else min(whole, max(FLOOR, TIMES * file_bytes))


def check(count: int, path: str | os.PathLike, *, share: float = 1, what: str = "") -> None:
    """Refuses what takes too much memory.

    Args:
        count: bytes. path: of the file that they come from. share: of the limit; less than 1 for
            things that are many or grow further. what: takes it, in words; "": the file.

    Raises:
        UserError: it is more than the limit, which is named with the way to raise it.
    """
    size = os.path.getsize(path) if share == 1 else None
    limit = share * most(size)
    if count > limit:
        raise UserError(
            f"{os.fspath(path)} {what or 'would take'} {count / GIB:.3g} GiB of memory, more than "
            f"the {limit / GIB:.3g} GiB that it may unpack to: is this the right file? If it is, "
            f"set {UNPACKED} in the environment to {-(-count // int(share * GIB) or 1)} or more"
        )


def check_zip(path: str | os.PathLike, file: BinaryIO | None = None) -> None:
    """Refuses an archive whose directory names too large entries, or says less than they hold.

    Raises:
        UserError: as `check`.
        zipfile.BadZipFile: no archive, or an entry that is longer than its directory says.
    """
    with zipfile.ZipFile(file or path) as archive:
        check(sum(entry.file_size for entry in archive.infolist()), path)
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED and _longer(archive, entry):
                raise zipfile.BadZipFile(f"{entry.filename} is longer than the directory says")


def _longer(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bool:
    """Whether a packed entry holds more bytes than it says; a few of them are unpacked at a time.

    zipfile cuts what it reads only after it has unpacked up to 2 GiB of it.
    """
    one_more = copy.copy(entry)
    one_more.file_size = entry.file_size + 1
    del one_more.CRC  # of the whole; it is compared when the entry is read
    count = 0
    with archive.open(one_more) as content:
        while chunk := content.read(CHUNK):
            count += len(chunk)
    return count > entry.file_size
