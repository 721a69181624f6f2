"""Data from a function of the user's, "module:function" on the command line."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import traceback
from types import ModuleType
from typing import Any

from ..options.data import Data
from ..utils.errors import USERS, UserError, words_of
from .dataset import Split
from .elements import kind_of
from .fit import Fit, Shape
from .given_data import DEFAULT, read


def call(
    spec: str, fit: Fit | Shape, options: Data = DEFAULT
) -> tuple[Split, Split, tuple[str, ...]]:
    """Calls a function of the user's, without arguments, for the two splits.

    The function is found as Python finds modules, the current folder first. It returns
    `(train, test)`, each of them as `given_data.read` takes them.

    Args:
      fit: what the network takes and gives; a shape (height, width, channels) alone means a
        classifier of such inputs.

    Returns:
      As `checked`.

    Raises:
      UserError: no such module or function, an exception in it, or another result than described.
    """
    return checked(_called(spec), fit, spec, options)


def checked(
    splits: Any, fit: Fit | Shape, spec: str, options: Data = DEFAULT
) -> tuple[Split, Split, tuple[str, ...]]:
    """The two splits that a user's function returned; see `given_data.read`.

    Args:
      fit: as of `call`. spec: for messages.

    Raises:
      UserError: no pair, or as `given_data.read`.
    """
    if not isinstance(splits, tuple | list) or len(splits) != 2:
        raise UserError(f"{spec} returned {kind_of(splits)}: a pair (train, test) is expected")
    fit = fit if isinstance(fit, Fit) else Fit.of_images(tuple(fit))
    return read(*splits, fit, options, spec)


def _called(spec: str):
    module_name, _, function_name = spec.partition(":")
    module = import_module(
        module_name, f"folder and no Python module {module_name} for the data {spec}"
    )
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UserError(f"{module.__file__} has no function {function_name!r} for the data {spec}")
    try:
        inspect.signature(function).bind()
    except TypeError:
        raise UserError(f"{spec} asks for arguments: it is called without any") from None
    try:
        return function()
    except USERS as error:
        raise UserError(f"{spec} failed: {_where(error)}") from error


def import_module(name: str, missing: str = "") -> ModuleType:
    """Imports a module of the user's as Python finds it, the current folder first.

    Args:
      missing: what there isn't then, in words.

    Raises:
      UserError: there is none, or importing it fails.
    """
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name in (name, name.split(".")[0]):
            raise UserError(
                f"there is no {missing or f'Python module {name}'}: work in the folder where the "
                "module is, or give that folder by PYTHONPATH"
            ) from None
        raise UserError(f"{name} can't be imported: {_where(error)}") from error
    except USERS as error:
        raise UserError(f"{name} can't be imported: {_where(error)}") from error


def _where(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{words_of(error)} ({frame.filename}, line {frame.lineno})"
