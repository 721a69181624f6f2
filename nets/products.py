"""Products of matrices, each as an einsum: which axis of which operand is summed with which.

    keras.ops.matmul(a, b)      a [n, q, x], b [n, x, k]: "Ayx,Axz->Ayz"

A letter that stands on the last axis wherever it stands is one of channels (`Product.channels`).
"""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras

from .keras_graph import Arguments, Call, Einsum, is_op

LEADING = string.ascii_uppercase  # for axes that an equation leaves to "..."
OPERATIONS = frozenset({"Dot", "Einsum", "Matmul", "Tensordot"})


@dataclass(frozen=True)
class Product:
    """One product of two or more operands.

    Attributes:
        sides: a letter for every axis of every operand.
        output: those of the result.
        operands: KerasTensors, or arrays that never change.
    """

    sides: tuple[str, ...]
    output: str
    operands: tuple

    @property
    def channels(self) -> int | None:
        """The first operand, a tensor, whose last letter stands on the last axis wherever it does;
        None without."""
        for number, operand in enumerate(self.operands):
            if isinstance(operand, keras.KerasTensor) and self.runs_over_channels(number):
                return number
        return None

    def runs_over_channels(self, number: int) -> bool:
        """Whether the last letter of an operand stands on a last axis only, and on no array's."""
        last = self.sides[number][-1:]
        arrays = (
            side
            for side, operand in zip(self.sides, self.operands, strict=True)
            if not isinstance(operand, keras.KerasTensor)
        )
        elsewhere = (*(side[:-1] for side in (*self.sides, self.output)), *arrays)
        return bool(last) and not any(last in letters for letters in elsewhere)

    def macs(self, shapes: Sequence[tuple[int, ...]]) -> int:
        """Multiply-accumulates, for operands of these shapes: the sizes of all letters."""
        sizes: dict[str, int] = {}
        for letters, shape in zip(self.sides, shapes, strict=True):
            for letter, size in zip(letters, shape, strict=True):
                sizes[letter] = max(sizes.get(letter, 1), size)
        return math.prod(sizes.values())


def product_of(operation: keras.Operation, arguments: Any) -> Product | None:
    """What a call multiplies, None for any other call, or a form that isn't known.

    Args:
        arguments: all of the call's.
    """
    kind = type(operation)
    if not (kind is keras.layers.Dot or (is_op(operation) and kind.__name__ in OPERATIONS)):
        return None
    operands = tuple(one for one in keras.tree.flatten(arguments) if one is not None)
    if not all(hasattr(one, "shape") for one in operands):
        return None  # numbers in lists
    ranks = [len(one.shape) for one in operands]
    equation = _equation(operation, ranks)
    if equation is None:
        return None
    sides, output = equation
    return Product(tuple(sides), output, operands)


def _equation(operation: keras.Operation, ranks: list[int]) -> tuple[list[str], str] | None:
    if isinstance(operation, Einsum):
        return letters_of(operation.subscripts, ranks)
    if len(ranks) != 2:
        return None
    if isinstance(operation, keras.layers.Dot):
        axes = operation.axes
        if isinstance(axes, int):
            axes = [axes % rank for rank in ranks] if axes < 0 else [axes, axes]
        sides, output = _contracted(ranks, [[axes[0]], [axes[1]]], batch=True)
        return sides, output if len(output) > 1 else f"{output}Z"  # an axis of one number
    if type(operation).__name__ == "Tensordot":
        axes = operation.axes
        if isinstance(axes, int):
            axes = [range(ranks[0] - axes, ranks[0]), range(axes)]
        return _contracted(ranks, [_several(one) for one in axes], batch=False)
    first, second = ranks
    if min(ranks) == 0:
        return None
    if type(operation).__name__ == "Dot":
        return _contracted(ranks, [[first - 1], [max(0, second - 2)]], batch=False)
    left = LEADING[26 - max(0, first - 2) :] + ("yx" if first > 1 else "x")
    right = LEADING[26 - max(0, second - 2) :] + ("xz" if second > 1 else "x")
    leading = max(left[:-2], right[:-2], key=len)
    return [left, right], leading + ("y" if first > 1 else "") + ("z" if second > 1 else "")


def _several(axes: Any) -> list[int]:
    return [axes] if isinstance(axes, int) else list(axes)


def _contracted(ranks: list[int], axes: list[list[int]], *, batch: bool) -> tuple[list[str], str]:
    """Two operands summed over pairs of axes: what is left of the first, then of the second.

    Args:
        batch: the first axes of both are the examples.
    """
    letters = iter(string.ascii_lowercase)
    sides = [[next(letters) for _ in range(rank)] for rank in ranks]
    if batch:
        sides[1][0] = sides[0][0]
    summed = set()
    for a, b in zip(*axes, strict=True):
        sides[1][b] = sides[0][a]
        summed.add(sides[0][a])
    rest = sides[0] + sides[1][1:] if batch else sides[0] + sides[1]
    return ["".join(one) for one in sides], "".join(one for one in rest if one not in summed)


def letters_of(equation: str, ranks: Sequence[int]) -> tuple[list[str], str] | None:
    """An einsum's letters, with some in place of "..." and of an output that isn't written; None if
    they don't fit operands of these ranks."""
    left, arrow, output = equation.replace(" ", "").partition("->")
    sides = left.split(",")
    taken = "." in equation and any(letter in LEADING for letter in equation)
    if len(sides) != len(ranks) or taken:
        return None
    found, longest = [], ""
    for side, rank in zip(sides, ranks, strict=True):
        extra = rank - len(side.replace("...", "")) if "..." in side else 0
        if extra < 0 or len(side.replace("...", "")) + extra != rank:
            return None
        dots = LEADING[26 - extra :]
        longest = max(longest, dots, key=len)
        found.append(side.replace("...", dots))
    if not arrow:
        named = left.replace("...", "").replace(",", "")
        output = longest + "".join(sorted(one for one in set(named) if named.count(one) == 1))
    return found, output.replace("...", longest)


def over_turned(call: Call, makers: dict[int, Call]) -> Call:
    """A product with a turned matrix as one with what was turned, whose channels stay on the last
    axis; any other call as it is.

    Args:
        makers: {id of a KerasTensor: the call that it came of}.
    """
    if not is_op(call.operation) or type(call.operation).__name__ != "Matmul":
        return call
    if len(call.inputs) != 2 or len(keras.tree.flatten(call.values)) != 2:
        return call
    a, b = call.inputs
    rank, turned = len(b.shape), makers.get(id(b))
    alike = a.shape[:-2] == b.shape[:-2] and None not in a.shape[1:-2]
    if not alike or rank < 3 or turned is None or not _turns_the_matrix(turned, rank):
        return call
    leading = LEADING[26 - (rank - 2) :]
    inputs = a, turned.inputs[0]
    operation = Einsum(f"{leading}yx,{leading}zx->{leading}yz", name=call.operation.name)
    return Call(operation, Arguments(inputs), inputs, call.outputs)


def _turns_the_matrix(call: Call, rank: int) -> bool:
    """Whether a call exchanges the last two axes, and no other."""
    operation, kind = call.operation, type(call.operation).__name__
    exchanged = [*range(rank - 2), rank - 1, rank - 2]
    if kind == "Transpose" and is_op(operation):
        axes = operation.axes
        return axes is not None and [axis % rank for axis in axes] == exchanged
    if kind == "Swapaxes":
        return {operation.axis1 % rank, operation.axis2 % rank} == {rank - 2, rank - 1}
    return isinstance(operation, keras.layers.Permute) and [0, *operation.dims] == exchanged
