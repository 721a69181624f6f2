"""The memory bank: which teachers, which rows, and resuming."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from test_nets_zoo import shaken

from nets.graph import ChannelGraph
from pruning.bank import build_bank, choose_teachers, open_bank
from pruning.history import History
from utils.cli import UserError
from utils.runfolder import RunFolder

L = keras.layers
EXAMPLES, CLASSES, K = 10, 3, 2
LOSSES = [1.0, 2.0, 3.0, 4.0, 5.0]  # of theta_0 .. theta*


@pytest.mark.parametrize(
    ("losses", "count", "steps"),
    [
        ([0.0, 1, 2, 3, 4, 5], 5, [4, 3, 2, 1, 0]),  # wanted 4, 3, 2, 1, 0
        ([0.0, 1, 2, 3, 4, 5], 1, [0]),  # wanted 0: theta_0 itself
        ([0.0, 2, 4, 6, 8, 10], 2, [2, 0]),  # wanted 5 (4 and 6 are as near: the earlier) and 0
        ([1.0, 1, 1, 5], 2, [0, 1]),  # wanted 3 and 1, never the same one twice
        ([0.0, 9, 9.5, 10], 3, [1, 0, 2]),  # wanted 6.67, 3.33 and 0: that is taken
        ([3.0, 2, 1, 0], 3, [2, 1, 0]),  # the loss may fall as well
        ([0.0, 30, 30, 9], 3, [0, 1, 2]),  # wanted 6: theta* is nearest and never taken
    ],
)
def test_teachers_interpolate_the_loss(losses, count, steps):
    assert choose_teachers(losses, count) == steps


def test_too_few_networks_for_the_teachers():
    assert sorted(choose_teachers([1.0, 2, 3], 2)) == [0, 1]
    with pytest.raises(
        UserError, match="2 interim networks, too few for 3 teachers: lower --num_t"
    ):
        choose_teachers([1.0, 2, 3], 3)


@pytest.fixture(scope="module")
def graph():
    """A network without batch norm: an example's logits depend on nothing but the example."""
    image = L.Input((4, 4, 2))
    x = L.Conv2D(6, 3, activation="relu", name="conv")(image)
    return ChannelGraph(shaken(keras.Model(image, L.Dense(CLASSES)(L.Flatten()(x)))))


def images():
    return np.random.default_rng(0).normal(size=(EXAMPLES, 4, 4, 2)).astype(np.float32)


def batches(order, sizes=(4, 4, 2)):
    edges = np.cumsum((0, *sizes))
    rows = [np.array(order)[a:b] for a, b in itertools.pairwise(edges)]
    return [
        {"image": tf.constant(images()[one]), "index": tf.constant(one, tf.int32)} for one in rows
    ]


def searched(path, graph):
    """A run folder with a history of five networks, each a filter smaller than the last."""
    folder = RunFolder.open(path, {"seed": 0})
    history = History(folder, (2, CLASSES))
    for step, loss in enumerate(LOSSES):
        row = {"step": step, "val_loss": loss, "flops": 100 - step}
        row |= {"gate": 0 if step else None, "removed": [step] if step else []}
        history.add(row, np.zeros((2, CLASSES)))
    return folder, history


def build(folder, graph, history, batches, **changes):
    options = {"examples": EXAMPLES, "num_teachers": K, "fingerprint": "abc", "compile": False}
    return build_bank(folder, graph, history, batches, **options | changes)


def test_row_n_belongs_to_example_n_whatever_the_order(tmp_path, graph):
    orders = [range(EXAMPLES), [7, 3, 9, 0, 1, 8, 2, 5, 4, 6]]
    for number, order in enumerate(orders):
        folder, history = searched(tmp_path / str(number), graph)
        manifest = build(folder, graph, history, batches(order))
        bank = open_bank(folder, manifest, "abc")
        # wanted losses 3 and 1: steps 2 and 0
        assert [row["step"] for row in manifest["teachers"]] == [2, 0]
        assert (bank.shape, bank.dtype) == ((EXAMPLES, CLASSES, K), np.float16)
        for k, step in enumerate((2, 0)):
            teacher = graph.pruned(history.mask(graph, step))
            logits = teacher(images(), training=True).numpy()
            assert logits.std(axis=0).min() > 0.1
            np.testing.assert_allclose(bank[..., k], logits, rtol=2e-3, atol=2e-3)
        folder.close()


def test_the_manifest(tmp_path, graph):
    folder, history = searched(tmp_path, graph)
    manifest = build(folder, graph, history, batches(range(EXAMPLES)))
    assert manifest == folder.read_json("bank.json")
    assert manifest == {
        "teachers": [
            {"step": 2, "val_loss": 3.0, "flops": 98},
            {"step": 0, "val_loss": 1.0, "flops": 100},
        ],
        "shape": [EXAMPLES, CLASSES, K],
        "dtype": "float16",
        "dataset_fingerprint": "abc",
        "done": 2,
    }
    folder.close()


class Killed(Exception):
    """Stands for the end of the process."""


class DyingBatches:
    """Batches that end the process in the middle of pass number `last`."""

    def __init__(self, batches, last):
        self.batches, self.last = batches, last

    def __iter__(self):
        yield self.batches[0]
        if self.last == 0:
            raise Killed
        self.last -= 1
        yield from self.batches[1:]


@pytest.mark.parametrize("teacher", [0, 1])
def test_a_bank_that_was_stopped_half_way_ends_the_same(tmp_path, graph, teacher):
    whole, history = searched(tmp_path / "whole", graph)
    build(whole, graph, history, batches(range(EXAMPLES)))
    folder, history = searched(tmp_path / "stopped", graph)
    with pytest.raises(Killed):
        build(folder, graph, history, DyingBatches(batches(range(EXAMPLES)), teacher))
    assert folder.read_json("bank.json")["done"] == teacher
    with pytest.raises(UserError, match=r"bank\.npy is unfinished: run search\.py"):
        open_bank(folder, folder.read_json("bank.json"), "abc")
    build(folder, graph, history, batches(range(EXAMPLES)))
    for name in ("bank.npy", "bank.json"):
        assert folder.file(name).read_bytes() == whole.file(name).read_bytes()
    # A third call finds everything done and reads no batch.
    assert build(folder, graph, history, None)["done"] == 2
    whole.close()
    folder.close()


def test_a_training_set_of_another_size(tmp_path, graph):
    folder, history = searched(tmp_path, graph)
    with pytest.raises(RuntimeError, match="teacher 0: 8 of 10 rows"):
        build(folder, graph, history, batches(range(EXAMPLES))[:2])
    assert folder.read_json("bank.json")["done"] == 0
    folder.close()


def test_logits_beyond_float16(tmp_path, graph):
    folder, history = searched(tmp_path, graph)
    huge = [batch | {"image": batch["image"] * 1e6} for batch in batches(range(EXAMPLES))]
    with pytest.raises(RuntimeError, match="or a logit beyond float16"), np.errstate(over="ignore"):
        build(folder, graph, history, huge)
    folder.close()


def test_banks_that_cannot_be_used(tmp_path, graph):
    folder, history = searched(tmp_path, graph)
    manifest = build(folder, graph, history, batches(range(EXAMPLES)))
    assert open_bank(tmp_path, manifest, "abc").shape == (EXAMPLES, CLASSES, K)  # a path will do
    with pytest.raises(UserError, match="belongs to another training set"):
        open_bank(folder, manifest, "abd")
    with pytest.raises(UserError, match="unfinished"):
        open_bank(folder, manifest | {"done": 1}, "abc")
    path = folder.file("bank.npy")
    np.save(path, np.zeros((EXAMPLES, CLASSES, 3), np.float16))
    with pytest.raises(UserError, match=r"has shape \(10, 3, 3\), its manifest says \[10, 3, 2\]"):
        open_bank(folder, manifest, "abc")
    path.write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"cannot read .*bank\.npy"):
        open_bank(folder, manifest, "abc")
    path.unlink()
    with pytest.raises(UserError, match=r"cannot read .*bank\.npy"):
        open_bank(folder, manifest, "abc")
    folder.close()
