"""Streams of examples: `tf.data.Dataset` and `keras.utils.PyDataset`, read once and kept.

Examples are sorted by a hash of their content, so that shuffling does not matter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ..utils.errors import USERS, UserError, without_place, words_of
from .checks import is_batch
from .dataset import Split
from .elements import Parser, check_repeats, hashes, inputs_of, leaves_of
from .fit import Fit
from .indexed import DEVICE, in_threads
from .store import Memory, Store

BATCH = 64  # examples of a stream that are taken at a time
TWICE = 64  # examples that are read a second time

# One pass over a stream: its elements, whether they are batches, and how many examples are expected
Pass = Callable[[], Iterator[Any]]


def from_stream(
    elements: Pass, batched: bool, expected: int | None, fit: Fit, memory: Memory, origin: str
) -> Split:
    """All examples of a stream, sorted by content: in memory, or else in a scratch folder.

    Args:
      elements: makes a pass over the stream; it is called twice. batched: whether its elements are
        batches. expected: how many examples it has, where that is known.

    Raises:
      UserError: no example, sizes that differ, other examples in the second pass, a disk that is
        full, or as `Parser`.
    """
    store = Store(memory, origin)
    try:
        return _stored(elements, batched, expected, fit, store, origin)
    except BaseException:
        store.discard()
        raise


def _stored(
    elements: Pass, batched: bool, expected: int | None, fit: Fit, store: Store, origin: str
) -> Split:
    parser, found = Parser(fit, origin), []
    shapes: set[tuple[int, ...]] = set()
    for leaves in _chunks(elements, batched, parser):
        shapes.add(leaves[0].shape[1:])
        if len(shapes) > 1:
            raise UserError(
                f"{origin} has sizes {sorted(shapes)}: all {fit.words[0]}s must be of the "
                "network's size"
            )
        found += hashes(leaves)
        store.append(parser.checked(leaves), expected)
    if not found:
        raise UserError(f"{origin} has no {fit.words[0]} at all")
    known, seen = set(found), 0
    for leaves in _chunks(elements, batched, parser):
        check_repeats(all(one in known for one in hashes(leaves)), origin)
        seen += len(leaves[0])
        if seen >= TWICE:
            break
    order = np.argsort(np.array(found, "S16"), kind="stable")
    return parser.split(store.columns(order))


def _chunks(elements: Pass, batched: bool, parser: Parser) -> Iterator[list[np.ndarray]]:
    for element in _read(elements, parser.origin):
        leaves = parser.raw(element)
        yield leaves if batched else [leaf[None] for leaf in leaves]


def _read(elements: Pass, origin: str) -> Iterator[Any]:
    """A pass over a stream; says of whatever it raises that it is the user's."""
    stream = iter(elements())
    while True:
        try:
            element = next(stream, stream)
        except UserError:
            raise
        except USERS as error:
            raise UserError(f"{origin} fails while it is read ({_cause(error)})") from error
        if element is stream:
            return
        yield element


def _cause(error: BaseException) -> str:
    """What went wrong in a stream, without TensorFlow's words around it."""
    text = getattr(error, "message", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    own = [line for line in lines if re.match(r"[A-Za-z_.]*(Error|Exception|SystemExit)\b", line)]
    if not own:
        return without_place(lines[0]) if lines else words_of(error)
    return without_place(own[-1])


def of_dataset(dataset: tf.data.Dataset, fit: Fit, origin: str) -> tuple[Pass, bool, int | None]:
    """The first arguments of `from_stream`.

    Raises:
      UserError: other elements than tuples of two or three, or no end.
    """
    spec = dataset.element_spec
    if not isinstance(spec, tuple) or len(spec) not in (2, 3):
        raise UserError(f"{origin} has elements {spec}: ({', '.join(fit.words)}) is expected")
    if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise UserError(f"{origin} never ends: leave out its .repeat()")
    leaves = inputs_of(spec[0], fit, origin)
    leaves += leaves_of(spec[1], fit.output_names, origin, "output")
    for leaf in leaves:
        if not isinstance(leaf, tf.TensorSpec):
            raise UserError(
                f"{origin} has elements with {type(leaf).__name__.removesuffix('Spec').lower()} in "
                "place of a tensor: give dense tensors of one size"
            )
    shapes = [leaf.shape for leaf in leaves]
    if any(shape.rank is None for shape in shapes):  # as numpy_function leaves it
        element = next(_read(dataset.as_numpy_iterator, origin), None)
        if element is None:
            raise UserError(f"{origin} has no {fit.words[0]} at all")
        shapes = [tf.TensorShape(leaf.shape) for leaf in Parser(fit, origin).raw(element)]
    first, target = shapes[0], shapes[len(fit.input_names)]
    if fit.input_shapes[0] is None:  # of batches both sides begin with their size
        batched = bool(first.rank and target.rank) and first[:1].is_compatible_with(target[:1])
    else:
        batched = is_batch(first.as_list(), fit.input_shapes[0])
    count, size = int(dataset.cardinality()), first[0] if batched else 1
    expected = count * size if count >= 0 and size else None
    static = all(one.shape.is_fully_defined() for one in tf.nest.flatten(spec))
    if not batched and static:
        dataset, batched = dataset.batch(BATCH), True
    return dataset.as_numpy_iterator, batched, expected


def of_batches(
    given: keras.utils.PyDataset, workers: int, origin: str
) -> tuple[Pass, bool, int | None]:
    """The first arguments of `from_stream`; several batches are read at once.

    Raises:
      UserError: it has no length.
    """
    try:
        count = len(given)
    except (NotImplementedError, TypeError) as error:
        raise UserError(f"{origin} never ends: give it a __len__") from error

    def batch(number: int) -> Any:
        try:
            with tf.device(DEVICE):
                return given[number]
        except USERS as error:
            raise UserError(
                f"{origin}: batch {number} can't be read ({words_of(error)})"
            ) from error

    return lambda: in_threads(batch, range(count), workers), True, None
