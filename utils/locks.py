"""A folder for one process at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from . import progress
from .errors import UserError

LOCK = ".lock"


class Taken(UserError):
    """Another process holds the lock."""


class Lock:
    """The lock of a folder, which is made if it is missing; taken as soon as there is a `Lock`.

    The system frees it when its holders have ended, however they end. A child process that inherits
    `descriptor` is such a holder.

    Args:
        folder: the file .lock lies in it.

    Raises:
        Taken: another process holds the lock.
        UserError: the folder is a file or can't be written.
    """

    def __init__(self, folder: Path):
        self._path = folder / LOCK
        self._made_folder = False
        try:
            self._made_folder = not folder.exists()
            folder.mkdir(parents=True, exist_ok=True)
            self._made_file = not self._path.exists()
            self.descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileExistsError:
            raise UserError(f"{folder} is a file: give a folder") from None
        except (OSError, ValueError) as error:
            raise UserError(
                f"cannot write in {folder}: {getattr(error, 'strerror', None) or error}"
            ) from error
        self._open = True
        try:
            self._take(folder)
        except BaseException:
            self.close()
            raise

    def _take(self, folder: Path) -> None:
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Taken(
                f"another process is using {folder} (it holds {self._path}): wait for it or give "
                "another folder"
            ) from None
        except OSError:
            progress.warn(f"{folder} has no file locks, do not use it from two processes at once")

    def close(self, *, forget: bool = False) -> None:
        """Gives the folder free; harmless when repeated.

        Args:
            forget: remove the file as well if this lock has made it, and the folder if that is
                empty then and new.
        """
        if not self._open:
            return
        if forget and self._made_file:
            self._path.unlink(missing_ok=True)
            if self._made_folder:
                with contextlib.suppress(OSError):  # something else is in it
                    self._path.parent.rmdir()
        os.close(self.descriptor)
        self._open = False

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
