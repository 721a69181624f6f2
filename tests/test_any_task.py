"""Networks for tasks of every kind through `ekg.prune`: search, bank, fine-tuning, result."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from ekg_tf.reports import networks

import ekg_tf as ekg
from tests.helpers.any_task import TASKS, examples_for

L = keras.layers
COUNT = 64
QUICK = {
    "budget": 0.7,
    "method": ekg.EKG(step=0.5),
    "bank": ekg.Bank(teachers=2),
    "training": ekg.Training(epochs=1, batch_size=16, learning_rate=0.01),
    "sampling": ekg.Sampling(val=16, subset=32),
    "log": False,
}


@pytest.fixture(autouse=True)
def _no_latencies(monkeypatch):
    monkeypatch.setattr(networks, "timings", lambda models, *_, **__: np.ones((15, len(models))))
    monkeypatch.setattr(networks, "compared", lambda before, after: None)


def split(plain, rows):
    return keras.tree.map_structure(lambda x: x[rows], plain)


def pruned(name, folder, **options):
    model, *_, plain = examples_for(name, COUNT)
    test = split(plain, slice(0, 24))
    return model, plain, test, ekg.prune(model, plain, test, folder, **(QUICK | options))


def sampling_of(name):
    exclusive = name in ("classes", "from_logits", "smoothed")
    return ekg.Sampling(val_per_class=4, subset_per_class=8) if exclusive else QUICK["sampling"]


# Tasks that are others than these in their loss alone (tests/test_training_task.py has all losses).
ALIKE = ("from_logits", "smoothed")


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=[pytest.mark.slow] * (one in ALIKE)) for one in TASKS]
)
def test_the_result_is_smaller_compiled_and_what_was_printed(name, tmp_path):
    model, plain, test, result = pruned(name, tmp_path, sampling=sampling_of(name))
    assert result.model.count_params() < model.count_params()
    assert result.model.optimizer is not None and result.model.output_names == model.output_names
    assert type(result.model.optimizer) is type(model.optimizer)
    assert not result.model.optimizer.built or not int(result.model.optimizer.iterations)
    for network, side in ((model, result.before), (result.model, result.after)):
        keras_says = network.evaluate(*test, verbose=0, return_dict=True)
        figures = side["test"]
        assert figures["loss"] == pytest.approx(keras_says["loss"], rel=1e-3)
        for metric, value in figures["metrics"].items():
            assert value == pytest.approx(keras_says[metric], rel=1e-3, abs=1e-4)
        assert len(figures["metrics"]) == sum("loss" not in key for key in keras_says)
    result.model.fit(*plain, epochs=1, verbose=0)
    alone = keras.models.load_model(tmp_path / "pruned.keras")
    again = alone.evaluate(*test, verbose=0, return_dict=True)
    assert again["loss"] == pytest.approx(result.after["test"]["loss"], rel=1e-3)
    history = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert len(history) > 1 and all(np.isfinite(row["val_loss"]) for row in history)
    manifest = json.loads((tmp_path / "bank.json").read_text())
    assert manifest["complete"] and manifest["kind"] == "full"
    assert {path.name for path in tmp_path.glob("bank*.npy")} == set(manifest["shapes"])


def test_numbers_in_a_unit_beyond_float16_are_pruned_and_fine_tuned(tmp_path):
    """Prices, by a network without batch norm: SGD at 0.01 made its loss infinite."""
    rng, unit = np.random.default_rng(0), 1e5
    images = rng.uniform(0, 1, (96, 8, 8, 1)).astype(np.float32)
    targets = (images[:, :4].mean((1, 2, 3)) - images[:, 4:].mean((1, 2, 3)))[:, None]
    targets = (targets / targets.std()).astype(np.float32)
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 1))
    x = L.Conv2D(12, 3, activation="relu")(L.Conv2D(8, 3, activation="relu")(image))
    model = keras.Model(image, L.Dense(1, name="price")(L.Flatten()(x)))
    model.compile(keras.optimizers.Adam(1e-2), "mse")
    model.fit(images, targets, epochs=40, batch_size=32, verbose=0)
    last = model.get_layer("price")
    last.set_weights([unit * one for one in last.get_weights()])
    last.bias.assign_add([2 * unit])
    model.compile("adam", "mse", metrics=["mae"])
    prices = unit * targets + 2 * unit
    training = ekg.Training(epochs=10, batch_size=16)
    result = ekg.prune(
        model, (images, prices), (images, prices), tmp_path, **(QUICK | {"training": training})
    )
    args, searched = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("args", "search"))
    assert args["optimizer"] == "lamb" and args["learning_rate"] == 0.01
    bank = np.load(tmp_path / "bank.npy", mmap_mode="r")
    assert bank.dtype == np.float32 and np.abs(bank).max() > np.finfo(np.float16).max
    before, pruned, after = (
        side["test"]["loss"] / unit**2
        for side in (result.before, {"test": searched["test"]["after"]}, result.after)
    )
    assert before < 0.1 and pruned < 0.1 and after < 0.1


def test_masks_that_are_mirrored_with_their_images_have_an_online_bank(tmp_path, capsys):
    data = ekg.Data(flip=True, crop=1)
    _, _, _, result = pruned("segmentation", tmp_path, data=data)
    assert "online, 2 teachers run beside the student" in capsys.readouterr().out
    assert not list(tmp_path.glob("bank*.npy"))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(row["distillation_loss"]) and "teachers" in row for row in rows)
    assert np.isfinite(result.after["test"]["loss"])
    with pytest.raises(ekg.UserError, match="use an online bank, or no flips and crops"):
        pruned("segmentation", tmp_path / "full", data=data, bank=ekg.Bank("full", teachers=2))


@pytest.mark.parametrize(
    "method", [ekg.FFP(), ekg.SWP(epochs=1, generations=2, population=4, batch_size=16)]
)
def test_other_methods_and_fine_tunings(method, tmp_path):
    _, _, _, result = pruned(
        "two_ends",
        tmp_path,
        method=method,
        bank=ekg.Bank(teachers=2, features=True),
        finetune=ekg.Contrastive(),
    )
    assert result.after["flops"] <= 0.7 * result.before["flops"]
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["contrast_loss"] > 0 for row in rows if row["phase"] == "finetune"] == [True]


@pytest.mark.parametrize("finetune", [ekg.Single(), ekg.Hinton(), ekg.Plain()])
def test_other_teachers(finetune, tmp_path):
    _, _, _, result = pruned("two_ends", tmp_path, bank="auto", finetune=finetune)
    assert np.isfinite(result.after["test"]["loss"]) and not list(tmp_path.glob("bank*"))


class Noted(keras.callbacks.Callback):
    """Keeps what it is told; may stop the training."""

    def __init__(self, stop_after=None):
        super().__init__()
        self.told, self.stop_after = [], stop_after

    def on_train_begin(self, logs=None):
        self.told.append("begin")

    def on_epoch_end(self, epoch, logs=None):
        self.told.append((epoch, logs))
        if self.stop_after == epoch:
            self.model.stop_training = True

    def on_train_end(self, logs=None):
        self.told.append("end")


def test_optimizer_callbacks_and_validation_of_the_fine_tuning(tmp_path):
    *_, plain = examples_for("regression", COUNT)
    noted, log = Noted(stop_after=1), tmp_path / "log.csv"
    training = ekg.Training(epochs=4, batch_size=16)
    _, _, _, result = pruned(
        "regression",
        tmp_path / "run",
        training=training,
        optimizer=keras.optimizers.Adam(1e-3),
        callbacks=[noted, keras.callbacks.CSVLogger(log)],
        validation=split(plain, slice(0, 8)),
    )
    begin, (first, logs), (second, _), end = noted.told
    assert (begin, first, second, end) == ("begin", 0, 1, "end")
    assert {"loss", "val_loss", "val_mae", "test_mae"} <= set(logs)
    assert logs["lr"] == pytest.approx(1e-3)
    assert len(log.read_text().splitlines()) == 3
    kept = json.loads((tmp_path / "run" / "args.json").read_text())
    assert kept["optimizer"]["class"] == "Adam" and kept["weight_decay"] == 0
    assert np.isfinite(result.after["test"]["loss"])


def test_the_loss_and_the_metrics_of_the_caller(tmp_path):
    model, *_, plain = examples_for("regression", COUNT)
    bare = keras.Model(model.inputs, model.outputs)
    with pytest.raises(ekg.UserError, match=r"compile it with its loss or give the loss"):
        ekg.prune(bare, plain, plain, tmp_path / "no", **QUICK)
    result = ekg.prune(bare, plain, plain, tmp_path / "run", loss="mse", metrics=["mae"], **QUICK)
    assert result.before["test"]["metrics"].keys() == {"mae"}
    errors = np.asarray(bare(plain[0])) - plain[1]
    assert result.before["test"]["loss"] == pytest.approx((errors**2).mean(), rel=1e-4)
    assert result.model.optimizer is None if hasattr(result.model, "optimizer") else True


def test_weights_of_examples_and_classes_change_the_search(tmp_path):
    model, *_, plain = examples_for("classes", COUNT)
    options = QUICK | {"sampling": sampling_of("classes")}
    rows = []
    weights = np.linspace(0, 2, COUNT).astype(np.float32)
    for number, (data, more) in enumerate(
        ((plain, {}), ((*plain, weights), {}), (plain, {"class_weight": {0: 5.0}}))
    ):
        folder = tmp_path / str(number)
        ekg.prune(model, data, plain, folder, **options, **more)
        rows.append(json.loads((folder / "history.jsonl").read_text().splitlines()[0]))
    losses = [row["val_loss"] for row in rows]
    assert len({round(loss, 6) for loss in losses}) == 3 and losses[2] > losses[0]


def test_knowledge_of_ones_own_reaches_search_and_fine_tuning(tmp_path):
    calls = []

    def knowledge(teacher, student):
        calls.append(tf.is_symbolic_tensor(student["size"]))
        return tf.reduce_mean(tf.abs(teacher["size"] - student["size"]), -1)

    _, _, _, result = pruned("two_ends", tmp_path, knowledge=knowledge)
    assert len(calls) > 3 and any(calls) and np.isfinite(result.after["test"]["loss"])


def test_a_search_with_a_score_of_ones_own(tmp_path):
    model, *_, plain = examples_for("two_ends", COUNT)
    seen = []

    def score(network):
        seen.append(network.count_params())
        return -network.evaluate(*plain, verbose=0, return_dict=True)["loss"]

    result = ekg.search_with(model, score, tmp_path, budget=0.6)
    assert result.after["flops"] <= 0.6 * result.before["flops"]
    assert result.after["score"] == pytest.approx(score(result.model), rel=1e-3)
    count = len(seen)
    again = ekg.search_with(model, score, tmp_path, budget=0.6)
    assert len(seen) == count and again.after == result.after
    with pytest.raises(ekg.UserError, match="the whole network is nan"):
        ekg.search_with(model, lambda network: float("nan"), budget=0.6)


@pytest.mark.parametrize("end", ["squeezed sigmoid", "item", "product"])
def test_outputs_of_one_number_for_each_example_without_an_axis(tmp_path, end):
    """keras.ops.squeeze(x, -1), x[:, 0] and sum(a * b, axis=1) at the end of a network."""
    L, ops, rng = keras.layers, keras.ops, np.random.default_rng(0)
    i = keras.Input((6,))
    x, y = (L.Dense(12, activation="relu")(i) for _ in range(2))
    loss = "mse"
    if end == "squeezed sigmoid":
        loss, out = "binary_crossentropy", ops.squeeze(L.Dense(1, activation="sigmoid")(x), -1)
    else:
        out = L.Dense(1)(x)[:, 0] if end == "item" else ops.sum(x * y, axis=1)
    model = keras.Model(i, out)
    model.compile("adam", loss, metrics=["mae"])
    inputs = rng.normal(size=(60, 6)).astype(np.float32)
    data = inputs, (inputs[:, 0] > 0).astype(np.float32)
    bank, training = ekg.Bank(teachers=1), ekg.Training(epochs=1, batch_size=20)
    result = ekg.prune(
        model, data, data, tmp_path / "run", budget=0.6, bank=bank, training=training, verbose=False
    )
    assert result.model.output_shape == (None,) and result.model.compiled
    assert result.model.count_params() < model.count_params()
    error = float(np.abs(np.asarray(result.model(inputs)) - data[1]).mean())
    assert result.after["test"]["metrics"]["mae"] == pytest.approx(error, rel=1e-4)
