"""What lies in the folder of a run: the names of its files, and how they are read and verified."""

from __future__ import annotations

import hashlib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from . import jsonl
from .errors import UserError

MANIFEST = "files.json"  # what the run has written, and checksums of what is read again
FORMAT = 1  # of a run folder
_BLOCK = 1 << 24  # bytes of a file that are digested at a time
_PHASES = ("baseline", "supernet", "search", "bank", "finetune")
_SUFFIXES = (".json", ".npy", ".keras", "_*.npy", "_*.npz", "_*.f32", "_*.keras")

# What is read of these files: keys without which they are damaged.
NEEDED = {
    "search.json": ("flops", "parameters", "val_loss", "front"),
    "result.json": ("before", "after"),
    "bank.json": ("kind", "shapes", "complete", "dataset_fingerprint"),
    "metrics.jsonl": ("phase", "epoch", "seconds"),
}

BASELINE = "baseline.keras"  # the network as given or trained, before everything
START = "search_start.keras"  # theta_0, with which the search begins
SUPERNET_ORDER = "supernet_order.npz"  # the channels' order, with which a supernet begins
CARD = "README.md"  # the model card, which its user may change
COMMANDS = "commands.json"  # by which the run was made
EXPORTED = "pruned.keras"  # the result
PRUNED = "search_pruned.keras"  # theta*, before its fine-tuning
REPORT = "report.html"
KNOWN = (
    "args.json",
    "versions.json",
    MANIFEST,
    COMMANDS,
    "result.json",
    REPORT,
    CARD,
    *(phase + suffix for phase in _PHASES for suffix in _SUFFIXES),
    "history.jsonl",
    "metrics.jsonl",
    "trained_param.pkl",
    "pruned.keras",
    "widths.png",
    "search_curve.png",
    "search_front.png",
    "training_curves.png",
    "potential.jsonl",
    "potential.json",
    "potential.png",
    "claim.json",
    "tensorboard/*/events.out.tfevents.*",
)


def front_file(rate: float) -> str:
    """Name of the network that a search keeps on its way at a rate that was asked for."""
    return f"search_pruned_{rate:g}.keras"


def is_known(name: str) -> bool:
    """Whether a name is one that a run gives to a file in its folder, never a way out of it."""
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\\" in name:
        return False
    return any(len(parts) == pattern.count("/") + 1 and fnmatch(name, pattern) for pattern in KNOWN)


def read_file(path: Path, name: str) -> dict[str, Any]:
    """The object of a JSON file in a run folder, with what is needed of it.

    Raises:
        UserError: missing or damaged.
    """
    return jsonl.read_json(path / name, *NEEDED.get(name, ()))


def read_manifest(path: Path) -> dict[str, str | None]:
    """{file: its checksum, once it is sealed} of a run folder.

    Raises:
        UserError: none, damaged, of another version of this program, or with names that are no
            run's.
    """
    file = path / MANIFEST
    if not file.exists():
        raise UserError(
            f"{path} holds a run of an older version, without {MANIFEST}: go on with that version, "
            "or give another folder"
        )
    content = jsonl.read_json(file)
    files = content.get("files")
    if not isinstance(files, dict) or content.get("format") != FORMAT:
        raise UserError(f"{file} is damaged or of another version: give another folder")
    if wrong := [name for name in files if not is_known(name)]:
        raise UserError(f"{file} names {wrong[0]!r}, which is no file of a run: it is damaged")
    return files


def verify(path: Path, *names: str) -> None:
    """Compares files of a run folder with their checksums, where they have some.

    Raises:
        UserError: a file that isn't what was written, or is missing.
    """
    files = read_manifest(path)
    for name in names:
        known = files.get(name)
        if known is not None and checksum(path / name) != known:
            raise UserError(
                f"{path / name} is damaged: it is not what the run has written; put the file back, "
                "or run that phase again in another folder"
            )


def checksum(path: Path) -> str:
    """sha256 (hex) of a file.

    Raises:
        UserError: missing or unreadable.
    """
    found = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                found.update(block)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    return found.hexdigest()
