"""The door for data that a Python user has: arrays, streams, and anything that is read by index.

    train, test, names = read(train, test, fit, Data(), "prune")

What fits into memory comes back as arrays. A stream that doesn't is kept in a scratch folder, so
that every example has an index; what is read by index stays where it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ..options.data import Data
from ..options.kinds import CLASSES
from ..utils import progress
from ..utils.errors import UserError
from .checks import TargetError, checked_labels
from .dataset import Split
from .elements import Parser, check_repeats, hashes, kind_of
from .fit import Fit
from .indexed import Column, Indexed, Reader, threads
from .store import Memory
from .streams import from_stream, of_batches, of_dataset

TWICE = 64  # examples that are read a second time
DEFAULT = Data()


def read(
    train: Any, test: Any, fit: Fit, options: Data = DEFAULT, caller: str = "the data"
) -> tuple[Split, Split, tuple[str, ...]]:
    """Both splits as the network gets them.

    Args:
      train, test: each is

        * (inputs, targets) or (inputs, targets, sample weights) of arrays; of a network with
          several inputs or outputs lists in its order, or dicts with its names;
        * a finite `tf.data.Dataset` of such tuples, single examples or batches;
        * a `keras.utils.PyDataset`;
        * anything with __len__ and __getitem__ that gives one example as such a tuple.

        Inputs are uint8 (grey levels 0..255) or numbers, which become float32. Targets of an output
        of classes are whole numbers from 0 or one-hot. Arrays and what is read by index keep their
        order; the examples of a stream are sorted by a hash of their content, so that its shuffling
        does not matter. The same examples must come at every call: the memory bank belongs to them.
      fit: of the network.
      options: `memory` and `workers`.
      caller: for messages.

    Returns:
      (train, test, class names "0", "1", ...; () unless the only output is classes).

    Raises:
      UserError: anything else than this.
    """
    memory, workers = Memory(options.memory), threads(options.workers)
    splits = []
    for name, given in (("train", train), ("test", test)):
        origin = f"the {name} split of {caller}"
        split = _read(given, fit, memory, workers, origin)
        if not len(split):
            raise UserError(f"{origin} is empty")
        splits.append(split)
    _check_alike(*splits, fit, caller)
    return *splits, _class_names(splits, fit, caller)


def _read(given: Any, fit: Fit, memory: Memory, workers: int, origin: str) -> Split:
    if isinstance(given, (tuple, list)) and len(given) in (2, 3):
        return _from_arrays(given, fit, origin)
    if isinstance(given, tf.data.Dataset):
        return from_stream(*of_dataset(given, fit, origin), fit, memory, origin)
    if isinstance(given, keras.utils.PyDataset):
        return from_stream(*of_batches(given, workers, origin), fit, memory, origin)
    if _is_indexed(given):
        return _from_index(given, fit, memory, workers, origin)
    noun, target = (f"{word}s" for word in fit.words)
    if _is_indexed(getattr(given, "dataset", None)):  # torch's DataLoader
        raise UserError(f"{origin} is {kind_of(given)}: give its .dataset, which has an index")
    raise UserError(
        f"{origin} is {kind_of(given)}: a tf.data.Dataset or a pair ({noun}, {target}) of arrays "
        "is expected, a keras.utils.PyDataset, or what gives an example by its index"
    )


def _is_indexed(value: Any) -> bool:
    other = (np.ndarray, tf.Tensor, Mapping, str, bytes, tuple, list)
    has = hasattr(value, "__len__") and hasattr(value, "__getitem__")
    return has and not isinstance(value, other)


# ---------------------------------------------------------------- arrays


def _from_arrays(given: Any, fit: Fit, origin: str) -> Split:
    parser = Parser(fit, origin)
    leaves = parser.raw(given)
    inputs = len(fit.input_names)
    for leaf, name in zip(leaves, (*fit.input_names, *fit.output_names), strict=False):
        if not leaf.ndim:
            raise UserError(f"{origin} has a single value for {name}: an array of all is expected")
    count = len(leaves[0])
    for leaf in leaves[1:]:
        if len(leaf) != count:
            noun, target = (f"{word}s" for word in fit.words)
            what = target if leaf is leaves[inputs] else "examples of another array"
            raise UserError(f"{origin} holds {count} {noun} but {len(leaf)} {what}")
    if not count:
        raise UserError(f"{origin} is empty")
    return parser.split(parser.checked(leaves))


# ---------------------------------------------------------------- by index


def _from_index(given: Any, fit: Fit, memory: Memory, workers: int, origin: str) -> Split:
    count = len(given)
    if not count:
        raise UserError(f"{origin} is empty")
    parser = Parser(fit, origin, check_labels=True)
    reader = Reader(given, parser.example, workers, origin)
    first = reader.one(0)
    places = np.unique(np.linspace(0, count - 1, min(count, TWICE)).astype(int))
    passes = [[hashes(leaves)[0] for leaves in reader.all(places)] for _ in range(2)]
    check_repeats(passes[0] == passes[1], origin)
    if memory.take(count * sum(leaf.nbytes for leaf in first)):
        whole = [np.empty((count, *leaf.shape[1:]), leaf.dtype) for leaf in first]
        for place, leaves in enumerate(reader.all(range(count))):
            _put(whole, leaves, slice(place, place + 1), origin, fit)
        return parser.split(whole)
    columns = [Column(reader, number, leaf) for number, leaf in enumerate(first)]
    inputs, targets, weights = parser.trees(columns)
    if len(fit.outputs) == 1 and first[len(fit.input_names)].shape == (1,):
        targets = _labels(given, reader, len(fit.input_names), places, first)
    return Indexed(inputs, targets, weights, forms=parser.forms, reader=reader)


def _put(whole: list, leaves: list, rows: slice, origin: str, fit: Fit) -> None:
    for column, leaf in zip(whole, leaves, strict=True):
        if leaf.shape[1:] != column.shape[1:] or leaf.dtype != column.dtype:
            raise UserError(
                f"{origin} has sizes {column.shape[1:]} and {leaf.shape[1:]}, or other types: all "
                f"{fit.words[0]}s must be of the network's size"
            )
        column[rows] = leaf


def _labels(
    given: Any, reader: Reader, number: int, places: np.ndarray, first: list[np.ndarray]
) -> np.ndarray:
    """The targets [n] of all examples: `given.targets` where it says the same, as torchvision's."""
    like, count = first[number], len(given)
    try:
        said = np.asarray(given.targets)
    except Exception:  # it has none, or something else of that name
        said = np.array(0)
    if said.shape == (count,) and said.dtype.kind in "iu":
        labels = said.astype(like.dtype)
        read = [leaves[number][0] for leaves in reader.all(places)]
        if (labels[places] == read).all():
            return labels
    column = Column(reader, number, like)
    with progress.doing(f"{reader.origin}: reading {count} examples for their labels"):
        return column[:]


# ---------------------------------------------------------------- both splits


def _check_alike(train: Split, test: Split, fit: Fit, caller: str) -> None:
    nouns = [f"{fit.words[0]}s"] * len(fit.input_names) + [f"{fit.words[1]}s"] * len(fit.outputs)
    for noun, one, other in zip(nouns, train.columns, test.columns, strict=False):
        if one.dtype != other.dtype:
            raise UserError(
                f"{caller}: train {noun} are {one.dtype}, test {noun} {other.dtype}: both splits "
                "must be alike"
            )


def _class_names(splits: list[Split], fit: Fit, caller: str) -> tuple[str, ...]:
    """Names of the only output's classes; checks the labels of all outputs."""
    largest = 0
    for name, split in zip(("train", "test"), splits, strict=True):
        for target, output in zip(tf.nest.flatten(split.targets), fit.outputs, strict=True):
            if (
                output.kind == CLASSES
                and isinstance(target, np.ndarray)
                and target.dtype.kind == "i"
            ):
                most = checked_labels(target, output, f"the {name} split of {caller}")
                largest = max(largest, most)
    if len(fit.outputs) != 1 or fit.outputs[0].kind != CLASSES:
        return ()
    if fit.outputs[0].classes is None and largest >= len(splits[0]):
        raise TargetError(
            f"{caller}: label {largest} with {len(splits[0])} training examples: every class needs "
            "some; number the classes from 0"
        )
    return tuple(map(str, range(fit.outputs[0].classes or largest + 1)))
