"""The package from Python: a network and arrays in memory, settings as objects."""

import contextlib
import io
import json
import shutil
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from ekg_tf.dataloader import load
from ekg_tf.nets.graph import ChannelGraph
from ekg_tf.options.finetuning import FINETUNINGS
from ekg_tf.options.methods import METHODS
from ekg_tf.phases import searching
from ekg_tf.reports import finetuning as finetuning_report
from ekg_tf.reports import networks as measure
from ekg_tf.utils.keras_files import load_keras, save_keras
from ekg_tf.utils.runfolder import RunFolder

import ekg_tf as ekg
import ekg_tf.api
from ekg_tf.api.arguments import kept_of

L = keras.layers


@pytest.fixture(scope="module")
def digits():
    data = load("DIGITS")
    return [(split.inputs / np.float32(16), split.targets) for split in (data.train, data.test)]


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


@pytest.fixture(scope="module", autouse=True)
def _no_latencies():
    """A second of measuring at each of several places would tell nothing here."""
    with pytest.MonkeyPatch.context() as patch:
        ones = lambda models, *a, **k: np.ones((15, len(models)))  # noqa: E731
        patch.setattr(measure, "timings", ones)
        patch.setattr(searching, "latencies", lambda models, *a, **k: [1.0] * len(models))
        patch.setattr(measure, "compared", lambda before, after: None)
        yield


SETTINGS = {
    "budget": ekg.Flops(0.5, keep=(0.6, 0.8)),
    "training": ekg.Training(epochs=2, decay_points=(0.5, 0.8)),
    "data": ekg.Data(flip=False, crop=0),
    "log": False,
}
# A search of one step and an epoch, where what comes out doesn't matter.
QUICK = {
    "method": ekg.Uniform(score="l1"),
    "finetune": ekg.Plain(),
    "training": ekg.Training(epochs=1),
    "log": False,
}


@pytest.fixture(scope="module")
def pruned(model, digits, tmp_path_factory):
    """What `prune` gave."""
    return ekg.prune(model, *digits, tmp_path_factory.mktemp("prune") / "run", **SETTINGS)


@pytest.fixture(scope="module")
def quick(model, digits, tmp_path_factory):
    """A QUICK run without a folder: its result, where it worked, what it said and the network's
    weights before it."""
    place, weights, said = tmp_path_factory.mktemp("anywhere"), model.get_weights(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setattr("tempfile.tempdir", str(place))
        result = ekg.prune(model, *digits, None, **QUICK)
    return SimpleNamespace(result=result, place=place, said=said.getvalue(), weights=weights)


def same_weights(one, other):
    assert len(one.get_weights()) == len(other.get_weights())
    for mine, others in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, others)


# ---------------------------------------------------------------- inspect


def test_a_report_tells_the_groups_and_how_far_they_can_be_pruned(model):
    report, graph = ekg.inspect(model), ChannelGraph(model)
    assert [(one["width"], one["prunable"]) for one in report.groups] == [
        (12, True),
        (16, True),
        (10, False),
    ]
    assert report.groups[-1]["reason"].endswith("mixes channels by softmax")
    assert (report.flops, report.parameters) == (graph.flops(), model.count_params())
    assert report.lowest_flops == graph.lowest_rate()
    assert report.lowest_parameters == graph.parameters(graph.least_mask()) / report.parameters
    assert report.figures["prunable_filters"] == 28
    assert "28 of 38 filters (73.7 %) are in 2 prunable groups" in str(report)


def test_a_network_without_a_graph_is_refused():
    class Subclass(keras.Model):
        pass

    with pytest.raises(ekg.UserError, match=r"has no call\(\): there is nothing"):
        ekg.inspect(Subclass())


# ---------------------------------------------------------------- prune


def test_a_smaller_network_comes_back(model, digits, pruned):
    small, run = pruned.model, pruned.folder
    assert ChannelGraph(small).flops() <= 0.5 * ChannelGraph(model).flops()
    images, labels = digits[1]
    probabilities = small.predict(images, verbose=0)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    assert (probabilities.argmax(1) == labels).mean() > 0.9
    same_weights(load_keras(run / "pruned.keras"), small)
    args = json.loads((run / "args.json").read_text())
    assert (args["search_target_rate"], args["data_flip"], args["batch_size"]) == (0.5, False, 64)
    assert args["budgets"] == [0.8, 0.6] and args["decay_points"] == [0.5, 0.8]


def test_a_result_holds_the_figures_of_both_networks(model, digits, pruned):
    before, after = pruned.before, pruned.after
    assert before["parameters"] == model.count_params()
    assert after["parameters"] == pruned.model.count_params()
    assert after["flops"] == ChannelGraph(pruned.model).flops()
    hits = pruned.model.predict(digits[1][0], verbose=0).argmax(1) == digits[1][1]
    assert after["test"]["top1"] == pytest.approx(100 * hits.mean(), abs=1e-3)
    assert before["latency_ms"] == after["latency_ms"] == {"1": 1.0, "128": 1.0}
    for words in (str(pruned.folder), "of the FLOPs (", f"→ {after['test']['top1']:.2f} "):
        assert words in repr(pruned), words
    assert "before any" not in repr(pruned)
    assert [one["wanted"] for one in pruned.front] == [0.8, 0.6]
    for one in pruned.front:
        assert one["rate"] <= one["wanted"]
        assert (pruned.folder / f"search_pruned_{one['wanted']}.keras").exists()


def test_the_given_network_is_not_changed(model, quick):
    for one, other in zip(quick.weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert quick.result.model.count_params() < model.count_params()


def test_a_finished_run_is_given_again(model, digits, pruned):
    changed = (pruned.folder / "result.json").stat().st_mtime_ns
    again = ekg.prune(model, *digits, pruned.folder, **SETTINGS)
    same_weights(again.model, pruned.model)
    assert (again.before, again.after, again.front) == (pruned.before, pruned.after, pruned.front)
    assert (pruned.folder / "result.json").stat().st_mtime_ns == changed


def test_an_interrupted_call_goes_on_where_it_was(model, digits, quick, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ekg.api.runs.pipeline, "finetune_phase", stop)
        ekg.prune(model, *digits, tmp_path / "run", **QUICK)
    searched = (tmp_path / "run" / "search_pruned.keras").stat().st_mtime_ns
    assert not (tmp_path / "run" / "pruned.keras").exists()
    result = ekg.prune(model, *digits, tmp_path / "run", **QUICK)
    assert (tmp_path / "run" / "search_pruned.keras").stat().st_mtime_ns == searched
    same_weights(result.model, quick.result.model)


def test_networks_of_another_keras_are_refused_with_the_way_out():
    kind = type("Sequential", (), {"__module__": "tf_keras.src.engine.sequential"})
    with pytest.raises(ekg.UserError, match=r"Keras 2 \(tf_keras\): save it as \.h5 and open"):
        ekg.inspect(kind())


def test_an_optimizer_is_known_again_whatever_number_keras_gives_it():
    first, second, other = (keras.optimizers.Adam(rate) for rate in (0.01, 0.01, 0.02))
    assert first.name != second.name
    assert kept_of(first, ()) == kept_of(second, ()) != kept_of(other, ())


def test_a_call_without_a_folder_works_in_a_temporary_one(quick):
    folder = quick.result.folder
    assert folder.parent == quick.place and (folder / "result.json").exists()
    assert f"no folder given: working in {folder}; this run can't be resumed" in quick.said


def test_the_folder_belongs_to_one_network_its_data_and_its_settings(model, digits, pruned):
    run, (train, test) = pruned.folder, digits
    other = keras.models.clone_model(model)
    with pytest.raises(ekg.UserError, match=r"holds a run with other arguments .*model: "):
        ekg.prune(other, train, test, run, **SETTINGS)
    fewer = train[0][:-1], train[1][:-1]
    with pytest.raises(ekg.UserError, match=r"holds a run with other arguments .*data: "):
        ekg.prune(model, fewer, test, run, **SETTINGS)
    for changed, message in (
        ({"budget": 0.4}, "search_target_rate: 0.5 -> 0.4"),
        ({"method": ekg.EKG(step=0.1)}, "search_step: 0.2 -> 0.1"),
        ({"finetune": ekg.Plain()}, "finetune_method: ekg -> plain"),
        ({"training": ekg.Training(epochs=3)}, "train_epoch: 2 -> 3"),
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"compile": True}, "compile: None -> True"),
        ({"data": ekg.Data(crop=0)}, "data_flip: False -> None"),
    ):
        with pytest.raises(ekg.UserError, match=message):
            ekg.prune(model, train, test, run, **(SETTINGS | changed))
    assert (run / "result.json").exists()


def test_overwrite_deletes_the_former_run(model, digits, quick, tmp_path):
    first, folder = quick.result, tmp_path / "run"
    shutil.copytree(first.folder, folder)
    second = ekg.prune(model, *digits, folder, overwrite=True, **(QUICK | {"budget": 0.8}))
    assert first.after["flops"] <= 0.5 * first.before["flops"] < second.after["flops"]


def test_what_is_not_said_comes_by_data_set(pruned):
    args = json.loads((pruned.folder / "args.json").read_text())
    expected = {
        **{"method": "ekg", "search_step": 0.2, "search_teacher": "ensemble", "budget": "flops"},
        **{"finetune_method": "ekg", "finetune_teacher": "ensemble", "temperature": 4.0},
        # without batch norms: LAMB, which no L2 goes with
        **{"optimizer": "lamb", "learning_rate": 0.01, "weight_decay": 0.0, "batch_size": 64},
        **{"num_teacher": 5, "bank_features": False, "seed": 0},
        **{"val_per_class": 28, "subset_per_class": 144 - 28},  # a fifth of the middle class
    }
    assert {name: args[name] for name in expected} == expected


# ---------------------------------------------------------------- the two phases by themselves


@pytest.fixture(scope="module")
def searched(model, digits, tmp_path_factory):
    return ekg.run_search(
        model,
        *digits,
        tmp_path_factory.mktemp("searched") / "run",
        budget=ekg.Parameters(0.5, keep=(0.7,), round_to=4),
        method=ekg.EKG(step=0.5, teacher="none", score="l1", evaluator="fast"),
        bank=ekg.Bank(teachers=2),
        log=False,
    )


def test_a_search_gives_the_network_before_any_fine_tuning(model, digits, searched):
    assert searched.after["parameters"] == searched.model.count_params()
    assert searched.after["parameters"] <= 0.5 * model.count_params()
    assert searched.before["parameters"] == model.count_params()
    same_weights(load_keras(searched.folder / "search_pruned.keras"), searched.model)
    assert set(searched.before) == set(searched.after) == {"parameters", "flops", "test"}
    assert "before any fine-tuning" in repr(searched)
    assert [one["wanted"] for one in searched.front] == [0.7]
    args = json.loads((searched.folder / "args.json").read_text())
    assert (args["budget"], args["round_to"], args["num_teacher"]) == ("params", 4, 2)
    probabilities = searched.model.predict(digits[1][0], verbose=0)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)


def test_a_search_alone_builds_no_bank_unless_it_is_told_to(model, digits, tmp_path):
    result = ekg.run_search(model, *digits, tmp_path / "run", method=ekg.Uniform(), log=False)
    assert not (tmp_path / "run" / "bank.npy").exists()
    with pytest.raises(ekg.UserError, match="has no memory bank, as after a search without one"):
        ekg.run_finetuning(result.folder, *digits, tmp_path / "tuned")
    assert not (tmp_path / "tuned").exists()


@pytest.mark.parametrize(
    ("finetune", "losses"),
    [
        (ekg.Ensemble(temperature=2.0), {"label_loss", "distillation_loss"}),
        (ekg.Hinton(alpha=0.5), {"label_loss", "distillation_loss"}),
        (ekg.Plain(from_scratch=True), set()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_fine_tunings_follow_one_search(finetune, losses, digits, searched, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in searched.folder.iterdir()}
    settings = {"finetune": finetune, "training": ekg.Training(epochs=1), "log": False}
    result = ekg.run_finetuning(searched.folder, *digits, tmp_path / "run", **settings)
    assert result.after["parameters"] == searched.after["parameters"]
    assert result.before["parameters"] == searched.before["parameters"]
    assert {path: path.stat().st_mtime_ns for path in searched.folder.iterdir()} == before
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert {name for name in ("label_loss", "distillation_loss") if name in row} == losses
    again = ekg.run_finetuning(searched.folder, *digits, tmp_path / "run", **settings)
    same_weights(again.model, result.model)


def test_a_fine_tuning_may_take_a_network_of_the_way(digits, searched, tmp_path):
    settings = {"finetune": ekg.Plain(), "training": ekg.Training(epochs=1), "log": False}
    result = ekg.run_finetuning(searched.folder, *digits, rate=0.7, **settings)
    assert result.after["flops"] == searched.front[0]["flops"]
    with pytest.raises(ekg.UserError, match=r"no network at the rate 0\.6: its search kept 0\.7"):
        ekg.run_finetuning(searched.folder, *digits, tmp_path / "run", rate=0.6)
    with pytest.raises(ekg.UserError, match="holds no finished search"):
        ekg.run_finetuning(tmp_path, *digits, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_fine_tuning_refuses_the_bank_of_other_data(digits, searched, tmp_path):
    train, test = digits
    with pytest.raises(ekg.UserError, match="belongs to another training set"):
        ekg.run_finetuning(searched.folder, (train[0][:-1], train[1][:-1]), test, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget": 1.5}, r"Flops\(rate=1\.5\): 1\.5 is not strictly between 0 and 1"),
        ({"budget": "half"}, r"Flops\(rate='half'\): 'half' is not a number"),
        ({"budget": 0.001}, r"a rate of 0\.001 can't be reached"),
        ({"method": "best"}, r"method='best': give EKG\(\), FFP\(\), SWP\(\)"),
        ({"method": ekg.EKG}, r"method=<class .*EKG'>: give EKG\(\)"),
        ({"finetune": ekg.Uniform()}, r"finetune=Uniform\(.*\): give Ensemble\(\)"),
        ({"training": {"epochs": 1}}, r"training={'epochs': 1}: give Training\(\)"),
        ({"data": 3}, r"data=3: give Data\(\)"),
        ({"sampling": 3}, r"sampling=3: give Sampling\(\)"),
        ({"bank": "topk"}, r"bank='topk': give a Bank, None or 'auto'"),
        ({"bank": 5}, r"bank=5: give Bank\(\)"),
        ({"bank": None}, r"finetune=Ensemble\(\) replays the memory bank: bank=None leaves it"),
        (
            {"finetune": ekg.Contrastive(), "bank": ekg.Bank()},
            r"finetune=Contrastive\(\) needs the features: bank=Bank\(features=True\)",
        ),
        ({"bank": ekg.Bank("topk")}, "k 16 of the bank is more than the 10 classes"),
        ({"training": ekg.Training(batch_size=4096)}, "a batch size of 4096 is more than the"),
        ({"data": ekg.Data(mean=(1, 2))}, "the mean of the data has 2 numbers"),
        ({"data": ekg.Data(crop=8)}, r"a crop of 8 is too much for inputs .*: at most 7"),
        (
            {"sampling": ekg.Sampling(val_per_class=200)},
            "lower subset_per_class or val_per_class",
        ),
        (
            {"method": ekg.Uniform(), "budget": ekg.Latency()},
            "uniform prunes in one step and can't aim at a measured latency",
        ),
        ({"method": ekg.SWP(stages=60)}, "this network can be cut into"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistakes_are_exceptions_and_leave_no_folder(model, digits, tmp_path, settings, message):
    with pytest.raises(ekg.UserError, match=message):
        ekg.prune(model, *digits, tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_an_unknown_setting_is_an_error_of_python(model, digits, tmp_path):
    with pytest.raises(TypeError, match="serch_step"):
        ekg.prune(model, *digits, tmp_path / "run", serch_step=0.1)
    with pytest.raises(TypeError, match="step"):
        ekg.Uniform(step=0.1)
    assert not (tmp_path / "run").exists()


def test_data_that_does_not_fit(model, digits, tmp_path):
    train, test = digits
    with pytest.raises(
        ekg.UserError, match=r"images of shape \(8, 7, 1\): the network takes \(8, 8, 1\)"
    ):
        ekg.prune(model, (train[0][:, :, 1:], train[1]), test, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- what is said, what is given


@pytest.mark.parametrize("after", [90.0, 93.0, 95.0])
@pytest.mark.parametrize(
    ("name", "advice"), [("own", "try no crops and no mirroring, a lower"), ("CIFAR10", "try a")]
)
def test_a_fine_tuning_that_did_harm_says_so(tmp_path, monkeypatch, capsys, after, name, advice):
    figures = {"before": None, "after": {"test": {"top1": after, "examples": 355}}}
    monkeypatch.setattr(finetuning_report, "describe", lambda *args, **options: figures)
    monkeypatch.setattr(finetuning_report, "print_report", lambda results, written: None)
    data = SimpleNamespace(name=name, moves=True)
    with RunFolder.open(tmp_path / "run", {}) as folder:
        device = SimpleNamespace(deployed_latency=False)
        finetuning_report.report(folder, None, None, None, data, device, {}, {"top1": 93.5})
        assert folder.finished
    told = f"the fine-tuning did harm: top-1 93.50 % before it, 90.00 % after it; {advice}"
    assert (told in capsys.readouterr().out) == (after == 90.0)  # 93: two images


def test_figures_before_the_fine_tuning(pruned):
    run = pruned.folder
    found = json.loads((run / "search.json").read_text())
    assert finetuning_report.tested(run) == found["test"]["after"]
    assert finetuning_report.tested(run, 0.8) == found["front"][0]["test"]
    assert finetuning_report.tested(run, 0.6) == found["front"][1]["test"]


def test_an_export_gives_its_figures(digits, pruned, tmp_path):
    network = pruned.folder / "pruned.keras"
    figures = ekg.export(network, ["savedmodel"], *digits, out=tmp_path)
    assert [row["format"] for row in figures["exports"]] == ["Keras", "savedmodel"]
    assert figures["exports"][1]["agreement"] == 100.0
    assert (tmp_path / "pruned_savedmodel" / "saved_model.pb").exists()
    with pytest.raises(ekg.UserError, match=r"formats \('tflite',\): choose from savedmodel"):
        ekg.export(network, ["tflite"], *digits, out=tmp_path)
    with pytest.raises(ekg.UserError, match="is no folder: make it first"):
        ekg.export(network, ["savedmodel"], *digits, out=tmp_path / "no")


@keras.saving.register_keras_serializable("tests")
class ChannelScale(L.Layer):
    """A layer of the user's own: every channel times a number, by code that can't be followed on
    symbolic tensors."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones", name="scale")

    def call(self, inputs):
        return tf.raw_ops.Mul(x=inputs, y=tf.convert_to_tensor(self.scale))


def test_a_layer_of_ones_own_is_pruned_with_its_channels(tmp_path):
    def network():
        image = keras.Input((8, 8, 3))
        x = ChannelScale(name="mine")(L.Conv2D(6, 3, name="conv")(image))
        return keras.Model(image, L.Dense(4)(L.GlobalAveragePooling2D()(x)))

    assert not ekg.inspect(network()).groups[0]["prunable"]
    ekg.register(ChannelScale, {"scale": -1})
    model = network()
    model.get_layer("mine").scale.assign(np.arange(6) + 1)
    graph = ChannelGraph(model)
    mask = graph.open_mask()
    mask[[1, 4]] = 0
    small = graph.pruned(mask)
    assert small.get_layer("mine").scale.numpy().tolist() == [1, 3, 4, 6]
    gated, variable = graph.gated()
    variable.assign(mask)
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    np.testing.assert_allclose(gated(images), small(images), atol=1e-5)
    save_keras(tmp_path / "small.keras", small)
    same_weights(load_keras(tmp_path / "small.keras"), small)
    with pytest.raises(ekg.UserError, match="the axis of scale is counted from the end"):
        ekg.register(ChannelScale, {"scale": 0})


def test_the_package_offers_what_it_lists():
    assert {one.__name__ for one in METHODS.values()} <= set(ekg.__all__)
    assert {one.__name__ for one in FINETUNINGS} <= set(ekg.__all__)
    for name in ekg.__all__:
        assert getattr(ekg, name) is not None
    assert set(ekg.__all__) <= set(dir(ekg))
    with pytest.raises(AttributeError, match="has no attribute 'prunes'"):
        ekg.prunes  # noqa: B018
