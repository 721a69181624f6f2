"""Whole networks as .keras files, written atomically; read in Keras's safe mode, HDF5 as well."""

from __future__ import annotations

import io
import json
import math
import os
import threading
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from . import limits
from .errors import UserError, line_of
from .files import atomic_write, is_file

CONFIG, WEIGHTS = "config.json", "model.weights.h5"  # in a .keras file
DEEPEST = 64  # groups of a weights file inside one another
_COUNTING = threading.RLock()  # for one file at a time is counted

HUB = "hf://"  # of Keras: a network on the Hugging Face hub
HDF5 = (".h5", ".hdf5")  # whole networks as Keras 2 wrote them
NETWORKS = (".keras", *HDF5)
_SHAPE = "model_config"  # attribute of an HDF5 file that holds a whole network


def save_keras(path: str | os.PathLike, model: Any) -> None:
    """Writes architecture and weights as a .keras file, atomically.

    Raises UserError when `path` does not end in .keras.
    """
    if Path(path).suffix != ".keras":
        raise UserError(f"{path}: a network is saved as a .keras file, change the suffix")
    atomic_write(path, lambda temporary: model.save(temporary))


def load_keras(path: str | os.PathLike, *, compile: bool = True) -> Any:
    """The Keras model of a file or hf://USER/NAME, in safe mode (no code from it is run).

    Files are .keras, or HDF5 (.h5, .hdf5) as Keras 2 wrote whole networks.

    Layers of our own must have been imported (registered) before. With `compile` it is compiled as
    it was saved.
    Raises UserError when the file is missing, damaged, larger in memory than `utils.limits` allows,
    or not a network that this program knows.
    """
    import keras

    if is_on_hub(path):
        return _from_hub(str(path), compile)
    path = Path(path)
    if path.is_dir():
        raise UserError(
            f"{path} is a folder: give a {' or '.join(NETWORKS[:2])} file; a SavedModel has no "
            "layers that could be read"
        )
    if not is_file(path):
        raise UserError(f"{path} does not exist")
    try:
        _check_sizes(path)
        with warnings.catch_warnings(), _counted(path):
            # A network that is only looked at needs no optimizer's state.
            warnings.filterwarnings("ignore", "Skipping variable loading for optimizer")
            return keras.models.load_model(path, compile=compile, safe_mode=True)
    except UserError:
        raise
    except Exception as error:  # zipfile, h5py, json and keras each raise their own
        line = line_of(error)
        problem = f"{path} is not a network that can be loaded: {line}"
        if "`Lambda` layer" in line:
            problem = (
                f"{path} holds code (a Lambda layer), which isn't run out of a file: if you trust "
                "it, open it in Python by keras.models.load_model(path, safe_mode=False) and give "
                "the network to ekg_tf.prune"
            )
        elif (version := _version(path)).startswith("2."):
            problem = (
                f"{path} was written by Keras {version}, which Keras 3 doesn't open: open it there "
                "(package tf_keras) and save it as .h5"
            )
    try:
        with _counted(path):
            keras.models.load_model(path, compile=False, safe_mode=True)
    except UserError:
        raise
    except Exception:  # so it isn't what it was compiled with
        raise UserError(problem) from None
    raise UserError(
        f"{path} can be loaded, but not what it was compiled with ({line}): save it again with "
        "a loss, metrics and an optimizer of Keras's, or uncompiled"
    )


def is_on_hub(path: str | os.PathLike) -> bool:
    """Whether a path is Keras's way to name a network on the Hugging Face hub."""
    return str(path).startswith(HUB)


def _from_hub(path: str, compile: bool) -> Any:
    """What keras.Model.save("hf://USER/NAME") has written there.

    Raises:
        UserError: huggingface_hub isn't installed, there is no network or no such model.
    """
    import keras

    try:
        return keras.models.load_model(path, compile=compile, safe_mode=True)
    except ImportError:
        problem = "it needs the package huggingface_hub: pip install huggingface_hub"
    except Exception as error:  # huggingface_hub, httpx and keras each raise their own
        problem = line_of(error).removeprefix("Got: ")
    raise UserError(
        f"{path} can't be read from the Hugging Face hub ({problem}); a file on this machine comes "
        "as .keras"
    ) from None


def check_weights_file(path: str | os.PathLike, file: BinaryIO | None = None) -> None:
    """Refuses an HDF5 file whose arrays take too much memory, or lie in other files.

    Args:
        path: of the file, or of the archive that `file` is from.

    Raises:
        UserError: as said, or no HDF5 file.
    """
    import h5py

    def sizes(group: h5py.Group, place: str = "", depth: int = 0) -> Iterator[int]:
        if depth > DEEPEST:
            raise UserError(f"{path} holds groups inside groups without end")
        for name in group:
            inside = f"{place}/{name}"
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise UserError(f"{path} was refused: {inside} is a link, perhaps out of the file")
            one = group[name]
            if isinstance(one, h5py.Group):
                yield from sizes(one, inside, depth + 1)
            elif one.is_virtual or one.external:
                raise UserError(f"{path} was refused: {inside} lies in another file")
            else:
                yield math.prod(one.shape or ()) * one.dtype.itemsize

    try:
        with h5py.File(file or path, "r") as content:
            limits.check(sum(sizes(content)), path)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged or no weights file: {error}") from error


def _check_sizes(path: Path) -> None:
    """Reads the directory of a file and the shapes in its weights, not the arrays.

    Raises:
        UserError: too much memory, or weights alone.
    """
    if path.suffix in HDF5:
        _check_hdf5(path)
        return
    limits.check_zip(path)
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if CONFIG in names:
            _check_config(archive.getinfo(CONFIG).file_size, path)
        if WEIGHTS in names:
            check_weights_file(path, io.BytesIO(archive.read(WEIGHTS)))


def _check_hdf5(path: Path) -> None:
    import h5py

    check_weights_file(path)
    with h5py.File(path, "r") as content:
        shape = content.attrs.get(_SHAPE)
    if shape is None:
        raise UserError(f"{path} holds weights alone: save the whole network, by model.save()")
    _check_config(len(shape), path)


def _check_config(size: int, path: Path) -> None:
    limits.check(size, path, share=limits.CONFIG, what="has a configuration that takes")


def _version(path: Path) -> str:
    """Of the Keras that wrote a .keras file; "" if it doesn't say."""
    try:
        with zipfile.ZipFile(path) as archive:
            return str(json.loads(archive.read("metadata.json"))["keras_version"])
    except (OSError, zipfile.BadZipFile, ValueError, LookupError, TypeError):
        return ""


@contextmanager
def _counted(path: Path) -> Iterator[None]:
    """Inside, layers whose weights together take more than a file may unpack to are refused when
    they ask for them: a configuration of a few bytes names any number of units."""
    import keras

    with _COUNTING:
        yield from _with_counter(keras.Layer, path)


def _with_counter(layers: Any, path: Path) -> Iterator[None]:
    add, taken = layers.add_weight, 0
    problems: list[UserError] = []

    def counted(layer: Any, shape: Any = None, *args: Any, **options: Any) -> Any:
        nonlocal taken
        sizes = (shape,) if isinstance(shape, int) else tuple(shape or ())
        taken += 4 * math.prod(int(size) for size in sizes if size is not None)
        try:
            limits.check(taken, path)
        except UserError as error:  # Keras may wrap it in an error of its own
            problems.append(error)
            raise
        return add(layer, shape, *args, **options)

    try:
        layers.add_weight = counted
        yield
    except Exception:
        if problems:
            raise problems[0] from None
        raise
    finally:
        layers.add_weight = add
