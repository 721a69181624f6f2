"""The inspection command on real files: what it prints, writes and refuses."""

import json

import keras
import pytest
from ekg_tf.cli import manners
from ekg_tf.nets.graph import ChannelGraph
from ekg_tf.reports.inspection import filters
from ekg_tf.utils.errors import UserError
from ekg_tf.utils.keras_files import save_keras

from ekg_tf.commands import inspect
from tests.helpers.networks import residual


@pytest.fixture
def network(tmp_path):
    path = tmp_path / "net.keras"
    save_keras(path, residual())
    return path


def test_groups_and_rates_are_printed_and_written(network, tmp_path, capsys):
    out = tmp_path / "net.json"
    inspect.main([str(network), "--search_target_rate", "0.5", "--json", str(out)])
    text = capsys.readouterr().out
    result = json.loads(out.read_text())
    graph = ChannelGraph(residual())
    assert result["flops"] == graph.flops() and result["lowest_rate"] == graph.lowest_rate()
    assert (result["filters"], result["prunable_filters"]) == (4 + 5 + 6 + 6 + 7 + 6 + 5, 34)
    assert [group["width"] for group in result["groups"]] == [4, 5, 6, 7, 5]
    assert set(result["groups"][2]["layers"]) == {"a2", "b2", "shortcut"}
    assert ", ".join(result["groups"][2]["layers"]) + "  prunable" in text
    assert "not prunable: network output" in text
    assert "34 of 39 filters (87.2 %) are in 4 prunable groups" in text
    assert "a rate of 0.5 can be reached" in text


def test_a_rate_out_of_reach_ends_with_code_2(network, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["inspect", str(network), "--search_target_rate", "0.001"])
    with pytest.raises(SystemExit) as stop:
        manners.run(inspect.main)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert "smallest FLOPs rate" in captured.out
    assert "0.001 can't be reached" in captured.err and captured.err.count("\n") == 1


def test_applications_by_name(capsys):
    inspect.main(["applications:MobileNet"])
    assert "568,740,352 FLOPs" in capsys.readouterr().out  # the paper: 569 million
    with pytest.raises(UserError, match="has no 'ResNet51'"):
        inspect.main(["applications:ResNet51"])
    with pytest.raises(UserError, match="does not exist"):
        inspect.main(["nowhere.keras"])


def test_grouped_and_depthwise_filters_are_counted_once():
    image = keras.Input((8, 8, 4))
    x = keras.layers.Conv2D(8, 3)(image)
    x = keras.layers.Conv2D(8, 3, groups=8)(x)  # depthwise
    x = keras.layers.Conv2D(6, 1, groups=2)(x)
    x = keras.layers.Dense(5)(keras.layers.GlobalAveragePooling2D()(x))
    assert filters(ChannelGraph(keras.Model(image, x))) == (14, 19)
