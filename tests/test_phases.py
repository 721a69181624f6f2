"""The four programs on DIGITS again: in a folder that is finished, phase by phase, in parts.

What is tested is that everything fits together, not accuracy.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from ekg_tf.dataloader import load
from ekg_tf.nets.given import Given
from ekg_tf.nets.zoo.resnet import cifar_resnet
from ekg_tf.options.finetuning import Plain
from ekg_tf.options.training import Training
from ekg_tf.phases import finetuning, pipeline, searching
from ekg_tf.training.task import classification
from ekg_tf.utils.devices import Device
from ekg_tf.utils.errors import UserError
from ekg_tf.utils.keras_files import load_keras
from ekg_tf.utils.runfolder import RunFolder

from ekg_tf import finetune, search, train_cifar
from tests.helpers.options import search_options
from tests.helpers.runs import (
    ARGUMENTS,
    MACHINE,
    SEARCH,
    TARGET,
    check_report,
    read,
    rows,
    state,
)

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

    monkeypatch.setattr(pipeline, "search_phase", stop)
    with pytest.raises(KeyboardInterrupt):
        main(folder, "--overwrite", "--baseline_epoch", "1")
    left = {path.name for path in folder.iterdir()}
    of_the_run = {"args.json", "versions.json", "files.json", "commands.json"}
    of_the_run |= {"baseline.keras", "baseline_state.npz"}
    assert left == of_the_run | {"metrics.jsonl", "tensorboard", "mine.txt", ".lock"}
    assert len(rows(folder / "metrics.jsonl")) == 1
    before = state(folder)
    with pytest.raises(UserError, match="holds an unfinished run: leave out --resume off"):
        main(folder, "--baseline_epoch", "1", "--resume", "off")
    assert state(folder) == before


# ---------------------------------------------------------------- phase by phase


def test_coarse_search_and_contrastive_transfer(finished, tmp_path):
    """FFP's phases; what is fine-tuned is the network that the search kept at 0.8."""
    folder, tuned = tmp_path / "run", tmp_path / "tuned"
    argv = [*SEARCH, "--trained_param", finished / "baseline.keras", "--method", "ffp"]
    argv += ["--train_path", folder, *MACHINE, "--budgets", "0.8"]
    search.main([str(argument) for argument in argv])
    result = read(folder / "search.json")
    assert result["method"] == "ffp" and TARGET - 0.005 <= result["flops_rate"] <= TARGET
    assert np.load(folder / "bank_features.npy").shape == (1442, 64)
    argv = "--finetune_method ckt --train_epoch 1 --do_log off --rate 0.8".split()
    finetune.main(["--search_path", str(folder), "--train_path", str(tuned), *MACHINE, *argv])
    (row,) = rows(tuned / "metrics.jsonl")
    assert row["loss"] == pytest.approx(row["label_loss"] + row["contrast_loss"], rel=1e-5)
    assert read(tuned / "result.json")["after"]["flops"] == result["front"][0]["flops"]


def test_finetune_elsewhere_with_every_switch(finished, tmp_path):
    """Online teacher, bfloat16, micro-batches, cosine; the search's folder is only read."""
    before = state(finished)
    argv = ["--search_path", finished, "--train_path", tmp_path / "run", *MACHINE]
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


def test_phases_as_imported_functions(tmp_path):
    """On the smallest ResNet; the fine-tuning is compiled by XLA, whose time this keeps short."""
    options = search_options(
        0.8,
        step=0.5,
        teacher="none",
        score="l1",
        evaluator="naive",
        subset_per_class=16,
        val_per_class=8,
    )
    training = Training(epochs=1, learning_rate=0.01, batch_size=128, weight_decay=5e-4, seed=0)
    data, model = load("DIGITS"), cifar_resnet(8, 10, (8, 8, 1))
    given, weights = Given.read(model), model.get_weights()
    device = Device(tf.distribute.get_strategy(), compile=False)
    compiled = replace(device, compile=True, val_batch_images=2000)
    with RunFolder.open(tmp_path, {}) as folder:
        pruned = searching.run_search(
            folder, given, classification(), data, options, device, bank=None
        )
        tuned = finetuning.run_finetuning(
            folder, tmp_path, given, classification(), data, training, compiled, Plain()
        )
    for one, other in zip(weights, model.get_weights(), strict=True):
        assert np.array_equal(one, other), "the given network isn't changed"
    assert pruned.count_params() == tuned.count_params() < model.count_params()
    summary = read(tmp_path / "search.json")
    assert 0.7 < summary["flops_rate"] <= 0.8
    assert summary["steps"] == len(rows(tmp_path / "history.jsonl")) - 1
    assert summary["teachers"] == [] and "bank" not in summary["seconds"]
    assert not list(tmp_path.glob("bank*"))
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
