"""Whole networks as .keras files: written atomically, read in Keras's safe mode."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

from .errors import UserError
from .files import atomic_write

HUB = "hf://"  # of Keras: a network on the Hugging Face hub


def save_keras(path: str | os.PathLike, model: Any) -> None:
    """Writes architecture and weights as a .keras file, atomically.

    Raises UserError when `path` does not end in .keras.
    """
    if Path(path).suffix != ".keras":
        raise UserError(f"{path}: a network is saved as a .keras file, change the suffix")
    atomic_write(path, lambda temporary: model.save(temporary))


def load_keras(path: str | os.PathLike, *, compile: bool = True) -> Any:
    """The Keras model of a .keras file or hf://USER/NAME, in safe mode (no code from it is run).

    Layers of our own must have been imported (registered) before. With `compile` it is compiled as
    it was saved.
    Raises UserError when the file is missing, damaged, or not a network that this program knows.
    """
    import keras

    if is_on_hub(path):
        return _from_hub(str(path), compile)
    if not Path(path).is_file():
        raise UserError(f"{path} does not exist")
    try:
        with warnings.catch_warnings():
            # A network that is only looked at needs no optimizer's state.
            warnings.filterwarnings("ignore", "Skipping variable loading for optimizer")
            return keras.models.load_model(path, compile=compile, safe_mode=True)
    except Exception as error:  # zipfile, h5py, json and keras each raise their own
        lines = str(error).strip().splitlines() or [type(error).__name__]
        problem = f"{path} is not a network that can be loaded: {lines[0]}"
    try:
        keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception:  # so it isn't what it was compiled with
        raise UserError(problem) from None
    raise UserError(
        f"{path} can be loaded, but not what it was compiled with ({lines[0]}): save it again with "
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
        problem = (str(error).strip().splitlines() or [type(error).__name__])[0].removeprefix(
            "Got: "
        )
    raise UserError(
        f"{path} can't be read from the Hugging Face hub ({problem}); a file on this machine comes "
        "as .keras"
    ) from None
