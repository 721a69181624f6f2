"""Trees: what a network takes or gives, one tensor alone or a tuple of several.

A tensor here may be anything: a tensor, an array, a KerasTensor, None.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any


def tree_of(parts: Iterable[Any]) -> Any:
    """One part as it is, several (or none) as a tuple."""
    parts = tuple(parts)
    return parts[0] if len(parts) == 1 else parts


def parts_of(tree: Any) -> tuple:
    """The parts of a tree in their order, at least one."""
    return tuple(tree) if isinstance(tree, tuple | list) else (tree,)


def mapped(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """The tree of what the function gives for each part (and the others' parts beside it).

    Parts that are None in the first tree stay None.
    """
    if not isinstance(tree, tuple | list):
        return None if tree is None else function(tree, *others)
    beside = zip(tree, *others, strict=True)
    return tuple(None if one is None else function(one, *rest) for one, *rest in beside)


def rows_of(tree: Any, rows: slice) -> Any:
    """The same rows of every part; its parts' first axis is that of the examples."""
    return mapped(lambda one: one[rows], tree)
