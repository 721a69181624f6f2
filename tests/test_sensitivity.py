"""How much each group costs: against the naive evaluation, as table, picture and command."""

import json

import keras
import numpy as np
import pytest
from ekg_tf.nets.graph import ChannelGraph
from ekg_tf.pages import control
from ekg_tf.pruning.sensitivity import SHARES, sensitivities
from ekg_tf.reports import sensitivity as report
from ekg_tf.training.evaluation import make_forward
from ekg_tf.training.task import classification
from ekg_tf.utils.errors import UserError
from ekg_tf.utils.jsonl import read_json
from ekg_tf.utils.keras_files import save_keras

import ekg_tf as ekg
from ekg_tf.commands import inspect
from tests.helpers.networks import residual, shaken
from tests.helpers.searches import validation
from tests.helpers.tasks import Case, two_ends, unet


def measured_ends():
    model = two_ends()
    losses = ["sparse_categorical_crossentropy", "mse"]
    model.compile("sgd", loss=losses, metrics={"kind": "accuracy", "size": "mae"})
    return model


@pytest.mark.parametrize("build", [residual, measured_ends, unet])
def test_it_is_what_the_naive_evaluation_gives(build):
    if build is residual:
        graph, task = ChannelGraph(shaken(residual())), classification()
        val = validation(graph.model, count=25)
    else:
        case = Case(build, weighted=build is unet)
        graph, task, val = case.graph, case.task, case.val
    fast, naive = (
        sensitivities(graph, val, task, (0.1, 0.5, 0.9), evaluator=name)
        for name in ("exact", "naive")
    )
    assert fast["whole"].keys() == naive["whole"].keys() >= {"loss"}
    for one, other in zip(fast["groups"], naive["groups"], strict=True):
        assert one["removed"] == other["removed"] and one["flops"] == other["flops"]
        for mine, reference in zip(one["figures"], other["figures"], strict=True):
            assert mine == pytest.approx(reference, abs=1e-5)
        assert one["rise"] == pytest.approx(other["rise"], abs=1e-5)
    if build is measured_ends:
        assert fast["whole"].keys() == {"loss", "kind_accuracy", "size_mae"}


def test_a_figure_is_that_of_the_pruned_network():
    graph = ChannelGraph(shaken(residual()))
    val = validation(graph.model, count=20, batch_images=20)
    found = sensitivities(graph, val, classification(), score="l1")
    assert found["shares"] == list(SHARES) == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    assert [group["width"] for group in found["groups"]] == [4, 5, 6, 7]
    # 4 filters: 0.4, 0.8, 1.2, ... -> 0, 1, 1, 2, 2, 2, 3, 3, and one stays
    assert found["groups"][0]["removed"] == [0, 1, 1, 2, 2, 2, 3, 3, 3]
    assert found["groups"][0]["rise"][0] == pytest.approx(0, abs=1e-6)
    group, norms = graph.groups[3], np.abs(graph.kernels()["b1"][0]).sum((0, 1, 2))
    mask = graph.open_mask()
    mask[group.start + np.argsort(norms)[:4]] = 0
    pruned = graph.pruned(mask)
    logits = make_forward(pruned, bn="batch")(val.inputs).numpy()
    figures = found["groups"][3]["figures"][4]
    losses = keras.losses.sparse_categorical_crossentropy(val.targets, logits, from_logits=True)
    assert figures["loss"] == pytest.approx(float(np.mean(losses)), abs=1e-4)
    assert figures["top1"] == 100 * np.mean(logits.argmax(-1) == val.targets)
    assert found["groups"][3]["flops"][4] == ChannelGraph(pruned).flops() / graph.flops()


# ---------------------------------------------------------------- as people meet it


@pytest.fixture(scope="module")
def small():
    keras.utils.set_random_seed(1)
    image = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(4, 3, activation="relu", name="first")(image)
    x = keras.layers.Conv2D(6, 3, activation="relu", name="second")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, keras.layers.Dense(10, activation="softmax", name="end")(x))


def test_from_python(small, tmp_path):
    rng = np.random.default_rng(0)
    data = rng.random((60, 8, 8, 1)).astype(np.float32), np.arange(60) % 10
    found = ekg.sensitivity(small, data, shares=(0.5,))
    assert found.shares == (0.5,) and found.whole.keys() == {"loss", "top1"}
    assert [(group["layers"], group["removed"]) for group in found.groups] == [
        (["first"], [2]),
        (["second"], [3]),
    ]
    text = str(found)
    assert "-50 %" in text and "second" in text and "on 10 examples" in text
    found.draw(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(json.dumps(found.figures)) == found.figures
    for settings, message in (
        ({"shares": (0.5, 0.2)}, "give rising numbers strictly between 0 and 1"),
        ({"shares": (1.0,)}, "give rising numbers strictly between 0 and 1"),
        ({"score": "magic"}, "score='magic' is none of taylor, l1"),
        ({"sampling": ekg.Sampling(val=100)}, "training examples are asked for"),
    ):
        with pytest.raises(UserError, match=message):
            ekg.sensitivity(small, data, **settings)


def test_from_the_command_line(small, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_keras(tmp_path / "small.keras", small)
    words = "small.keras --sensitivity --dataset DIGITS --gpu_id cpu --val_per_class 2 --score l1"
    inspect.main([*words.split(), "--json", "out.json", "--exclude", "fir*"])
    printed = capsys.readouterr().out
    assert (
        "not prunable: excluded by first" in printed and "the picture is sensitivity.png" in printed
    )
    figures = json.loads((tmp_path / "out.json").read_text())
    assert report.text(figures["sensitivity"]) in printed
    assert figures["sensitivity"]["examples"] == 20 and figures["sensitivity"]["score"] == "l1"
    assert (tmp_path / "sensitivity.png").read_bytes().startswith(b"\x89PNG")
    before = set(tmp_path.iterdir())
    for words, message in (
        ("small.keras --score l1", "--score is for --sensitivity: give that as well"),
        ("small.keras --sensitivity", "give --data, or --dataset"),
        ("small.keras --data photos", "--data is for --sensitivity"),
        (
            "applications:MobileNet --sensitivity --dataset DIGITS",
            "applications:MobileNet is fresh",
        ),
        ("small.keras --sensitivity --dataset DIGITS --picture no/a.png", "no is no folder"),
        ("small.keras --exclude frist", r"matches none of .* did you mean first"),
        ("small.keras --min_width 5 --search_target_rate 0.1", "with the least widths that"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            inspect.main(words.split())
        assert "\n" not in str(caught.value)
    assert set(tmp_path.iterdir()) == before


def test_names_and_numbers_of_any_length_fit():
    group = {"layers": ["x" * 60, "y"], "width": 4, "flops": [0.5, 0.4], "rise": [-1e-9, 12345.0]}
    result = {
        "network": "net",
        "examples": 3,
        "shares": [0.5, 0.75],
        "whole": {"loss": 1.0},
        "groups": [group],
    }
    text = report.text(result)
    assert max(map(len, text.splitlines())) < 200 and "0.0000" in text and "+1.23e+04" in text
    assert report.group_name(group).endswith("x (+1)") and len(report.group_name(group)) == 39


def test_the_page_is_printed_from_its_figures(tmp_path):
    page = control.PAGE.read_text(encoding="utf-8")
    parts = {
        "sensitivity": control.of_sensitivity(read_json(control.SENSITIVITY)),
        "runs": control.of_runs(read_json(control.RUNS)),
    }
    for name, text in parts.items():
        block = page.split(control.BEGIN.format(name))[1].split(control.END.format(name))[0]
        assert block.strip() == text and "| --- |" in text
    assert control.PICTURE.read_bytes().startswith(b"\x89PNG")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(UserError, match="holds no figures of ekg-tf inspect --sensitivity"):
        control.collect("sensitivity", tmp_path / "other.json")
