"""Examples that are read by index when they are needed, several at a time.

Anything with __len__ and __getitem__ that gives one example (inputs, targets[, weights]): a PyTorch
Dataset, an ArrayRecord or a grain source behind a parsing function, a class of the user's own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import tensorflow as tf

from ..utils.errors import USERS, UserError, words_of
from ..utils.provenance import cpu_count
from .dataset import Split, Tree, as_example
from .imagenet import UNREADABLE

WHOLE, SAMPLE = 4096, 256  # examples that a fingerprint reads, of small and of large sources
# Where TensorFlow in the code of a user runs: several threads on a GPU aren't safe (utils.threads).
DEVICE = "CPU:0"


def threads(workers: int | None) -> int:
    """The number of reading threads: as given, or two per core."""
    return workers or 2 * cpu_count()


@dataclass(frozen=True, eq=False)
class Reader:
    """Reads the example of an index as checked arrays.

    source: with __len__ and __getitem__. parse: what it gives -> leaves of inputs, targets and
    weights, each [1, ...]. workers: threads.
    """

    source: Any
    parse: Callable[[Any], list[np.ndarray]]
    workers: int
    origin: str

    def __len__(self) -> int:
        return len(self.source)

    def one(self, index: int) -> list[np.ndarray]:
        """The leaves of an example, each [1, ...].

        Raises:
          UserError: the source fails, or gives something else than before.
        """
        try:
            with tf.device(DEVICE):
                return self.parse(self.source[int(index)])
        except UserError:
            raise
        except USERS as error:
            raise UserError(
                f"{self.origin}: example {int(index)} can't be read ({words_of(error)})"
            ) from error

    def all(self, indices: Sequence[int] | np.ndarray) -> Iterator[list[np.ndarray]]:
        """The leaves of these examples, in order, read by several threads."""
        yield from in_threads(self.one, indices, self.workers)

    @cached_property
    def digest(self) -> str:
        """sha256 (hex): of all examples, or of a large source's length and 256 examples."""
        count = len(self)
        few = count <= WHOLE
        places = np.arange(count) if few else np.linspace(0, count - 1, SAMPLE).astype(int)
        found = hashlib.sha256(f"{count}".encode())
        for leaves in self.all(places):
            for leaf in leaves:
                found.update(f"{leaf.dtype.str}{leaf.shape}".encode())
                found.update(np.ascontiguousarray(leaf))
        return found.hexdigest()


def in_threads(function: Callable, items: Any, workers: int) -> Iterator[Any]:
    """function(item) of all items, in order; no more than 4 per thread wait to be taken."""
    with ThreadPoolExecutor(workers) as pool:
        waiting: list[Any] = []
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= 4 * workers:
                yield waiting.pop(0).result()
        while waiting:
            yield waiting.pop(0).result()


class Column:
    """One leaf of the examples, read as from an array: column[indices], column[a:b]."""

    def __init__(self, reader: Reader, number: int, like: np.ndarray):
        """
        Args:
            like: the leaf of an example, [1, ...].
        """
        self._reader, self._number = reader, number
        self.shape, self.dtype = (len(reader), *like.shape[1:]), like.dtype
        self.ndim = len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        """The rows of integers [n] or of a slice, in memory."""
        places = np.arange(len(self))[index]
        rows = [leaves[self._number] for leaves in self._reader.all(places.ravel())]
        return np.concatenate(rows).reshape(*places.shape, *self.shape[1:])


@dataclass(frozen=True, eq=False)
class Indexed(Split):
    """A `Split` whose inputs stay where they are; `Column`s stand for what isn't in memory.

    reader: of the examples. Targets that are arrays are in memory already.
    """

    reader: Reader = field(kw_only=True)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex): of all examples, or of a large source's length and 256 examples."""
        return self.reader.digest

    def batches(self, order: np.ndarray) -> tf.data.Dataset:
        """See `Split.batches`."""
        columns = self.columns
        kinds = [tf.as_dtype(column.dtype) for column in columns]

        def read(index: np.ndarray) -> list[np.ndarray]:
            try:
                return [leaf[0] for leaf in self.reader.one(index)]
            except UserError as error:
                raise ValueError(f"{UNREADABLE}{error}\n") from error

        def make(index: tf.Tensor) -> dict[str, Tree]:
            leaves = tf.numpy_function(read, [index], kinds)
            leaves = [leaves] if isinstance(leaves, tf.Tensor) else leaves
            for leaf, column in zip(leaves, columns, strict=True):
                leaf.set_shape(column.shape[1:])
            trees = [self.inputs, self.targets, *([] if self.weights is None else [self.weights])]
            rest = iter(leaves)
            filled = [tf.nest.map_structure(lambda _: next(rest), tree) for tree in trees]
            return as_example(*filled)

        examples = tf.data.Dataset.from_tensor_slices(order.ravel())
        examples = examples.map(make, self.reader.workers, deterministic=True)
        # As many wait for the source at once, on whatever number of cores.
        options = tf.data.Options()
        options.threading.private_threadpool_size = max(self.reader.workers, cpu_count())
        return examples.batch(order.shape[1], drop_remainder=True).with_options(options)
