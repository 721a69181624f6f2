"""Rows that are kept in memory up to a limit and beyond it in files of a scratch folder.

The files are read row by row, not mapped: mapped pages would count as memory of the process.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..utils import progress, scratch
from ..utils.errors import UserError
from ..utils.limits import machine_bytes

SHARE = 0.25  # of the machine's memory, where the user says nothing
SMALL_ROW_BYTES = 64  # labels and the like always stay in memory


class Memory:
    """How much the examples of all splits together may still take."""

    def __init__(self, gib: float | None = None):
        """
        Args:
            gib: the limit; None: a quarter of the machine's memory.
        """
        self.left = SHARE * machine_bytes() if gib is None else gib * 2**30

    def take(self, count: int) -> bool:
        """Whether so many bytes are still free; if they are, they are taken."""
        if count > self.left:
            return False
        self.left -= count
        return True


class FileRows:
    """An array in a file, from which rows are read as from an array: rows[indices], rows[a:b].

    order: int64 [n], where row i lies in the file.
    """

    def __init__(self, path: Path, dtype: np.dtype, shape: tuple[int, ...], order: np.ndarray):
        self.dtype, self.shape, self.order = dtype, shape, order
        self.ndim = len(shape)
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, _discard, self._file, path)
        self._row_bytes = int(np.prod(shape[1:])) * dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        """The rows of integers [...] or of a slice, in memory."""
        places = self.order[index]
        rows = np.empty((*np.shape(places), *self.shape[1:]), self.dtype)
        flat = rows.reshape(-1, *self.shape[1:]).view()
        for row, place in zip(flat, np.ravel(places), strict=True):
            os.preadv(self._file, [row.data.cast("B")], int(place) * self._row_bytes)
        return rows


class Store:
    """Takes chunks of rows of several columns; `columns` gives them as one array each."""

    def __init__(self, memory: Memory, origin: str):
        """
        Args:
            origin: what the rows come from, for messages.
        """
        self._memory, self._origin = memory, origin
        self._chunks: list[list[np.ndarray]] = []
        self._files: dict[int, Any] = {}
        self._rows = 0

    def __len__(self) -> int:
        return self._rows

    def append(self, columns: Sequence[np.ndarray], expected: int | None = None) -> None:
        """Adds rows.

        Args:
            columns: arrays [k, ...], of the same shapes and types as those before but for k.
            expected: how many rows there will be, where it is known.

        Raises:
            UserError: the disk is too small.
        """
        if not self._chunks:
            self._chunks = [[] for _ in columns]
        large = [k for k, one in enumerate(columns) if one[0].nbytes > SMALL_ROW_BYTES]
        needed = sum(columns[k].nbytes for k in large)
        hopeless = False
        if not self._rows and expected is not None:
            row = needed / len(columns[0])
            hopeless = expected * row > self._memory.left
        if not self._files and large and (hopeless or not self._memory.take(needed)):
            self._spill(large, columns, expected)
        if self._files:
            self._check_disk(needed)
        for k, one in enumerate(columns):
            if k in self._files:
                self._write(k, one)
            else:
                self._chunks[k].append(one)
        self._rows += len(columns[0])

    def columns(self, order: np.ndarray | None = None) -> list[Any]:
        """An array or `FileRows` for each column; the store is empty afterwards.

        Args:
            order: int64 [n]: row i of the result is row order[i] as it came.
        """
        if order is None:
            order = np.arange(self._rows)
        place = np.empty(self._rows, np.int64)
        place[order] = np.arange(self._rows)
        found: list[Any] = []
        for k, chunks in enumerate(self._chunks):
            if k in self._files:
                path, dtype, shape = self._files[k]
                found.append(FileRows(path, dtype, (self._rows, *shape), order))
            else:
                found.append(_joined(chunks, place))
        self._chunks, self._files = [], {}
        return found

    def discard(self) -> None:
        """Deletes the files."""
        for path, *_ in self._files.values():
            path.unlink(missing_ok=True)

    def _spill(self, large: list[int], columns: Sequence[np.ndarray], expected: int | None) -> None:
        folder = scratch.folder("ekg_tf_data_")
        row = sum(columns[k][0].nbytes for k in large)
        kept = sum(one.nbytes for k in large for one in self._chunks[k])
        for k in large:
            self._files[k] = folder / f"{k}.rows", columns[k].dtype, columns[k].shape[1:]
        self._check_disk(kept if expected is None else expected * row)
        size = "" if expected is None else f" ({expected * row / 2**30:.1f} GiB)"
        progress.say(f"{self._origin} doesn't fit into memory{size}: kept in {folder}")
        self._memory.left += kept
        for k in large:
            for chunk in _popped(self._chunks[k]):
                self._write(k, chunk)

    def _write(self, column: int, rows: np.ndarray) -> None:
        try:
            with open(self._files[column][0], "ab") as file:
                file.write(np.ascontiguousarray(rows).data)
        except OSError as error:
            raise UserError(self._full(str(error.strerror))) from error

    def _check_disk(self, needed: int) -> None:
        folder = next(iter(self._files.values()))[0].parent
        if problem := scratch.lacking(needed, folder):
            raise UserError(self._full(problem))

    def _full(self, problem: str) -> str:
        return (
            f"{self._origin} fits neither into memory nor into {tempfile.gettempdir()} ({problem}):"
            " name a larger disk by TMPDIR, or raise the limit of memory (data_memory)"
        )


def _discard(file: int, path: Path) -> None:
    os.close(file)
    path.unlink(missing_ok=True)


def _joined(chunks: list[np.ndarray], place: np.ndarray) -> np.ndarray:
    """One array of all chunks, row i at place[i]; each chunk is freed once it is copied."""
    first = chunks[0]
    whole = np.empty((len(place), *first.shape[1:]), first.dtype)
    start = 0
    for chunk in _popped(chunks):
        whole[place[start : start + len(chunk)]] = chunk
        start += len(chunk)
    return whole


def _popped(chunks: list[np.ndarray]) -> Iterator[np.ndarray]:
    chunks.reverse()
    while chunks:
        yield chunks.pop()
