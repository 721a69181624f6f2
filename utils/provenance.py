"""What a run was made with: versions, machine and git commit."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

PROGRAM = "ekg-tf"
_PACKAGES = ("tensorflow", "keras", "numpy")


def cores() -> set[int]:
    """Numbers of the CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def cpu_count() -> int:
    """How many `cores` there are."""
    return len(cores())


def digest(arrays: Iterable[np.ndarray]) -> str:
    """sha256 (hex) of the arrays in order, with their types and shapes."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.dtype.str}{array.shape}".encode())
        found.update(np.ascontiguousarray(array))
    return found.hexdigest()


def in_cores(count: int) -> str:
    """How it reads: 1 core, 2 cores."""
    return f"{count} core{'' if count == 1 else 's'}"


def versions() -> dict[str, Any]:
    """Versions, platform, cores, GPU names and git commit, as plain values.

    `gpus` is null when TensorFlow is not imported yet, `git` when there is no commit to name.
    """
    return {
        "program": PROGRAM,
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "cpu_count": cpu_count(),
        "gpus": _gpus(),
        "git": git_state(Path(__file__).resolve().parents[1]),
    }


def installed(packages: Iterable[str]) -> dict[str, str | None]:
    """The versions of further packages; None for one that is not installed."""
    return {name: _version(name) for name in packages}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gpus() -> list[str] | None:
    tf = sys.modules.get("tensorflow")
    if tf is None:
        return None
    gpus = tf.config.get_visible_devices("GPU")
    details = tf.config.experimental.get_device_details
    return [details(gpu).get("device_name", gpu.name) for gpu in gpus]


def git_state(root: Path) -> dict[str, Any] | None:
    """{"commit": hash, "dirty": bool} of the repository at `root`.

    None without git, without a commit, or when `root` only lies inside another repository.
    """
    top = _git(root, "rev-parse", "--show-toplevel")
    commit = _git(root, "rev-parse", "--verify", "HEAD")
    if not top or not commit or Path(top).resolve() != root.resolve():
        return None
    return {"commit": commit, "dirty": bool(_git(root, "status", "--porcelain"))}


def _git(root: Path, *command: str) -> str | None:
    try:
        result = subprocess.run(
            ["git", "-C", str(root), *command], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None
