"""The examples as a user runs them: from a folder of one's own, and what they print and leave."""

import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
QUICK_ONES, LONG_ONES = ("own_classifier",), ("segmentation", "transfer_learning", "detector")
LINE = r"^{}\s+([\d.,]+) -> (?:.* -> )?([\d.,]+)"


def environment() -> dict[str, str]:
    """That of a user who has the package: the checkout on the path, TensorFlow's own log level."""
    kept = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    return kept | {"PYTHONPATH": str(ROOT)}


def run(name: str, folder: Path, *argv: str) -> str:
    """What an example prints; it must end well."""
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *argv]
    done = subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def pair(text: str, name: str) -> tuple[float, float]:
    """The two figures of its line "<name> <before> -> <after>"."""
    found = re.search(LINE.format(name), text, re.MULTILINE)
    assert found, text
    before, after = (float(one.replace(",", "")) for one in found.groups())
    return before, after


def check(text: str, metric: str, least: float, kept: float) -> None:
    """The network was good before, half of its FLOPs are gone, and it is still good."""
    before, after = pair(text, metric)
    assert before >= least and after >= kept * before, text
    flops = pair(text, "FLOPs")
    assert 0.4 * flops[0] <= flops[1] <= 0.5 * flops[0]
    parameters = pair(text, "parameters")
    assert parameters[1] < 0.8 * parameters[0]


def smaller(path: Path, text: str) -> keras.Model:
    """The network that was saved, read by Keras alone and of the size that was printed."""
    model = keras.models.load_model(path)
    assert model.count_params() == pair(text, "parameters")[1]
    assert not any(type(layer).__module__.startswith("ekg_tf") for layer in model.layers)
    return model


@pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer")
def test_own_classifier(tmp_path):
    text = run("own_classifier", tmp_path, "--quick")
    check(text, "accuracy", 0.95, 0.98)
    smaller(tmp_path / "own_classifier_run/small.keras", text)
    again = re.search(r"^read back\s+([\d.]+)", text, re.MULTILINE)
    assert again and float(again[1]) == pair(text, "accuracy")[1]
    assert "dense_1   not prunable" in text
    assert (tmp_path / "own_classifier_run/small.tflite").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer")
def test_segmentation(tmp_path):
    text = run("segmentation", tmp_path, "--quick")
    check(text, "IoU", 0.75, 0.95)
    model = smaller(tmp_path / "segmentation_run/small.keras", text)
    assert model.input_shape == (None, 32, 32, 1) and model.output_shape == (None, 32, 32, 1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer")
def test_transfer_learning(tmp_path):
    text = run("transfer_learning", tmp_path, "--quick")
    check(text, "accuracy", 0.3, 0.9)
    smaller(tmp_path / "transfer_learning_run/small.keras", text)


@pytest.mark.slow
def test_detector(tmp_path):
    text = run("detector", tmp_path, "--quick")
    check(text, "recall", 0.3, 0.9)
    model = smaller(tmp_path / "detector_run/small.keras", text)
    assert sorted(model.output_names) == ["boxes", "classes"]


@pytest.mark.slow
def test_notebook(tmp_path, monkeypatch):
    import nbclient
    import nbformat

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(EXAMPLES / "own_classifier.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    context = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=900, resources=context).execute()
    text = "\n".join(
        one["text"]
        for cell in notebook.cells
        for one in cell.get("outputs", [])
        if one["output_type"] == "stream"
    )
    check(text, "accuracy", 0.97, 0.98)
    for name in ("small.keras", "small.tflite", "small_int8.tflite"):
        assert (tmp_path / "own_classifier_run" / name).is_file()


def test_every_example_is_listed_and_tested():
    files = {path.name for path in EXAMPLES.iterdir()} - {"README.md"}
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert files == set(re.findall(r"\]\((.*?)\)", listed))
    assert files == {f"{name}.py" for name in QUICK_ONES + LONG_ONES} | {"own_classifier.ipynb"}
