"""Named arrays on the disk: restricted pickles are read, .npz states read and written."""

from __future__ import annotations

import collections
import io
import math
import os
import pickle
import pickletools
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from . import limits
from .errors import UserError
from .files import atomic_write, read_bytes

Arrays = dict[str, np.ndarray]

KINDS = "biufcSUO"  # of arrays that a pickle may hold: numbers, strings, lists of anything plain


# ---------------------------------------------------------------- pickles


class _Dtype:
    """Stands for numpy.dtype: a plain one, whose state can't make its elements larger."""

    def __init__(self, code: Any, align: Any = False, copy: Any = False):
        self.dtype = np.dtype(_text(code))
        if self.dtype.kind not in KINDS:
            raise UserError(f"it holds an array of {self.dtype}, not of numbers or strings")

    def __setstate__(self, state: Any) -> None:
        order = _text(state[1])
        if order in "<>":
            self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """Stands for numpy.ndarray: made empty, then filled by a state whose parts agree."""

    value: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self.value = _array(data, dtype, shape, "F" if fortran else "C")


class _NumpyClass:
    """Stands for the name numpy.ndarray, which a pickle gives to what makes an array."""


def _reconstruct(kind: Any, shape: Any, code: Any) -> _Array:
    return _Array()


def _array(data: Any, dtype: Any, shape: Any, order: Any = "C") -> np.ndarray:
    plain = dtype.dtype if isinstance(dtype, _Dtype) else _Dtype(dtype).dtype
    sizes = tuple(int(size) for size in shape)
    if plain.kind == "O":
        if not isinstance(data, list) or math.prod(sizes) != len(data):
            raise UserError(f"it holds an array {sizes} of objects without as many")
        objects = np.empty(len(data), object)
        objects[:] = data
        return objects.reshape(sizes, order=_text(order))
    raw = data.encode("latin1") if isinstance(data, str) else bytes(data)
    if min(sizes, default=0) < 0 or math.prod(sizes) * plain.itemsize != len(raw):
        raise UserError(f"it holds an array {sizes} of {plain} with {len(raw)} bytes")
    flat = np.frombuffer(bytearray(raw), plain) if plain.itemsize else np.zeros(sizes, plain)
    return flat.reshape(sizes, order=_text(order))


def _scalar(dtype: Any, data: Any = b"") -> Any:
    return _array(data, dtype, (1,))[0]


def _encoded(text: str, encoding: str = "latin1") -> bytes:
    if _text(encoding).replace("-", "") not in ("latin1", "utf8", "ascii"):
        raise UserError(f"it asks for the codec {encoding}")
    return text.encode(encoding)


def _text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


def _sized(kind: type) -> Any:
    def make(*values: Any) -> Any:
        if values and isinstance(values[0], int):
            raise UserError(f"it asks for {values[0]} empty bytes")
        return kind(*values)

    return make


_PLAIN = (dict, list, tuple, set, frozenset, str, int, float, bool, complex)
_ADMITTED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    # bytes inside a protocol-2 pickle written by Python 3 are stored as a call of this
    ("_codecs", "encode"): _encoded,
    ("numpy", "ndarray"): _NumpyClass,
    ("numpy", "dtype"): _Dtype,
    **{
        (f"numpy.{core}.{module}", name): stand_in
        for core in ("core", "_core")
        for module, name, stand_in in (
            ("multiarray", "_reconstruct", _reconstruct),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _array),
        )
    },
    **{
        (module, name): kind
        for module in ("builtins", "__builtin__")
        for name, kind in (
            *((one.__name__, one) for one in _PLAIN),
            ("bytes", _sized(bytes)),
            ("bytearray", _sized(bytearray)),
        )
    },
}


def _check_operations(data: bytes) -> None:
    """Refuses what takes memory that the file itself doesn't fill, before anything is made of it.

    Python's unpickler makes room for a memo of any number and an array of any length that it is
    told; `genops` compares the lengths with what is there.
    """
    for operation, argument, _ in pickletools.genops(data):
        if operation.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument > len(data):
            raise UserError(f"it asks for {argument} remembered objects")


class _RestrictedUnpickler(pickle.Unpickler):
    """Admits plain containers and stand-ins of numpy's classes; nothing of numpy's own is called
    with what a file says."""

    def __init__(self, data: bytes, name: str, encoding: str):
        super().__init__(io.BytesIO(data), encoding=encoding)
        self.file_name = name

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise UserError(
                f"it asks for {module}.{name}, but a pickle may hold only numpy arrays and plain "
                "containers here"
            )
        return _ADMITTED[module, name]


def _filled(value: Any, seen: dict[int, Any]) -> Any:
    """The value with arrays in place of what stands for them, in containers as deep as they go."""
    if isinstance(value, _Array):
        if value.value is None:
            raise UserError("it holds an array without a content")
        return value.value
    if isinstance(value, _Dtype):
        return value.dtype
    if id(value) in seen:
        return seen[id(value)]
    if isinstance(value, dict):
        seen[id(value)] = found = type(value)()
        found.update((key, _filled(one, seen)) for key, one in value.items())
        return found
    if isinstance(value, list):
        seen[id(value)] = found = []
        found.extend(_filled(one, seen) for one in value)
        return found
    if isinstance(value, tuple):
        seen[id(value)] = found = tuple(_filled(one, seen) for one in value)
        return found
    return value


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
        _check_operations(data)
        try:
            return _filled(_RestrictedUnpickler(data, name, encoding).load(), {})
        except UnicodeDecodeError:
            if encoding != "ASCII":
                raise
            return _filled(_RestrictedUnpickler(data, name, "latin1").load(), {})
    except UserError as error:
        raise UserError(f"{name} was refused: {error}") from None
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
    """The arrays of an .npz file by name; raises UserError when it is missing, damaged, or larger
    in memory than `limits` allows."""
    data = read_bytes(path)
    try:
        limits.check_zip(path, io.BytesIO(data))
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for entry in archive.infolist():
                _check_header(archive, entry)
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}
    except UserError:
        raise
    except Exception as error:  # numpy and zipfile raise many kinds here
        raise UserError(f"{path} is damaged or not an .npz file: {error}") from error


def _check_header(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    """That an array is as long as its header says: NumPy takes memory by the header."""
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0
        if version != (1, 0):
            read = np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        left = entry.file_size - file.tell()
    if math.prod(shape) * dtype.itemsize != left:
        raise ValueError(f"{entry.filename} says {shape} of {dtype} and holds {left} bytes")
