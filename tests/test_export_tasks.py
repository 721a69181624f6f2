"""Exports of any task: every format has Keras's inputs, outputs and order; figures of the task."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from ekg_tf.deployment import exporting, formats, runtimes
from ekg_tf.deployment.measuring import measured
from ekg_tf.nets.given import Given
from ekg_tf.nets.keras_graph import ends
from ekg_tf.nets.outputs import Output
from ekg_tf.training.evaluation import evaluate
from ekg_tf.training.task import Head, Task, task_of
from ekg_tf.utils.errors import UserError
from ekg_tf.utils.keras_files import save_keras
from ekg_tf.utils.trees import mapped, parts_of, rows_of

EXTRAS = ("ai_edge_litert", "onnx", "onnxruntime", "tf2onnx")
MISSING = [name for name in EXTRAS if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"{MISSING} missing: pip install -r requirements-export.txt"
)
L = keras.layers
COUNT = 48
ALL = ["Keras", "savedmodel", "litert", "litert int8", "onnx", "onnx int8"]


def two_ends() -> keras.Model:
    """A picture and some numbers in; a class and a number out, by dicts."""
    image, extra = keras.Input((8, 8, 3), name="image"), keras.Input((3,), name="extra")
    x = L.Conv2D(8, 3, activation="relu")(image)
    x = L.Concatenate()([L.GlobalAveragePooling2D()(x), L.Dense(4, activation="relu")(extra)])
    kind, size = L.Dense(4, activation="softmax", name="kind")(x), L.Dense(1, name="size")(x)
    model = keras.Model({"image": image, "extra": extra}, {"size": size, "kind": kind}, name="ends")
    losses = {"kind": "sparse_categorical_crossentropy", "size": "mse"}
    model.compile("sgd", losses, metrics={"kind": "accuracy", "size": "mae"})
    return model


def alike() -> keras.Model:
    """Lists of equal shapes in and out, whose names sort the other way round."""
    first, second = keras.Input((4,), name="zz"), keras.Input((4,), name="aa")
    outputs = [
        L.Dense(2, name="q")(L.Dense(8, activation="relu")(first)),
        L.Dense(2, name="p")(L.Subtract()([first, second])),
    ]
    model = keras.Model([first, second], outputs, name="alike")
    model.compile("sgd", "mse")
    return model


def unet() -> keras.Model:
    """Pictures to one sigmoid per pixel."""
    image = keras.Input((16, 16, 1), name="image")
    high = L.Conv2D(8, 3, padding="same", activation="relu")(image)
    low = L.Conv2D(8, 3, padding="same", activation="relu")(L.MaxPooling2D()(high))
    up = L.Conv2DTranspose(8, 2, strides=2, activation="relu")(low)
    x = L.Conv2D(8, 3, padding="same", activation="relu")(L.Concatenate()([high, up]))
    wide = keras.initializers.RandomNormal(stddev=3.0)  # few pixels are near 0.5
    last = L.Conv2D(1, 1, activation="sigmoid", kernel_initializer=wide)
    model = keras.Model(image, last(x), name="unet")
    model.compile("sgd", "binary_crossentropy", metrics=["binary_accuracy"])
    return model


def series() -> keras.Model:
    """A series of 32 steps of 2 numbers to 3 numbers."""
    model = keras.Sequential(
        [
            keras.Input((32, 2), name="series"),
            L.Conv1D(8, 5, padding="same", activation="relu"),
            L.MaxPooling1D(),
            L.Flatten(),
            L.Dense(3),
        ],
        name="series",
    )
    model.compile("sgd", "mse", metrics=["mae"])
    return model


def dense_classes() -> keras.Model:
    """Pictures to one of three classes per pixel, as logits."""
    image = keras.Input((8, 8, 2), name="image")
    x = L.Conv2D(8, 3, padding="same", activation="relu")(image)
    model = keras.Model(image, L.Conv2D(3, 1, name="map")(x), name="dense")
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


NETWORKS = {one.__name__: one for one in (two_ends, alike, unet, series, dense_classes)}


def drawn(model: keras.Model, count: int = COUNT) -> Any:
    """Random inputs for a network, a tuple where there are several."""
    rng = np.random.default_rng(1)
    parts = [rng.normal(size=(count, *one.shape[1:])).astype(np.float32) for one in model.inputs]
    return tuple(parts) if len(parts) > 1 else parts[0]


@dataclass(frozen=True)
class Split:
    """Arrays, or tuples of them."""

    inputs: Any
    targets: Any

    def __len__(self) -> int:
        return len(parts_of(self.targets)[0])


def data_of(model: keras.Model) -> SimpleNamespace:
    """Random inputs, and targets of the kinds that the outputs have."""
    rng = np.random.default_rng(2)

    def targets() -> Any:
        found = []
        for output in Given.read(model).outputs:
            shape = (COUNT, *model.outputs[len(found)].shape[1:])
            if output.kind == "classes":
                found.append(rng.integers(0, shape[-1], shape[:-1]).astype(np.int32))
            elif output.kind == "sigmoids":
                found.append(rng.integers(0, 2, shape).astype(np.float32))
            else:
                found.append(rng.normal(size=shape).astype(np.float32))
        return tuple(found) if len(found) > 1 else found[0]

    train, test = (Split(drawn(model), targets()) for _ in range(2))
    ones = {"mean": np.zeros(1, np.float32), "std": np.ones(1, np.float32)}
    return SimpleNamespace(name="arrays", train=train, test=test, **ones)


def rows_at(array: np.ndarray, rows: np.ndarray) -> tf.Tensor:
    return tf.constant(array[rows])


def batches_of(
    data: SimpleNamespace, split: str, size: int, *, indices: Any = None, shuffle_seed: Any = 0
) -> list[dict[str, Any]]:
    """As `dataloader.eval_batches`."""
    source = getattr(data, split)
    order = np.arange(len(source)) if indices is None else indices
    found = []
    for start in range(0, len(order), size):
        taken = partial(rows_at, rows=order[start : start + size])
        targets = mapped(taken, source.targets)
        found.append({"inputs": mapped(taken, source.inputs), "targets": targets})
    return found


@pytest.fixture(autouse=True)
def _arrays(monkeypatch):
    monkeypatch.setattr(exporting, "eval_batches", batches_of)
    monkeypatch.setattr(exporting, "SECONDS", 0.05)


def answers(model: keras.Model, inputs: Any) -> list[np.ndarray]:
    """What Keras itself gives."""
    packed = keras.tree.pack_sequence_as(ends(model)[0], list(parts_of(inputs)))
    return [np.asarray(one) for one in keras.tree.flatten(model(packed, training=False))]


def written(model: keras.Model, folder: Path) -> None:
    """Writes every format."""
    inputs = drawn(model)
    for kind in formats.FORMATS:
        path = folder / f"{model.name}{kind.suffix}"
        formats.write(kind, model, path, rows_of(inputs, slice(0, 4)), inputs)


def compared(model: keras.Model, folder: Path) -> None:
    """The runtime of every written format gives Keras's numbers at every batch size."""
    inputs, names = drawn(model), runtimes.Names.of(model)
    for kind in formats.FORMATS:
        path = folder / f"{model.name}{kind.suffix}"
        run = kind.open(path, names)
        for count in (1, 5):
            some = rows_of(inputs, slice(0, count))
            outputs = parts_of(run(some))
            for output, wanted in zip(outputs, answers(model, some), strict=True):
                assert output.dtype == np.float32 and output.shape == wanted.shape
                tolerance = (0.1 if kind.int8 else 1e-5) * max(1.0, np.abs(wanted).max())
                np.testing.assert_allclose(output, wanted, atol=tolerance, err_msg=kind.title)


def own_task(model, data):
    examples = data.test.inputs
    return task_of(Given.read(model, examples), examples=examples, labels=False)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_format_gives_keras_numbers_and_the_task_its_figures(name, tmp_path):
    model = NETWORKS[name]()
    path = tmp_path / f"{model.name}.keras"
    save_keras(path, model)
    data = data_of(model)
    kinds = formats.chosen(["savedmodel", "litert", "onnx"], True)
    loaded = exporting.load_float32(path)
    task = own_task(loaded, data)
    results = exporting.export(loaded, path, kinds, data, task, out=tmp_path, batch_images=20)
    rows = {row["format"]: row for row in results["exports"]}
    assert list(rows) == ALL
    given = Given.read(model)
    task = task_of(given, examples=data.test.inputs, labels=False)
    own = evaluate(given.core, task, batches_of(data, "test", 20))
    for title, row in rows.items():
        int8 = title.endswith("int8")
        assert "top1" not in row and row["latency_ms"] > 0
        assert row["loss"] == pytest.approx(own["loss"], rel=0.05 if int8 else 1e-4)
        assert row["max_difference"] <= (0.1 if int8 else 1e-5) * max(1, row["largest_output"])
        assert row["max_difference"] > 0 or not int8
        for key, value in own.get("metrics", {}).items():
            assert row["metrics"][key] == pytest.approx(value, abs=0.05 if int8 else 1e-4)
        if name in ("alike", "series"):
            assert row["agreement"] is None
        else:
            assert row["agreement"] > 90 if int8 else row["agreement"] == 100
    assert rows["Keras"]["largest_output"] == pytest.approx(
        max(np.abs(one).max() for one in answers(model, data.test.inputs)), rel=1e-5
    )
    compared(loaded, tmp_path)
    names_only_the_batch(tmp_path / f"{model.name}.onnx", model)
    names_only_the_batch(tmp_path / f"{model.name}_int8.onnx", model)
    assert runtimes.float_tensors(tmp_path / f"{model.name}_int8.tflite") == []


def names_only_the_batch(path: Path, model: keras.Model) -> None:
    """All inputs and outputs of an .onnx file have the sizes of the model's, the batch any."""
    import onnx

    graph = onnx.load(path).graph
    for value, tensor in zip(
        (*graph.input, *graph.output), (*model.inputs, *model.outputs), strict=True
    ):
        first, *others = value.type.tensor_type.shape.dim
        assert first.dim_param == "batch"
        assert [one.dim_value for one in others] == list(tensor.shape[1:])


@pytest.mark.parametrize("kind", [one for one in formats.FORMATS if not one.int8])
def test_another_order_never_takes_its_place(kind, tmp_path):
    model = alike()

    def swapped(path: Path, names: runtimes.Names) -> runtimes.Runtime:
        run = kind.open(path, names)
        return lambda inputs: run(inputs[::-1])

    broken = replace(kind, open=swapped)
    with pytest.raises(UserError, match="would differ from Keras by"):
        formats.write(broken, model, tmp_path / f"alike{kind.suffix}", drawn(model), None)
    assert list(tmp_path.iterdir()) == []


def test_more_than_ten_outputs_keep_their_order(tmp_path):
    first = keras.Input((3,), name="first")
    model = keras.Model(first, [L.Dense(2)(first) for _ in range(12)], name="many")
    written(model, tmp_path)
    compared(model, tmp_path)


def test_outputs_of_lists_in_dicts_are_exported_as_a_list(tmp_path):
    first, second = keras.Input((3,), name="zz"), keras.Input((3,), name="aa")
    outputs = {
        "b": L.Dense(2)(first),
        "a": [L.Dense(2)(second), L.Dense(2)(L.Add()([first, second]))],
    }
    model = keras.Model([first, second], outputs, name="nested")
    plain = formats.unnested(model)
    assert isinstance(plain.output, list) and formats.unnested(plain) is plain
    inputs = drawn(model)
    for wanted, same in zip(answers(model, inputs), answers(plain, inputs), strict=True):
        np.testing.assert_array_equal(wanted, same)
    written(plain, tmp_path)
    compared(plain, tmp_path)


def test_whole_numbers_stay_whole(tmp_path):
    words, numbers = keras.Input((6,), dtype="int32", name="words"), keras.Input((3,), name="more")
    x = L.GlobalAveragePooling1D()(L.Embedding(20, 4)(words))
    model = keras.Model([words, numbers], L.Dense(2)(L.Concatenate()([x, numbers])), name="words")
    rng = np.random.default_rng(0)
    inputs = (rng.integers(0, 20, (9, 6)).astype(np.float32), rng.normal(size=(9, 3)))
    inputs = (inputs[0], inputs[1].astype(np.float32))
    for kind in formats.FORMATS:
        path = tmp_path / f"words{kind.suffix}"
        formats.write(kind, model, path, inputs, inputs)
        output = kind.open(path, runtimes.Names.of(model))(inputs)
        wanted = answers(model, (inputs[0].astype(np.int32), inputs[1]))[0]
        np.testing.assert_allclose(output, wanted, atol=0.1 if kind.int8 else 1e-5)


def test_half_precision_keeps_its_ends_and_its_loss(tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = two_ends()
    finally:
        keras.config.set_dtype_policy("float32")
    save_keras(tmp_path / "half.keras", model)
    loaded = exporting.load_float32(tmp_path / "half.keras")
    assert {layer.compute_dtype for layer in loaded.layers} == {"float32"}
    assert list(loaded.input) == list(model.input) and list(loaded.output) == list(model.output)
    assert loaded.loss == model.loss
    path, data = tmp_path / "half.keras", data_of(model)
    results = exporting.export(
        loaded, path, [formats.FORMATS[0]], data, own_task(loaded, data), out=tmp_path
    )
    assert results["exports"][1]["agreement"] == 100
    names = [one["name"] for one in results["input"]]
    assert names == ["extra", "image"] == [one.name for one in loaded.inputs]


def test_the_table_shows_what_there_is(tmp_path, capsys):
    model = two_ends()
    save_keras(tmp_path / "ends.keras", model)
    path, data = tmp_path / "ends.keras", data_of(model)
    results = exporting.export(
        model, path, [formats.FORMATS[0]], data, own_task(model, data), out=tmp_path
    )
    exporting.print_table(results)
    header, *_, last = capsys.readouterr().out.splitlines()[1:]
    for title in ("loss", "kind_accuracy", "size_mae", "agrees with Keras %", "largest output"):
        assert title in header
    assert "top-1" not in header
    assert last.endswith("extra [None, 3]; image [None, 8, 8, 3]; 48 test examples")
    model = series()
    save_keras(tmp_path / "series.keras", model)
    path, data = tmp_path / "series.keras", data_of(model)
    header, *rows = exporting.table(
        exporting.export(model, path, [], data, own_task(model, data), out=tmp_path)
    )
    assert "agrees with Keras %" not in header and "mae" in header
    assert [len(row) for row in rows] == [len(header)]


def test_what_does_not_fit_is_one_line(tmp_path):
    model = two_ends()
    path, data = tmp_path / "ends.keras", data_of(model)
    save_keras(path, model)

    own = own_task(model, data)

    def refused(split: Split, task: Any = own) -> str:
        other = SimpleNamespace(**vars(data) | {"test": split})
        with pytest.raises(UserError) as error:
            exporting.export(model, path, [formats.FORMATS[0]], other, task, out=tmp_path)
        assert "\n" not in str(error.value)
        return str(error.value)

    extra, image = data.test.inputs
    kind, size = data.test.targets
    message = refused(Split(image, (kind, size)))
    assert "takes inputs (3,) and (8, 8, 3), but arrays has (8, 8, 3): give" in message
    message = refused(Split((extra[:, :2], image), (kind, size)))
    assert "takes inputs (3,) and (8, 8, 3), but arrays has (2,) and (8, 8, 3)" in message
    assert "has 2 output(s), but arrays has targets for 1" in refused(Split((extra, image), kind))
    message = refused(Split((extra, image), (kind + 1, size)))
    assert "tells 4 classes apart at kind, but arrays has the label 4" in message
    other = task_of(Given.read(series()), examples=drawn(series()))
    assert "the task is one of 1: give" in refused(data.test, other)
    assert [one.name for one in tmp_path.iterdir()] == ["ends.keras"]


def test_labels_that_the_loss_leaves_out_may_be_any(tmp_path):
    model = dense_classes()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=255)
    path, data = tmp_path / "dense.keras", data_of(model)
    model.compile("sgd", loss)
    for split in (data.train, data.test):
        split.targets[:, 0] = 255
    save_keras(path, model)
    results = exporting.export(model, path, [], data, own_task(model, data), out=tmp_path)
    assert np.isfinite(results["exports"][0]["loss"])


def test_figures_by_hand():
    heads = (
        Head(Output("a", "sigmoids", applied=True), lambda y, x: tf.square(y - tf.sigmoid(x))),
        Head(Output("b", "numbers"), lambda y, x: tf.abs(y - x), weight=2.0),
    )
    one, two = (np.array([[0.75, 0.25]], np.float32), np.array([[0.75, 0.6]], np.float32))
    numbers = np.array([[3.0]], np.float32)
    batch = {
        "inputs": tf.zeros([1, 1]),
        "targets": (tf.constant([[1.0, 0.0]]), tf.constant([[2.0]])),
        "weights": (None, tf.constant([0.5])),
    }
    runs = [lambda _: (one, numbers), lambda _: (two, numbers - 1), lambda _: (two, np.nan * two)]
    rows = measured(runs, Task(heads, structure=["a", "b"]), [batch, batch])
    assert rows[0] == {
        "loss": pytest.approx(0.0625 + 2 * 0.5 * 1.0),
        "agreement": 100.0,
        "max_difference": 0.0,
        "largest_output": 3.0,
    }
    assert rows[1]["loss"] == pytest.approx((0.0625 + 0.36) / 2)
    assert rows[1]["agreement"] == 50.0 and rows[1]["max_difference"] == 1.0
    assert np.isnan(rows[2]["max_difference"]) and np.isnan(rows[2]["largest_output"])
