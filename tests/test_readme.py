"""README and the pages of results tell the truth: files exist, figures come from result files."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ekg_tf.pages import command_line, measurements, pictures
from ekg_tf.pages import readme as figures

from ekg_tf import __version__

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXPERIMENTS = "smoothness landscape potential".split()


def flags_of(program: str, capsys) -> set[str]:
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(program).main(["--help"])
    assert stop.value.code == 0
    return set(re.findall(r"--[a-z0-9_]+", capsys.readouterr().out))


def test_own_flags_of_the_experiments_are_listed(capsys):
    page = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
    known = set(command_line.flags(command_line.parsers()))
    for name in EXPERIMENTS:
        for flag in flags_of(f"ekg_tf.experiments.{name}", capsys) - known - {"--help"}:
            assert f"`{flag}`" in page, (name, flag)


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


def test_it_is_short():
    lines = README.splitlines()
    assert len(lines) <= 150
    assert max(len(line) for line in lines if not line.startswith(("|", "!["))) <= 120


def test_its_python_is_five_lines():
    (block,) = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert len([line for line in block.splitlines() if line]) == 5


@pytest.mark.parametrize("name", ["results", "install"])
def test_its_figures_are_printed_from_files(name):
    begin, end = figures.MARKS[name]
    block = README.split(begin)[1].split(end)[0].strip()
    assert block == getattr(figures, name)()


def test_results_are_printed_from_files():
    page = measurements.PAGE.read_text(encoding="utf-8")
    block = page.split(measurements.BEGIN)[1].split(measurements.END)[0].strip()
    assert block == measurements.tables()


def test_the_picture_shows_what_the_files_say(tmp_path):
    shown = {name: (share, words) for name, share, words in pictures.gains()}
    assert shown["FLOPs"] == (pytest.approx(44.9, abs=0.1), "126 → 57 M")
    assert shown["top-1 accuracy"][1] == "93.8 → 91.2 ± 1.2 % (n = 3)"
    pictures.draw_gain(tmp_path / "gain.png")
    assert (tmp_path / "gain.png").read_bytes().startswith(b"\x89PNG")
    for name in ("gain", "way", "groups"):
        assert (pictures.PICTURES / f"{name}.png").is_file()


def test_the_table_of_rooms_is_of_this_house():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rooms = text.split("## How the house is laid out")[1].split("## ")[0]
    for name in re.findall(r"`([\w/.]+(?:/|\.py))`", rooms):
        assert any((ROOT / place / name).exists() for place in (".", "nets")), name


def test_the_citation_is_of_this_version():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {__version__}\n" in citation


def test_the_workflow_runs_what_ci_runs():
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert workflow.endswith("      - run: .ci/run\n")


def test_the_flags_cost_no_tensorflow():
    """The documentation is built with them: seconds, not a start of TensorFlow."""
    code = (
        "import sys, ekg_tf.pages.command_line as c; c.page(); print('tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def test_spread_and_table():
    assert measurements.spread([]) == "not measured"
    assert measurements.spread([93.0]) == "93.00 (n = 1)"
    assert measurements.spread([1.0, 2.0, 3.0]) == "2.00 ± 1.00 (n = 3)"
    assert measurements.table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
