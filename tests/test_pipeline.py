"""The four programs end to end on DIGITS with ResNet-20: undisturbed, killed, and what they leave.

The runs are as small as they can be; what is tested is that everything fits together, not accuracy.
"""

import contextlib
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from ekg_tf.dataloader import load
from ekg_tf.nets.zoo.load import load_network
from PIL import Image

from ekg_tf import test as measure
from tests.helpers.runs import (
    MACHINE,
    ROOT,
    SEARCH,
    TARGET,
    TEACHERS,
    TRAIN,
    check_report,
    command,
    read,
    rows,
    run,
    same_network,
    state,
    untimed,
)

# ---------------------------------------------------------------- the undisturbed run


def test_run_folder_is_complete(finished):
    args, versions = read(finished / "args.json"), read(finished / "versions.json")
    assert args["search_target_rate"] == TARGET and args["arch"] == "ResNet-20"
    assert args["batch_size"] == 64, "defaults by data set are written down as well"
    assert versions["keras"] == keras.__version__ and versions["tensorflow"] == tf.__version__
    if (ROOT / ".git").exists():
        assert re.fullmatch("[0-9a-f]{40}", versions["git"]["commit"])
    history = rows(finished / "history.jsonl")
    assert [row["step"] for row in history] == list(range(len(history)))
    flops = [row["flops"] for row in history]
    assert flops == sorted(flops, reverse=True) and len(set(flops)) == len(flops)
    metrics = [(row["phase"], row["epoch"]) for row in rows(finished / "metrics.jsonl")]
    assert metrics == [("baseline", 1), ("baseline", 2), ("finetune", 1), ("finetune", 2)]
    assert read(finished / "bank.json")["complete"]
    bank = np.load(finished / "bank.npy", mmap_mode="r")
    assert bank.shape == (1442, 10, TEACHERS) and bank.dtype == np.float16
    with open(finished / "trained_param.pkl", "rb") as file:
        arrays = pickle.load(file)
    assert {type(array) for array in arrays.values()} == {np.ndarray}
    assert not [path for path in finished.rglob("*") if ".tmp" in path.name]


def test_tensorboard_events(finished):
    tags = {}
    for phase in ("baseline", "search", "finetune"):
        (path,) = (finished / "tensorboard" / phase).iterdir()
        tags[phase] = {
            value.tag
            for event in tf.compat.v1.train.summary_iterator(str(path))
            for value in event.summary.value
        }
    assert tags["search"] == {"val_loss", "rate", "flops_rate", "reward"}
    assert {"loss", "test_top1", "lr"} <= tags["baseline"] <= tags["finetune"]


@pytest.mark.parametrize("name", ["widths", "search_curve", "training_curves"])
def test_pictures(finished, name):
    with Image.open(finished / f"{name}.png") as picture:
        picture.load()
        assert 600 <= picture.width <= 2400 and 400 <= picture.height <= 1600
        extrema = picture.convert("L").getextrema()
    assert extrema[1] - extrema[0] > 100, "an empty picture"


def test_result_meets_the_target(finished):
    result = read(finished / "result.json")
    rate = result["after"]["flops"] / result["before"]["flops"]
    assert TARGET - 0.005 < rate <= TARGET
    assert rate == result["search"]["flops_rate"]
    for side in ("before", "after"):
        test = result[side]["test"]
        assert test["examples"] == 355
        assert 100 >= test["top5"] >= test["top1"] > 20, "chance is 10 %"
        assert test["batch_top1"] > 20
        assert all(value > 0 for value in result[side]["latency_ms"].values())
    assert result["finetune"]["epochs"] == 2 and result["finetune"]["seconds"] > 0
    assert set(result["search"]["test"]) == {"before", "after"}


# ---------------------------------------------------------------- killed and resumed


def phase_of(folder: Path) -> str:
    """How far a run has come, by its files."""
    if (folder / "result.json").exists():
        return "finished"
    if (folder / "finetune_state.npz").exists():
        return "finetune"
    if (folder / "bank.json").exists():
        return "between" if read(folder / "bank.json")["complete"] else "bank"
    if (folder / "history.jsonl").exists():
        return "search" if len(rows(folder / "history.jsonl")) > 2 else "between"
    if (folder / "baseline.keras").exists():
        return "between"
    return "baseline" if rows(folder / "metrics.jsonl") else "between"


def kill_in(phase: str, folder: Path, own: list[str]) -> None:
    """Starts the run, or goes on with it, and kills it in `phase`; tries twice at most.

    Args:
        own: the command.
    """
    snapshot = folder.with_name(f"before_{phase}")
    if folder.exists():
        shutil.copytree(folder, snapshot)
    for _ in range(2):
        if kill_once(phase, folder, own) == phase:
            return
        shutil.rmtree(folder)
        if snapshot.exists():
            shutil.copytree(snapshot, folder)
    pytest.fail(f"the moment of the phase {phase} was missed twice")


def kill_once(phase: str, folder: Path, own: list[str]) -> str:
    """Returns the phase that it really was killed in."""
    process = subprocess.Popen(
        own,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    end = time.monotonic() + 600
    while phase_of(folder) != phase and process.poll() is None and time.monotonic() < end:
        time.sleep(0.002)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    output = process.communicate()[0]
    assert process.returncode == -signal.SIGKILL, output
    return phase_of(folder)


@pytest.fixture(scope="session")
def killed(finished, tmp_path_factory) -> Path:
    """The folder of the same run by a command for each phase, which were killed and gone on with.

    The baseline is the undisturbed run's; for killed ones, and for the pipeline's single command,
    see test_byol and tests/torture.
    """
    folder = tmp_path_factory.mktemp("killed") / "run"
    weights = "--trained_param", finished / "baseline.keras"
    search = command("search.py", folder, *MACHINE, *SEARCH, *weights)
    tuning = command("finetune.py", folder, *MACHINE, *TRAIN)
    for phase in ("search", "bank"):
        kill_in(phase, folder, search)
    run(search)
    kill_in("finetune", folder, tuning)
    shutil.copytree(folder, folder.with_name("before_end"))
    run(tuning)
    return folder


def test_killed_run_ends_with_the_same_numbers(finished, killed):
    assert untimed(killed / "history.jsonl") == untimed(finished / "history.jsonl")
    metrics = [row for row in untimed(finished / "metrics.jsonl") if row["phase"] == "finetune"]
    assert untimed(killed / "metrics.jsonl") == metrics
    assert np.array_equal(np.load(killed / "bank.npy"), np.load(finished / "bank.npy"))
    same_network(killed / "trained_param.pkl", finished / "trained_param.pkl")
    results = [read(folder / "result.json") for folder in (finished, killed)]
    for side in ("before", "after"):
        for figures in ("test", "flops", "parameters"):
            assert results[0][side][figures] == results[1][side][figures]
    searches = [read(folder / "search.json") for folder in (finished, killed)]
    assert all(one.pop("seconds") for one in searches)
    assert searches[0] == searches[1] and searches[0]["test"] == results[0]["search"]["test"]


def test_killed_run_went_on_instead_of_starting_over(killed):
    """What was logged before a kill is there afterwards as it was, with its seconds."""
    for snapshot, name in (
        ("before_bank", "history.jsonl"),
        ("before_finetune", "history.jsonl"),
        ("before_end", "metrics.jsonl"),
    ):
        logged = rows(killed.with_name(snapshot) / name)
        assert len(logged) >= 1
        assert rows(killed / name)[: len(logged)] == logged


def test_killed_run_holds_the_same_files(finished, killed):
    names = [
        {str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix}
        for folder in (finished, killed)
    ]
    names = [{name for name in found if "tfevents" not in name} for found in names]
    of_the_baseline = {"baseline_state.npz"}
    assert names[0] - of_the_baseline == names[1]


# ---------------------------------------------------------------- what the run leaves


def test_exported_network_needs_nothing_of_this_project(finished, tmp_path):
    """pruned.keras opens where the project can't be imported and is the network of the .pkl."""
    data = load("DIGITS")
    images = ((data.test.inputs - data.mean) / data.std).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    script = f"""
import sys, keras, numpy
sys.modules["ekg_tf"] = None  # can't be imported, whether it is installed or not
model = keras.models.load_model({str(finished / "pruned.keras")!r})
numpy.save("logits.npy", model(numpy.load("images.npy"), training=False))
assert not any(name.startswith("ekg_tf.") for name in sys.modules)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    subprocess.run([sys.executable, "-I", "-c", script], cwd=tmp_path, env=environment, check=True)
    network = load_network(finished / "trained_param.pkl", "ResNet-20", 10, (8, 8, 1))
    logits = network(images, training=False).numpy()
    assert np.ptp(logits) > 1
    assert np.abs(np.load(tmp_path / "logits.npy") - logits).max() <= 1e-5
    hits = logits.argmax(-1) == data.test.targets
    top1 = read(finished / "result.json")["after"]["test"]["top1"]
    assert 100 * hits.mean() == pytest.approx(top1, abs=1e-3)


@pytest.mark.parametrize("name", ["trained_param.pkl", "pruned.keras"])
def test_test_py_measures_the_file(name, finished, tmp_path, capsys, monkeypatch):
    figures, before = tmp_path / "figures.json", state(finished)
    monkeypatch.chdir(tmp_path)
    arguments = ["--trained_param", str(finished / name), "--json", str(figures)]
    measure.main(["--gpu_id", "cpu", *arguments])
    measured, in_run = read(figures), read(finished / "result.json")["after"]
    check_report(capsys.readouterr().out, measured)
    for figure in ("flops", "parameters", "test"):
        assert measured["after"][figure] == pytest.approx(in_run[figure], rel=1e-5)
    assert state(finished) == before
