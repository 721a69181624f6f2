"""What examples must be like: a network's inputs, its targets and their weights.

Arrays come whole or in chunks; `form` is how the targets of the first chunk were written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..options.kinds import CLASSES, COLUMN, LABELS, ONE_HOT, PLAIN, SOFT
from ..utils.errors import UserError
from .dataset import blocks
from .fit import Fit, Output, Shape


class TargetError(UserError):
    """Targets that don't fit what the network is taken to give."""


LARGEST_WHOLE = 2**24  # above it float32 leaves whole numbers out
SUM = 1e-3  # how far probabilities may add up to something else than 1


def checked_inputs(array: np.ndarray, shape: Shape | None, origin: str, fit: Fit) -> np.ndarray:
    """Inputs as the network gets them: uint8 as they are, all else float32.

    A last axis of size 1 may be missing or too many, as where Keras calls a functional network.

    Args:
      array: [n, ...]. shape: of one example; None in it: any size. origin: for messages.

    Raises:
      UserError: another shape, text or the like, NaN, whole numbers above 2**24.
    """
    if shape is not None and not fits(array.shape[1:], shape):
        adapted = _with_last_axis(array.shape[1:], shape)
        if not fits(adapted, shape):
            raise UserError(_misshapen(array.shape[1:], shape, origin, fit))
        array = array.reshape(len(array), *adapted)
    if array.dtype == np.uint8:
        return array
    noun = f"{fit.words[0]}s"
    if array.dtype.kind in "iub":
        if array.dtype.kind != "b" and array.dtype.itemsize > 2:
            far = blocks(array, lambda rows: np.abs(rows).max(initial=0) > LARGEST_WHOLE)
            if any(far):
                raise UserError(
                    f"{origin} has {noun} above {LARGEST_WHOLE}, which float32 can't hold: number "
                    "them from 0"
                )
        return array.astype(np.float32)
    if any(isinstance(one, str | bytes) for one in array.flat[:1]):
        raise UserError(
            f"{origin} has text: call the layers that read it (TextVectorization, StringLookup) on "
            "the data, and give the network behind them"
        )
    if array.dtype.kind != "f":
        raise UserError(f"{origin} has {array.dtype} {noun}: real numbers are expected")
    _finite(array, noun, origin)
    return array.astype(np.float32, copy=False)


def form_of(array: np.ndarray, output: Output, origin: str, fit: Fit) -> str:
    """How targets are written, by the names in `options.kinds`.

    Args:
      array: [n, ...].

    Raises:
      UserError: classes that are neither whole numbers, nor one-hot, nor probabilities.
    """
    if output.kind != CLASSES:
        return PLAIN
    try:
        form = _form_of_classes(array, output, origin, fit)
        _check_places(_places(array, form), output, origin, fit)
    except TargetError:
        if output.free:
            return PLAIN
        raise
    return form


def _form_of_classes(array: np.ndarray, output: Output, origin: str, fit: Fit) -> str:
    rank = _rank(array, output)
    whole = array.dtype.kind in "iuf" and all(blocks(array, _whole))
    if array.ndim == rank + 1 and array.shape[-1] == 1 and whole and output.classes != 1:
        return COLUMN  # as keras.datasets gives them
    if array.ndim == rank + 1 and array.dtype.kind in "biuf":
        if all(blocks(array, one_hot)):
            return ONE_HOT
        wide = output.classes is None or array.shape[-1] == output.classes
        if (output.shape or output.labels is False) and wide and all(blocks(array, _probabilities)):
            return SOFT
    if array.ndim == rank and whole:
        return LABELS
    _in_range(array, origin)
    sizes = output.shape[:-1] if output.shape else ("...",) * (rank > 1)
    per = ", ".join(["n", *("any" if size is None else str(size) for size in sizes)])
    raise TargetError(
        f"{origin} has {array.dtype} {fit.words[1]}s of shape {array.shape}: integers [{per}], or "
        "rows of zeros with a single one, are expected"
    )


def _rank(array: np.ndarray, output: Output) -> int:
    """The number of axes of the labels, as whole numbers, of all examples."""
    if output.shape or output.labels is None:
        return len(output.shape) if output.shape else 1
    row = not output.labels or array.shape[-1:] == (1,)
    return max(array.ndim - row, 1)


def checked_targets(
    array: np.ndarray, form: str, output: Output, origin: str, fit: Fit
) -> np.ndarray:
    """Targets as the losses get them: classes int32 [n] or [n, h, w], else float32 [n, ...].

    Args:
      array: [n, ...]. form: as `form_of` says of them or of the first of them.

    Raises:
      UserError: another shape than the network's output, NaN, text, other forms than the first.
    """
    if form == PLAIN:
        return _plain(array, output, origin, fit)
    if form_of(array, output, origin, fit) != form:
        raise UserError(
            f"{origin} has {fit.words[1]}s of several kinds: all of them whole numbers, one-hot or "
            "probabilities"
        )
    if form == SOFT:
        return array.astype(np.float32, copy=False)
    if form == ONE_HOT:
        array = np.concatenate(blocks(array, lambda rows: rows.argmax(-1).astype(np.int32)))
    elif form == COLUMN:
        array = array[..., 0]
    return array.astype(np.int32, copy=False)


def _places(array: np.ndarray, form: str) -> tuple[int, ...]:
    """The shape of an example's targets without the axis of classes."""
    return array.shape[1:] if form == LABELS else array.shape[1:-1]


def _check_places(found: tuple[int, ...], output: Output, origin: str, fit: Fit) -> None:
    wanted = None if output.shape is None else output.shape[:-1]
    if wanted is not None and not fits(found, wanted):
        raise TargetError(_misshapen(found, wanted, origin, fit, "gives"))


def checked_labels(array: np.ndarray, output: Output, origin: str) -> int:
    """The largest label of int32 [n, ...], those aside that the output's loss leaves out.

    Raises:
      UserError: labels outside the output's classes, or none that count.
    """

    def range_of(rows: np.ndarray) -> tuple[int, int] | None:
        if output.ignored is not None and rows.ndim > 1:
            rows = rows[rows != output.ignored]
        return (int(rows.min()), int(rows.max())) if rows.size else None

    found = [one for one in blocks(array, range_of) if one is not None]
    if not found:
        raise TargetError(f"{origin}: all labels are {output.ignored}, which the loss leaves out")
    least, most = min(low for low, _ in found), max(high for _, high in found)
    classes = output.classes
    if least < 0 or (classes is not None and most >= classes):
        wrong = least if least < 0 else most
        place = next(k for k in range(len(array)) if (array[k] == wrong).any())
        limit = f"0..{classes - 1}" if classes else "0 and up"
        hint = "number the classes from 0"
        if classes and least >= 0:
            hint = f"the network tells {classes} classes apart, numbered from 0"
        if array.ndim > 1 and output.ignored is None:
            hint += "; where it stands for what is left out, give a loss with ignore_class"
        raise TargetError(f"{origin}: label {wrong} of example {place} is outside {limit}: {hint}")
    return most


def checked_weights(array: np.ndarray, target: np.ndarray, origin: str) -> np.ndarray:
    """Sample weights float32 [n] or as the leading axes of the target.

    Raises:
      UserError: another shape, a negative or infinite weight.
    """
    if array.ndim > 1 and array.shape[-1] == 1 and array.shape != target.shape[: array.ndim]:
        array = array[..., 0]
    if array.dtype.kind not in "biuf" or array.shape != target.shape[: array.ndim]:
        raise UserError(
            f"{origin} has {array.dtype} sample weights of shape {array.shape} for targets of "
            f"shape {target.shape}: a number for each example is expected"
        )
    weights = array.astype(np.float32, copy=False)
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise UserError(f"{origin} has sample weights that are negative, NaN or infinite")
    return weights


def fits(shape: Sequence[int | None], wanted: Shape) -> bool:
    """Whether a shape is the wanted one, None in it being any size."""
    return len(shape) == len(wanted) and all(
        size is None or size == found for found, size in zip(shape, wanted, strict=True)
    )


def is_batch(shape: Sequence[int | None], wanted: Shape | None) -> bool:
    """Whether inputs of a shape are several examples, not one of the wanted shape.

    Args:
      shape: None in it: not known. wanted: None: not known, a number is taken to be an example.
    """
    shape, wanted = tuple(shape), wanted or ()
    readings = [(False, shape), (True, shape[1:])]
    readings += [(several, _with_last_axis(one, wanted)) for several, one in readings]
    found = [several for several, one in readings if _may_fit(one, wanted)]
    return found[0] if found else len(shape) > len(wanted)


def _may_fit(shape: Sequence[int | None], wanted: Shape) -> bool:
    known = [size if found is None else found for found, size in zip(shape, wanted, strict=False)]
    return len(shape) == len(wanted) and fits(known, wanted)


def _with_last_axis(shape: Sequence[int | None], wanted: Shape) -> tuple[int | None, ...]:
    """An example's shape with a last axis of size 1 put in or taken off, where only that makes it
    as long as the wanted one."""
    if wanted[-1:] == (1,) and len(shape) + 1 == len(wanted):
        return (*shape, 1)
    if tuple(shape[-1:]) == (1,) and len(shape) == len(wanted) + 1:
        return tuple(shape[:-1])
    return tuple(shape)


def one_hot(rows: np.ndarray) -> bool:
    """Whether rows [..., classes] are zeros with a single one."""
    return bool(np.isin(rows, (0, 1)).all() and (rows.sum(-1) == 1).all())


def _probabilities(rows: np.ndarray) -> bool:
    return bool((rows >= 0).all() and np.abs(rows.sum(-1) - 1).max(initial=0) < SUM)


def _whole(rows: np.ndarray) -> bool:
    """Whether they are whole numbers that int32 holds."""
    if rows.dtype.kind in "iu" and rows.dtype.itemsize < 4:
        return True
    small = rows.max(initial=0) < 2**31 and rows.min(initial=0) >= -(2**31)
    return bool(small and (rows.dtype.kind in "iu" or (rows == np.floor(rows)).all()))


def _in_range(array: np.ndarray, origin: str) -> None:
    """Refuses whole numbers that no class has, such as -1 in an unsigned type."""
    if array.dtype.kind not in "iu" or all(blocks(array, _whole)):
        return
    wrong = max(blocks(array, np.max))
    place = next(k for k in range(len(array)) if (array[k] == wrong).any())
    raise TargetError(
        f"{origin}: label {wrong} of example {place} is no class, perhaps a negative number in an "
        "unsigned type: number the classes from 0"
    )


def _plain(array: np.ndarray, output: Output, origin: str, fit: Fit) -> np.ndarray:
    shape = output.shape
    if shape is not None and not fits(array.shape[1:], shape):
        if shape[-1:] == (1,) and fits(array.shape[1:], shape[:-1]):
            array = array[..., None]  # numbers [n] for a unit that gives [n, 1]
        elif not output.free:
            raise TargetError(_misshapen(array.shape[1:], shape, origin, fit, "gives"))
    if array.dtype.kind not in "biuf":
        raise UserError(f"{origin} has {array.dtype} targets: numbers are expected")
    if array.dtype.kind == "f":
        _finite(array, "targets", origin)
    if output.kind == "sigmoids":
        wrong = [low for low in blocks(array, np.min) if low < 0]
        wrong += [high for high in blocks(array, np.max) if high > 1]
        if wrong:
            raise UserError(
                f"{origin} has targets such as {wrong[0]:g} for output {output.name}, which gives "
                "probabilities: 0 to 1 are expected"
            )
    return array.astype(np.float32, copy=False)


def _finite(array: np.ndarray, noun: str, origin: str) -> None:
    if not all(blocks(array, lambda rows: bool(np.isfinite(rows).all()))):
        raise UserError(f"{origin} has {noun} with NaN or infinite values: clean the data")


def _misshapen(found: Any, shape: Shape, origin: str, fit: Fit, verb: str = "takes") -> str:
    found, hint = tuple(found), ""
    if (*found, 1) == shape:
        hint = " (array[..., None])"
    elif verb == "takes" and len(shape) == 3 and found == (shape[2], *shape[:2]):
        hint = " (channels come last: array.transpose(0, 2, 3, 1))"
    elif verb == "takes" and fits(found[1:], shape):
        hint = " (one example each; a keras.utils.PyDataset gives batches)"
    noun = f"{fit.words[0]}s" if verb == "takes" else f"{fit.words[1]}s"
    return f"{origin} has {noun} of shape {found}: the network {verb} {shape}{hint}"
