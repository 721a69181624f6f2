"""Folders for what doesn't fit into memory; they go with the process, however it ends."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import partial
from pathlib import Path

from . import interrupts

SPARE_BYTES = 2**28  # of the disk that are left free


def folder(prefix: str) -> Path:
    """A new folder in TMPDIR, deleted when the process ends."""
    made = Path(tempfile.mkdtemp(prefix=prefix))
    tidy = partial(shutil.rmtree, made, ignore_errors=True)
    atexit.register(tidy)
    interrupts.before_end(tidy)
    return made


def lacking(needed: int, where: str | Path | None = None) -> str | None:
    """What a folder's disk lacks, in words; None if so many bytes fit.

    Args:
        where: default: TMPDIR.
    """
    free = shutil.disk_usage(tempfile.gettempdir() if where is None else where).free
    if needed + SPARE_BYTES <= free:
        return None
    return f"{needed / 2**30:.1f} GiB needed, {free / 2**30:.1f} GiB free"
