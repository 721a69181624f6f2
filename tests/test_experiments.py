"""Smoothness, landscape and potential: against dense and numpy references, and resumed."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import scipy.sparse.linalg
import scipy.stats
import tensorflow as tf
from ekg_tf.experiments import (
    correlations,
    landscape,
    losses,
    networks,
    potential,
    smoothness,
    sources,
)
from ekg_tf.nets.graph import ChannelGraph
from ekg_tf.options.methods import EKG, Uniform
from ekg_tf.pages import smoothness as smoothness_page
from ekg_tf.pruning.engine.validation import Validation
from ekg_tf.pruning.space.candidates import OVERSHOOT
from ekg_tf.training.evaluation import evaluate
from ekg_tf.training.task import classification
from ekg_tf.utils.errors import UserError
from ekg_tf.utils.keras_files import save_keras

L = keras.layers
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def val() -> Validation:
    """Two batches of images that are noise."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(22, 6, 6, 2)).astype(np.float32)
    return Validation(images, rng.integers(0, 3, 22).astype(np.int32), 12)


@pytest.fixture(scope="module")
def small() -> keras.Model:
    """A CNN with trainables of every kind: convolutions, batch norm, bias, dense."""
    keras.utils.set_random_seed(1)
    image = keras.Input((6, 6, 2))
    x = L.Conv2D(3, 3, padding="same", use_bias=False)(image)
    x = L.ReLU()(L.BatchNormalization()(x))
    x = L.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
    x = L.Dropout(0.5)(L.Activation("tanh")(L.BatchNormalization()(x)))
    x = L.GlobalAveragePooling2D()(x)
    model = keras.Model(image, L.Dense(3)(L.Dense(4, activation="tanh")(x)))
    rng = np.random.default_rng(2)
    for layer in model.layers:
        if isinstance(layer, L.BatchNormalization):  # neither mask nor slope may hide in ones
            layer.gamma.assign(rng.uniform(0.5, 2, layer.gamma.shape))
            layer.beta.assign(rng.normal(size=layer.beta.shape))
    return model


def dense_hessian(model: keras.Model, val: Validation) -> np.ndarray:
    """Column by column, by reverse over reverse mode."""
    total = losses.loss_sum(model)
    weights = [tf.constant(one) for one in losses.trainables(model)]

    @tf.function(autograph=False)
    def hessian():
        with tf.GradientTape(persistent=True) as outer:
            outer.watch(weights)
            with tf.GradientTape() as inner:
                inner.watch(weights)
                sums = [total(weights, *batch) for batch in losses.batches_of(val)]
                loss = tf.add_n(sums) / len(val.targets)
            slopes = inner.gradient(loss, weights)
            flat = tf.concat([tf.reshape(one, [-1]) for one in slopes], 0)
        return outer.jacobian(flat, weights, experimental_use_pfor=False)

    return np.concatenate([one.numpy().reshape(one.shape[0], -1) for one in hessian()], 1)


def test_condition_number_is_that_of_the_dense_hessian(small, val):
    dense = dense_hessian(small, val).astype(np.float64)
    before = [v.numpy() for v in small.variables]
    hessian = smoothness.Hessian(small, val)
    vector = np.random.default_rng(3).normal(size=len(dense)) * 50
    expected = dense @ vector
    assert np.abs(hessian.matvec(vector) - expected).max() < 1e-4 * np.abs(expected).max()
    result = smoothness.smoothness(small, val)
    values = np.linalg.eigvalsh((dense + dense.T) / 2)
    assert result["lambda_max"] == pytest.approx(values[-1], rel=1e-3)
    assert result["lambda_min"] == pytest.approx(values[0], rel=1e-3)
    assert values[0] < 0  # or the test would not see a wrong end
    assert result["condition_number"] == pytest.approx(-values[0] / values[-1], rel=1e-3)
    for one, old in zip(small.variables, before, strict=True):
        np.testing.assert_array_equal(one.numpy(), old)


def test_extremes_of_a_quadratic():
    rng = np.random.default_rng(0)
    spectrum = np.concatenate([[-3.0], rng.uniform(-1, 6, 58), [8.0]])
    basis = np.linalg.qr(rng.normal(size=(60, 60)))[0]
    matrix = basis @ np.diag(spectrum) @ basis.T
    found = smoothness.extremes(scipy.sparse.linalg.aslinearoperator(matrix), tolerance=1e-6)
    assert found.lambda_min == pytest.approx(-3, rel=1e-6)
    assert found.lambda_max == pytest.approx(8, rel=1e-6)
    assert found.condition_number == pytest.approx(3 / 8, rel=1e-6)
    assert max(found.residual_min, found.residual_max) < 1e-3


def test_eigenvalues_that_do_not_settle_and_products_that_are_not_finite():
    # Without a gap, and with two restarts at most, nothing can be known to 1e-12.
    flat = scipy.sparse.linalg.aslinearoperator(np.diag(np.linspace(-1, 1, 400)))
    with pytest.raises(UserError, match="did not settle to 1e-12 in"):
        smoothness.extremes(flat, tolerance=1e-12, most_restarts=2)
    broken = scipy.sparse.linalg.aslinearoperator(np.full((5, 5), np.nan))
    with pytest.raises(UserError, match="not finite"):
        smoothness.extremes(broken)


def test_trace_of_a_matrix_and_of_the_dense_hessian(small, val):
    values = np.array([3.0, -1.0, 0.5, 7.0])
    diagonal = scipy.sparse.linalg.aslinearoperator(np.diag(values))
    assert smoothness.trace(diagonal, probes=2) == pytest.approx(values.sum())
    dense = dense_hessian(small, val)
    spread = math.sqrt(2 * (dense**2).sum() - 2 * (np.diag(dense) ** 2).sum())
    found = smoothness.trace(smoothness.Hessian(small, val), probes=64)
    assert found == pytest.approx(np.trace(dense), abs=4 * spread / 8)


def test_directions_have_the_filters_norms(small):
    axes = landscape.filter_axes(small)
    names = [v.path.split("/")[-1] for v in small.trainable_variables]
    first, second = landscape.directions(small, 5)
    for name, axis, d, e, weight in zip(
        names, axes, first, second, losses.trainables(small), strict=True
    ):
        if "kernel" not in name:
            assert axis is None and not d.any() and not e.any()
            continue
        # depthwise kernels [3, 3, channels, 1] have a filter per input channel
        assert axis == (2 if weight.shape == (3, 3, 3, 1) else weight.ndim - 1)
        for i in range(weight.shape[axis]):
            norm = np.linalg.norm(np.take(weight, i, axis))
            assert np.linalg.norm(np.take(d, i, axis)) == pytest.approx(norm, rel=1e-5)
        assert np.abs(d - e).max() > 0
    literal = landscape.normalised(np.ones((2, 2)), np.array([[3.0, 0.0], [4.0, 0.0]]), 1)
    np.testing.assert_allclose(literal, [[5 / 2**0.5, 0], [5 / 2**0.5, 0]])


def test_landscape_has_the_networks_loss_at_its_centre(small, val, tmp_path):
    batches = [{"inputs": val.inputs[rows], "targets": val.targets[rows]} for rows in val.batches()]
    batches = [{key: tf.constant(value) for key, value in one.items()} for one in batches]
    loss = evaluate(small, classification(), batches, bn="batch")
    one = landscape.landscape(small, val, landscape.Plane(grid=3, span=0.5, seed=4))
    assert one["centre"] == pytest.approx(loss["loss"], abs=1e-6)
    assert one["loss"][1][1] == one["centre"] and np.shape(one["loss"]) == (3, 3)
    first, second = landscape.directions(small, 4)
    parts = zip(losses.trainables(small), first, second, strict=True)
    weights = [(w + 0.5 * d - 0.5 * e).astype(np.float32) for w, d, e in parts]
    moved = losses.make_mean_loss(small, val)(weights)
    assert one["loss"][2][0] == pytest.approx(moved, rel=1e-4)
    one["loss"][0][0] = None  # what is not finite is drawn as the largest loss
    picture = tmp_path / "landscape.png"
    landscape.draw(picture, {"networks": {"a": one, "b": one}}, 3)
    assert picture.read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(UserError, match="no middle"):
        landscape.Plane(grid=4)


def test_correlation_signs_and_constants():
    rows = [
        {"proxies": {"val_loss": a, "reward": -a, "l1": 1.0}, "potential": {"test_loss": b}}
        for a, b in ((1, 10), (2, 30), (3, 20), (4, 40))
    ]
    for row in rows:
        row["potential"]["test_top1"] = -row["potential"]["test_loss"]
    found = correlations.correlations(rows, ["val_loss", "reward", "l1"])
    for proxy in ("val_loss", "reward"):  # a small loss and a large reward say the same
        for worth in ("test_loss", "test_top1"):
            assert found[proxy][worth]["pearson"]["value"] == pytest.approx(0.8)
            assert found[proxy][worth]["kendall"]["value"] == pytest.approx(4 / 6)
            assert found[proxy][worth]["spearman"]["value"] == pytest.approx(0.8)
    assert found["l1"]["test_loss"]["pearson"] == {"value": None, "p": None}
    rows[0]["proxies"]["val_loss"] = None  # as JSON has it: not finite
    found = correlations.correlations(rows, ["val_loss"])
    assert found["val_loss"]["test_loss"]["kendall"]["value"] is None


def test_measured_networks_are_not_measured_again(tmp_path, monkeypatch):
    monkeypatch.setattr(networks.machine, "describe", dict)  # takes seconds
    out, calls = tmp_path / "a.json", []

    def one(model):
        calls.append(model)
        return {"value": model}

    first = networks.measure({"s": 1}, {"a": 1}, {"a": "x"}, one, out)
    assert first["networks"] == {"a": {"value": 1, "digest": "x"}}
    both = networks.measure({"s": 1}, {"a": 1, "b": 2}, {"a": "x", "b": "y"}, one, out)
    assert calls == [1, 2] and json.loads(out.read_text()) == both
    networks.measure({"s": 1}, {"b": 3}, {"b": "z"}, one, out)  # another file of this name
    assert calls == [1, 2, 3]
    with pytest.raises(UserError, match="other settings"):
        networks.measure({"s": 2}, {"a": 1}, {"a": "x"}, one, out)


def test_page_is_printed_from_the_result_files():
    page = smoothness_page.PAGE.read_text(encoding="utf-8")
    block = page.split(smoothness_page.BEGIN)[1].split(smoothness_page.END)[0].strip()
    assert block == smoothness_page.tables()


def test_published_figures_stand_beside_the_right_search():
    one = {"condition_number": 0.5, "val_loss": 0.25}
    published = {"gbn": {"condition_number": 0.0414, "val_loss": 0.071}}
    results = {"networks": {"search_taylor_none": one, "another": one}}
    rows = smoothness_page.published_table(results, published).splitlines()
    assert rows[2] == "| search_taylor_none | 0.5000 | 0.2500 | 0.0414 | 0.0710 |"
    assert rows[3] == "| another | 0.5000 | 0.2500 |  |  |"


def test_bad_arguments_of_the_experiments(tmp_path):
    start = tmp_path / "start.keras"
    image = keras.Input((8, 8, 1))
    save_keras(start, keras.Model(image, L.Dense(10)(L.Flatten()(image))))
    with pytest.raises(UserError, match="neither a run folder nor"):
        sources.parsed("nowhere")
    with pytest.raises(UserError, match="the score 'l3' is none of"):
        sources.parsed("ekg:l3")
    with pytest.raises(UserError, match="only ekg has a teacher"):
        sources.parsed("uniform:l1:single")
    settings = {"step": 0.1, "evaluator": "fast"}
    assert sources.parsed("ekg:l1", **settings) == EKG(
        score="l1", teacher="none", step=0.1, evaluator="fast"
    )
    assert sources.parsed("uniform:l1", **settings) == Uniform(score="l1")
    with pytest.raises(UserError, match="holds no search"):
        sources.read(tmp_path, {}, 1, 0.5)
    with pytest.raises(UserError, match="twice"):
        smoothness.main([str(start), str(start)])
    with pytest.raises(UserError, match="does not exist"):
        smoothness.main([str(tmp_path / "none")])
    with pytest.raises(UserError, match="must end in"):
        landscape.main([str(start), "--out", str(tmp_path / "a.png")])
    with pytest.raises(UserError, match="which network is pruned"):
        potential.main(["--train_path", str(tmp_path / "p")])


# ---------------------------------------------------------------- potential, end to end


N = 3
ARGUMENTS = f"""--arch ResNet-20 --n {N} --sources uniform:l1 --search_target_rate 0.4
--proxies val_loss reward taylor l1 --val_per_class 4 --subset_per_class 26 --train_epoch 1
--gpu_id cpu""".split()


def small_digits_network() -> keras.Model:
    """Untrained: what counts here is that figures repeat."""
    keras.utils.set_random_seed(0)
    image = x = keras.Input((8, 8, 1))
    for filters in (24, 32, 40):
        x = L.Conv2D(filters, 3, padding="same", strides=2 if filters > 24 else 1)(x)
        x = L.ReLU()(x)
    return keras.Model(image, L.Dense(10)(L.GlobalAveragePooling2D()(x)))


def figures(folder: Path) -> list[dict]:
    """The networks of a potential.json without what depends on the clock."""
    result = json.loads((folder / "potential.json").read_text())
    return [{k: v for k, v in one.items() if k != "seconds"} for one in result["networks"]]


def test_potential_is_resumed_after_a_kill(tmp_path):
    save_keras(tmp_path / "net.keras", small_digits_network())
    arguments = [*ARGUMENTS, "--trained_param", str(tmp_path / "net.keras")]
    potential.main([*arguments, "--train_path", str(tmp_path / "whole")])
    command = [sys.executable, "-m", "ekg_tf.experiments.potential", *arguments]
    killed, rows = tmp_path / "killed", tmp_path / "killed" / "potential.jsonl"
    process = subprocess.Popen(
        [*command, "--train_path", str(killed)], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    end = time.monotonic() + 300
    while time.monotonic() < end and process.poll() is None:
        if rows.exists() and rows.read_text().count('"potential": {') >= 2:
            break
        time.sleep(0.05)
    assert process.poll() is None, "it was over before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "potential.json").exists()
    potential.main([*arguments, "--train_path", str(killed)])
    whole = figures(tmp_path / "whole")
    assert figures(killed) == whole and len(whole) == N
    assert len({one["parameters"] for one in whole}) == N  # different networks ...
    for one in whole:  # ... at the same FLOPs
        assert 0.4 - OVERSHOOT <= one["flops_rate"] <= 0.4
        assert np.isfinite(list(one["proxies"].values())).all()
    assert (killed / "potential.png").stat().st_size > 10_000
    result = json.loads((killed / "potential.json").read_text())
    expected = scipy.stats.kendalltau(
        [one["proxies"]["val_loss"] for one in whole],
        [one["potential"]["test_loss"] for one in whole],
    )
    kendall = result["correlations"]["val_loss"]["test_loss"]["kendall"]
    # The search that was made is a run folder like any other: the same sub-networks come of it.
    folder, settings = killed / "search_uniform_l1", result["settings"]
    source = sources.read(folder, settings, settings["examples"], 0.4)
    for number, one in enumerate(whole):
        again = sources.draw([source], number, target_rate=0.4, step=0.2, seed=0)
        assert source.graph.parameters(again.mask) == one["parameters"]
    with pytest.raises(UserError, match="above --search_target_rate"):
        sources.read(folder, settings, settings["examples"], 0.2)
    with pytest.raises(UserError, match="not 5: all searches need the same D_val"):
        sources.read(folder, settings | {"search_seed": 5}, settings["examples"], 0.4)
    assert kendall["value"] == pytest.approx(expected.statistic)


def test_draws_depend_on_their_number_alone():
    graph = ChannelGraph(small_digits_network())

    class Fixed:
        """A history with nothing but the whole network and one step."""

        rows = [{"flops_rate": 1.0}, {"flops_rate": 0.4}]  # noqa: RUF012

        def mask(self, graph, step):
            return graph.open_mask()

    source = sources.Source("a", graph, Fixed())
    options = {"target_rate": 0.4, "step": 0.2, "seed": 3}
    first = [sources.draw([source], number, **options).mask for number in (1, 2)]
    second = [sources.draw([source], number, **options).mask for number in (2, 1)]
    np.testing.assert_array_equal(first[0], second[1])
    np.testing.assert_array_equal(first[1], second[0])
    assert (first[0] != first[1]).any()
    for mask in first:
        assert 0.4 - OVERSHOOT <= graph.flops(mask) / graph.flops() <= 0.4
    assert sources.draw([source], 0, **options).step == 1
