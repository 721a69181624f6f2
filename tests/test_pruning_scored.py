"""A search by a function of one's own: what it takes, what it refuses, and that it resumes."""

import itertools
from functools import partial

import keras
import numpy as np
import pytest
import tensorflow as tf
from ekg_tf.nets.given import Given
from ekg_tf.nets.graph import ChannelGraph
from ekg_tf.options.budgets import Flops, Parameters
from ekg_tf.options.control import Control
from ekg_tf.options.scored import Scored
from ekg_tf.pruning.history import LOGITS, ROWS
from ekg_tf.pruning.methods.scored import checked, search
from ekg_tf.utils.errors import UserError
from ekg_tf.utils.runfolder import RunFolder

from tests.helpers.networks import residual, shaken
from tests.helpers.tasks import two_ends, unet

L = keras.layers


def weight_left(model):
    """A score that needs no data: the sum of the kernels' norms."""
    return sum(float(tf.norm(one)) for one in model.trainable_variables if "kernel" in one.path)


def searched(path, model, score=weight_left, rate=0.75, stop_at=None, **options):
    """The search, in a folder, on the core of a network."""
    given = Given.read(model)
    graph = ChannelGraph(given.core)
    options = Scored(**{"budget": Flops(rate)} | options)
    with RunFolder.open(path, {"do_log": False}) as folder:
        if stop_at:
            folder.append = partial(_append_until, folder.append, stop_at)
            with pytest.raises(KeyboardInterrupt):
                search(graph, given.finished, score, options, folder)
            return None
        return search(graph, given.finished, score, options, folder)


def _append_until(append, step, name, row):
    if row["step"] == step:
        raise KeyboardInterrupt
    append(name, row)


def untimed(running):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in running.history.rows]


LONG = [pytest.param(build, marks=pytest.mark.slow) for build in (two_ends, unet)]


@pytest.mark.parametrize("build", [residual, *LONG])
def test_the_networks_that_are_scored_are_the_users_pruned_ones(tmp_path, build):
    model, seen = shaken(build()) if build is residual else build(), []

    def score(network):
        assert network.output_names == model.output_names
        flops = ChannelGraph(Given.read(network).core).flops()
        seen.append((flops, weight_left(network)))
        return seen[-1][1]

    running = searched(tmp_path, model, score, proposals=3)
    rows = running.history.rows
    assert rows[-1]["flops_rate"] <= 0.75 < rows[-2]["flops_rate"] and len(rows) > 4
    assert len(seen) == 1 + sum(row["evaluations"] for row in rows)
    assert all(row["evaluations"] <= 3 for row in rows)
    place = 1
    for before, row in itertools.pairwise(rows):
        scores = seen[place : place + row["evaluations"]]
        prices = [(before["score"] - score) / (before["flops"] - flops) for flops, score in scores]
        assert (row["flops"], row["score"]) == scores[int(np.argmin(prices))]
        assert row["reward"] == row["score"]
        place += row["evaluations"]
    mask = running.gates.mask()
    np.testing.assert_array_equal(mask, running.history.mask(running.graph, len(rows) - 1))
    assert running.graph.flops(mask) == rows[-1]["flops"]


def test_the_best_score_of_a_step_is_taken(tmp_path):
    """A function that wants filters of one layer above all."""

    def score(network):
        return float(network.get_layer("b1").filters)

    running = searched(tmp_path, shaken(residual()), score, rate=0.7)
    before, after = running.history.rows[0]["widths"], running.history.rows[-1]["widths"]
    number = next(n for n, one in enumerate(running.graph.groups) if one.layers == ("b1",))
    assert after[number] == before[number] == 7 and after != before


def large_and_small():
    """A convolution of nearly all FLOPs and a dense layer of next to none."""
    image = L.Input((16, 16, 3))
    x = L.ReLU()(L.Conv2D(20, 3, name="large")(image))
    x = L.Dense(20, activation="relu", name="small")(L.GlobalAveragePooling2D()(x))
    return shaken(keras.Model(image, L.Dense(4)(x)))


def filters_left(network):
    """A score to which a filter of the large layer is worth two of the small one."""
    return 2.0 * network.get_layer("large").filters + network.get_layer("small").units


def test_the_score_is_seen_beside_the_size_that_it_costs(tmp_path):
    """A layer of next to no FLOPs costs a little of the score, the others a little more."""
    running = searched(tmp_path, large_and_small(), filters_left, rate=0.61, step=0.2)
    first, last = running.history.rows[0]["widths"], running.history.rows[-1]["widths"]
    assert first == [20, 20] and last == [12, 20]


def test_where_little_may_be_lost_small_removals_go_on(tmp_path):
    """The large layer costs less per FLOP, but soon more than the score may fall."""
    options = {"rate": 0.3, "step": 0.2, "control": Control(max_drop=13 / 60)}
    running = searched(tmp_path, large_and_small(), filters_left, **options)
    widths = [row["widths"] for row in running.history.rows]
    assert widths == [[20, 20], [16, 20], [16, 16]]


def test_a_killed_search_ends_with_the_same_network(tmp_path):
    model = shaken(residual())
    whole = searched(tmp_path / "whole", model)
    for step in (1, 3):
        path = tmp_path / f"killed{step}"
        searched(path, model, stop_at=step)
        seen = []
        resumed = searched(path, model, lambda one: seen.append(1) or weight_left(one))  # noqa: B023
        assert untimed(resumed) == untimed(whole)
        assert len(seen) == sum(row["evaluations"] for row in whole.history.rows[step:])
    assert (tmp_path / "whole" / ROWS).exists() and not (tmp_path / "whole" / LOGITS).exists()


def test_a_network_that_the_function_trains_changes_nothing(tmp_path):
    model = shaken(residual())

    def score(network):
        value = weight_left(network)
        for variable in network.trainable_variables:
            variable.assign(variable * 0)
        return value

    changed, plain = (
        searched(tmp_path / n, model, f) for n, f in (("a", score), ("b", weight_left))
    )
    assert untimed(changed) == untimed(plain)


def test_budgets_steps_and_multiples(tmp_path):
    model = shaken(residual())
    running = searched(tmp_path / "a", model, budget=Parameters(0.5), step=0.5)
    assert running.history.rows[-1]["parameters"] <= 0.5 * running.graph.parameters()
    assert len(running.history.rows) < len(searched(tmp_path / "b", model).history.rows) + 5
    image = keras.Input((8, 8, 3))
    x = L.Conv2D(12, 3, activation="relu")(L.Conv2D(16, 3, activation="relu")(image))
    wide = keras.Model(image, L.Dense(2)(L.GlobalAveragePooling2D()(x)))
    rounded = searched(tmp_path / "c", wide, budget=Flops(0.6, round_to=4))
    assert all(width % 4 == 0 for width in rounded.history.rows[-1]["widths"])


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (float("nan"), "the score of the whole network is nan: it must be finite"),
        (np.inf, "is inf: it must be finite"),
        (None, "is None: the function must return a number"),
        (np.zeros(3), "must return a number"),
        ("good", "is 'good': the function must return a number"),
        (True, "is True: the function must return a number"),
    ],
)
def test_a_score_that_is_no_finite_number_is_one_clear_line(tmp_path, value, words):
    with pytest.raises(UserError, match=words) as caught:
        searched(tmp_path, residual(), lambda network: value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [3, 3.0, np.float32(3), np.array([3.0]), tf.constant(3.0)])
def test_numbers_of_every_kind_are_scores(value):
    assert checked(value, "it") == 3.0


def test_what_cannot_be_searched_is_said_at_once_with_the_layer_that_hinders(tmp_path):
    image = keras.Input((4,))
    message = r"no group of filters that can be pruned \(network output\): `inspect` says why"
    with pytest.raises(UserError, match=message):
        searched(tmp_path, keras.Model(image, L.Dense(2)(image)))
    with pytest.raises(UserError, match=r"a rate of 0\.001 can't be reached: with .* remain$"):
        searched(tmp_path / "low", residual(), rate=0.001)
    steps = keras.Input((6, 8))
    x = L.Conv1D(9, 3, data_format="channels_first", name="first")(steps)
    model = keras.Model(steps, L.Dense(2)(L.Dense(8)(L.Flatten()(x))))
    left = r"0\.2 can't be reached: .*; first stays whole with 0\.\d+ \(Conv1D first works on cha"
    with pytest.raises(UserError, match=left):
        searched(tmp_path / "first", model, rate=0.2)
