"""The papers' case is what it was before any other task could be pruned.

tests/data/digits_before_any_task.json holds what the version before gave for the same command; on
the machine where that was made all of it, weights among them, was equal to the last bit.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from ekg_tf.utils.keras_files import load_keras

KNOWN = Path(__file__).parent / "data" / "digits_before_any_task.json"


@pytest.fixture(scope="module")
def known():
    return json.loads(KNOWN.read_text())


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_search_takes_the_same_steps(finished, known):
    found = rows(finished / "history.jsonl")
    assert len(found) == len(known["history"]) > 5
    for row, before in zip(found, known["history"], strict=True):
        for key in ("step", "removed_units", "evaluations", "flops"):
            assert row[key] == before[key]
        assert row["val_loss"] == pytest.approx(before["val_loss"], rel=1e-4)
        if before["reward"] is not None:
            assert row["reward"] == pytest.approx(before["reward"], rel=1e-4)


def test_baseline_and_fine_tuning_end_with_the_same_weights(finished, known):
    losses = [row["loss"] for row in rows(finished / "metrics.jsonl")]
    assert losses == pytest.approx([row["loss"] for row in known["epochs"]], rel=1e-3)
    weights = load_keras(finished / "pruned.keras").get_weights()
    assert len(weights) == len(known["weights"])
    for array, before in zip(weights, known["weights"], strict=True):
        assert list(array.shape) == before["shape"]
        found = float(np.mean(array)), float(np.std(array))
        assert found == pytest.approx((before["mean"], before["deviation"]), rel=1e-2, abs=1e-3)
