"""TensorBoard's events of a run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import UserError, without_place


class Events:
    """Scalars by phase, in folder/PHASE.

    Args:
        note: is called with the files of a phase as they come.
    """

    def __init__(self, folder: Path, note: Callable[[set[Path]], None]):
        self._folder, self._note = folder, note
        self._writers: dict[str, Any] = {}

    def scalars(self, phase: str, step: int, values: dict[str, float]) -> None:
        """Writes them and waits until they are on the disk.

        Raises:
            UserError: they can't be written.
        """
        import tensorflow as tf

        folder = self._folder / phase
        try:
            if phase not in self._writers:
                self._open(phase, folder)
            # tf.summary.scalar needs the tensorboard package, tf.summary.write does not
            metadata = tf.compat.v1.SummaryMetadata(data_class="DATA_CLASS_SCALAR")
            metadata.plugin_data.plugin_name = "scalars"
            with self._writers[phase].as_default():
                for name, value in values.items():
                    tf.summary.write(name, tf.constant(float(value)), step=step, metadata=metadata)
            self._writers[phase].flush()
        except (OSError, tf.errors.OpError) as error:
            why = without_place(str(getattr(error, "message", error)).splitlines()[0])
            raise UserError(
                f"cannot write TensorBoard's events in {folder} ({why}): make room and run the "
                "same command again, or leave them out (do_log)"
            ) from error

    def _open(self, phase: str, folder: Path) -> None:
        import tensorflow as tf

        before = set(folder.glob("events.out.tfevents.*"))
        self._writers[phase] = tf.summary.create_file_writer(str(folder))
        self._writers[phase].init()
        self._note(set(folder.glob("events.out.tfevents.*")) - before)

    def close(self) -> None:
        """Closes the files; harmless when repeated."""
        for writer in self._writers.values():
            with contextlib.suppress(Exception):  # a full disk, which was said when it was met
                writer.close()
        self._writers.clear()
