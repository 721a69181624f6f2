"""Activations at the cuts of one batch, some of them in files."""

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from ...utils import scratch
from ...utils.errors import UserError
from ...utils.trees import parts_of, tree_of


class Files:
    """Trees of tensors in a folder of their own, which goes with the process.

    A file is written with plain calls and read again as often as it is needed: mapped pages would
    count as memory of the process.
    """

    def __init__(self) -> None:
        self._folder = scratch.folder("ekg_tf_cache_")

    def put(self, name: str, tree: Any) -> Callable[[], Any]:
        """Writes a tree, in the place of the one of this name; returns what reads it.

        Raises:
            UserError: the disk is full.
        """
        parts = [np.asarray(memoryview(one)) for one in parts_of(tree)]
        paths = [self._folder / f"{name}.{number}" for number in range(len(parts))]
        try:
            for path, part in zip(paths, parts, strict=True):
                part.tofile(path)
        except OSError as error:
            raise UserError(
                f"the activations of the search can't be kept in {self._folder} "
                f"({error.strerror or error}): name a larger disk by TMPDIR, or raise the limit of "
                "memory"
            ) from error
        kinds = [(path, part.dtype, part.shape) for path, part in zip(paths, parts, strict=True)]
        return lambda: tree_of(_read(*kind) for kind in kinds)


def _read(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> tf.Tensor:
    return tf.constant(np.fromfile(path, dtype).reshape(shape))


class Kept(Mapping):
    """{cut: activations of one batch, a tree}; those in files are read at every look.

    Args:
        values: the activations.
        outside: cuts whose activations go to files.
        files, name: where to, and a name that no other batch has.
    """

    def __init__(
        self, values: dict[int, Any], outside: Collection[int], files: Files | None, name: str
    ):
        self._values = {cut: x for cut, x in values.items() if cut not in outside}
        self._readers: dict[int, Callable[[], Any]] = {}
        if files is not None:
            for cut in values.keys() - self._values.keys():
                self._readers[cut] = files.put(f"{name}_{cut}", values[cut])
        self._cuts = tuple(values)

    def __getitem__(self, cut: int) -> Any:
        return self._values[cut] if cut in self._values else self._readers[cut]()

    def __iter__(self) -> Iterator[int]:
        return iter(self._cuts)

    def __len__(self) -> int:
        return len(self._cuts)
