"""The official CIFAR files: the binary and the Python version, as a folder or as an archive.

Source: https://www.cs.toronto.edu/~kriz/cifar.html. A binary record is one label byte (CIFAR-100:
coarse, then fine) and 3072 bytes of pixels, channel by channel; the Python version pickles
a dict of the same pixels and a list of labels per file. Any number of records will do.
"""

from __future__ import annotations

import io
import lzma
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..utils import limits
from ..utils.arrays import restricted_load
from ..utils.errors import UserError
from ..utils.files import read_bytes
from .dataset import Split, make_split

PIXEL_BYTES = 3 * 32 * 32


@dataclass(frozen=True)
class Layout:
    """How one of the two data sets is laid out in its files."""

    train_files: tuple[str, ...]
    test_file: str
    label_bytes: int
    label_key: bytes
    num_classes: int
    folders: tuple[str, str]  # binary, Python


LAYOUTS = {
    "CIFAR10": Layout(
        train_files=tuple(f"data_batch_{k}" for k in range(1, 6)),
        test_file="test_batch",
        label_bytes=1,
        label_key=b"labels",
        num_classes=10,
        folders=("cifar-10-batches-bin", "cifar-10-batches-py"),
    ),
    "CIFAR100": Layout(
        train_files=("train",),
        test_file="test",
        label_bytes=2,
        label_key=b"fine_labels",
        num_classes=100,
        folders=("cifar-100-binary", "cifar-100-python"),
    ),
}


def find_folder(name: str, path: Path) -> Path | None:
    """The folder with official files: `path` itself or one of the official names in it."""
    layout = LAYOUTS[name]
    for folder in (path, *(path / child for child in layout.folders)):
        if any((folder / file).is_file() for file in _file_names(layout)):
            return folder
    return None


def read_folder(name: str, folder: Path) -> tuple[Split, Split]:
    """Reads (train, test) from a folder that find_folder returned.

    Raises:
      UserError: a missing, truncated, foreign or mislabelled file, named in the message.
    """
    wanted = _file_names(LAYOUTS[name])
    present = [folder / file for file in wanted if (folder / file).is_file()]
    return _read_files(name, {path.name: read_bytes(path) for path in present}, folder)


def read_archive(name: str, archive: Path) -> tuple[Split, Split]:
    """Reads (train, test) from an official .tar.gz (or .tar, .tar.xz), without unpacking it.

    Raises:
      UserError: not a readable archive, or as in read_folder.
    """
    wanted = _file_names(LAYOUTS[name])
    blobs = {}
    try:
        with tarfile.open(archive) as members:
            taken = 0
            for member in members:
                taken += member.size
                limits.check(taken, archive)
                if member.isfile() and Path(member.name).name in wanted:
                    blobs[Path(member.name).name] = members.extractfile(member).read()
    except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError) as error:
        raise UserError(
            f"{archive} is not a complete tar archive ({error}): download it again"
        ) from error
    if not blobs:
        raise UserError(f"{archive} holds none of the official {name} files ({wanted[0]}, ...)")
    return _read_files(name, blobs, archive)


def _file_names(layout: Layout) -> list[str]:
    stems = (*layout.train_files, layout.test_file)
    return [stem + suffix for suffix in (".bin", "") for stem in stems]


def _read_files(name: str, blobs: dict[str, bytes], origin: Path) -> tuple[Split, Split]:
    layout = LAYOUTS[name]
    binary = any(file.endswith(".bin") for file in blobs)

    def read(stem: str) -> Split:
        file = stem + (".bin" if binary else "")
        where = f"{origin}/{file}"
        if file not in blobs:
            raise UserError(f"{where} is missing: download or unpack {name} again")
        parse = _parse_binary if binary else _parse_pickle
        pixels, labels = parse(blobs[file], layout, where)
        # Stored channel by channel; the network wants channels last.
        images = np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        return make_split(images, labels, layout.num_classes, where)

    parts = [read(stem) for stem in layout.train_files]
    images = np.concatenate([part.inputs for part in parts])
    labels = np.concatenate([part.targets for part in parts])
    return Split(images, labels), read(layout.test_file)


def _parse_binary(blob: bytes, layout: Layout, where: str) -> tuple[np.ndarray, np.ndarray]:
    record_bytes = layout.label_bytes + PIXEL_BYTES
    if len(blob) % record_bytes:
        raise UserError(
            f"{where} is truncated or of another format: {len(blob)} bytes are not a multiple of "
            f"the {record_bytes} bytes of a record: download it again"
        )
    records = np.frombuffer(blob, np.uint8).reshape(-1, record_bytes)
    return records[:, layout.label_bytes :], records[:, layout.label_bytes - 1]


def _parse_pickle(blob: bytes, layout: Layout, where: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        # Written by Python 2: its strings come out as bytes.
        content = restricted_load(io.BytesIO(blob), encoding="bytes")
        pixels = np.asarray(content[b"data"])
        labels = np.asarray(content[layout.label_key])
    except UserError as error:
        raise UserError(f"{where}: {error}; download it again") from error
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{where} is not an official CIFAR file ({error!r}): download it again"
        ) from error
    if pixels.dtype != np.uint8 or pixels.shape[1:] != (PIXEL_BYTES,):
        raise UserError(
            f"{where}: data is {pixels.dtype} {list(pixels.shape)} instead of uint8 "
            f"[n, {PIXEL_BYTES}]: download it again"
        )
    if (labels.size and labels.dtype.kind not in "iu") or labels.ndim != 1:
        raise UserError(
            f"{where}: labels are {labels.dtype} {list(labels.shape)} instead of whole numbers "
            "[n]: download it again"
        )
    return pixels, labels
