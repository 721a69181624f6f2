"""The search's journal: accepted removals, and the interim networks' outputs on D_val."""

import hashlib
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..nets.graph import ChannelGraph
from ..utils import cluster
from ..utils.errors import UserError
from ..utils.jsonl import dumps
from ..utils.runfolder import RunFolder
from ..utils.trees import parts_of, tree_of

ROWS, LOGITS = "history.jsonl", "search_logits.f32"

Shapes = Sequence[tuple[int, ...]]


def _link(before: str, row: dict, record: bytes) -> str:
    """The "chain" of a row after a row with the chain `before`; the same in every run that takes
    the same steps and gives up hopeless proposals at the same time."""
    found = hashlib.sha256(before.encode())
    found.update(dumps({key: one for key, one in row.items() if key != "seconds"}).encode())
    found.update(record)
    return found.hexdigest()[:16]


def output_shapes(graph: ChannelGraph, examples: int) -> list[tuple[int, ...]]:
    """The shapes of a network's outputs for so many examples, one for each output."""
    return [(examples, *graph.shape_of(tensor)[1:]) for tensor in graph.model.outputs]


class History:
    """Rows of history.jsonl and, record for record, search_logits.f32: the network's outputs on
    D_val, float32, one after the other.

    Row 0 is theta_0; row i adds the filters that step i removed (`removed_units`, numbers in the
    unit mask) and, where the networks of a search aren't nested, takes some back
    (`restored_units`). A record is on the disk before its row, and whatever a killed process left
    beyond the last complete pair is cut off on opening. "chain" is a digest of the row, its record
    and the row before: what was changed or taken out is noticed on opening.

    Args:
        folder: the run folder.
        shapes: of the outputs, as `output_shapes` gives them; empty: none are kept, rows alone.

    Raises:
        UserError: a row or a record that isn't what was written.
    """

    def __init__(self, folder: RunFolder, shapes: Shapes):
        self.folder, self._shapes = folder, [tuple(shape) for shape in shapes]
        self._path = folder.file(LOGITS)
        self._record_bytes = 4 * sum(map(math.prod, self._shapes))
        self.rows = folder.rows(ROWS)
        if self.rows and self._record_bytes:
            self.rows = self.rows[: cluster.on_chief(self._records)]
            folder.truncate(ROWS, len(self.rows))
        cluster.on_chief(self._check)

    def _records(self) -> int:
        return self._path.stat().st_size // self._record_bytes if self._path.exists() else 0

    def _check(self) -> None:
        before = ""
        for number, row in enumerate(self.rows):
            plain = {key: value for key, value in row.items() if key != "chain"}
            before = _link(before, plain, self._record(number))
            if row.get("chain") != before:
                raise UserError(
                    f"{self.folder.path / ROWS}: line {number + 1}, or what {LOGITS} holds for it, "
                    "is not what the search has written: put both files back, or search again in "
                    "another folder"
                )

    def _record(self, step: int) -> bytes:
        if not self._record_bytes:
            return b""
        with open(self._path, "rb") as file:
            file.seek(step * self._record_bytes)
            return file.read(self._record_bytes)

    def add(self, row: dict, outputs: Any = ()) -> None:
        """Appends a step; both files are on the disk when this returns.

        Args:
            outputs: tree of float32 [n, ...]; empty where none are kept.
        """

        def chained() -> dict:
            if self._record_bytes:
                self._write(outputs)
            before = self.rows[-1]["chain"] if self.rows else ""
            return row | {"chain": _link(before, row, self._record(len(self.rows)))}

        # What the first machine has found is every machine's row.
        row = cluster.on_chief(chained)
        self.folder.append(ROWS, row)
        self.rows.append(row)

    def _write(self, outputs: Any) -> None:
        try:
            with open(self._path, "r+b" if self._path.exists() else "w+b") as file:
                file.seek(len(self.rows) * self._record_bytes)
                for one in parts_of(outputs):
                    file.write(np.ascontiguousarray(one, "<f4").tobytes())
                file.truncate()
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(f"cannot write {self._path}: {error.strerror or error}") from error

    def outputs(self, step: int) -> Any:
        """Outputs of theta_step on D_val, tree of float32 [n, ...]."""
        own = np.frombuffer(self._record(step) if cluster.is_chief() else b"", "<f4")
        record = cluster.agreed(own).astype(np.float32)
        edges = np.cumsum([math.prod(shape) for shape in self._shapes])[:-1]
        parts = zip(np.split(record, edges), self._shapes, strict=True)
        return tree_of(one.reshape(shape) for one, shape in parts)

    def mask(self, graph: ChannelGraph, step: int) -> np.ndarray:
        """Unit mask of theta_step, float32 [U + 1]."""
        mask = np.ones(graph.num_units + 1, np.float32)
        for row in self.rows[1 : step + 1]:
            mask[row["removed_units"]] = 0
            mask[row.get("restored_units", [])] = 1
        return mask
