"""The four programs end to end on DIGITS with ResNet-20: undisturbed, killed and resumed, in parts.

The runs are as small as they can be; what is tested is that everything fits together, not accuracy.
"""

import contextlib
import filecmp
import importlib.util
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import finetune
import search
import train_cifar
from dataloader import load
from nets.load import load_network
from nets.resnet import cifar_resnet
from utils import latency, measure
from utils.checkpoint import load_keras, load_pkl
from utils.cli import UserError
from utils.options import SearchOptions
from utils.phases import Device, TrainOptions
from utils.runfolder import RunFolder

ROOT = Path(__file__).resolve().parents[1]
TARGET, TEACHERS = 0.6, 4
SEARCH = "--val_per_class 8 --subset_per_class 16 --search_step 0.5".split()
SEARCH += ["--search_target_rate", str(TARGET), "--num_teacher", str(TEACHERS)]
TRAIN = "--train_epoch 2".split()
ARGUMENTS = [*SEARCH, *TRAIN, *"--baseline_epoch 2 --gpu_id cpu".split()]
TIMES = ("seconds", "images_per_second")


# ---------------------------------------------------------------- helpers


def command(program: str, folder: Path, *argv) -> list[str]:
    return [sys.executable, str(ROOT / program), "--train_path", str(folder), *map(str, argv)]


def run(arguments: list[str], **options) -> subprocess.CompletedProcess:
    """A process that must end well and print nothing but its own lines."""
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=900, **options)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    return result


def rows(path: Path) -> list[dict]:
    """The complete lines of a file that may be missing or just being written."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().splitlines(True) if line[-1:] == b"\n"]


def untimed(path: Path) -> list[dict]:
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows(path)]


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """(size, time of the last change) of every file, to see that nothing was touched."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def same_network(one: Path, other: Path) -> None:
    first, second = load_pkl(one), load_pkl(other)
    assert first.keys() == second.keys()
    for key, array in first.items():
        assert np.array_equal(array, second[key]), key


@pytest.fixture
def quick_latency(monkeypatch):
    """Shortens what only has to be there; the programs themselves measure for 4 seconds."""
    monkeypatch.setattr(measure, "latencies", partial(latency.latencies, seconds=0.0))


# ---------------------------------------------------------------- the undisturbed run


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """The folder of a run that nothing disturbed; report.txt beside it is what it printed."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    result = run(command("train_cifar.py", folder, *ARGUMENTS))
    (folder.parent / "report.txt").write_text(result.stdout)
    return folder


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


def kill_in(phase: str, folder: Path) -> None:
    """Starts the run, or goes on with it, and kills it in `phase`; tries twice at most."""
    snapshot = folder.with_name(f"before_{phase}")
    if folder.exists():
        shutil.copytree(folder, snapshot)
    for _ in range(2):
        if kill_once(phase, folder) == phase:
            return
        shutil.rmtree(folder)
        if snapshot.exists():
            shutil.copytree(snapshot, folder)
    pytest.fail(f"the moment of the phase {phase} was missed twice")


def kill_once(phase: str, folder: Path) -> str:
    """Returns the phase that it really was killed in."""
    process = subprocess.Popen(
        command("train_cifar.py", folder, *ARGUMENTS),
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
def killed(tmp_path_factory) -> Path:
    """The folder of the same run, killed in each phase and gone on with after each."""
    folder = tmp_path_factory.mktemp("killed") / "run"
    for phase in ("baseline", "search", "bank", "finetune"):
        kill_in(phase, folder)
    shutil.copytree(folder, folder.with_name("before_end"))
    run(command("train_cifar.py", folder, *ARGUMENTS))
    return folder


def test_killed_run_ends_with_the_same_numbers(finished, killed):
    for name in ("history.jsonl", "metrics.jsonl"):
        assert untimed(killed / name) == untimed(finished / name)
    assert np.array_equal(np.load(killed / "bank.npy"), np.load(finished / "bank.npy"))
    same_network(killed / "trained_param.pkl", finished / "trained_param.pkl")
    results = [read(folder / "result.json") for folder in (finished, killed)]
    for side in ("before", "after"):
        for figures in ("test", "flops", "parameters"):
            assert results[0][side][figures] == results[1][side][figures]
    for figures in results:
        del figures["search"]["seconds"]
    assert results[0]["search"] == results[1]["search"]


def test_killed_run_went_on_instead_of_starting_over(killed):
    """What was logged before a kill is there afterwards as it was, with its seconds."""
    for snapshot in ("before_bank", "before_finetune", "before_end"):
        for name in ("history.jsonl", "metrics.jsonl"):
            logged = rows(killed.with_name(snapshot) / name)
            assert len(logged) > 1
            assert rows(killed / name)[: len(logged)] == logged


def test_killed_run_holds_the_same_files(finished, killed):
    names = [
        {str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix}
        for folder in (finished, killed)
    ]
    names = [{name for name in found if "tfevents" not in name} for found in names]
    assert names[0] == names[1]


# ---------------------------------------------------------------- what the run leaves


def test_exported_network_needs_nothing_of_this_project(finished, tmp_path):
    """pruned.keras opens where the project can't be imported and is the network of the .pkl."""
    data = load("DIGITS")
    images = ((data.test.images - data.mean) / data.std).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    script = f"""
import importlib.util, keras, numpy
assert not any(importlib.util.find_spec(name) for name in ("nets", "op_utils", "pruning"))
model = keras.models.load_model({str(finished / "pruned.keras")!r})
numpy.save("logits.npy", model(numpy.load("images.npy"), training=False))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    subprocess.run([sys.executable, "-I", "-c", script], cwd=tmp_path, env=environment, check=True)
    network = load_network(finished / "trained_param.pkl", "ResNet-20", 10, (8, 8, 1))
    logits = network(images, training=False).numpy()
    assert np.ptp(logits) > 1
    assert np.abs(np.load(tmp_path / "logits.npy") - logits).max() <= 1e-5
    hits = logits.argmax(-1) == data.test.labels
    top1 = read(finished / "result.json")["after"]["test"]["top1"]
    assert 100 * hits.mean() == pytest.approx(top1, abs=1e-3)


def check_report(text: str, figures: dict) -> None:
    """That a printed before -> after block holds the figures."""
    lines = {line[:33].strip(): line[33:].split() for line in text.splitlines()}
    before, after = figures["before"], figures["after"]
    flops = [f"{before['flops']:,}", f"{after['flops']:,}"]
    rate = f"{after['flops'] / before['flops']:.3f}"
    assert lines["FLOPs (multiply-accumulates)"] == [*flops, rate]
    for top in ("top1", "top5"):
        name = f"{top[:3]}-{top[3:]} %, moving statistics"
        assert lines[name][:2] == [f"{side['test'][top]:.2f}" for side in (before, after)]
    assert float(lines["latency, ms per image, batch 128"][1]) > 0


def test_test_py_measures_the_pkl(finished, tmp_path):
    weights, figures = finished / "trained_param.pkl", tmp_path / "figures.json"
    program = [sys.executable, str(ROOT / "test.py"), "--gpu_id", "cpu"]
    arguments = ["--trained_param", str(weights), "--json", str(figures)]
    before = state(finished)
    result = run([*program, *arguments], cwd=tmp_path)
    check_report(result.stdout, read(figures))
    rate = read(figures)["after"]["flops"] / read(figures)["before"]["flops"]
    assert TARGET - 0.005 < rate <= TARGET
    in_run = read(finished / "result.json")["after"]
    for name in ("flops", "parameters", "test"):
        assert read(figures)["after"][name] == pytest.approx(in_run[name], rel=1e-5)
    assert state(finished) == before


def test_test_py_measures_the_keras_file(finished, tmp_path, quick_latency, capsys):
    spec = importlib.util.spec_from_file_location("program_test", ROOT / "test.py")
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    weights, figures = finished / "pruned.keras", tmp_path / "figures.json"
    program.main(["--gpu_id", "cpu", "--trained_param", str(weights), "--json", str(figures)])
    check_report(capsys.readouterr().out, read(figures))
    in_run = read(finished / "result.json")["after"]
    for name in ("flops", "parameters", "test"):
        assert read(figures)["after"][name] == pytest.approx(in_run[name], rel=1e-5)


# ---------------------------------------------------------------- the same folder again


def main(folder: Path, *argv: str) -> None:
    train_cifar.main(["--train_path", str(folder), *ARGUMENTS, *argv])


HEADER = ["before", "after", "ratio"]


def test_second_call_prints_the_report_again(finished, capsys):
    before = state(finished)
    main(finished)
    printed = capsys.readouterr().out
    check_report(printed, read(finished / "result.json"))
    lines = (finished.parent / "report.txt").read_text().splitlines()
    last_header = max(i for i, line in enumerate(lines) if line.split() == HEADER)
    assert "\n".join(lines[last_header:-1]) in printed
    assert state(finished) == before


def test_other_arguments_are_refused(finished):
    before = state(finished)
    with pytest.raises(UserError, match=r"other arguments \(search_target_rate: 0.6 -> 0.5\)"):
        main(finished, "--search_target_rate", "0.5")
    assert state(finished) == before


def test_overwrite_starts_anew_and_resume_off_refuses_a_rest(finished, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "mine.txt").write_text("not of the run")

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(train_cifar, "search", stop)
    with pytest.raises(KeyboardInterrupt):
        main(folder, "--overwrite", "--baseline_epoch", "1")
    left = {path.name for path in folder.iterdir()}
    of_the_run = {"args.json", "versions.json", "baseline.keras", "baseline_state.npz"}
    assert left == of_the_run | {"metrics.jsonl", "tensorboard", "mine.txt", ".lock"}
    assert len(rows(folder / "metrics.jsonl")) == 1
    before = state(folder)
    with pytest.raises(UserError, match="holds an unfinished run: leave out --resume off"):
        main(folder, "--baseline_epoch", "1", "--resume", "off")
    assert state(folder) == before


# ---------------------------------------------------------------- phase by phase


def test_search_and_finetune_as_commands_of_their_own(finished, tmp_path, quick_latency, capsys):
    """One folder, two commands: the same network as the whole pipeline's."""
    folder = tmp_path / "run"
    argv = ["--train_path", folder, "--gpu_id", "cpu"]
    weights = "--trained_param", finished / "baseline.keras"
    search.main([str(argument) for argument in (*argv, *SEARCH, *weights)])
    assert "FLOPs (multiply-accumulates)" in capsys.readouterr().out
    assert untimed(folder / "history.jsonl") == untimed(finished / "history.jsonl")
    assert filecmp.cmp(folder / "bank.npy", finished / "bank.npy", shallow=False)
    finetune.main([str(argument) for argument in (*argv, *TRAIN)])
    same_network(folder / "trained_param.pkl", finished / "trained_param.pkl")
    assert read(folder / "result.json")["after"]["flops"] < TARGET * 2_532_992


def test_coarse_search_and_contrastive_transfer(finished, tmp_path, quick_latency):
    """FFP's phases; the second network is the one that the search kept at 0.8."""
    folder = tmp_path / "run"
    argv = [*SEARCH, "--trained_param", finished / "baseline.keras", "--method", "ffp"]
    argv += ["--train_path", folder, "--gpu_id", "cpu", "--budgets", "0.8"]
    search.main([str(argument) for argument in argv])
    result = read(folder / "search.json")
    assert result["method"] == "ffp" and TARGET - 0.005 <= result["flops_rate"] <= TARGET
    assert np.load(folder / "bank_features.npy").shape == (1442, 64)
    argv = "--finetune_method ckt --train_epoch 1 --gpu_id cpu --do_log off".split()
    finetune.main(["--train_path", str(folder), *argv])
    (row,) = rows(folder / "metrics.jsonl")
    assert row["loss"] == pytest.approx(row["label_loss"] + row["contrast_loss"], rel=1e-5)
    argv = "--finetune_method kd --train_epoch 1 --gpu_id cpu --rate 0.8".split()
    finetune.main(["--search_path", str(folder), "--train_path", str(tmp_path / "kd"), *argv])
    sizes = [read(one / "result.json")["after"]["flops"] for one in (folder, tmp_path / "kd")]
    assert sizes == [result["flops"]["after"], result["front"][0]["flops"]]


def test_finetune_elsewhere_with_every_switch(finished, tmp_path, quick_latency):
    """Online teacher, bfloat16, micro-batches, cosine; the search's folder is only read."""
    before = state(finished)
    argv = ["--search_path", finished, "--train_path", tmp_path / "run", "--gpu_id", "cpu"]
    argv += "--finetune_teacher single --train_epoch 2 --batch_size 120 --accum 2".split()
    argv += "--mixed_precision True --schedule cosine --do_log off".split()
    finetune.main([str(argument) for argument in argv])
    assert state(finished) == before
    metrics = rows(tmp_path / "run" / "metrics.jsonl")
    assert [row["lr"] for row in metrics] == pytest.approx([0.01, 0.005])
    assert all(row["distillation_loss"] > 0 for row in metrics)
    network = load_keras(tmp_path / "run" / "pruned.keras")
    assert {layer.dtype_policy.name for layer in network.layers} == {"float32"}
    assert read(tmp_path / "run" / "result.json")["after"]["test"]["top1"] > 20
    assert not (tmp_path / "run" / "tensorboard").exists()


PLAIN = finetune.Transfer(method="plain")


def test_phases_as_imported_functions(tmp_path):
    """On the smallest ResNet; the fine-tuning is compiled by XLA, whose time this keeps short."""
    searching = SearchOptions(
        target_rate=0.8,
        step=0.5,
        teacher="none",
        score="l1",
        evaluator="naive",
        subset_per_class=16,
        val_per_class=8,
        num_teacher=1,
    )
    training = TrainOptions(
        epochs=1, learning_rate=0.01, batch_images=128, weight_decay=5e-4, seed=0
    )
    data, model = load("DIGITS"), cifar_resnet(8, 10, (8, 8, 1))
    weights = model.get_weights()
    device = Device(tf.distribute.get_strategy(), compile=False)
    compiled = replace(device, compile=True, val_batch_images=2000)
    with RunFolder.open(tmp_path, {}) as folder:
        pruned = search.search(folder, model, data, searching, device)
        tuned = finetune.finetune(folder, tmp_path, data, training, compiled, PLAIN)
    for one, other in zip(weights, model.get_weights(), strict=True):
        assert np.array_equal(one, other), "the given network isn't changed"
    assert pruned.count_params() == tuned.count_params() < model.count_params()
    summary = read(tmp_path / "search.json")
    assert 0.7 < summary["flops_rate"] <= 0.8
    assert summary["steps"] == len(rows(tmp_path / "history.jsonl")) - 1
    assert np.load(tmp_path / "bank.npy").shape == (1442, 10, 1)
    (row,) = rows(tmp_path / "metrics.jsonl")
    assert row["phase"] == "finetune" and np.isfinite(row["loss"])
    assert "distillation_loss" not in row
    saved = load_keras(tmp_path / "pruned.keras")
    for mine, other in zip(tuned.get_weights(), saved.get_weights(), strict=True):
        assert np.array_equal(mine, other)


# ---------------------------------------------------------------- a part of the phases


def test_until_ends_after_a_phase_and_goes_on_later(finished, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("finetune*", "result.json"))
    arguments = ["--train_path", str(folder), *ARGUMENTS, "--do_log", "off"]
    train_cifar.main([*arguments, "--until", "baseline"])
    result, said = read(folder / "baseline.json"), capsys.readouterr().out
    test = result.pop("test")
    assert result["epochs"] == 2 and result["seconds"] > 0
    assert result["flops"] == read(finished / "result.json")["before"]["flops"]
    assert test == read(finished / "result.json")["before"]["test"]
    assert f"test top-1 {test['top1']:.2f} %" in said and "search" not in said
    train_cifar.main([*arguments, "--until", "search"])
    assert "steps" in capsys.readouterr().out
    assert not (folder / "finetune.json").exists() and not (folder / "result.json").exists()


def test_until_baseline_keeps_a_given_network(finished, tmp_path):
    folder, given = tmp_path / "run", finished / "baseline.keras"
    arguments = ["--train_path", str(folder), "--trained_param", str(given), *SEARCH]
    train_cifar.main([*arguments, "--until", "baseline"])
    result = read(folder / "baseline.json")
    assert result["epochs"] is None and result["seconds"] is None
    assert result["test"] == read(finished / "result.json")["before"]["test"]
    kept, weights = load_keras(folder / "baseline.keras"), load_keras(given).get_weights()
    assert all(map(np.array_equal, kept.get_weights(), weights))
