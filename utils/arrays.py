"""Named arrays on the disk: restricted pickles are read, .npz states read and written."""

from __future__ import annotations

import importlib
import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .errors import UserError
from .files import atomic_write, read_bytes

Arrays = dict[str, np.ndarray]

_BUILTINS = "dict list tuple set frozenset str bytes bytearray int float bool complex".split()
_ADMITTED = {
    ("collections", "OrderedDict"): ("collections", "OrderedDict"),
    # bytes inside a protocol-2 pickle written by Python 3 are stored as a call of this
    ("_codecs", "encode"): ("_codecs", "encode"),
    ("numpy", "ndarray"): ("numpy", "ndarray"),
    ("numpy", "dtype"): ("numpy", "dtype"),
    **{
        (f"numpy.{core}.{module}", name): (f"numpy._core.{module}", name)
        for core in ("core", "_core")
        for module, name in (
            ("multiarray", "_reconstruct"),
            ("multiarray", "scalar"),
            ("numeric", "_frombuffer"),
        )
    },
    **{
        (module, name): ("builtins", name)
        for module in ("builtins", "__builtin__")
        for name in _BUILTINS
    },
}


# ---------------------------------------------------------------- pickles


class _RestrictedUnpickler(pickle.Unpickler):
    def __init__(self, data: bytes, name: str, encoding: str):
        super().__init__(io.BytesIO(data), encoding=encoding)
        self.file_name = name

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise UserError(
                f"{self.file_name} was refused: it asks for {module}.{name}, but a pickle may "
                "hold only numpy arrays and plain containers here"
            )
        module, name = _ADMITTED[module, name]
        return getattr(importlib.import_module(module), name)


def restricted_load(file: str | os.PathLike | BinaryIO, *, encoding: str = "ASCII") -> Any:
    """Unpickles a path or binary file object that holds only numpy data and plain containers.

    `encoding` is for the byte strings of Python-2 pickles ("bytes" leaves them as they are);
    where the default, "ASCII", does not fit, "latin1" is used, which numpy's arrays need.
    Raises UserError, before anything is run, for any other class or function, and for a
    missing or damaged file.
    """
    if isinstance(file, (str, os.PathLike)):
        name, data = str(file), read_bytes(file)
    else:
        name, data = str(getattr(file, "name", "the pickle")), file.read()
    try:
        try:
            return _RestrictedUnpickler(data, name, encoding).load()
        except UnicodeDecodeError:
            if encoding != "ASCII":
                raise
            return _RestrictedUnpickler(data, name, "latin1").load()
    except UserError:
        raise
    except Exception as error:  # a damaged pickle raises almost anything
        raise UserError(f"{name} is not a complete pickle file: {error}") from error


# ---------------------------------------------------------------- states (.npz)


def save_state(path: str | os.PathLike, state: Arrays) -> None:
    """Writes named arrays of any plain dtype as an .npz file, atomically.

    Raises TypeError for object arrays and for dtypes that .npz loses (bfloat16).
    """
    arrays = {key: np.asanyarray(value) for key, value in state.items()}
    for key, array in arrays.items():
        if array.dtype.kind in "OV":
            raise TypeError(f"{key}: dtype {array.dtype} cannot be kept in an .npz file")

    def write(temporary: Path) -> None:
        # not np.savez: a key named "file" would clash with its first argument
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for key, array in arrays.items():
                with archive.open(f"{key}.npy", "w", force_zip64=True) as entry:
                    np.lib.format.write_array(entry, array, allow_pickle=False)

    atomic_write(path, write)


def load_state(path: str | os.PathLike) -> Arrays:
    """The arrays of an .npz file by name; raises UserError when it is missing or damaged."""
    data = read_bytes(path)
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except Exception as error:  # numpy and zipfile raise many kinds here
        raise UserError(f"{path} is damaged or not an .npz file: {error}") from error
