"""Disks that become full: one line, and the same command ends as if nothing had been once there is
room. Needs a small file system of its own, which root alone can mount."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ekg_tf.utils.runfiles import REPORT

from tests.torture.killer import run
from tests.torture.record import note
from tests.torture.test_kills import compare, start, words

__all__ = ["start"]

pytestmark = pytest.mark.slow

BANK = ("--bank", "full")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, Callable[[int], None]]]:
    """A small disk, and a function that makes it so many KiB large."""
    place = tmp_path / "disk"
    place.mkdir()

    def resize(kib: int) -> None:
        command = ["mount", "-o", f"remount,size={kib}k", str(place)]
        subprocess.run(command, check=True, capture_output=True)

    command = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    yield place, resize
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("log", ["off", "on"])
def test_full_disk_and_then_room(log, disk, start, tmp_path, request):
    place, resize = disk
    whole = tmp_path / "whole"
    # A bank that must be in files: else a disk that is nearly full gets one that isn't.
    ended = run([*words("prune", whole, start), *BANK], tmp_path / "log")
    assert ended.code == 0, ended.output
    folder, lines = place / "run", []
    # Without the report, which a run can do without: that there is no room for it is only said.
    files = [one for one in whole.rglob("*") if one.is_file() and one.name != REPORT]
    size = sum(one.stat().st_size for one in files) // 1024
    report = (whole / REPORT).stat().st_size // 1024
    for kib in (16, size // 6, size // 3, size // 2, (size * 4) // 5):
        resize(max(16, kib))
        ended = run([*words("prune", folder, start), *BANK, "--do_log", log], tmp_path / "log")
        found = [one for one in ended.output.splitlines() if one.startswith("error: ")]
        assert ended.code == 2 and len(found) == 1, (kib, ended.output)
        assert "Traceback" not in ended.output
        lines += found
    resize(8 * size + report)
    ended = run([*words("prune", folder, start), *BANK, "--do_log", log], tmp_path / "log")
    assert ended.code == 0, ended.output
    shutil.rmtree(folder / "tensorboard", ignore_errors=True)
    compare("prune", folder, whole)
    figures = {"full": len(lines), "different": 0}
    note(request.config, "disk", f"TensorBoard {log}", figures)
