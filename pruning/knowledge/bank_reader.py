"""A finished memory bank, read back for fine-tuning; `bank.py` says what its files hold."""

import os
from pathlib import Path

import numpy as np

from ...options.bank import FULL
from ...utils.errors import UserError
from ...utils.runfiles import read_file
from ...utils.runfolder import RunFolder
from .bank import FEATURES, MANIFEST


def read_manifest(folder: Path) -> dict:
    """bank.json of a finished search; raises UserError where there is none."""
    if not (folder / MANIFEST).exists():
        raise UserError(
            f"{folder} has no memory bank, as after a search without one: fine-tune without it "
            "(plain, kd, or the teacher single), or search with a bank in another folder"
        )
    return read_file(folder, MANIFEST)


def best_teacher(manifest: dict) -> int:
    """Number of the teacher with the lowest loss on D_val; of equal ones the first."""
    return min(enumerate(manifest["teachers"]), key=lambda one: one[1]["val_loss"])[0]


def open_bank(
    folder: RunFolder | os.PathLike, manifest: dict, fingerprint: str
) -> dict[str, np.ndarray]:
    """The finished bank, memory-mapped read-only, as arrays whose row n is of example n.

    Returns:
        A full bank: {"teacher": float16 (plain numbers: float32) [examples, ..., K]}, of several
        outputs "teacher_0", "teacher_1", ... A top-k bank: {"teacher_logits": float16 [examples,
        K, k], "teacher_classes": int16 [examples, K, k], "teacher_rest": float16 [examples, K]}. An
        online bank: nothing.

    Raises:
        UserError: unfinished, of another training set, or not the array that the manifest
            describes.
    """
    names = [name for name in manifest["shapes"] if name != FEATURES]
    found = {}
    for number, name in enumerate(names):
        path = _checked(folder, manifest, fingerprint, name)
        bank = _mapped(path)
        if list(bank.shape) != manifest["shapes"][name] or (bank.dtype.names is None) != (
            manifest["kind"] == FULL
        ):
            raise UserError(
                f"{path} has shape {bank.shape}, its manifest says {manifest['kind']} "
                f"{manifest['shapes'][name]}"
            )
        if manifest["kind"] != FULL:
            return {f"teacher_{part}": bank[part] for part in bank.dtype.names}
        found["teacher" if len(names) == 1 else f"teacher_{number}"] = bank
    return found


def online_masks(
    folder: RunFolder | os.PathLike, manifest: dict, fingerprint: str, num_units: int
) -> list[np.ndarray]:
    """Unit masks, float32 [U + 1], of the teachers of an online bank.

    Raises:
        UserError: of another training set, or units that the network doesn't have.
    """
    _checked(folder, manifest, fingerprint, MANIFEST)
    masks = []
    for teacher in manifest["teachers"]:
        removed = np.asarray(teacher["removed_units"], np.int64)
        if removed.size and not 0 <= removed.min() <= removed.max() < num_units:
            raise UserError(f"{MANIFEST} names filters that the network doesn't have")
        mask = np.ones(num_units + 1, np.float32)
        mask[removed] = 0
        masks.append(mask)
    return masks


def open_features(
    folder: RunFolder | os.PathLike, manifest: dict, fingerprint: str
) -> dict[str, np.ndarray]:
    """The bank's features, memory-mapped read-only: {"features": float16 [examples, width]}.

    Raises:
        UserError: as `open_bank`, or the bank was built without features.
    """
    path = _checked(folder, manifest, fingerprint, FEATURES)
    if not manifest.get("features"):
        raise UserError(
            f"{path} is not there: contrastive fine-tuning needs a search whose bank keeps features"
        )
    features, shape = _mapped(path), tuple(manifest["shapes"][FEATURES])
    if features.shape != shape:
        raise UserError(f"{path} has shape {features.shape}, its manifest says {shape}")
    return {"features": features}


def _checked(folder, manifest: dict, fingerprint: str, name: str) -> Path:
    """Path of one of the bank's arrays, once it is known to be finished and of this data."""
    path = Path(getattr(folder, "path", folder)) / name
    if not manifest["complete"]:
        raise UserError(f"{path} is unfinished: run the search on its folder again")
    if manifest["dataset_fingerprint"] != fingerprint:
        raise UserError(f"{path} belongs to another training set than the one given")
    return path


def _mapped(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot read {path}: {error}; run the search on its folder again"
        ) from None
