"""A kill storm: commands killed at random moments and right at changes on disk end as if nothing
had been.

    python -m pytest -m slow -n 0 tests/torture/test_kills.py --kills 100

What is compared is content: arrays, rows and figures, not the bytes of .keras files, in which Keras
writes times and the numbers of objects.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ekg_tf.options.fields import settings_of
from ekg_tf.options.methods import METHODS
from ekg_tf.utils.keras_files import save_keras

from tests.helpers.runs import read, untimed
from tests.torture.base import network
from tests.torture.killer import KILLED, At, Ended, run
from tests.torture.record import note
from tests.torture.results import weights

SETTINGS = "--gpu_id cpu --do_log off --val_per_class 8 --subset_per_class 16".split()
SETTINGS += ["--search_target_rate", "0.6", "--num_teacher", "2"]
# Of those methods that have them.
OF_METHODS = {"supernet_epoch": 2, "swp_population": 6, "swp_generations": 3, "width_steps": 4}
OF_METHODS |= {"swp_stages": 2, "search_step": 0.5}
TUNING = "--train_epoch 2".split()

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network that every run begins with."""
    path = tmp_path_factory.mktemp("start") / "start.keras"
    save_keras(path, network((8, 8, 1), 10, filters=(6, 8, 8)))
    return path


def words(kind: str, folder: Path, start: Path) -> list[str]:
    """A search by a method, or a whole `prune`."""
    method = "ekg" if kind == "prune" else kind
    argv = ["prune" if kind == "prune" else "search", "--train_path", str(folder), *SETTINGS]
    argv += ["--model", str(start), "--dataset", "DIGITS", "--method", method]
    flags = {one.flag for one in settings_of(METHODS[method])}
    argv += [f"--{flag}={value}" for flag, value in OF_METHODS.items() if flag in flags]
    return argv + (TUNING if kind == "prune" else [])


def kills(draw: random.Random, whole: Ended, count: int) -> Iterator[dict]:
    """When each process is killed: half of them at a change on disk, half at a moment."""
    for number in range(count):
        if number % 2:
            yield {"after": draw.uniform(0.01, whole.seconds)}
        else:
            at = draw.randint(1, max(1, whole.changes // 2))
            yield {"at": At(at, draw.random() < 0.5)}


@pytest.mark.parametrize("kind", [*sorted(METHODS), "prune"])
def test_killed_runs_end_as_if_nothing_had_been(kind, start, tmp_path, request):
    count, seed = (request.config.getoption(one) for one in ("--kills", "--torture_seed"))
    draw = random.Random(f"{seed} {kind}")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    undisturbed = run(words(kind, whole, start), tmp_path / "whole.log")
    assert undisturbed.code == 0, undisturbed.output
    happened = {"kills": 0, "at_changes": 0, "rounds": 0}
    print(f"\n{kind}: seed {seed}, {count} kills, {undisturbed.changes} changes on disk")
    for when in kills(draw, undisturbed, count):
        ended = run(words(kind, killed, start), tmp_path / "killed.log", **when)
        assert ended.code in (0, KILLED), (when, ended.output)
        happened["kills"] += ended.code == KILLED
        happened["at_changes"] += ended.code == KILLED and "at" in when
        if ended.code == 0:  # it came to its end before
            compare(kind, killed, whole)
            shutil.rmtree(killed)
            happened["rounds"] += 1
    ended = run(words(kind, killed, start), tmp_path / "killed.log")
    assert ended.code == 0, ended.output
    compare(kind, killed, whole)
    happened |= {"rounds": happened["rounds"] + 1, "different": 0, "seed": seed}
    note(request.config, "kills", kind, happened | {"changes": undisturbed.changes})


def compare(kind: str, found: Path, expected: Path) -> None:
    """That two finished run folders hold the same."""
    names = [{one.name for one in folder.iterdir()} for folder in (found, expected)]
    assert names[0] == names[1], "other files"
    for path in sorted(expected.iterdir()):
        other = found / path.name
        if path.suffix == ".jsonl":
            assert untimed(other) == untimed(path), path.name
        elif path.suffix == ".keras":
            one, two = weights(other), weights(path)
            assert one.keys() == two.keys(), path.name
            assert all(np.array_equal(one[key], two[key]) for key in one), path.name
        elif path.suffix == ".npy":
            assert np.array_equal(np.load(other), np.load(path)), path.name
        elif path.suffix == ".f32":
            assert other.read_bytes() == path.read_bytes(), path.name
    figures = [read(folder / "search.json") for folder in (found, expected)]
    assert {**figures[0], "seconds": 0} == {**figures[1], "seconds": 0}
    if kind == "prune":
        results = [read(folder / "result.json") for folder in (found, expected)]
        for side in ("before", "after"):
            for key in ("test", "flops", "parameters"):
                assert results[0][side][key] == results[1][side][key], (side, key)
