"""Exports: every format runs in its own runtime and gives Keras's numbers; bad input is refused."""

import importlib.util
import json
import re

import keras
import numpy as np
import pytest
from ekg_tf.cli import manners
from ekg_tf.dataloader import load
from ekg_tf.deployment import exporting, formats, runtimes
from ekg_tf.pages import export as export_tables
from ekg_tf.utils import extras
from ekg_tf.utils.errors import UserError
from ekg_tf.utils.keras_files import save_keras

from ekg_tf.commands import export as command

EXTRAS = ("ai_edge_litert", "onnx", "onnxruntime", "tf2onnx")
MISSING = [name for name in EXTRAS if importlib.util.find_spec(name) is None]
needs_extras = pytest.mark.skipif(
    bool(MISSING), reason=f"{MISSING} missing: pip install -r requirements-export.txt"
)


def network(filters: int, name: str) -> keras.Model:
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"),
            layers.Conv2D(filters, 3, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(10, activation="softmax"),
        ],
        name=name,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """small.keras, trained for some epochs on DIGITS, and the wider, untrained wide.keras."""
    path = tmp_path_factory.mktemp("export")
    keras.utils.set_random_seed(0)
    data = load("DIGITS")
    small = network(8, "small")
    small.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    images = (data.train.inputs - data.mean) / data.std
    small.fit(images, data.train.targets, epochs=5, batch_size=64, verbose=0)
    save_keras(path / "small.keras", small)
    save_keras(path / "wide.keras", network(16, "wide"))
    return path


@pytest.fixture(scope="module")
def exported(folder, tmp_path_factory):
    """Everything exported from the command line: (the out folder, the written figures)."""
    if MISSING:
        pytest.skip(f"{MISSING} missing: pip install -r requirements-export.txt")
    out = tmp_path_factory.mktemp("out")
    argv = [folder / "small.keras", "--format", "savedmodel,litert,onnx", "--int8"]
    argv += ["--reference", folder / "wide.keras", "--out", out, "--dataset", "DIGITS"]
    argv += ["--calibration_images", "100", "--json", out / "export.json"]
    command.main([str(argument) for argument in argv])
    return out, json.loads((out / "export.json").read_text())


def test_figures_of_every_format(exported, folder):
    out, results = exported
    assert sorted(path.name for path in out.iterdir()) == [
        "export.json",
        "small.onnx",
        "small.tflite",
        "small_int8.onnx",
        "small_int8.tflite",
        "small_savedmodel",
    ]
    rows = {row["format"]: row for row in results["exports"]}
    assert list(rows) == ["Keras", "savedmodel", "litert", "litert int8", "onnx", "onnx int8"]
    for name in ("savedmodel", "litert", "onnx"):
        assert rows[name]["max_difference"] < 1e-5
        assert rows[name]["agreement"] == 100.0
        assert rows[name]["top1"] == rows["Keras"]["top1"] > 80
    for name in ("litert int8", "onnx int8"):
        assert 0 < rows[name]["max_difference"] < 0.5
        assert rows[name]["agreement"] > 95
    for row in rows.values():
        assert row["bytes"] == exporting.size_of(
            (folder if row["format"] == "Keras" else out) / row["file"]
        )
        assert row["latency_ms"] > 0 and row["reference_latency_ms"] > 0
        if row["format"] in ("savedmodel", "litert", "onnx"):
            assert row["reference_bytes"] > row["bytes"]
    assert results["images"] == len(load("DIGITS").test)
    assert results["calibration_images"] == 100
    assert results["input"] == {"shape": [None, 8, 8, 1], "mean": [78.0], "std": [96.0]}
    assert all(results["versions"][name] for name in exporting.VERSIONED)


def test_batch_size_is_dynamic_and_litert_is_all_integers(exported):
    out, _ = exported
    images = np.random.default_rng(0).normal(size=(5, 8, 8, 1)).astype(np.float32)
    for kind in formats.FORMATS:
        run = kind.open(out / f"small{kind.suffix}")
        together = run(images)
        one_by_one = np.concatenate([run(images[i : i + 1]) for i in range(5)])
        assert together.shape == (5, 10) and together.dtype == np.float32
        np.testing.assert_allclose(together, one_by_one, atol=1e-6)
        np.testing.assert_allclose(together.sum(1), 1, atol=0.05)  # probabilities, as given
    assert runtimes.float_tensors(out / "small_int8.tflite") == []
    assert runtimes.float_tensors(out / "small.tflite")


def test_table_shows_before_and_after(exported, capsys):
    results = exported[1]
    exporting.print_table(results)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8 and "mean 78 and std 96" in lines[-1]
    row = next(line for line in lines if line.startswith("litert int8"))
    assert re.search(r"\d+ → \d+ ", row) and re.search(r"[\d.]+ → [\d.]+$", row)


def test_second_export_replaces_the_first(exported, folder):
    out, _ = exported
    argv = [folder / "small.keras", "--format", "savedmodel", "--out", out, "--dataset", "DIGITS"]
    before = (out / "small_savedmodel" / "saved_model.pb").stat().st_ino
    command.main([str(argument) for argument in argv])
    assert (out / "small_savedmodel" / "saved_model.pb").stat().st_ino != before
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_mixed_precision_is_rebuilt_in_float32(folder, tmp_path):
    path = tmp_path / "mixed.keras"
    mixed = keras.models.clone_model(
        keras.saving.load_model(folder / "small.keras"),
        clone_function=lambda layer: type(layer).from_config(
            layer.get_config() | {"dtype": "mixed_bfloat16"}
        ),
    )
    save_keras(path, mixed)
    model = exporting.load_float32(path)
    assert {layer.compute_dtype for layer in model.layers} == {"float32"}
    for one, other in zip(model.get_weights(), mixed.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_page_shows_the_collected_figures(tmp_path):
    page = export_tables.PAGE.read_text(encoding="utf-8")
    block = page.split(export_tables.BEGIN)[1].split(export_tables.END)[0].strip()
    assert block == export_tables.tables()
    source, target = tmp_path / "one.json", tmp_path / "all.json"
    runs = json.loads(export_tables.FIGURES.read_text(encoding="utf-8"))
    source.write_text(json.dumps(next(iter(runs.values()))))
    for title in ("a", "b"):
        export_tables.collect(title, source, target)
    assert list(json.loads(target.read_text())) == ["a", "b"]
    assert export_tables.tables(target).count("| litert int8 |") == 2
    for content, message in (("{}", "holds no figures"), ("[]", "holds a list instead of an obj")):
        source.write_text(content)
        with pytest.raises(UserError, match=message):
            export_tables.collect("c", source, target)


@needs_extras
def test_litert_refuses_operations_it_lacks(tmp_path):
    inputs = keras.Input((4, 4, 1))
    outputs = keras.layers.Flatten()(keras.ops.erfinv(inputs / 2))
    model = keras.Model(inputs, outputs, name="odd")
    kind = next(one for one in formats.FORMATS if one.title == "litert")
    with pytest.raises(UserError, match=r"LiteRT can't take odd: .*Erfinv"):
        formats.write(kind, model, tmp_path / "odd.tflite", np.zeros((1, 4, 4, 1)), None)
    assert list(tmp_path.iterdir()) == []


@needs_extras
def test_wrong_numbers_never_take_their_place(folder, tmp_path, monkeypatch):
    kind = next(one for one in formats.FORMATS if one.title == "onnx")
    broken = formats.Format(
        "onnx", False, ".onnx", {}, kind.write, lambda path, _: lambda x: kind.open(path)(x) + 0.1
    )
    probe = np.zeros((1, 8, 8, 1), np.float32)
    model = exporting.load_float32(folder / "small.keras")
    with pytest.raises(UserError, match=r"would differ from Keras by 0\.1"):
        formats.write(broken, model, tmp_path / "small.onnx", probe, None)
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_a_runtime_is_one_line(tmp_path):
    def broken(path, names):
        raise RuntimeError("\n the runtime has no such operation \n more")

    model = network(4, "mine")
    kind = formats.Format("other", False, ".bin", {}, lambda m, path, _: path.touch(), broken)
    images = np.zeros((2, 8, 8, 1), np.float32)
    with pytest.raises(UserError, match=r"^other can't take mine: the runtime has no such op"):
        formats.write(kind, model, tmp_path / "mine.bin", images, None)
    assert not list(tmp_path.iterdir())


def test_bad_input_is_one_line(folder, tmp_path, monkeypatch, capsys):
    def refused(*argv) -> str:
        with pytest.raises(SystemExit) as stop:
            manners.run(lambda _: command.main([str(argument) for argument in argv]))
        error = capsys.readouterr().err
        assert stop.value.code == 2 and re.fullmatch(r"error: [^\n]+\n", error), error
        return error

    small = folder / "small.keras"
    assert "choose from savedmodel, litert, onnx" in refused(small, "--format", "tflite")
    assert "int8 needs litert or onnx" in refused(small, "--format", "savedmodel", "--int8")
    assert "is no folder" in refused(small, "--format", "savedmodel", "--out", tmp_path / "no")
    missing = refused(tmp_path / "no.keras", "--format", "savedmodel")
    assert "no.keras does not exist" in missing
    digits = ("--format", "savedmodel", "--dataset", "DIGITS")
    for name, size, layers, message in (
        ("maps", (8, 8, 1), [keras.layers.Conv2D(2, 3)], "isn't compiled, and its output"),
        ("large", (9, 8, 1), [keras.layers.Flatten()], "takes inputs (9, 8, 1), but DIGITS has"),
        ("few", (8, 8, 1), [keras.layers.Flatten(), keras.layers.Dense(9)], "has the label 9"),
    ):
        save_keras(tmp_path / f"{name}.keras", keras.Sequential([keras.Input(size), *layers]))
        assert message in refused(tmp_path / f"{name}.keras", *digits)
    reference = folder / "wide.keras"
    (tmp_path / "small_savedmodel").mkdir()
    argv = (small, "--format", "savedmodel", "--dataset", "DIGITS", "--reference", reference)
    assert "holds no saved_model.pb" in refused(*argv, "--out", tmp_path)
    monkeypatch.setattr(formats, "_is_there", lambda module: module != "tf2onnx")
    for installed, words in ((False, "-r requirements-export.txt"), (True, '"ekg_tf[export]"')):
        known = ["ekg_tf"] if installed else []
        monkeypatch.setattr(extras.metadata, "distributions", lambda known=known, **_: known)
        needed = refused(small, "--format", "onnx")
        assert f"tf2onnx is not installed: pip install {words}" in needed
