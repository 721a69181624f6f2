"""One example, or a chunk of them, as a Python user gives it: (inputs, targets[, weights])."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..utils.errors import UserError
from .checks import (
    checked_inputs,
    checked_labels,
    checked_targets,
    checked_weights,
    form_of,
    is_batch,
)
from .dataset import Split, Tree
from .fit import Fit


class Parser:
    """Takes (inputs, targets[, weights]) apart into leaves and checks them.

    Attributes:
      forms: how the targets of the first element are written, as `checks.form_of` says.
      weighted: whether the last element had weights.
    """

    def __init__(self, fit: Fit, origin: str, *, check_labels: bool = False):
        self.fit, self.origin = fit, origin
        self.forms: tuple[str, ...] = ()
        self.weighted = False
        self._check_labels = check_labels

    def raw(self, element: Any) -> list[np.ndarray]:
        """Leaves of inputs, targets and weights, as they are.

        Raises:
          UserError: no tuple of two or three, or as `leaves_of`.
        """
        if not isinstance(element, (tuple, list)) or len(element) not in (2, 3):
            pair = ", ".join(self.fit.words)
            raise UserError(f"{self.origin} has elements {_brief(element)}: ({pair}) is expected")
        inputs, targets, weights = (*element, None)[:3]
        fit, names = self.fit, self.fit.output_names
        leaves = inputs_of(inputs, fit, self.origin)
        answers = leaves_of(targets, names, self.origin, "output")
        leaves = [as_array(leaf, self.origin) for leaf in (*leaves, *answers)]
        self.weighted = weights is not None
        if self.weighted:
            given = weights_of(weights, names, self.origin)
            several = is_batch(leaves[0].shape, fit.input_shapes[0])
            count = [len(leaves[0])] if several else []
            leaves += [
                np.ones(count, np.float32) if one is None else as_array(one, self.origin)
                for one in given
            ]
        return leaves

    def checked(self, leaves: list[np.ndarray]) -> list[np.ndarray]:
        """The leaves [k, ...] as the network gets them.

        Raises:
          UserError: as the functions of `checks`.
        """
        fit, origin = self.fit, self.origin
        count = len(fit.input_names)
        inputs = [
            checked_inputs(leaf, shape, origin, fit)
            for leaf, shape in zip(leaves[:count], fit.input_shapes, strict=True)
        ]
        given = list(zip(leaves[count:], fit.outputs, strict=False))
        if not self.forms:
            self.forms = tuple(form_of(leaf, output, origin, fit) for leaf, output in given)
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

    def split(self, columns: list[Any]) -> Split:
        """The split of such leaves."""
        return Split(*self.trees(columns), forms=self.forms)

    def trees(self, columns: list[Any]) -> tuple[Tree, Tree, Tree]:
        """Inputs, targets and weights of a split's columns."""
        ends = len(self.fit.input_names), len(self.fit.input_names) + len(self.fit.outputs)
        parts = columns[: ends[0]], columns[ends[0] : ends[1]], columns[ends[1] :]
        inputs, targets, weights = (
            tuple(part) if len(part) > 1 else next(iter(part), None) for part in parts
        )
        return inputs, targets, weights


def inputs_of(value: Any, fit: Fit, origin: str) -> list[Any]:
    """The arrays of all inputs, in the network's order.

    Raises:
      UserError: several for a network that was never built, or as `leaves_of`.
    """
    parts = isinstance(value, (Mapping, tuple, list)) and len(value) > 1
    if parts and fit.input_shapes == (None,):
        each = value.values() if isinstance(value, Mapping) else value
        shapes = [getattr(one, "shape", None) for one in each]
        examples = isinstance(value, list) and all(one == shapes[0] for one in shapes)
        if all(one is not None for one in shapes) and not examples:
            raise UserError(
                f"{origin} has {len(value)} inputs for a network that was never called, so that "
                "nobody knows them: call it on a batch first, model(x)"
            )
    return leaves_of(value, fit.input_names, origin, "input")


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
            remedy = "; give zeros for one without a loss" if missing and noun == "output" else ""
            raise UserError(f"{origin} has {problem}: {wanted}{remedy}")
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


def hashes(leaves: list[np.ndarray]) -> list[bytes]:
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


def kind_of(value: Any) -> str:
    """A value's type in words."""
    length = f" of {len(value)}" if isinstance(value, tuple | list) else ""
    return f"a {type(value).__name__}{length}"


def as_array(value: Any, origin: str) -> np.ndarray:
    """A value of any library as an array, not copied where it needn't be.

    Raises:
      UserError: it is none, such as a list of arrays of several sizes.
    """
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
