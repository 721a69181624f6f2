"""Budgets besides FLOPs, and the networks that a search leaves on its way."""

import numpy as np
import pytest
from ekg_tf.nets.graph import ChannelGraph
from ekg_tf.options.budgets import Flops, Parameters
from ekg_tf.pruning.space import budgets
from ekg_tf.pruning.space.budgets import LatencyBudget, make_budget
from ekg_tf.reports.search import front
from ekg_tf.utils.errors import UserError

from tests.helpers.networks import random_mask, residual, shaken
from tests.helpers.searches import searched


def test_sizes_are_those_of_the_pruned_network():
    graph = ChannelGraph(shaken(residual()))
    mask = random_mask(graph)
    pruned = graph.pruned(mask)
    flops, params = make_budget(Flops(), graph), make_budget(Parameters(), graph)
    assert flops.size(mask) == ChannelGraph(pruned).flops()
    assert params.size(mask) == pruned.count_params()
    assert params.rate(mask, 0.5) == pruned.count_params() / graph.model.count_params() < 1


def test_latency_is_measured_once_the_flops_have_fallen(monkeypatch):
    times, seen = iter([(10.0, 8.0), (10.0, 6.0)]), []

    def latencies(models, batch, *, compile, seconds):
        seen.append([model.count_params() for model in models])
        return next(times)

    monkeypatch.setattr(budgets, "latencies", latencies)
    graph = ChannelGraph(shaken(residual()))
    mask = random_mask(graph)
    budget = LatencyBudget(graph, 1)
    rates = [budget.rate(mask, rate) for rate in (1.0, 0.995, 0.98, 0.975, 0.96)]
    assert rates == [1.0, 1.0, 0.8, 0.8, 0.6]
    assert seen == [[graph.model.count_params(), graph.pruned(mask).count_params()]] * 2
    resumed = LatencyBudget(graph, 1)
    resumed.restore([{"flops_rate": 1.0, "rate": 1.0}, {"flops_rate": 0.98, "rate": 0.8}])
    assert resumed.rate(mask, 0.975) == 0.8


@pytest.mark.parametrize("budget", ["params", "latency"])
def test_a_search_ends_at_its_budget(tmp_path, budget, monkeypatch):
    # A latency that follows the widths, so that the test knows when the search must end.
    monkeypatch.setattr(
        budgets, "latencies", lambda models, *args, **options: [m.count_params() for m in models]
    )
    graph, _, history = searched(tmp_path, "exact", budget=budget, target=0.7)
    rows = history.rows
    assert rows[-2]["rate"] > 0.7 >= rows[-1]["rate"]
    if budget == "params":
        assert rows[-1]["rate"] == rows[-1]["parameters"] / graph.model.count_params() > 0.69


def test_the_front_is_the_first_network_at_or_below_each_rate(tmp_path):
    _, _, history = searched(tmp_path, "exact", target=0.7)
    entries = front(history, (0.8, 0.9, 0.7))
    assert [one["wanted"] for one in entries] == [0.9, 0.8, 0.7]
    for one in entries:
        assert history.rows[one["step"]]["rate"] <= one["wanted"]
        assert history.rows[one["step"] - 1]["rate"] > one["wanted"]
    assert entries[-1]["step"] == len(history.rows) - 1


def test_a_latency_that_no_pruning_reaches_ends_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(budgets, "latencies", lambda *args, **options: (1.0, 0.9))
    with pytest.raises(UserError, match=r"0\.1 can't be reached: no filter is left"):
        searched(tmp_path, "fast", budget="latency", target=0.1, step=0.9, score="l1")


def test_the_latency_of_a_real_network_is_a_share(tmp_path):
    graph = ChannelGraph(shaken(residual()))
    rate = LatencyBudget(graph, 8).rate(random_mask(graph), 0.5)
    assert np.isfinite(rate) and 0.05 < rate < 20
