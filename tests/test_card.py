"""The model card, who owns it, the commands of a run, and a network in outline."""

import json
import re

import keras
import numpy as np
import pytest
from ekg_tf.cli import choices, flags, manners
from ekg_tf.nets.graph import ChannelGraph
from ekg_tf.reports import card, outline, written
from ekg_tf.utils.errors import UserError
from ekg_tf.utils.keras_files import load_keras
from ekg_tf.utils.runfiles import CARD
from ekg_tf.utils.runfolder import RunFolder

from tests.helpers import run_folders as made


def front_matter(text: str) -> dict:
    """What stands between the lines of the head; each of our lines is YAML by being JSON."""
    head = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL).group(1)
    pairs = (line.split(": ", 1) for line in head.splitlines())
    return {key: json.loads(value) for key, value in pairs}


def test_a_card_of_data_with_a_name(tmp_path):
    text = card.text_of(made.finished(tmp_path / "run"))
    head = front_matter(text)
    assert head["library_name"] == "keras" and head["tags"][-1] == "ekg"
    (result,) = head["model-index"][0]["results"]
    assert result["task"] == {"type": "image-classification"}
    assert {one["type"]: one["value"] for one in result["metrics"]} == {
        "accuracy": 89.0,
        "loss": 0.25,
    }
    assert "| FLOPs | 1,000 | 610 | 0.610 |" in text
    assert 'keras.saving.load_model("pruned.keras")' in text
    assert "/home/me" not in text and "run.keras" in text  # no folder of the machine
    assert "Next:" not in text


def test_a_card_of_other_data_has_no_index(tmp_path):
    folder = made.write(tmp_path, args={"dataset": None}, result=made.result(made.tested()))
    assert set(front_matter(card.text_of(folder))) == {"library_name", "tags"}


def test_names_stay_text_in_a_card(tmp_path):
    metrics = {"a|b\n# <script>": 0.5}
    text = card.text_of(made.write(tmp_path, result=made.result(made.tested(None, **metrics))))
    assert r"a\|b \# &lt;script&gt;" in text and "<script>" not in text


def opened(path, **options) -> RunFolder:
    return RunFolder.open(path, {"train_path": str(path)}, **options)


def searched(folder: RunFolder) -> None:
    for row in made.history():
        folder.append("history.jsonl", row)
    folder.write_json("search.json", made.search(made.tested(80.0)))


def test_a_card_is_ours_until_somebody_changes_it(tmp_path, capsys):
    with opened(tmp_path) as folder:
        searched(folder)
        written.write(folder)
        first = (tmp_path / CARD).read_text()
        folder.write_json("result.json", made.result(made.tested(70.0)))
        written.write(folder)
        assert (tmp_path / CARD).read_text() != first
        (tmp_path / CARD).write_text("mine")
        written.write(folder)
    assert (tmp_path / CARD).read_text() == "mine"
    assert "it is left as it is" in capsys.readouterr().out
    with opened(tmp_path, overwrite=True) as folder:
        assert (tmp_path / CARD).read_text() == "mine"
        assert not (tmp_path / "report.html").exists()
        searched(folder)
        written.write(folder)
    assert (tmp_path / CARD).read_text() == "mine" and (tmp_path / "report.html").exists()


def test_an_unchanged_card_goes_with_its_run(tmp_path):
    with opened(tmp_path) as folder:
        searched(folder)
        written.write(folder)
    with opened(tmp_path, overwrite=True):
        assert not (tmp_path / CARD).exists()


def test_a_report_that_a_killed_process_has_left_out_is_made_up_for(tmp_path):
    with opened(tmp_path) as folder:
        searched(folder)
        written.write_if_missing(folder)
        of_search = (tmp_path / "report.html").read_text()
        written.close(folder, "result.json", made.result(made.tested(70.0)))
        assert not (tmp_path / "report.html").exists()  # here the process is killed
    with opened(tmp_path) as folder:
        written.write_if_missing(folder)
        made_up = (tmp_path / "report.html").read_text()
        written.write_if_missing(folder)
    assert made_up != of_search and "70.00" in made_up
    assert (tmp_path / "report.html").read_text() == made_up


def test_a_readme_of_the_users_is_in_nobodys_way(tmp_path):
    (tmp_path / CARD).write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        opened(tmp_path)
    with opened(tmp_path, overwrite=True) as folder:
        searched(folder)
        written.write(folder)
    assert (tmp_path / CARD).read_text() == "mine"


def test_what_goes_wrong_with_a_report_ends_no_run(tmp_path, capsys):
    with opened(tmp_path) as folder:
        searched(folder)
        (tmp_path / "report.html").write_text("mine")
        (tmp_path / "search.json").write_text('{"gates": 1}')
        written.write(folder)
    out = capsys.readouterr().out
    assert "report.html is not written: " in out and "README.md is not written" in out
    assert (tmp_path / "report.html").read_text() == "mine"


def test_the_commands_of_a_run_are_kept(tmp_path):
    parser = manners.Parser(prog="search.py")
    flags.add_run(parser)
    words = ["--train_path", str(tmp_path / "a run")]
    for more in ([], [], ["--do_log", "off"]):
        args = parser.parse_args([*words, *more])
        assert "command" not in vars(args)
        choices.open_folder(args, {"kept": 1}).close()
    kept = json.loads((tmp_path / "a run" / "commands.json").read_text())["commands"]
    first = f"python search.py --train_path '{tmp_path}/a run'"
    assert kept == [first, f"{first} --do_log off"]


# ---------------------------------------------------------------- outlines


def residual() -> keras.Model:
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(8, 3, padding="same", name="stem")(inputs)
    y = keras.layers.Conv2D(6, 3, padding="same", name="inner")(x)
    y = keras.layers.Conv2D(8, 3, padding="same", name="outer")(y)
    x = keras.layers.Add(name="sum")([x, y])
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(4, name="head")(x))


def test_an_outline_has_layers_and_what_joins_them():
    graph = ChannelGraph(residual())
    mask = graph.open_mask()
    inner = next(group for group in graph.groups if group.layers == ("inner",))
    mask[inner.start : inner.start + 2] = 0
    nodes = outline.of_mask(graph, mask)
    assert [(n["name"], n["joins"], n["from"]) for n in nodes] == [
        ("stem", False, []),
        ("inner", False, [0]),
        ("outer", False, [1]),
        ("sum", True, [0, 2]),
        ("head", False, [3]),
    ]
    assert [n["channels"] for n in nodes] == [[8, 8], [6, 4], [8, 8], [8, 8], [4, 4]]
    assert [n["size"] for n in nodes] == [[8, 8]] * 4 + [[]]
    pruned = ChannelGraph(graph.pruned(mask))
    assert outline.of_pair(graph, pruned) == nodes
    assert json.loads(json.dumps(nodes)) == nodes
    other = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)])
    assert outline.of_pair(graph, ChannelGraph(other)) == []
    assert np.count_nonzero(mask) == len(mask) - 2


# ---------------------------------------------------------------- the hub


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ImportError("no huggingface_hub"), "needs the package huggingface_hub"),
        (OSError("Got: ConnectError: no network\nmore"), r"hub \(ConnectError: no network\); a"),
    ],
)
def test_a_network_on_the_hub_that_cannot_be_read(monkeypatch, error, words):
    def load(*_, **__):
        raise error

    monkeypatch.setattr(keras.models, "load_model", load)
    with pytest.raises(UserError, match=words):
        load_keras("hf://user/net")


def test_a_network_on_the_hub_is_read_by_keras_in_safe_mode(monkeypatch):
    seen = {}
    monkeypatch.setattr(keras.models, "load_model", lambda path, **how: seen.update(how) or path)
    assert load_keras("hf://user/net", compile=False) == "hf://user/net"
    assert seen == {"compile": False, "safe_mode": True}
