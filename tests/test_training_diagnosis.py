"""What is said to have been NaN first."""

import re

import numpy as np
import pytest
from ekg_tf.training.diagnosis import first_cause


def batch(**changes):
    good = {"inputs": np.ones((2, 4), np.float32), "targets": np.zeros(2, np.int32)}
    return good | {"index": np.array([7, 5])} | changes


WRONG = np.array([[1, 1], [1, np.nan]], np.float32)


@pytest.mark.parametrize(
    ("batches", "losses", "steps", "words"),
    [
        ([batch(), batch(inputs=WRONG)], [1.0], 0, "the inputs .* training example 5 first"),
        ([batch(), batch(targets=WRONG)], [1.0], 0, "the targets .* training example 5 first"),
        ([batch(inputs=(WRONG, WRONG))], [], 3, "the inputs .* training example 5 first"),
        ([batch()], [], 0, "the loss itself .* division of zero"),
        ([batch(), batch(), batch()], [1.0, 90.0], 0, "grown from 1 to 90.* lower learning rate"),
        ([batch(), batch()], [1.0], 0, "step before was 1, so it is either the weights"),
        ([batch()], [], 5, "either the weights"),
    ],
)
def test_first_cause(batches, losses, steps, words):
    assert re.search(words, first_cause(batches, len(losses), losses, steps))
