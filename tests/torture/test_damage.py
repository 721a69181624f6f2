"""Run folders in which one file is empty, cut, garbage or another run's: refused by a line that
names a file, or without effect."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from ekg_tf.pruning.knowledge.bank import MANIFEST
from ekg_tf.utils.runfiles import checksum

from tests.torture.killer import KILLED, At, run
from tests.torture.record import note
from tests.torture.test_kills import SETTINGS, compare, start, words

__all__ = ["start"]

pytestmark = pytest.mark.slow

HOW = ("empty", "half", "garbage", "other")
TUNE = "--train_epoch 1 --gpu_id cpu --do_log off".split()


@pytest.fixture(scope="module")
def searched(start, tmp_path_factory) -> Path:
    """A finished search with a memory bank."""
    folder = tmp_path_factory.mktemp("searched") / "run"
    ended = run(words("ekg", folder, start), folder.with_name("log"))
    assert ended.code == 0, ended.output
    return folder


@pytest.fixture(scope="module")
def other(start, tmp_path_factory) -> Path:
    """Another search of the same network."""
    folder = tmp_path_factory.mktemp("other") / "run"
    argv = words("ekg", folder, start) + ["--search_seed", "1"]
    ended = run(argv, folder.with_name("log"))
    assert ended.code == 0, ended.output
    return folder


def spoil(path: Path, how: str, other: Path) -> bool:
    """Spoils a file; returns whether it is another one now."""
    before = path.read_bytes()
    content = {
        "empty": b"",
        "half": before[: len(before) // 2],
        "garbage": np.random.default_rng(0).bytes(max(16, len(before))),
    }.get(how)
    if content is None:
        content = (other / path.name).read_bytes() if (other / path.name).exists() else before
    path.write_bytes(content)
    return content != before


@pytest.mark.parametrize("how", HOW)
def test_fine_tuning_of_a_damaged_search(how, searched, other, tmp_path, request):
    refused, harmless, untouched = [], [], []
    for path in sorted(searched.iterdir()):
        copy, tuned = tmp_path / path.name / "search", tmp_path / path.name / "run"
        shutil.copytree(searched, copy)
        if not spoil(copy / path.name, how, other):
            untouched.append(path.name)
            continue
        argv = ["finetune", "--search_path", str(copy), "--train_path", str(tuned), *TUNE]
        ended = run(argv, tmp_path / "log")
        if ended.code == 0:
            harmless.append(path.name)
        else:
            lines = [one for one in ended.output.splitlines() if one.startswith("error: ")]
            assert ended.code == 2 and len(lines) == 1, (path.name, ended.output)
            assert "Traceback" not in ended.output and not tuned.exists(), path.name
            refused.append(path.name)
        shutil.rmtree(tmp_path / path.name)
    needed = {"baseline.keras", "search_start.keras", "search_pruned.keras", "search.json"}
    needed |= {"bank.npy", "bank.json"}
    assert needed - set(untouched) <= set(refused)
    figures = {"files": len(refused) + len(harmless), "refused": len(refused)}
    note(request.config, "damage", f"fine-tuning, {how}", figures | {"harmless": harmless})


@pytest.mark.parametrize("how", HOW)
def test_resuming_a_damaged_search(how, start, searched, other, tmp_path, request):
    """Killed before its end, one file spoilt, and gone on with: refused, or the same in the end."""
    killed = tmp_path / "killed"
    ended = run(words("ekg", killed, start), tmp_path / "log", at=At(name=MANIFEST))
    assert ended.code == KILLED, ended.output
    refused, same = [], []
    for path in sorted(killed.iterdir()):
        copy = tmp_path / "copy"
        shutil.copytree(killed, copy)
        if path.is_file() and spoil(copy / path.name, how, other):
            ended = run(words("ekg", copy, start), tmp_path / "log")
            if ended.code == 0:
                compare("ekg", copy, searched)
                same.append(path.name)
            else:
                lines = [one for one in ended.output.splitlines() if one.startswith("error: ")]
                assert ended.code == 2 and len(lines) == 1, (path.name, ended.output)
                refused.append(path.name)
        shutil.rmtree(copy)
    assert refused, "something of it is needed"
    figures = {"files": len(refused) + len(same), "refused": len(refused), "harmless": same}
    note(request.config, "damage", f"resumed search, {how}", figures)


def test_sealed_files_are_known(searched):
    """The checksums in files.json are those of the files."""
    files = json.loads((searched / "files.json").read_text())["files"]
    sealed = {name: known for name, known in files.items() if known}
    assert {"search_pruned.keras", "bank.npy"} <= sealed.keys()
    assert all(checksum(searched / name) == known for name, known in sealed.items())
    assert "--search_target_rate" in SETTINGS
