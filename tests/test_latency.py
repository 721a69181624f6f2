"""Latencies with their spread: what is inside the noise is no change."""

import re

import keras
import numpy as np
import pytest
from ekg_tf.deployment import formats, latency
from ekg_tf.reports.networks import report_text
from ekg_tf.training.latency import medians, ratio_of, timings, turns
from ekg_tf.utils.errors import UserError

L = keras.layers


def network(width: int) -> keras.Model:
    keras.utils.set_random_seed(0)
    layers = [L.Conv2D(width, 3, activation="relu"), L.Flatten(), L.Dense(3)]
    return keras.Sequential([keras.Input((12, 12, 3)), *layers])


def test_calls_take_turns_forwards_and_backwards():
    order = []
    rounds = turns([lambda: order.append(0), lambda: order.append(1)], 0.0)
    assert rounds.shape == (15, 2) and order[:6] == [0, 1] * 3
    assert order[6:12] == [1, 0, 0, 1, 1, 0]


def test_the_interval_holds_what_the_blocks_say():
    before = np.full(80, 2.0)
    after = np.where(np.arange(80) < 40, 1.0, 1.2)
    low, high = ratio_of(np.stack([before, after], 1))
    assert (low, high) == pytest.approx((0.5 * 0.97, 0.6 * 1.03))


@pytest.mark.parametrize("seed", range(5))
def test_noise_alone_is_no_change(seed):
    rounds = np.random.default_rng(seed).gamma(20, 1, (64, 2))
    low, high = ratio_of(rounds)
    assert low < 1 < high


def test_a_network_against_itself_shows_no_measurable_change():
    one = network(8)
    rounds = timings([one, one], 4, seconds=0.5)
    figures = {"parameters": 10, "flops": 20, "latency_ms": {"1": medians(rounds)[0]}}
    figures["test"] = {"top1": 90.0, "loss": 0.3, "examples": 100, "batch_top1": 90.0}
    other = figures | {"latency_ms": {"1": medians(rounds)[1]}}
    bounds = {"1": list(ratio_of(rounds))}
    results = {"before": figures, "after": other, "classes": 3, "latency_ratio": bounds}
    text = report_text(results)
    (line,) = (line for line in text.splitlines() if line.startswith("latency, ms per example"))
    assert line.endswith("1.00 (no measurable change)")
    assert "no measurable change (ratio" in " ".join(text.split())


def test_figures_read_from_a_file_are_told_the_same_way():
    """JSON sorts keys: "after" comes before "before"."""
    side = {"parameters": 10, "flops": 20, "latency_ms": {"1": 2.0}}
    side["test"] = {"top1": 90.0, "loss": 0.3, "examples": 100, "batch_top1": 90.0}
    times = {"after": 0.5, "before": 1.0}
    found = {"runtime": "LiteRT, one CPU thread", "batch": 1, "latency_ms": times}
    results = {"before": side, "after": side, "classes": 3, "deployed": found}
    results["deployed"]["ratio"] = [0.45, 0.55]
    text = report_text(results)
    (line,) = (line for line in text.splitlines() if line.startswith("latency, ms, LiteRT"))
    assert line.split()[-6:] == ["1.000", "0.500", "0.50", "(0.45", "to", "0.55)"]
    said = " ".join(text.split())
    assert "LiteRT, one CPU thread): 1.000 → 0.500 ms per example: faster" in said
    assert "top-5" not in text


@pytest.mark.parametrize("norms", [True, False])
def test_only_networks_with_batch_norms_are_told_about_their_statistics(norms):
    side = {"parameters": 10, "flops": 20, "latency_ms": {"1": 2.0}}
    tested = {"top1": 90.0, "loss": 0.3, "examples": 100, "metrics": {"mae": 0.5}}
    both = {f"batch_{key}": value for key, value in tested.items() if key != "examples"}
    side["test"] = tested | (both if norms else {})
    text = report_text({"before": side, "after": side, "classes": 3})
    assert ("statistics" in text) is norms
    for title in ("top-1 %", "mae", "test loss"):
        assert re.search(rf"^{title}{', moving statistics' if norms else ' '}", text, re.M)


def test_latency_where_networks_are_deployed():
    pytest.importorskip("ai_edge_litert")
    found = latency.compared(network(4), network(4), seconds=0.2)
    assert found["runtime"] == "LiteRT, one CPU thread" and found["batch"] == 1
    assert all(value > 0 for value in found["latency_ms"].values())
    assert found["ratio"][0] < found["ratio"][1]


def test_a_network_that_the_runtime_cant_take_says_why(monkeypatch):
    def refuse(*_):
        raise UserError("LiteRT can't take it")

    monkeypatch.setattr(latency, "runtime", lambda: "savedmodel")
    monkeypatch.setitem(latency.TITLES, "savedmodel", "TensorFlow")
    monkeypatch.setattr(formats, "write", refuse)
    found = latency.compared(network(4), network(4))
    assert found == {"runtime": "TensorFlow, one CPU thread", "problem": "LiteRT can't take it"}


def test_without_a_runtime_there_is_no_figure(monkeypatch):
    monkeypatch.setattr(latency, "TITLES", {})
    assert latency.compared(network(4), network(4)) is None
