"""The search's journal: accepted removals, and the interim networks' logits on D_val."""

import os

import numpy as np

from ..nets.graph import ChannelGraph
from ..utils.runfolder import RunFolder

ROWS, LOGITS = "history.jsonl", "search_logits.f32"


class History:
    """Rows of history.jsonl and, record for record, search_logits.f32 (float32 [n, classes] each).

    Row 0 is theta_0; row i adds the filters that step i removed (`removed_units`, numbers in the
    unit mask) and, where the networks of a search aren't nested, takes some back
    (`restored_units`). A record is on the disk before its row, and whatever a killed process left
    beyond the last complete pair is cut off on opening.

    Args:
        folder: the run folder.
        shape: (examples in D_val, classes).
    """

    def __init__(self, folder: RunFolder, shape: tuple[int, int]):
        self.folder, self._shape = folder, shape
        self._path = folder.file(LOGITS)
        self._record_bytes = 4 * shape[0] * shape[1]
        self.rows = folder.rows(ROWS)
        if self.rows:
            records = self._path.stat().st_size // self._record_bytes if self._path.exists() else 0
            self.rows = self.rows[:records]
            folder.truncate(ROWS, len(self.rows))

    def add(self, row: dict, logits: np.ndarray) -> None:
        """Appends a step; both files are on the disk when this returns."""
        with open(self._path, "r+b" if self._path.exists() else "w+b") as file:
            file.seek(len(self.rows) * self._record_bytes)
            file.write(np.ascontiguousarray(logits, "<f4").tobytes())
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
        self.folder.append(ROWS, row)
        self.rows.append(row)

    def logits(self, step: int) -> np.ndarray:
        """Logits of theta_step on D_val, float32 [n, classes]."""
        with open(self._path, "rb") as file:
            file.seek(step * self._record_bytes)
            record = np.frombuffer(file.read(self._record_bytes), "<f4")
        return record.reshape(self._shape).astype(np.float32)

    def mask(self, graph: ChannelGraph, step: int) -> np.ndarray:
        """Unit mask of theta_step, float32 [U + 1]."""
        mask = np.ones(graph.num_units + 1, np.float32)
        for row in self.rows[1 : step + 1]:
            mask[row["removed_units"]] = 0
            mask[row.get("restored_units", [])] = 1
        return mask
