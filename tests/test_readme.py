"""The README tells the truth: its flags and files exist, its figures come from result files."""

import importlib
import re
from pathlib import Path

import pytest
from ekg_tf.pages import readme as results

from ekg_tf.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXPERIMENTS = ("smoothness", "landscape", "potential", "tables.run")
PROGRAMS = (
    *("ekg_tf.train_cifar", "ekg_tf.train_imagenet"),
    *(module for module, _ in COMMANDS.values()),
    *(f"ekg_tf.experiments.{name}" for name in EXPERIMENTS),
)


def flags_of(program: str, capsys) -> set[str]:
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(program).main(["--help"])
    assert stop.value.code == 0
    return set(re.findall(r"--[a-z0-9_]+", capsys.readouterr().out))


def test_flag_table_is_complete(capsys):
    table = README.split("## Flags")[1].split("## ")[0]
    documented = set()
    for cell in re.findall(r"^\| (`--[^|]+)", table, re.MULTILINE):
        documented |= set(re.findall(r"`(--[a-z0-9_]+)`", cell))
    existing = set()
    for program in PROGRAMS:
        existing |= flags_of(program, capsys)
    assert documented == existing - {"--help"}


def test_paper_flags_stay_valid(capsys):
    names = """train_path data_path arch dataset trained_param num_teacher learning_rate
    decay_points decay_rate weight_decay batch_size val_batch_size train_epoch search_target_rate
    search_step search_batch_size search_seed gpu_id seed accum do_log compile"""
    names = names.split()
    assert {f"--{name}" for name in names} <= flags_of("ekg_tf.train_cifar", capsys)


def test_first_two_blocks_are_the_commands():
    blocks = re.findall(r"^```bash\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert "requirements.txt" in blocks[0] and "train_cifar.py --arch ResNet-20" in blocks[0]
    assert "requirements-dev.txt" in blocks[1] and "-m pytest" in blocks[1]


def test_named_files_exist():
    carry_on = README.split("## For those who carry on")[1]
    for name in re.findall(r"`([\w/.]+(?:/|\.py))`", carry_on):
        candidates = [ROOT / name, ROOT / "nets" / name]
        assert any(path.exists() for path in candidates), name


def test_results_are_printed_from_files():
    block = README.split(results.BEGIN)[1].split(results.END)[0].strip()
    assert block == results.tables()


def test_spread_and_table():
    assert results.spread([]) == "not measured"
    assert results.spread([93.0]) == "93.00 (n = 1)"
    assert results.spread([1.0, 2.0, 3.0]) == "2.00 ± 1.00 (n = 3)"
    assert results.table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
