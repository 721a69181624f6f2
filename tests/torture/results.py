"""What a run has left, as content that can be compared."""

import io
import zipfile
from pathlib import Path

import h5py
import numpy as np


def weights(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a .keras file by their place in it."""
    arrays = {}

    def take(name, entry):
        if isinstance(entry, h5py.Dataset):
            arrays[name] = entry[()]

    with zipfile.ZipFile(path) as archive:
        data = io.BytesIO(archive.read("model.weights.h5"))
    with h5py.File(data) as file:
        file.visititems(take)
    return arrays
