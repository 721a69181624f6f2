"""Bad input to the four programs: one line `error: ...`, exit code 2, no run folder left behind."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from ekg_tf.cli import manners
from ekg_tf.dataloader import load
from ekg_tf.nets.given import Given
from ekg_tf.nets.zoo.builders import build
from ekg_tf.nets.zoo.pkl_weights import save_pkl, to_pkl
from ekg_tf.phases import searching
from ekg_tf.pruning.knowledge.bank import MANIFEST, file_of
from ekg_tf.utils.errors import UserError
from ekg_tf.utils.keras_files import save_keras
from ekg_tf.utils.runfiles import BASELINE, FORMAT, PRUNED, START, checksum

from ekg_tf import finetune, search, train_cifar
from ekg_tf import test as measure
from tests.helpers.options import search_options

ROOT = Path(__file__).resolve().parents[1]
DIGITS = 10, (8, 8, 1)  # classes and image shape


@pytest.fixture
def refused(capfd):
    """Calls a program that must refuse its arguments; returns its message.

    capfd sees file descriptor 2, so that lines of TensorFlow's C++ side would be found as well.
    """

    def call(program: ModuleType, *argv) -> str:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            manners.run(lambda _: program.main([str(argument) for argument in argv]))
        error = capfd.readouterr().err
        assert stop.value.code == 2
        assert re.fullmatch(r"error: [^\n]+\n", error), error
        return error

    return call


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> dict[str, Path]:
    """Files of fresh networks for DIGITS, but of other kinds where their names say so."""
    folder = tmp_path_factory.mktemp("weights")
    network = build("ResNet-20", *DIGITS)
    save_pkl(folder / "good.pkl", to_pkl(network))
    save_keras(folder / "good.keras", network)
    for classes in (7, 12):
        other = build("ResNet-20", classes, DIGITS[1])
        save_pkl(folder / f"{classes}_classes.pkl", to_pkl(other))
    save_keras(folder / "7_classes.keras", build("ResNet-20", 7, DIGITS[1]))
    save_keras(folder / "colour.keras", build("ResNet-20", 10, (32, 32, 3)))
    for name in ("good.pkl", "good.keras"):
        data = (folder / name).read_bytes()
        (folder / f"truncated_{name}").write_bytes(data[: len(data) // 2])
    (folder / "noise.keras").write_bytes(b"not a network" * 100)
    return {path.name: path for path in folder.iterdir()}


ARRAY = file_of(0, 1)


def seal(folder: Path, *names: str) -> None:
    """Writes files.json of a folder, with the checksums of some files or of all that have one."""
    known = (BASELINE, START, PRUNED, "search.json", ARRAY, MANIFEST)
    files = {name: checksum(folder / name) for name in names or known}
    (folder / "files.json").write_text(json.dumps({"format": FORMAT, "files": files}))


@pytest.fixture(scope="module")
def searched(tmp_path_factory, weights) -> Path:
    """A folder like that of a finished search on DIGITS; its bank belongs to other data."""
    folder = tmp_path_factory.mktemp("searched")
    for name in (BASELINE, START, PRUNED):
        (folder / name).write_bytes(weights["good.keras"].read_bytes())
    (folder / "args.json").write_text(json.dumps({"dataset": "DIGITS", "data_path": None}))
    figures = {key: {"before": 1, "after": 1} for key in ("flops", "parameters", "val_loss")}
    (folder / "search.json").write_text(json.dumps({"front": [], **figures}))
    shape = [len(load("DIGITS").train), 10, 2]
    np.save(folder / ARRAY, np.zeros(shape, np.float16))
    manifest = {"kind": "full", "shapes": {ARRAY: shape}, "complete": True}
    manifest["dataset_fingerprint"] = "that of another data set"
    (folder / MANIFEST).write_text(json.dumps(manifest))
    seal(folder)
    return folder


@pytest.fixture
def cifar(tmp_path) -> Path:
    """A CIFAR-10 folder of 10 + 40 black images, labels 0..9 in turn."""
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    record = bytes(3072)
    batch = b"".join(bytes([label]) + record for label in range(10))
    for name in (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"):
        (folder / name).write_bytes(batch)
    return folder


# ---------------------------------------------------------------- flags


@pytest.mark.parametrize(
    ("flags", "phrase"),
    [
        (["--search_target_rate", "0"], "0 is not strictly between 0 and 1"),
        (["--search_target_rate", "1"], "1 is not strictly between 0 and 1"),
        (["--search_target_rate", "1.5"], "1.5 is not strictly between 0 and 1"),
        (["--search_target_rate", "abc"], "'abc' is not a number"),
        (["--search_step", "2"], "--search_step"),
        (["--gpu_id", "x"], "'x' is not a list of GPU numbers"),
        (["--train_epoch", "0"], "0 is not at least 1"),
        (["--decay_points", "0.6,0.3"], "increasing"),
        (["--score", "magic"], "--score"),
        (["--learn", "0.1"], "--learn"),
        (["--arch", "ResNet-21"], "unknown architecture 'ResNet-21': choose one of ResNet-20, "),
        (["--dataset", "MNIST"], "unknown dataset 'MNIST': choose one of CIFAR10, "),
        (["--dataset", "CIFAR10", "--data_path", "/no/such/folder"], "/no/such/folder does not"),
        (["--data_path", "/tmp"], "DIGITS comes with scikit-learn"),
        (["--batch_size", "30", "--accum", "4"], "a batch size of 30 is not divisible by"),
        (["--batch_size", "2000"], "a batch size of 2000 is more than the 1442 training images"),
        (["--val_per_class", "130"], "lower subset_per_class or val_per_class"),
        (["--trained_param", "/no/such.pkl"], "/no/such.pkl does not exist"),
        (["--trained_param", "/no/such.weights.h5"], "/no/such.weights.h5 does not exist"),
        (["--trained_param", "/no/such.safetensors"], "/no/such.safetensors does not exist"),
        (["--trained_param", "/no/such.h5"], "/no/such.h5: weights come as .pkl, .keras, "),
        (["--trained_param", "/no/suffix"], "not without a suffix"),
        (["--trained_param", "keras.applications:ResNet5"], "choose one of ResNet50, "),
        (["--val_labels", "labels.txt"], "are for ImageNet, not DIGITS"),
        (["--bank", "topk"], "k 16 of the bank is more than the 10 classes of the data"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_train_cifar_refuses(flags, phrase, refused, tmp_path):
    run = tmp_path / "run"
    assert phrase in refused(train_cifar, "--train_path", run, *flags)
    assert not run.exists()


def test_the_run_folder_must_be_named(refused):
    assert "--train_path" in refused(train_cifar)


def test_unreachable_target_names_the_lowest_one_that_can_be_reached(refused, tmp_path):
    run = tmp_path / "run"
    message = refused(train_cifar, "--train_path", run, "--search_target_rate", "0.001")
    lowest = float(re.search(r"([\d.]+) of the FLOPs remain", message)[1])
    assert not run.exists()
    network, data = Given.read(build("ResNet-20", *DIGITS)), load("DIGITS")
    sizes = {"subset_per_class": 64, "val_per_class": 24}
    searching.check(network, data, search_options(lowest, **sizes))
    with pytest.raises(UserError, match="can't be reached"):
        searching.check(network, data, search_options(lowest - 2e-4, **sizes))


@pytest.mark.parametrize(("program", "argv"), [(search, ["--train_path", "run"]), (measure, [])])
def test_weights_must_be_given(program, argv, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "--trained_param (or --model) is missing" in refused(program, *argv)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- data


def test_truncated_data_file(refused, cifar, tmp_path):
    path = cifar / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:-1])
    argv = "--dataset", "CIFAR10", "--data_path", cifar, "--train_path", tmp_path / "run"
    message = refused(train_cifar, *argv)
    assert f"{path} is truncated" in message
    assert not (tmp_path / "run").exists()


def test_missing_data_file(refused, cifar, tmp_path):
    (cifar / "test_batch.bin").unlink()
    argv = "--dataset", "CIFAR10", "--data_path", cifar, "--train_path", tmp_path / "run"
    assert "test_batch.bin is missing" in refused(train_cifar, *argv)
    assert not (tmp_path / "run").exists()


def test_too_few_images_for_the_search(refused, cifar, tmp_path):
    argv = "--dataset", "CIFAR10", "--data_path", cifar, "--train_path", tmp_path / "run"
    message = refused(train_cifar, *argv, "--batch_size", "8", "--val_per_class", "33")
    assert "class 0 has 5 training images, but 256 + 33 per class are asked for" in message
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- weights


@pytest.mark.parametrize(
    ("file", "arch", "phrase"),
    [
        ("good.pkl", "ResNet-32", "weights of another arch"),
        ("7_classes.pkl", "ResNet-20", "gives outputs of shape (7,), the data has 10 classes"),
        ("12_classes.pkl", "ResNet-20", "gives outputs of shape (12,), the data has 10"),
        ("7_classes.keras", "ResNet-20", "gives outputs of shape (7,), the data has 10"),
        ("colour.keras", "ResNet-20", "takes inputs of shape (32, 32, 3)"),
        ("truncated_good.pkl", "ResNet-20", "is not a complete pickle"),
        ("truncated_good.keras", "ResNet-20", "is not a network that can be loaded"),
        ("noise.keras", "ResNet-20", "is not a network that can be loaded"),
    ],
)
@pytest.mark.parametrize("program", [train_cifar, search, measure])
def test_unfit_weights(program, file, arch, phrase, weights, refused, tmp_path):
    run = tmp_path / "run"
    argv = ["--arch", arch, "--trained_param", weights[file]]
    message = refused(program, *argv, *([] if program is measure else ["--train_path", run]))
    assert str(weights[file]) in message and phrase in message
    assert not run.exists()


def test_released_resnet56_is_no_resnet20(res56_pkl, cifar, refused):
    argv = "--dataset", "CIFAR10", "--data_path", cifar, "--trained_param", res56_pkl
    assert "weights of another arch" in refused(measure, "--arch", "ResNet-20", *argv)


class Foreign:
    """Unpickled freely, it would leave a file behind."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_foreign_class_in_a_pickle_is_not_run(refused, tmp_path):
    path, mark = tmp_path / "foreign.pkl", tmp_path / "mark"
    path.write_bytes(pickle.dumps({"conv/kernel:0": np.zeros(3, np.float32), "x": Foreign(mark)}))
    assert "posix.mkdir" in refused(measure, "--trained_param", path)
    assert not mark.exists()
    pickle.loads(path.read_bytes())  # the payload works
    assert mark.exists()


# ---------------------------------------------------------------- run folders


def test_run_folder_under_a_file(refused, tmp_path):
    """Also what an unwritable folder gives; root, which tests may run as, can write everywhere."""
    (tmp_path / "file").write_text("mine")
    message = refused(train_cifar, "--train_path", tmp_path / "file" / "run")
    assert f"cannot write in {tmp_path / 'file' / 'run'}" in message
    message = refused(train_cifar, "--train_path", tmp_path / "file")
    assert f"{tmp_path / 'file'} is a file" in message
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


def test_folder_of_other_files_is_left_alone(refused, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    assert "holds no run of ours" in refused(train_cifar, "--train_path", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_finetune_without_a_search(refused, tmp_path):
    message = refused(finetune, "--train_path", tmp_path)
    assert f"{tmp_path} holds no finished search" in message
    message = refused(finetune, "--train_path", tmp_path / "run", "--search_path", tmp_path)
    assert f"{tmp_path} holds no finished search" in message
    assert not list(tmp_path.iterdir())


def test_finetune_refuses_the_bank_of_another_data_set(refused, searched, tmp_path):
    run = tmp_path / "run"
    message = refused(finetune, "--train_path", run, "--search_path", searched)
    assert f"{searched / ARRAY} belongs to another training set" in message
    assert not run.exists()


def test_finetune_refuses_a_bank_that_was_not_built(refused, searched, tmp_path):
    run, without = tmp_path / "run", tmp_path / "without"
    shutil.copytree(searched, without, ignore=shutil.ignore_patterns(ARRAY, MANIFEST))
    seal(without, BASELINE, START, PRUNED, "search.json")
    message = refused(finetune, "--train_path", run, "--search_path", without)
    assert f"{without} has no memory bank, as after a search without one: fine-tune" in message
    assert not run.exists()


EMPTY = b'{"format": 1, "files": {}}'
DAMAGED = [(name, False) for name in (BASELINE, PRUNED, "args.json", ARRAY, MANIFEST)]
# Zeros of the right length, in files whose checksums the folder knows.
DAMAGED += [(name, True) for name in (BASELINE, START, PRUNED, "search.json", ARRAY, MANIFEST)]


@pytest.mark.parametrize(("name", "sealed"), DAMAGED)
def test_finetune_refuses_damaged_files_of_the_search(name, sealed, refused, searched, tmp_path):
    damaged, run = tmp_path / "damaged", tmp_path / "run"
    damaged.mkdir()
    for path in searched.iterdir():
        content = path.read_bytes() if path.name != "files.json" else EMPTY
        (damaged / path.name).write_bytes(content[:20] if path.name == name else content)
    manifest = json.loads((searched / MANIFEST).read_text())
    manifest["dataset_fingerprint"] = load("DIGITS").fingerprint
    if name != MANIFEST:
        (damaged / MANIFEST).write_text(json.dumps(manifest))
    if sealed:
        seal(damaged)
        (damaged / name).write_bytes(bytes(len((damaged / name).read_bytes())))
    message = refused(finetune, "--train_path", run, "--search_path", damaged)
    assert str(damaged / name) in message
    assert not run.exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--finetune_method kd --ckt pull", "--ckt belongs to --finetune_method ckt, not kd"),
        ("--finetune_method plain --finetune_teacher single", "--finetune_teacher belongs to"),
        ("--kd_alpha 0.5", "--kd_alpha belongs to --finetune_method kd, not ekg"),
        ("--rate 0.7", "has no network at the rate 0.7: its search kept none on the way"),
    ],
)
def test_finetune_refuses_flags_of_other_methods(argv, message, refused, searched, tmp_path):
    run = tmp_path / "run"
    where = ["--train_path", run, "--search_path", searched]
    assert message in refused(finetune, *where, *argv.split())
    assert not run.exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--method ffp --search_teacher single", "--search_teacher is for --method ekg"),
        ("--method uniform --budget latency", "can't aim at a measured latency"),
        ("--finetune_method ckt", "--finetune_method ckt needs --bank_features on"),
        ("--method swp --budget latency", "which latencies don't"),
        ("--method swp --swp_stages 60", "can be cut into 9 stages at most"),
        ("--method autoslim --search_target_rate 0.02", "the narrowest widths of the supernet"),
        ("--method swp --swp_stages 9 --search_target_rate 0.15", "the narrowest widths"),
        ("--width_steps 1", "1 is not at least 2"),
    ],
)
def test_flags_that_do_not_go_together(argv, message, refused, tmp_path):
    assert message in refused(train_cifar, "--train_path", tmp_path / "run", *argv.split())
    assert not (tmp_path / "run").exists()


def test_finetune_refuses_an_indivisible_batch(refused, searched, tmp_path):
    argv = "--train_path", tmp_path / "run", "--search_path", searched
    assert "3 micro-batches (accum)" in refused(finetune, *argv, "--accum", "3")
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- as real processes


def run_refused(program: str, *argv) -> str:
    """stderr of a program in a process of its own, with TensorFlow's default log level."""
    environment = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    command = [sys.executable, str(ROOT / program), *map(str, argv)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 2, result.stderr
    assert re.fullmatch(r"error: [^\n]+\n", result.stderr), result.stderr
    busy = ("loading ", "reading ", "making ", "  ... still")  # where the machine is slow
    said = [line for line in result.stdout.splitlines() if not line.startswith(busy)]
    assert len(said) <= 1, result.stdout
    return result.stderr


def test_process_unreachable_target(tmp_path):
    run = tmp_path / "run"
    error = run_refused("train_cifar.py", "--train_path", run, "--search_target_rate", "0.001")
    assert "can't be reached" in error and not run.exists()


def test_process_truncated_weights(weights):
    error = run_refused("test.py", "--trained_param", weights["truncated_good.keras"])
    assert "is not a network that can be loaded" in error


def test_process_wrong_flag(tmp_path):
    error = run_refused("search.py", "--train_path", tmp_path / "run", "--gpu_id", "x")
    assert "search.py --help" in error and not (tmp_path / "run").exists()
