"""Gates with typed-in orders and masks."""

import numpy as np
import pytest
from ekg_tf.nets.gates import Gate, Gates, Group


def gate_of_five():
    """Channel 3 is the best, then 1, 4, 0 and 2."""
    gate = Gate(
        Group(
            2,
            5,
            (
                "first",
                "second",
            ),
        )
    )
    gate.rank(np.array([0.2, 0.8, 0.1, 0.9, 0.5]))
    return gate


def test_a_new_gate_is_open():
    gate = Gate(Group(2, 3, ("conv",)))
    assert (gate.start, gate.channels, gate.width) == (2, 3, 3)
    assert gate.order.tolist() == [0, 1, 2]
    assert gate.order.dtype == np.int32
    assert gate.mask.tolist() == [1, 1, 1]
    assert gate.mask.dtype == np.float32
    assert gate.kept.tolist() == [0, 1, 2]
    assert gate.units == slice(2, 5)


def test_names():
    assert Gate(Group(0, 1, ("conv",))).name == "conv"
    assert (
        Gate(
            Group(
                0,
                1,
                (
                    "conv",
                    "b",
                    "c",
                ),
            )
        ).name
        == "conv (+2)"
    )
    assert repr(Gate(Group(0, 4, ("conv",)))) == "Gate(conv, 4 of 4)"


def test_rank_orders_by_score():
    assert gate_of_five().order.tolist() == [3, 1, 4, 0, 2]


def test_rank_keeps_the_channel_order_of_equal_scores():
    gate = Gate(Group(0, 4, ("conv",)))
    gate.rank(np.array([0.5, 0.7, 0.5, 0.7]))
    assert gate.order.tolist() == [2, 0, 3, 1]


def test_weakest_first():
    gate = gate_of_five()
    assert gate.weakest(2).tolist() == [2, 0]
    assert gate.weakest(5).tolist() == [2, 0, 4, 1, 3]
    assert gate.weakest(0).tolist() == []
    gate.width = 3
    assert gate.weakest(2).tolist() == [4, 1]


def test_remove_closes_the_gate_for_these_channels():
    gate = gate_of_five()
    gate.remove([1, 2])  # not the weakest ones: any may go
    assert gate.width == 3
    assert gate.mask.tolist() == [1, 0, 0, 1, 1]
    assert gate.kept.tolist() == [0, 3, 4]
    assert gate.order.tolist() == [2, 3, 4, 0, 1]  # 3, 4, 0 stay in order, then 1 and 2
    gate.remove(np.array([3]))
    assert gate.mask.tolist() == [1, 0, 0, 0, 1]


def test_removed_channels_stay_behind_whatever_their_score():
    gate = gate_of_five()
    gate.remove([3])
    gate.rank(np.array([1.0, 2, 3, 100, 4]))
    assert gate.order.tolist() == [3, 2, 1, 4, 0]
    assert gate.mask.tolist() == [1, 1, 1, 0, 1]


@pytest.mark.parametrize("channels", [[3], [0, 0], [3, 0]])
def test_only_kept_and_distinct_channels_can_go(channels):
    gate = gate_of_five()
    gate.remove([3])
    with pytest.raises(ValueError, match=r"first \(\+1\): channels .* are not all kept"):
        gate.remove(channels)
    assert gate.mask.tolist() == [1, 1, 1, 0, 1]


def test_one_channel_stays():
    gate = gate_of_five()
    with pytest.raises(ValueError, match="at least one of 5 channels must stay"):
        gate.remove([0, 1, 2, 3, 4])
    gate.remove([0, 1, 2, 3])
    assert gate.kept.tolist() == [4]


@pytest.mark.parametrize(
    "scores", [[1.0, 2, 3, 4], [1.0, 2, 3, 4, np.nan], [1.0, 2, 3, 4, np.inf], [[1.0] * 5]]
)
def test_rank_wants_a_finite_score_per_channel(scores):
    with pytest.raises(ValueError, match="need 5 finite scores"):
        gate_of_five().rank(np.array(scores))


def test_the_unit_mask_of_all_gates():
    gates = Gates([Group(0, 2, ("a",)), Group(2, 3, ("b",))])
    gates[1].remove([1])
    assert gates.num_units == 5
    assert gates.mask().tolist() == [1, 1, 1, 0, 1, 1]  # the last: what can't be removed
    assert gates.mask().dtype == np.float32
    assert gates.widths == [2, 2]
    assert [gate.name for gate in gates] == ["a", "b"]


def test_set_mask_opens_and_closes():
    gates = Gates([Group(0, 2, ("a",)), Group(2, 3, ("b",))])
    gates[1].rank(np.array([1.0, 3, 2]))
    gates[1].remove([0])
    gates.set_mask(np.array([0, 1, 1, 0, 1, 1], np.float32))
    assert gates.mask().tolist() == [0, 1, 1, 0, 1, 1]
    assert gates.widths == [1, 2]
    assert gates[1].order.tolist() == [1, 2, 0]  # 2 stays before 0, the closed 1 comes last


def test_set_mask_refuses_what_no_network_has():
    gates = Gates([Group(0, 2, ("a",)), Group(2, 3, ("b",))])
    with pytest.raises(ValueError, match=r"need a mask of 6 units, got shape \(5,\)"):
        gates.set_mask(np.ones(5, np.float32))
    with pytest.raises(ValueError, match="b: at least one channel must stay"):
        gates.set_mask(np.array([1, 1, 0, 0, 0, 1], np.float32))
