"""Every --method end to end on DIGITS: killed where it spends its time, and gone on with."""

import io
import os
import signal
import subprocess
import time
import zipfile
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
from ekg_tf.nets.zoo.builders import build
from ekg_tf.options.fields import settings_of
from ekg_tf.options.methods import METHODS
from ekg_tf.utils.keras_files import save_keras

from tests.helpers.runs import command, read, rows, run, untimed

SETTINGS = "--gpu_id cpu --do_log off --val_per_class 8 --subset_per_class 16".split()
SETTINGS += ["--search_target_rate", "0.6"]
# Of those methods that have them.
OF_METHODS = {"supernet_epoch": 2, "swp_population": 6, "swp_generations": 3, "width_steps": 5}


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


def kill_once(argv: list[str], condition) -> None:
    """Starts a command in a process group of its own and kills it once a condition holds."""
    process = subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    while not condition() and process.poll() is None:
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()[0]
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def moments(method: str, folder: Path) -> list:
    """Conditions under which a search is killed, in the order in which they come true."""
    trained = partial(rows, folder / "metrics.jsonl")
    evolving = (folder / "search_evolution.npz").exists
    started, banking = (folder / "search_start.keras").exists, (folder / "bank.json").exists

    def searching():
        return len(rows(folder / "history.jsonl")) > 2

    return {
        "ekg": [searching, banking],
        "ffp": [searching, banking],
        "swp": [trained, evolving, searching],
        "autoslim": [trained, searching],
    }.get(method, [started, banking])


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(METHODS))
def test_killed_searches_end_with_the_same_network(method, tmp_path):
    start = tmp_path / "start.keras"
    save_keras(start, build("ResNet-20", 10, (8, 8, 1)))
    argv = [*SETTINGS, "--method", method, "--trained_param", start]
    flags = {one.flag for one in settings_of(METHODS[method])}
    argv += [f"--{flag}={value}" for flag, value in OF_METHODS.items() if flag in flags]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(command("search.py", whole, *argv))
    result = read(whole / "search.json")
    assert result["method"] == method and 0.595 <= result["flops_rate"] <= 0.6
    assert ({"order", "supernet"} < result["seconds"].keys()) == METHODS[method].supernet
    for condition in moments(method, killed):
        kill_once(command("search.py", killed, *argv), condition)
    run(command("search.py", killed, *argv))
    for name in ("history.jsonl", "metrics.jsonl"):
        assert untimed(killed / name) == untimed(whole / name)
    for name in ("search_start.keras", "search_pruned.keras"):
        expected, found = weights(whole / name), weights(killed / name)
        assert expected.keys() == found.keys()
        assert all(np.array_equal(expected[key], found[key]) for key in expected)
    run(command("finetune.py", killed, "--train_epoch", "1", "--gpu_id", "cpu"))
    assert read(killed / "result.json")["after"]["flops"] == result["flops"]["after"]
