"""The before -> after block; that the figures are made and not empty (their looks: by eye)."""

import numpy as np
import pytest
from ekg_tf.reports import plots, tables

Image = pytest.importorskip("PIL.Image")


def size_and_colours(path):
    image = np.asarray(Image.open(path).convert("RGB"))
    colours = {f"#{r:02X}{g:02X}{b:02X}" for r, g, b in np.unique(image.reshape(-1, 3), axis=0)}
    return image.shape[1::-1], colours


@pytest.mark.parametrize("layers", [1, 9, 60])
def test_widths(tmp_path, layers):
    path = tmp_path / "widths.png"
    names = [f"layer{n}" for n in range(layers)]
    plots.widths(path, names, [64] * layers, [40] * layers)
    (width, height), colours = size_and_colours(path)
    assert {plots.LIGHT, plots.DARK} <= colours
    assert 900 <= width <= 1800 and 240 <= height <= 1100
    assert [p.name for p in tmp_path.iterdir()] == ["widths.png"]


def test_widths_of_unequal_lengths_are_refused(tmp_path):
    with pytest.raises(ValueError, match="2 names, 1 and 2 widths"):
        plots.widths(tmp_path / "w.png", ["a", "b"], [1], [1, 2])


@pytest.mark.parametrize("rate", [[], [1.0], [1.0, 0.8, 0.5]])
def test_search_curve(tmp_path, rate):
    loss = [0.1, None, 0.3][: len(rate)]
    plots.search_curve(tmp_path / "s.png", rate, loss, target=0.4)
    plots.search_curve(tmp_path / "t.png", rate, loss, val_accuracy=loss)
    one, colours = size_and_colours(tmp_path / "s.png")
    two, _ = size_and_colours(tmp_path / "t.png")
    assert two[1] > one[1]
    assert len(rate) < 2 or plots.COLOURS[0] in colours


def test_training_curves(tmp_path):
    run = {"train_loss": [2.0, 1.0, 0.5], "val_acc": [0.1, None, 0.5], "epoch": [1, 2, 3]}
    plots.training_curves(tmp_path / "t.png", {"baseline": run, "pruned": run, "only": {}})
    _, colours = size_and_colours(tmp_path / "t.png")
    assert plots.COLOURS[1] in colours


def test_before_after_table():
    table = tables.before_after(
        [
            ("parameters", 1000, 250, ",d"),
            ("top-1", 0.9, None, ".1%"),
            ("errors", 0, 3, "d"),
        ]
    )
    assert table.splitlines() == [
        "             before          after   ratio",
        "parameters    1,000            250   0.250",
        "top-1         90.0%   not measured       -",
        "errors            0              3       -",
    ]
