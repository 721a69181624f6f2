"""Folders of ImageNet's layout: which files, which labels.

Accepted: train/<class>/ with val/<class>/, train/<class>/ with a flat val/ and a label file, and a
single folder <class>/ of which a share is held out for testing, if that is asked for. A class is a
WordNet id (n01440764), but any folder names will do; classes are numbered in alphabetical order.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ..utils.errors import UserError
from ..utils.files import read_bytes
from .image_files import SUFFIXES, Listing, opened, reader
from .imagenet import FileSplit

HOLD_OUT_SEED = 0

Files = list[tuple[str, int]]  # name relative to the folder, label


def read(
    folder: Path, *, val_labels: Path | None = None, hold_out: float | None = None
) -> tuple[FileSplit, FileSplit, tuple[str, ...]]:
    """Lists the images of a folder and opens each once; none is kept.

    Args:
      val_labels: labels of a flat val/, see `_labelled`.
      hold_out: share of a single folder's images to test on, above 0 and below 1.

    Returns:
      (train, test, class names); examples are ordered by class, then by file name.

    Raises:
      UserError: an image that can't be read, no such layout, empty classes, classes of train and
        val that differ, a label file that does not fit, or an option for another layout.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist or is no folder: {_accepted()}")
    if not (folder / "train").is_dir():
        return _single(folder, val_labels, hold_out)
    if hold_out is not None:
        raise UserError(f"{folder} has a train folder: leave hold_out out, val is tested on")
    if not (folder / "val").is_dir():
        raise UserError(f"{folder} has a folder train, but none called val: {_accepted()}")
    names = _classes(folder / "train")
    train = _by_class(folder, "train", names)
    found = [entry.name for entry in _entries(folder / "val") if entry.is_dir()]
    if val_labels is not None:
        if found:
            raise UserError(f"{folder}/val has a folder per class: leave val_labels out")
        test = _labelled(folder, val_labels, names)
    else:
        _check_same(folder, names, found)
        test = _by_class(folder, "val", names)
    return *_splits(folder, train, test), names


def _accepted() -> str:
    return (
        "ImageNet comes as a folder with train/<class>/ and val/<class>/, with train/<class>/ and "
        "a flat val/ (val_labels names the file of its labels), or with <class>/ alone (hold_out "
        "is the share to test on)"
    )


def _single(folder: Path, val_labels: Path | None, hold_out: float | None) -> tuple:
    names = _classes(folder)
    if val_labels is not None:
        raise UserError(f"{folder} has no folders train and val: leave val_labels out")
    if hold_out is None:
        raise UserError(
            f"{folder} has no folder train: if its folders are classes, say by hold_out "
            "(such as 0.1) which share of the images to keep for testing"
        )
    files = _by_class(folder, "", names)
    order = np.random.default_rng(HOLD_OUT_SEED).permutation(len(files))
    held_out = round(hold_out * len(files))
    if not 0 < held_out < len(files):
        raise UserError(f"hold_out {hold_out} of {len(files)} images leaves one part empty")
    parts = [[files[i] for i in np.sort(part)] for part in (order[held_out:], order[:held_out])]
    return *_splits(folder, *parts), names


def _entries(folder: Path) -> list[os.DirEntry]:
    """What a folder holds, sorted by name, without hidden files."""
    with os.scandir(folder) as entries:
        return sorted((e for e in entries if e.name[0] != "."), key=lambda e: e.name)


def _classes(folder: Path) -> tuple[str, ...]:
    names = tuple(entry.name for entry in _entries(folder) if entry.is_dir())
    if len(names) < 2:
        raise UserError(f"{folder} holds {len(names)} class folders: {_accepted()}")
    return names


def _by_class(folder: Path, split: str, names: tuple[str, ...]) -> Files:
    listing = Listing(folder)
    for label, name in enumerate(names):
        relative = f"{split}/{name}" if split else name
        if not listing.add(relative, label):
            raise UserError(f"{folder / relative} holds no images ({', '.join(SUFFIXES)})")
    listing.say_skipped()
    return list(zip(listing.names, listing.labels, strict=True))


def _check_same(folder: Path, train: tuple[str, ...], val: list[str]) -> None:
    if not val and Listing(folder).add("val", 0):
        raise UserError(f"{folder}/val has no folder per class: give its labels by val_labels")
    missing, extra = sorted(set(train) - set(val)), sorted(set(val) - set(train))
    if missing or extra:
        problems = [
            f"{len(found)} only in {split} ({', '.join(found[:3])}{', ...' * (len(found) > 3)})"
            for split, found in (("train", missing), ("val", extra))
            if found
        ]
        raise UserError(
            f"the class folders of {folder}/train and {folder}/val differ: {'; '.join(problems)}"
        )


def _labelled(folder: Path, path: Path, names: tuple[str, ...]) -> Files:
    """The images of a flat val/, ordered by class, then by file name.

    A line of the label file is `<class>` for the images in alphabetical order, or `<file> <class>`
    or `<file> <number>` in any order; numbers count the classes alphabetically from 0.
    """
    listing = Listing(folder)
    listing.add("val", 0)
    images = [Path(name).name for name in listing.names]
    lines = [line.split() for line in read_bytes(path).decode("utf-8", "replace").splitlines()]
    lines = [line for line in lines if line]
    if len(lines) != len(images):
        raise UserError(f"{path} has {len(lines)} labels for the {len(images)} images in val")
    if all(len(line) == 1 for line in lines):
        if all(line[0].isdigit() and line[0] not in names for line in lines):
            raise UserError(
                f"{path} holds numbers alone, and there are several numberings of ImageNet: give "
                "the WordNet ids, or lines `<file> <number from 0 in alphabetical order>`"
            )
        lines = [[name, *line] for name, line in zip(images, lines, strict=True)]
    number = {name: label for label, name in enumerate(names)}
    files = {}
    for place, line in enumerate(lines, 1):
        if len(line) != 2 or line[0] not in images or line[0] in files:
            raise UserError(
                f"{path}, line {place}: {' '.join(line)[:80]!r} does not name an image in val and "
                "its class, or names it again"
            )
        label = number.get(line[1], int(line[1]) if line[1].isdigit() else -1)
        if not 0 <= label < len(names):
            raise UserError(f"{path}, line {place}: {line[1]!r} is no class of {folder}/train")
        files[line[0]] = (f"val/{line[0]}", label)
    listing.say_skipped()
    return sorted(files.values(), key=lambda file: (file[1], file[0]))


def _splits(folder: Path, *parts: Files) -> list[FileSplit]:
    """The splits, once every image of all of them has been opened."""
    odd = [opened(folder, [name for name, _ in part]) for part in parts]
    return [_split(folder, part, one) for part, one in zip(parts, odd, strict=True)]


def _split(folder: Path, files: Files, odd: np.ndarray) -> FileSplit:
    names, labels = zip(*files, strict=True)
    return FileSplit(
        names=list(names),
        sizes=np.array([os.path.getsize(folder / name) for name in names], np.int64),
        targets=np.array(labels, np.int32),
        read=reader(folder, names, odd),
        folder=str(folder),
    )
