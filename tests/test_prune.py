"""`prune` from Python: a network and arrays in memory, arguments named as the flags."""

import json
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from ekg_tf.dataloader import load
from ekg_tf.nets.graph import ChannelGraph
from ekg_tf.phases import finetuning as finetune
from ekg_tf.phases.pipeline import prune
from ekg_tf.reports import networks as measure
from ekg_tf.utils.errors import UserError
from ekg_tf.utils.keras_files import load_keras
from ekg_tf.utils.runfolder import RunFolder

L = keras.layers


@pytest.fixture(scope="module")
def digits():
    data = load("DIGITS")
    return [(split.images / np.float32(16), split.labels) for split in (data.train, data.test)]


@pytest.fixture(scope="module")
def model(digits):
    """Trained in this process, as in a notebook; it gives probabilities."""
    keras.utils.set_random_seed(0)
    layers = [L.Conv2D(12, 3, activation="relu"), L.Conv2D(16, 3, activation="relu"), L.Flatten()]
    head = L.Dense(10, activation="softmax")
    model = keras.Sequential([keras.Input((8, 8, 1)), *layers, L.Dropout(0.2), head])
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    model.fit(*digits[0], epochs=4, batch_size=64, verbose=0)
    return model


FLAGS = {
    "search_target_rate": 0.5,
    "budgets": (0.8, 0.6),
    "train_epoch": 2,
    "decay_points": (0.5, 0.8),
    "data_flip": False,
    "data_crop": 0,
    "do_log": False,
}


@pytest.fixture(scope="module")
def pruned(model, digits, tmp_path_factory):
    """(the network that `prune` gave, its run folder)."""
    run = tmp_path_factory.mktemp("prune") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "latencies", lambda models, *a, **k: [1.0] * len(models))
        patch.setattr("search.latencies", lambda models, *a, **k: [1.0] * len(models))
        return prune(model, *digits, run, **FLAGS), run


def test_a_smaller_network_comes_back(model, digits, pruned):
    small, run = pruned
    assert ChannelGraph(small).flops() <= 0.5 * ChannelGraph(model).flops()
    images, labels = digits[1]
    probabilities = small.predict(images, verbose=0)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    assert (probabilities.argmax(1) == labels).mean() > 0.9
    np.testing.assert_array_equal(
        load_keras(run / "pruned.keras").predict(images, verbose=0), probabilities
    )
    args = json.loads((run / "args.json").read_text())
    assert (args["search_target_rate"], args["data_flip"], args["batch_size"]) == (0.5, False, 64)
    assert args["budgets"] == [0.8, 0.6] and args["decay_points"] == [0.5, 0.8]
    for rate in ("0.8", "0.6"):
        assert (run / f"search_pruned_{rate}.keras").exists()


def test_a_finished_run_is_given_again(model, digits, pruned):
    small, run = pruned
    again = prune(model, *digits, run, **FLAGS)
    for one, other in zip(again.get_weights(), small.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_folder_belongs_to_one_network_and_its_data(model, digits, pruned):
    run = pruned[1]
    other = keras.models.clone_model(model)
    with pytest.raises(UserError, match=r"holds a run with other arguments .*model: "):
        prune(other, *digits, run, **FLAGS)
    train, test = digits
    fewer = train[0][:-1], train[1][:-1]
    with pytest.raises(UserError, match=r"holds a run with other arguments .*data: "):
        prune(model, fewer, test, run, **FLAGS)
    assert (run / "result.json").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"serch_step": 0.1}, "unrecognized arguments: --serch_step=0.1"),
        ({"gpu_id": 0}, "unrecognized arguments: --gpu_id"),
        ({"method": "best"}, "invalid choice: 'best'"),
        ({"search_target_rate": 1.5}, "1.5 is not strictly between 0 and 1"),
        ({"finetune_method": "ckt"}, "--finetune_method ckt needs --bank_features on"),
        ({"batch_size": 4096}, "--batch_size 4096 is more than the"),
        ({"data_mean": (1, 2)}, "--data_mean has 2 numbers"),
        ({"data_crop": 8}, r"--data_crop 8 is too much for inputs .*: at most 7"),
    ],
)
def test_mistakes_are_exceptions_and_leave_no_folder(model, digits, tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        prune(model, *digits, tmp_path / "run", **flags)
    assert not (tmp_path / "run").exists()


def test_data_that_does_not_fit(model, digits, tmp_path):
    train, test = digits
    with pytest.raises(UserError, match=r"images of shape \(8, 8\): the network takes \(8, 8, 1\)"):
        prune(model, (train[0][..., 0], train[1]), test, tmp_path / "run")
    with pytest.raises(UserError, match="the data has 5 classes"):
        five = [(x[y < 5], y[y < 5]) for x, y in digits]
        prune(model, *five, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("after", [90.0, 93.0, 95.0])
@pytest.mark.parametrize(("name", "advice"), [("own", "try --data_crop 0"), ("CIFAR10", "try a")])
def test_a_fine_tuning_that_did_harm_says_so(tmp_path, monkeypatch, capsys, after, name, advice):
    figures = {"before": None, "after": {"test": {"top1": after, "examples": 355}}}
    monkeypatch.setattr(finetune, "describe", lambda *args: figures)
    monkeypatch.setattr(finetune, "print_report", lambda results: None)
    data = SimpleNamespace(name=name)
    with RunFolder.open(tmp_path / "run", {}) as folder:
        finetune.report(folder, None, None, data, None, {}, {"top1": 93.5})
        assert folder.finished
    told = f"the fine-tuning did harm: top-1 93.50 % before it, 90.00 % after it; {advice}"
    assert (told in capsys.readouterr().out) == (after == 90.0)  # 93: two images


def test_figures_before_the_fine_tuning(pruned):
    run = pruned[1]
    found = json.loads((run / "search.json").read_text())
    assert finetune.tested(run) == found["test"]["after"]
    assert finetune.tested(run, 0.8) == found["front"][0]["test"]
    assert finetune.tested(run, 0.6) == found["front"][1]["test"]
