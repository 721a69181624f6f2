"""Reading and writing weights: restricted pickles, .npz states, .keras networks.

The .pkl layout is the one of the paper's released networks: a dict of float32 arrays keyed
`<layer name, "/" for "_">/<variable>:0`. A layer `BasicBlock0.0_conv1` gives
`BasicBlock0.0/conv1/kernel:0` (HWIO); batch norms give gamma, beta, moving_mean and
moving_variance of shape [1, 1, 1, C]; a bias is called `biases`, [1, N] for a dense layer and
[1, 1, 1, C] for a convolution.
"""

from __future__ import annotations

import importlib
import io
import os
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from utils.cli import UserError
from utils.files import atomic_write, read_bytes

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
_PKL_NAMES = {
    "kernel": "kernel",
    "bias": "biases",
    "biases": "biases",
    "gamma": "gamma",
    "beta": "beta",
    "moving_mean": "moving_mean",
    "moving_variance": "moving_variance",
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


def save_pkl(path: str | os.PathLike, arrays: Arrays) -> None:
    """Writes named arrays as a pickle (protocol 4), atomically."""
    data = pickle.dumps({key: np.asarray(value) for key, value in arrays.items()}, protocol=4)
    atomic_write(path, lambda temporary: temporary.write_bytes(data))


def load_pkl(path: str | os.PathLike) -> Arrays:
    """The float32 arrays of a .pkl of weights by name; keys that are not arrays are dropped.

    Raises UserError when the file is missing, damaged, refused, holds no dict of arrays or an
    array that is not float32.
    """
    loaded = restricted_load(path)
    arrays = {}
    if isinstance(loaded, dict):
        arrays = {str(k): v for k, v in loaded.items() if isinstance(v, np.ndarray)}
    if not arrays:
        raise UserError(f"{path} holds no arrays: expected a dict of named weights")
    for key, array in arrays.items():
        if array.dtype != np.float32:
            raise UserError(f"{path}: {key} is {array.dtype}, expected float32 weights")
    return arrays


# ---------------------------------------------------------------- weights by name


def _leaf_layers(layer: Any) -> Iterator[Any]:
    children = getattr(layer, "layers", None)
    if children is None:
        yield layer
        return
    for child in children:
        yield from _leaf_layers(child)


def _named_variables(model: Any) -> dict[str, tuple[Any, tuple[int, ...]]]:
    """Every weight of the model as {key in the file: (variable, shape in the file)}."""
    named = {}
    for layer in _leaf_layers(model):
        for variable in layer.weights:
            name = _PKL_NAMES.get(variable.name)
            if name is None:
                if variable.trainable:
                    raise UserError(
                        f"layer {layer.name} ({type(layer).__name__}) has a weight "
                        f"{variable.name!r} that the .pkl layout lacks: use a .keras file"
                    )
                continue  # gates and random states are not weights
            key = f"{layer.name.replace('_', '/')}/{name}:0"
            if key in named:
                raise UserError(f"two weights of the network are called {key}: use a .keras file")
            shape = tuple(variable.shape)
            if len(shape) == 1:
                dense = name == "biases" and len(layer.kernel.shape) == 2
                shape = (1, *shape) if dense else (1, 1, 1, *shape)
            named[key] = (variable, shape)
    return named


def to_pkl(model: Any) -> Arrays:
    """The weights of a built Keras model as float32 arrays in the .pkl layout.

    Raises UserError for a trainable weight that the layout has no name for.
    """
    return {
        key: np.asarray(variable, np.float32).reshape(shape)
        for key, (variable, shape) in _named_variables(model).items()
    }


def from_pkl(model: Any, arrays: Arrays, path: str | os.PathLike) -> None:
    """Sets all weights of a built Keras model from arrays in the .pkl layout.

    `path` is only named in messages. Raises UserError, with the model untouched, when a key is
    missing or left over or a shape differs; a vector may carry any number of leading ones.
    """
    named = _named_variables(model)
    missing = [key for key in named if key not in arrays]
    unexpected = [key for key in arrays if key not in named]
    differing = [
        f"{key} {_shape(arrays[key].shape)} instead of {_shape(shape)}"
        for key, (_, shape) in named.items()
        if key in arrays and _core(arrays[key].shape, shape) != _core(shape, shape)
    ]
    problems = [
        f"{len(found)} {what} ({', '.join(found[:3])}{', ...' if len(found) > 3 else ''})"
        for what, found in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", differing),
        )
        if found
    ]
    if problems:
        raise UserError(
            f"{path}: these are weights of another arch or another number of classes: "
            + "; ".join(problems)
        )
    for key, (variable, _) in named.items():
        variable.assign(arrays[key].reshape(variable.shape))


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _core(shape: tuple[int, ...], expected: tuple[int, ...]) -> tuple[int, ...]:
    """The shape, without its leading ones where the expected one is that of a vector."""
    if all(size == 1 for size in expected[:-1]) and all(size == 1 for size in shape[:-1]):
        return shape[-1:]
    return shape


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


# ---------------------------------------------------------------- networks (.keras)


def save_keras(path: str | os.PathLike, model: Any) -> None:
    """Writes architecture and weights as a .keras file, atomically.

    Raises UserError when `path` does not end in .keras.
    """
    if Path(path).suffix != ".keras":
        raise UserError(f"{path}: a network is saved as a .keras file, change the suffix")
    atomic_write(path, lambda temporary: model.save(temporary))


def load_keras(path: str | os.PathLike) -> Any:
    """The uncompiled Keras model of a .keras file, in safe mode (no code from the file is run).

    Layers of our own must have been imported (registered) before. Raises UserError when the
    file is missing, damaged or not a network that this program knows.
    """
    import keras

    if not Path(path).is_file():
        raise UserError(f"{path} does not exist")
    try:
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # zipfile, h5py, json and keras each raise their own
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{path} is not a network that can be loaded: {lines[0]}") from error
