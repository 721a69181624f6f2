"""A network of the user's own: softmax off and on again, flags, and the three phases."""

import argparse
import json
import re
import shutil

import keras
import numpy as np
import pytest
from ekg_tf.cli import inputs
from ekg_tf.dataloader import load
from ekg_tf.nets.given import Given
from ekg_tf.nets.graph import ChannelGraph
from ekg_tf.nets.zoo.load import load_network, load_own
from ekg_tf.phases.opening import work_of
from ekg_tf.reports import networks as measure
from ekg_tf.training.task import task_of
from ekg_tf.utils.errors import UserError
from ekg_tf.utils.keras_files import load_keras, save_keras
from PIL import Image

from ekg_tf import finetune, search, test
from ekg_tf.commands import prune, report

L = keras.layers
HEADS = {
    "in the dense layer": [L.Dense(10, activation="softmax", name="head")],
    "as an activation": [L.Dense(10, name="head"), L.Activation("softmax", name="end")],
    "as a layer": [L.Dense(10, name="head"), L.Softmax(name="end")],
}

from tests.helpers import own_kinds
from tests.helpers.runs import state


def own_network(head: list, sequential: bool = True) -> keras.Model:
    body = [
        L.Rescaling(1 / 128, offset=-1),
        L.Conv2D(6, 3, padding="same", use_bias=False),
        L.BatchNormalization(),
        L.ReLU(),
        L.Conv2D(8, 3, padding="same", activation="relu"),
        L.MaxPooling2D(),
        L.Flatten(),
    ]
    layers = [keras.Input((8, 8, 1)), *body]
    layers += [type(layer).from_config(layer.get_config()) for layer in head]
    if sequential:
        return keras.Sequential(layers, name="mine")
    tensor = layers[0]
    for layer in layers[1:]:
        tensor = layer(tensor)
    return keras.Model(layers[0], tensor, name="mine")


@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_softmax_off_and_on_again(head, sequential):
    model = own_network(head, sequential)
    images = np.random.default_rng(0).uniform(0, 255, (4, 8, 8, 1)).astype(np.float32)
    probabilities = model(images).numpy()
    given = Given.read(model)
    logits = given.core(images).numpy()
    np.testing.assert_allclose(keras.ops.softmax(logits), probabilities, atol=1e-6)
    assert given.outputs[0].operation and not Given.read(given.core).outputs[0].applied
    assert all(one is not other for one in model.weights for other in given.core.weights)

    graph = ChannelGraph(given.core)
    mask = graph.open_mask()
    mask[graph.groups[0].start] = 0
    pruned = given.finished(graph.pruned(mask))
    assert pruned.count_params() < model.count_params()
    assert pruned.layers[-1].name == model.layers[-1].name
    np.testing.assert_allclose(pruned(images).numpy().sum(1), 1, atol=1e-6)
    full = given.finished(graph.pruned(graph.open_mask()))
    np.testing.assert_allclose(full(images), probabilities, atol=1e-5)


def test_softmax_inside_a_nested_model_and_as_an_operation():
    images = np.random.default_rng(0).uniform(0, 255, (4, 8, 8, 1)).astype(np.float32)
    entry = keras.Input((8, 8, 1))
    nested = keras.Model(entry, own_network(HEADS["in the dense layer"])(entry), name="outer")
    body = own_network([L.Dense(10, name="head")])
    by_operation = keras.Model(body.inputs[0], keras.ops.softmax(body.outputs[0]), name="op")
    for model in (nested, by_operation):
        given = Given.read(model)
        assert given.outputs[0].operation
        graph = ChannelGraph(given.core)
        pruned = given.finished(graph.pruned(graph.open_mask()))
        np.testing.assert_allclose(pruned(images), model(images), atol=1e-5)


def test_other_ends_need_a_loss():
    for head in ([L.Dense(10, activation="sigmoid")], [L.Dense(10), L.ReLU()]):
        with pytest.raises(UserError, match="isn't one of classes: compile it with the loss"):
            task_of(Given.read(own_network(head)))
    assert not Given.read(own_network([L.Dense(10, activation="log_softmax")])).outputs[0].applied


def flags(**values) -> argparse.Namespace:
    names = ("model", "arch", "trained_param", "loss", "metrics")
    names += (*inputs.NAMED_DATA, *inputs.OWN_DATA)
    return argparse.Namespace(**(dict.fromkeys(names) | {"custom_module": ()} | values))


def test_flags_that_exclude_each_other(tmp_path):
    path = str(tmp_path / "mine.keras")
    save_keras(path, own_network(HEADS["as a layer"]))
    for values, message in (
        ({"model": path, "arch": "ResNet-20"}, "--model excludes --arch"),
        ({"model": path, "trained_param": "x.pkl"}, "--model excludes --arch"),
        ({"model": path, "data": "x", "dataset": "DIGITS"}, "--data excludes --dataset"),
        ({"model": path, "data": "x", "data_path": "y"}, "--data excludes --data_path"),
        ({"trained_param": "x.pkl", "data": "x"}, "--data needs --model"),
        ({"model": path, "data_mean": (1.0,)}, "--data_mean is for data of your own"),
    ):
        with pytest.raises(UserError, match=message):
            work_of(flags(**values))
    work = work_of(flags(model=path))
    assert work.data.name == "DIGITS" and work.given.model.output_shape == (None, 10)


def test_networks_that_do_not_fit(tmp_path):
    def refused(model, **values) -> str:
        save_keras(tmp_path / "odd.keras", model)
        with pytest.raises(UserError) as error:
            work_of(flags(model=str(tmp_path / "odd.keras"), **values))
        return str(error.value)

    assert "the data has 10 classes" in refused(own_network([L.Dense(7)]))
    entry = keras.Input((None, None, 3))
    free = keras.Model(entry, L.Dense(10)(L.GlobalAveragePooling2D()(entry)))
    assert "takes inputs of shape (None, None, 3), the data has (8, 8, 1)" in refused(free)
    entry = keras.Input((8, 8, 1))
    flat = L.Flatten()(entry)
    assert "has 1 inputs and 2 outputs, the data has images" in refused(
        keras.Model(entry, [flat, flat])
    )
    with pytest.raises(UserError, match=r"comes as \.keras or \.h5"):
        load_own(tmp_path / "network.onnx")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """my.keras, which gives probabilities, and pngs/, a part of DIGITS as {train,test}/<digit>/."""
    folder = tmp_path_factory.mktemp("project")
    digits = load("DIGITS")
    for split, count in ((digits.train, 40), (digits.test, 10)):
        name = "train" if split is digits.train else "test"
        for label in range(10):
            target = folder / "pngs" / name / str(label)
            target.mkdir(parents=True)
            for place in np.flatnonzero(split.targets == label)[:count]:
                Image.fromarray(split.inputs[place, ..., 0]).save(target / f"{place:04d}.png")
    keras.utils.set_random_seed(0)
    model = own_network(HEADS["in the dense layer"])
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    model.fit(digits.train.inputs, digits.train.targets, epochs=4, batch_size=64, verbose=0)
    save_keras(folder / "my.keras", model)
    return folder


def quickly(monkeypatch):
    """Nothing is measured that only has to be there."""
    monkeypatch.setattr(measure, "timings", lambda models, *a, **k: np.ones((15, len(models))))
    monkeypatch.setattr(measure, "compared", lambda before, after: None)


def test_three_phases_from_the_command_line(project, capsys, monkeypatch):
    quickly(monkeypatch)
    run = project / "run"
    own = ["--model", project / "my.keras", "--data", project / "pngs", "--data_flip", "off"]
    argv = [
        *own,
        "--search_target_rate",
        "0.6",
        "--num_teacher",
        "2",
        "--train_path",
        run,
        "--do_log",
        "off",
    ]
    search.main([str(argument) for argument in argv])
    argv = ["--train_path", run, "--train_epoch", "1", "--do_log", "off"]
    finetune.main([str(argument) for argument in argv])

    args = json.loads((run / "args.json").read_text())
    assert args["data"] == str(project / "pngs") and args["data_flip"] is False
    assert args["dataset"] is None and args["arch"] is None
    assert (args["val_per_class"], args["subset_per_class"]) == (8, 32)
    given, pruned = load_keras(run / "baseline.keras"), load_keras(run / "pruned.keras")
    digits = load("DIGITS").test
    for model in (given, pruned, load_keras(run / "search_pruned.keras")):
        probabilities = model.predict(digits.inputs, verbose=0)
        np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
        assert probabilities.min() >= 0
        assert (probabilities.argmax(1) == digits.targets).mean() > 0.7
    assert Given.read(load_keras(run / "search_start.keras")).outputs[0].applied is False
    assert ChannelGraph(pruned).flops() <= 0.6 * ChannelGraph(given).flops()

    capsys.readouterr()
    # The data comes from the run's args.json.
    test.main(["--model", str(run / "pruned.keras"), "--json", str(project / "test.json")])
    figures = json.loads((project / "test.json").read_text())
    assert (
        figures["after"]["test"] == json.loads((run / "result.json").read_text())["after"]["test"]
    )
    assert figures["before"]["test"]["examples"] == 100
    argv = ["--model", project / "my.keras", "--data", project / "pngs"]
    test.main([str(argument) for argument in [*argv, "--json", project / "alone.json"]])
    alone = json.loads((project / "alone.json").read_text())
    assert alone["before"] is None
    assert alone["after"]["test"]["top1"] == figures["before"]["test"]["top1"]
    assert "not measured" in capsys.readouterr().out


def test_a_dry_run_says_what_it_takes_and_writes_nothing(project, capsys):
    before = state(project)
    argv = ["--model", project / "my.keras", "--data", project / "pngs", "--data_flip", "off"]
    argv += ["--search_target_rate", "0.6", "--train_epoch", "7", "--num_teacher", "2"]
    prune.main([str(one) for one in [*argv, "--dry_run", "--train_path", project / "dry"]])
    assert state(project) == before and not (project / "dry").exists()
    said = capsys.readouterr().out
    for words in (
        *("search by ekg to 60 % of the FLOPs: about ", " tried (", "fine-tuning: 7 epochs of "),
        *("all outputs of 2 teachers on ", " of memory", "nothing was written"),
    ):
        assert words in said, words


def test_a_subclassed_network_in_a_file_is_taken_with_a_folder(project, tmp_path, capsys):
    model = own_kinds.Subclassed(name="whole")
    model(np.zeros((1, 8, 8, 1), np.float32))
    save_keras(tmp_path / "whole.keras", model)
    own = ["--model", str(tmp_path / "whole.keras"), "--search_target_rate", "0.7", "--dry_run"]
    own += ["--train_path", str(tmp_path / "dry")]
    for name in ("train", "test"):
        for label in map(str, range(own_kinds.CLASSES)):
            shutil.copytree(project / "pngs" / name / label, tmp_path / "few" / name / label)
    prune.main([*own, "--data", str(tmp_path / "few")])
    assert "search by ekg to 70 % of the FLOPs" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"gives outputs of shape \(3,\), the data has 10 classes"):
        prune.main([*own, "--dataset", "DIGITS"])
    with pytest.raises(UserError, match="is no functional Keras model"):
        load_network(tmp_path / "whole.keras", "", 10, (8, 8, 1))


@pytest.mark.parametrize("method", ["swp", "autoslim"])
def test_a_dry_run_of_a_supernet_counts_its_search_and_bank(project, capsys, method):
    argv = ["--model", project / "my.keras", "--data", project / "pngs", "--data_flip", "off"]
    argv += ["--method", method, "--supernet_epoch", "3", "--search_target_rate", "0.6"]
    prune.main([str(one) for one in [*argv, "--dry_run", "--train_path", project / "dry"]])
    said = capsys.readouterr().out
    assert "supernet: 3 epochs of " in said and "memory bank: all outputs of " in said
    found = re.search(rf"search by {method} to 60 % of the FLOPs: about (\d+) steps, (\d+) ", said)
    assert found and int(found[2]) > int(found[1]) > 1


def test_prune_and_report_from_the_command_line(project, capsys, monkeypatch):
    """All phases in one command, and the figures of its folder again."""
    quickly(monkeypatch)
    run = project / "in_one_go"
    argv = ["--model", project / "my.keras", "--data", project / "pngs", "--data_flip", "off"]
    argv += ["--method", "uniform", "--score", "l1", "--search_target_rate", "0.6"]
    argv += ["--finetune_method", "plain", "--train_epoch", "1", "--do_log", "off"]
    argv = [str(argument) for argument in [*argv, "--train_path", run]]
    prune.main(argv)
    said = capsys.readouterr().out
    assert "search: to 60 % of the FLOPs" in said and "fine-tuning: 1 epoch\n" in said
    args = json.loads((run / "args.json").read_text())
    assert (args["method"], args["finetune_method"], args["bank"]) == ("uniform", "plain", "none")
    assert (args["batch_size"], args["val_per_class"], args["data_crop"]) == (64, 8, None)
    pruned = load_keras(run / "pruned.keras")
    assert Given.read(pruned).outputs[0].operation and not list(run.glob("bank*"))
    figures = json.loads((run / "result.json").read_text())
    assert figures["after"]["parameters"] == pruned.count_params()
    assert figures["after"]["flops"] <= 0.6 * figures["before"]["flops"]
    prune.main(argv)
    again = capsys.readouterr().out
    assert again.startswith("running on the CPU") or again.startswith("no GPU found")
    assert "holds the finished run of this command" in again
    report.main([str(run)])
    figures = capsys.readouterr().out
    assert figures.startswith(f"{run}:\n")
    block = again[again.index("parameters ") :]
    assert block in said and block in figures
    with pytest.raises(UserError, match="other arguments"):
        prune.main([*argv, "--search_target_rate", "0.5"])


SERIES = """
from ekg_tf.dataloader import load

def rows():
    digits = load("DIGITS")
    return [(split.inputs[..., 0] / 16.0, split.targets) for split in (digits.train, digits.test)]
"""


def test_series_from_a_function(tmp_path, monkeypatch, capsys):
    """A network of 1-D convolutions on the digits' rows, pruned and fine-tuned."""
    quickly(monkeypatch)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "series_of_rows.py").write_text(SERIES)
    keras.utils.set_random_seed(0)
    entry = keras.Input((8, 8))
    x = L.Conv1D(12, 3, padding="causal", activation="relu")(entry)
    x = L.BatchNormalization()(L.Conv1D(16, 3, activation="relu")(x))
    model = keras.Model(entry, L.Dense(10)(L.Flatten()(x)))
    digits = load("DIGITS").train
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss)
    model.fit(digits.inputs[..., 0] / 16.0, digits.targets, epochs=4, batch_size=64, verbose=0)
    save_keras("my.keras", model)
    run = ["--train_path", "run", "--do_log", "off"]
    search.main(
        [*run, "--model", "my.keras", "--data", "series_of_rows:rows"]
        + ["--search_target_rate", "0.6", "--search_step", "0.25"]
    )
    assert "networks before the last one: so many teachers" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"--data series_of_rows:rows, code of yours: say so again"):
        finetune.main([*run, "--train_epoch", "2"])
    finetune.main([*run, "--data", "series_of_rows:rows", "--train_epoch", "2"])
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["after"]["flops"] <= 0.6 * result["before"]["flops"]
    assert result["after"]["test"]["top1"] > 85
