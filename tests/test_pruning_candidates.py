"""Quotas, Otsu's threshold and the clipping of proposals, on typed-in numbers."""

import itertools
from dataclasses import replace

import keras
import numpy as np
import pytest
from ekg_tf.nets.gates import Gate, Gates, Group
from ekg_tf.nets.graph import ChannelGraph
from ekg_tf.pruning.space.candidates import (
    OVERSHOOT,
    Candidates,
    Proposal,
    lowest_mask,
    otsu_threshold,
    quota,
    removable,
    rises_of,
    valued,
)

from tests.helpers.networks import residual

L = keras.layers


@pytest.mark.parametrize(
    ("channels", "layers", "step", "expected"),
    [
        (16, 1, 0.2, 3),
        (32, 1, 0.2, 6),
        (64, 1, 0.2, 12),
        (16, 10, 0.2, 1),  # ResNet-56: a stream that 10 layers write
        (64, 10, 0.2, 1),
        (512, 3, 0.2, 34),
        (10, 1, 0.3, 3),  # 0.3 * 10 is a little less than 3 in binary
        (4, 1, 0.1, 1),
        (1, 1, 0.2, 1),
        (8, 1, 1.0, 8),
    ],
)
def test_quota(channels, layers, step, expected):
    assert quota(channels, layers, step) == expected


@pytest.mark.parametrize(
    ("channels", "width", "count", "round_to", "expected"),
    [
        (16, 16, 3, 1, [1, 2, 3]),
        (16, 2, 3, 1, [1]),
        (16, 1, 3, 1, []),
        (64, 64, 12, 4, [4, 8, 12]),
        (64, 64, 12, 8, [8]),  # 52 lies between 48 and 56: the smaller removal
        (64, 64, 13, 8, [8, 16]),
        (16, 16, 1, 8, [8]),
        (16, 8, 3, 8, []),
        (16, 16, 3, 16, []),
        (20, 20, 1, 8, [4]),  # to the next multiple
        (6, 6, 2, 8, []),
    ],
)
def test_removable_counts(channels, width, count, round_to, expected):
    gate = Gate(Group(0, channels, ("layer",)))
    gate.remove(gate.weakest(channels - width))
    assert removable(gate, count, round_to) == expected


@pytest.mark.parametrize("round_to", [1, 4, 8])
def test_the_lowest_mask_leaves_round_to_filters_in_every_gate(round_to):
    graph = two_branches()
    lowest, gates = lowest_mask(graph, round_to), Gates(graph.groups)
    for gate in gates:
        least = min(gate.channels, round_to)
        if gate.width > least:
            gate.remove(gate.weakest(gate.width - least))
    assert [lowest[gate.units].sum() for gate in gates] == gates.widths
    assert graph.flops(lowest) == graph.flops(gates.mask()) < graph.flops()


@pytest.mark.parametrize(
    ("costs", "trim", "expected"),
    [
        ([1.0, 2, 10, 11], 0.0, 2),
        ([11.0, 1, 10, 2], 0.0, 2),
        ([1.0, 1, 1, 9, 9], 0.0, 1),
        ([1.0, 9, 9, 9, 9], 0.0, 1),
        ([1.0, 1, 1, 1, 9], 0.0, 1),
        ([0.0, 1, 1.1, 5, 5.1, 1000], 0.2, 1.1),  # trimmed: 0 and 1000
        ([0.0, 1, 1.1, 5, 5.1, 1000], 0.0, 5.1),
        ([-9.0, 1, 2, 8, 9], 0.2, 2),  # trimmed: -9 and 9
        ([1.0, 2, 10, 11], 0.2, 2),  # a fifth of 4 is less than one
        ([5.0], 0.2, 5),
        ([1.0, 3], 0.2, 1),
        ([4.0, 4, 4, 4, 4], 0.2, 4),
        ([1.0, 4, 4, 4, 9], 0.2, 4),  # equal after trimming
        ([0.0, 0], 0.2, 0),
    ],
)
def test_otsu_threshold(costs, trim, expected):
    assert otsu_threshold(costs, trim) == expected


def test_otsu_splits_where_the_classes_vary_least():
    rng = np.random.default_rng(0)
    for _ in range(20):
        costs = np.sort(rng.exponential(size=rng.integers(2, 12)))

        def within(cut, costs=costs):
            return costs[:cut].var() * cut + costs[cut:].var() * (len(costs) - cut)

        best = min(range(1, len(costs)), key=within)
        assert otsu_threshold(costs, trim=0.0) == costs[best - 1]


def two_branches():
    """Gates of 2 dear and 10 cheap filters; of 1404 FLOPs a dear filter has 437, a cheap one 53."""
    image = L.Input((4, 4, 3))
    dear = L.Conv2D(2, 3, padding="same", name="dear")(image)
    cheap = L.Conv2D(10, 1, name="cheap")(image)
    pooled = [L.GlobalAveragePooling2D()(x) for x in (dear, cheap)]
    return ChannelGraph(keras.Model(image, L.Dense(5)(L.Concatenate()(pooled))))


def proposals_of(graph, target, step, widths=(), gates=None):
    """{layer: proposal}; scores rise with the channel number, so that low numbers go first."""
    gates = gates or Gates(graph.groups)
    scores = np.arange(graph.num_units + 1, dtype=float) + 1
    for gate, width in zip(gates, widths, strict=False):
        gate.remove(np.arange(gate.channels - width))
    for gate in gates:
        gate.rank(scores[gate.units])
    proposed = Candidates(gates, graph.flops, target, step).propose(scores)
    assert [one.gate for one in proposed] == sorted(one.gate for one in proposed)
    return {graph.groups[one.gate].layers[0]: one for one in proposed}


def ordered(graph, widths):
    """Widths in the order of the gates."""
    return [widths[gate.layers[0]] for gate in graph.groups]


def test_a_proposal_far_from_the_target():
    graph = two_branches()
    assert graph.flops() == 1404
    gates = Gates(graph.groups)
    proposals = proposals_of(graph, target=100, step=0.3, gates=gates)
    cheap = proposals["cheap"]
    gate = graph.groups[cheap.gate]
    assert cheap.channels.tolist() == [0, 1, 2]
    assert cheap.size == 1404 - 3 * 53
    assert cheap.cost == sum(gate.start + i + 1 for i in range(3))
    expected = np.ones(13)
    expected[gate.start : gate.start + 3] = 0
    assert cheap.mask.tolist() == expected.tolist()
    assert proposals["dear"].channels.tolist() == [0]
    assert gates.widths == ordered(graph, {"dear": 2, "cheap": 10})  # only proposed


@pytest.mark.parametrize(
    ("target", "filters"),
    [
        (1404 - 5 * 53, 5),  # exactly
        (1404 - 5 * 53 + 1, 5),
        (1404 - 4 * 53 - 1, 5),
        (1404 - 4 * 53, 4),
        (1404 - 3 * 53 - 1, 4),
        (1404 - 1, 1),
    ],
)
def test_overshoot_is_clipped_to_the_fewest_filters_that_reach_the_target(target, filters):
    graph = two_branches()
    cheap = proposals_of(graph, target, step=0.5)["cheap"]
    assert cheap.channels.tolist() == list(range(filters))
    assert cheap.size == 1404 - 53 * filters == graph.flops(cheap.mask) <= target


def test_a_proposal_that_falls_far_below_the_target_waits():
    assert OVERSHOOT == 0.005  # 7.02 of 1404 FLOPs
    # two cheap filters leave 1298, within 7.02 of the target; one dear filter leaves 967
    assert set(proposals_of(two_branches(), target=1300, step=0.5)) == {"cheap"}
    # at best 1245 are left: nothing is near, so everything is offered
    both = proposals_of(two_branches(), target=1290, step=0.5)
    assert {name: one.size for name, one in both.items()} == {"cheap": 1245, "dear": 967}


def test_a_proposal_does_not_wait_until_the_small_gates_are_used_up():
    # one cheap filter at a time leaves 1351: still far from 1300, which a dear one passes
    both = proposals_of(two_branches(), target=1300, step=0.1)
    assert {name: one.size for name, one in both.items()} == {"cheap": 1351, "dear": 967}


def test_weights_are_what_is_removed_in_units_of_the_median():
    graph = two_branches()
    gates = Gates(graph.groups)
    for gate in gates:
        gate.rank(np.arange(gate.channels))
    candidates = Candidates(gates, graph.flops, 100, 0.3, per_size=True)
    proposals = candidates.propose(np.ones(graph.num_units + 1))
    removed = np.array([1404 - one.size for one in proposals])
    assert sorted(removed) == [159, 437]
    np.testing.assert_allclose([one.weight for one in proposals], removed / np.median(removed))
    assert {one.weight for one in proposals_of(graph, 100, 0.3).values()} == {1.0}


def test_a_size_that_does_not_shrink_has_next_to_no_weight():
    graph = two_branches()
    gates = Gates(graph.groups)
    for gate in gates:
        gate.rank(np.arange(gate.channels))
    sizes = {1: 10.0, 3: 12.0}  # filters that left -> a latency that has grown

    def size(mask):
        return 11.0 if mask is None or mask.all() else sizes[int((mask == 0).sum())]

    proposals = Candidates(gates, size, 0, 0.3, per_size=True).propose(np.ones(13))
    weights = sorted(one.weight for one in proposals)
    assert 0 < weights[0] < 1e-6 and weights[1] == pytest.approx(2)


def test_rises_count_by_weight():
    rises = np.array([0.2, 0.1, -0.1, -0.2, 0.0, np.inf, np.nan])
    weights = np.array([4.0, 0.5, 2.0, 0.5, 3.0, 2.0, 2.0])
    values = valued(rises, weights)
    np.testing.assert_allclose(values, [0.05, 0.2, -0.2, -0.1, 0, np.inf, np.nan])
    np.testing.assert_allclose(rises_of(values, weights), rises)
    np.testing.assert_array_equal(valued(rises, np.ones(7)), rises)


def test_no_gate_is_ever_emptied():
    graph = two_branches()
    widths = ordered(graph, {"dear": 1, "cheap": 3})
    proposals = proposals_of(graph, target=10, step=1.0, widths=widths)
    assert {name: one.channels.tolist() for name, one in proposals.items()} == {"cheap": [7, 8]}
    for gate in graph.groups:
        assert proposals["cheap"].mask[gate.units].sum() >= 1


def test_a_stream_shares_its_quota_among_its_layers():
    graph = ChannelGraph(residual())  # channels: stem 4, a1 5, the stream 6 by 3 layers, b1 7
    scores = np.random.default_rng(0).random(23)
    proposals = Candidates(Gates(graph.groups), graph.flops, target=1, step=0.6).propose(scores)
    assert [len(one.channels) for one in proposals] == [2, 3, 1, 4]


def test_the_quota_is_of_the_original_width():
    graph = two_branches()
    widths = ordered(graph, {"dear": 2, "cheap": 6})
    proposals = proposals_of(graph, target=1, step=0.3, widths=widths)
    assert proposals["cheap"].channels.tolist() == [4, 5, 6]  # 3 of 10, not of 6


def candidates_of(graph):
    return Candidates(Gates(graph.groups), graph.flops, target=1, step=0.2)


def proposals_at(costs):
    return [Proposal(i, np.array([0]), cost, np.ones(3), 7) for i, cost in enumerate(costs)]


@pytest.mark.parametrize(
    ("costs", "kept"),
    [
        ([5.0, 1.0, 5.1, 1.1, 1000.0, 0.0], [1, 3, 5]),
        ([2.0] * 6, [0, 1, 2, 3, 4, 5]),
        ([0.0, 0.0, 8.0, 8.0, 8.0], [0, 1]),
        ([0.0, 8.0, 8.0, 8.0], [0, 1, 2, 3]),  # few: all
    ],
)
def test_screening_keeps_the_cheap_ones_in_order(costs, kept):
    candidates = candidates_of(two_branches())
    assert [one.gate for one in candidates.screened(proposals_at(costs))] == kept


def test_screening_goes_by_cost_and_weight():
    candidates = candidates_of(two_branches())
    costs = [1.0, 8.0, 8.0, 1.0, 8.0]
    plain = proposals_at(costs)
    assert [one.gate for one in candidates.screened(plain)] == [0, 3]
    weighed = [replace(one, weight=one.cost) for one in plain]
    assert [one.gate for one in candidates.screened(weighed)] == [0, 1, 2, 3, 4]


def test_screening_always_leaves_something():
    candidates = candidates_of(two_branches())
    for costs in itertools.product([0.0, 1.0, 7.0], repeat=5):
        assert candidates.screened(proposals_at(costs))
