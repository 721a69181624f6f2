"""The door for data that a Python user has: arrays, streams, and anything that is read by index.

    train, test, names = read(train, test, fit, Data(), "prune")

What fits into memory comes back as arrays. A stream that doesn't is kept in a scratch folder, so
that every example has an index; what is read by index stays where it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ..options.data import Data
from ..utils.errors import UserError
from .checks import checked_inputs, checked_labels, checked_targets, checked_weights, form_of
from .dataset import Split, Tree
from .fit import CLASSES, Fit
from .indexed import Column, Indexed, Reader, in_threads, threads
from .store import Memory, Store

BATCH = 64  # examples of a stream that are taken at a time
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
    stream = isinstance(given, (tf.data.Dataset, keras.utils.PyDataset))
    by_index = _is_indexed(given)
    if (stream or by_index) and None in fit.input_shapes:
        raise UserError(
            f"{origin}: a network that is no functional one doesn't tell the shape of its inputs, "
            "so its data has to be a pair of arrays (examples, labels)"
        )
    if isinstance(given, tf.data.Dataset):
        return _from_stream(*_chunks_of_dataset(given, fit, origin), fit, memory, origin)
    if stream:
        return _from_stream(*_chunks_of_batches(given, workers, origin), fit, memory, origin)
    if by_index:
        return _from_index(given, fit, memory, workers, origin)
    noun, target = (f"{word}s" for word in fit.words)
    raise UserError(
        f"{origin} is {kind_of(given)}: a tf.data.Dataset or a pair ({noun}, {target}) of arrays "
        "is expected, a keras.utils.PyDataset, or what gives an example by its index"
    )


def kind_of(value: Any) -> str:
    """A value's type in words."""
    length = f" of {len(value)}" if isinstance(value, tuple | list) else ""
    return f"a {type(value).__name__}{length}"


def _is_indexed(value: Any) -> bool:
    other = (np.ndarray, tf.Tensor, Mapping, str, bytes, tuple, list)
    has = hasattr(value, "__len__") and hasattr(value, "__getitem__")
    return has and not isinstance(value, other)


# ---------------------------------------------------------------- one example, or some


class _Parser:
    """Takes (inputs, targets[, weights]) apart into leaves and checks them."""

    def __init__(self, fit: Fit, origin: str, *, check_labels: bool = False):
        self.fit, self.origin = fit, origin
        self.forms: list[str] | None = None
        self.weighted = False
        self._check_labels = check_labels

    def raw(self, element: Any) -> list[np.ndarray]:
        """Leaves of inputs, targets and weights, as they are."""
        if not isinstance(element, (tuple, list)) or len(element) not in (2, 3):
            pair = ", ".join(self.fit.words)
            raise UserError(f"{self.origin} has elements {_brief(element)}: ({pair}) is expected")
        inputs, targets, weights = (*element, None)[:3]
        fit, names = self.fit, self.fit.output_names
        leaves = leaves_of(inputs, fit.input_names, self.origin, "input")
        answers = leaves_of(targets, names, self.origin, "output")
        leaves = [_array(leaf, self.origin) for leaf in (*leaves, *answers)]
        self.weighted = weights is not None
        if self.weighted:
            given = weights_of(weights, names, self.origin)
            ones = leaves[: 1 if leaves[0].ndim > len(fit.input_shapes[0] or ()) else 0]
            count = [len(one) for one in ones]
            leaves += [
                np.ones(count, np.float32) if one is None else _array(one, self.origin)
                for one in given
            ]
        return leaves

    def checked(self, leaves: list[np.ndarray]) -> list[np.ndarray]:
        """The leaves [k, ...] as the network gets them."""
        fit, origin = self.fit, self.origin
        count = len(fit.input_names)
        inputs = [
            checked_inputs(leaf, shape, origin, fit)
            for leaf, shape in zip(leaves[:count], fit.input_shapes, strict=True)
        ]
        given = list(zip(leaves[count:], fit.outputs, strict=False))
        if self.forms is None:
            self.forms = [form_of(leaf, output, origin, fit) for leaf, output in given]
        targets = []
        for (leaf, output), form in zip(given, self.forms, strict=True):
            target = checked_targets(leaf, form, output, origin, fit)
            if self._check_labels and target.dtype == np.int32:
                checked_labels(target, output, origin)
            targets.append(target)
        weights = [
            checked_weights(leaf, target, origin)
            for leaf, target in zip(leaves[count + len(targets) :], targets, strict=False)
        ]
        return [*inputs, *targets, *weights]

    def example(self, element: Any) -> list[np.ndarray]:
        """`checked` of one example, leaves [1, ...]."""
        return self.checked([leaf[None] for leaf in self.raw(element)])

    def trees(self, columns: list[Any]) -> tuple[Tree, Tree, Tree]:
        """Inputs, targets and weights of a split's columns."""
        ends = len(self.fit.input_names), len(self.fit.input_names) + len(self.fit.outputs)
        parts = columns[: ends[0]], columns[ends[0] : ends[1]], columns[ends[1] :]
        inputs, targets, weights = (
            tuple(part) if len(part) > 1 else next(iter(part), None) for part in parts
        )
        return inputs, targets, weights


def leaves_of(value: Any, names: tuple[str, ...], origin: str, noun: str) -> list[Any]:
    """The arrays of all inputs or outputs, in the network's order.

    Args:
      value: one, a list or tuple in that order, or a dict by name.

    Raises:
      UserError: an unknown or a missing name, another number of arrays.
    """
    wanted = f"the network's {noun}s are {', '.join(names)}"
    if isinstance(value, Mapping):
        unknown = [str(key) for key in value if key not in names]
        missing = [name for name in names if name not in value]
        if unknown or missing:
            problem = (
                f"no {noun} {missing[0]!r}" if missing else f"an unknown {noun} {unknown[0]!r}"
            )
            raise UserError(f"{origin} has {problem}: {wanted}")
        return [value[name] for name in names]
    listed = isinstance(value, (tuple, list))
    if len(names) == 1:
        alone = listed and len(value) == 1 and getattr(value[0], "shape", ()) != ()
        return list(value) if alone else [value]
    if not listed or len(value) != len(names):
        raise UserError(
            f"{origin} has {kind_of(value)} for {len(names)} {noun}s: {wanted}; give a dict or a "
            "list of as many arrays"
        )
    return list(value)


def weights_of(value: Any, names: tuple[str, ...], origin: str) -> list[Any]:
    """The sample weights of every output; None where an output has none."""
    if isinstance(value, Mapping):
        value = {name: None for name in names} | dict(value)
    elif len(names) > 1 and not isinstance(value, (tuple, list)):
        return [value] * len(names)
    return leaves_of(value, names, origin, "output")


def _array(value: Any, origin: str) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "detach"):  # of PyTorch, perhaps on another device
        value = value.detach().cpu()
    try:
        return np.asarray(value)
    except Exception as error:  # sizes that differ, ragged tensors, other libraries' arrays
        raise UserError(f"{origin} has {kind_of(value)} that is no array: {error}") from error


def _brief(value: Any) -> str:
    return f"{value}" if len(f"{value}") < 200 else kind_of(value)


# ---------------------------------------------------------------- arrays


def _from_arrays(given: Any, fit: Fit, origin: str) -> Split:
    parser = _Parser(fit, origin)
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
    return Split(*parser.trees(parser.checked(leaves)))


# ---------------------------------------------------------------- streams

# One pass over a stream: its elements, whether they are batches, and how many examples are expected
Pass = Callable[[], Iterator[Any]]


def _from_stream(
    elements: Pass, batched: bool, expected: int | None, fit: Fit, memory: Memory, origin: str
) -> Split:
    store = Store(memory, origin)
    try:
        return _stored(elements, batched, expected, fit, store, origin)
    except BaseException:
        store.discard()
        raise


def _stored(
    elements: Pass, batched: bool, expected: int | None, fit: Fit, store: Store, origin: str
) -> Split:
    parser, found = _Parser(fit, origin), []
    shapes: set[tuple[int, ...]] = set()
    for leaves in _chunks(elements, batched, parser):
        shapes.add(leaves[0].shape[1:])
        if len(shapes) > 1:
            raise UserError(
                f"{origin} has sizes {sorted(shapes)}: all {fit.words[0]}s must be of the "
                "network's size"
            )
        found += _hashes(leaves)
        store.append(parser.checked(leaves), expected)
    if not found:
        raise UserError(f"{origin} has no {fit.words[0]} at all")
    known, seen = set(found), 0
    for leaves in _chunks(elements, batched, parser):
        check_repeats(all(one in known for one in _hashes(leaves)), origin)
        seen += len(leaves[0])
        if seen >= TWICE:
            break
    order = np.argsort(np.array(found, "S16"), kind="stable")
    return Split(*parser.trees(store.columns(order)))


def _chunks(elements: Pass, batched: bool, parser: _Parser) -> Iterator[list[np.ndarray]]:
    for element in elements():
        leaves = parser.raw(element)
        yield leaves if batched else [leaf[None] for leaf in leaves]


def _hashes(leaves: list[np.ndarray]) -> list[bytes]:
    """A hash of each example's content, as it came."""
    return [
        hashlib.blake2b(b"".join(leaf[k].tobytes() for leaf in leaves), digest_size=16).digest()
        for k in range(len(leaves[0]))
    ]


def check_repeats(same: bool, origin: str) -> None:
    """Raises UserError where examples differ the second time that they are read."""
    if not same:
        raise UserError(
            f"{origin} gives other examples the second time: the memory bank needs the same ones "
            "always; take random augmentation out of it and give it as Data(augment=...)"
        )


def _chunks_of_dataset(
    dataset: tf.data.Dataset, fit: Fit, origin: str
) -> tuple[Pass, bool, int | None]:
    spec = dataset.element_spec
    if not isinstance(spec, tuple) or len(spec) not in (2, 3):
        raise UserError(f"{origin} has elements {spec}: ({', '.join(fit.words)}) is expected")
    if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise UserError(f"{origin} never ends: leave out its .repeat()")
    first = leaves_of(spec[0], fit.input_names, origin, "input")[0].shape
    rank = len(fit.input_shapes[0] or ())
    if first.rank is None:
        raise UserError(f"{origin} has elements of unknown shape: give them one by set_shape")
    batched = first.rank == rank + 1
    count, size = int(dataset.cardinality()), first[0] if batched else 1
    expected = count * size if count >= 0 and size else None
    static = all(one.shape.is_fully_defined() for one in tf.nest.flatten(spec))
    if not batched and static:
        dataset, batched = dataset.batch(BATCH), True
    return dataset.as_numpy_iterator, batched, expected


def _chunks_of_batches(
    given: keras.utils.PyDataset, workers: int, origin: str
) -> tuple[Pass, bool, int | None]:
    try:
        count = len(given)
    except (NotImplementedError, TypeError) as error:
        raise UserError(f"{origin} never ends: give it a __len__") from error

    def batch(number: int) -> Any:
        try:
            return given[number]
        except Exception as error:  # the user's code may raise anything
            raise UserError(
                f"{origin}: batch {number} can't be read ({type(error).__name__}: {error})"
            ) from error

    return lambda: in_threads(batch, range(count), workers), True, None


# ---------------------------------------------------------------- by index


def _from_index(given: Any, fit: Fit, memory: Memory, workers: int, origin: str) -> Split:
    count = len(given)
    if not count:
        raise UserError(f"{origin} is empty")
    parser = _Parser(fit, origin, check_labels=True)
    reader = Reader(given, parser.example, workers, origin)
    first = reader.one(0)
    places = np.unique(np.linspace(0, count - 1, min(count, TWICE)).astype(int))
    passes = [[_hashes(leaves)[0] for leaves in reader.all(places)] for _ in range(2)]
    check_repeats(passes[0] == passes[1], origin)
    if memory.take(count * sum(leaf.nbytes for leaf in first)):
        whole = [np.empty((count, *leaf.shape[1:]), leaf.dtype) for leaf in first]
        for place, leaves in enumerate(reader.all(range(count))):
            _put(whole, leaves, slice(place, place + 1), origin, fit)
        return Split(*parser.trees(whole))
    columns = [Column(reader, number, leaf) for number, leaf in enumerate(first)]
    inputs, targets, weights = parser.trees(columns)
    if len(fit.outputs) == 1 and first[len(fit.input_names)].shape == (1,):
        targets = _labels(given, reader, len(fit.input_names), places, first)
    return Indexed(inputs, targets, weights, reader=reader)


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
    print(f"{reader.origin}: reading {count} examples for their labels", flush=True)
    column = Column(reader, number, like)
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
                checked_labels(target, output, f"the {name} split of {caller}")
                largest = max(largest, int(target.max()))
    if len(fit.outputs) != 1 or fit.outputs[0].kind != CLASSES:
        return ()
    return tuple(map(str, range(fit.outputs[0].classes or largest + 1)))
