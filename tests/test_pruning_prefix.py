"""Which activations stay in a bounded prefix cache, on typed-in sizes."""

import pytest
from ekg_tf.pruning.engine.prefix import PrefixCuts


@pytest.mark.parametrize(
    ("budget", "kept", "taken"),
    [
        (100, [0, 1, 2, 3], 90),
        (90, [0, 1, 2, 3], 90),
        # Without cut 1 its 2 proposals run 1 segment more: 2/40 a byte; without 2: 1/40; 3: 5/10.
        (89, [0, 1, 3], 50),
        # Then 1: its 2 and cut 2's 1 proposal, 1 segment each: 3/40; 3: 5 proposals, 2 more: 10/10.
        (49, [0, 3], 10),
        (9, [0], 0),
        (0, [0], 0),
    ],
)
def test_the_cheapest_to_compute_again_goes_first(budget, kept, taken):
    cuts = PrefixCuts([1000, 40, 40, 10], [1, 2, 1, 5], budget)
    assert cuts.kept == kept
    assert cuts.bytes == taken


def test_a_proposal_starts_at_the_last_kept_cut():
    cuts = PrefixCuts([1000, 40, 40, 10], [1, 2, 1, 5], 50)
    assert [cuts.before(segment) for segment in range(4)] == [0, 1, 1, 3]
    assert str(cuts) == (
        "activations kept at 2 of 3 cuts of the network, 0 MiB: proposals are evaluated from there "
        "on"
    )
