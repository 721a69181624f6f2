"""The memory bank: which teachers, which rows, and resuming."""

import shutil
from collections import namedtuple

import numpy as np
import pytest
import tensorflow as tf
from ekg_tf.options.bank import Bank
from ekg_tf.pruning.knowledge import bank as bank_module
from ekg_tf.pruning.knowledge.bank import build_bank, choose_teachers, compressed, layout
from ekg_tf.pruning.knowledge.bank_reader import open_bank
from ekg_tf.pruning.knowledge.distill import expanded
from ekg_tf.utils.errors import UserError

from tests.helpers.banks import (
    CLASSES,
    EXAMPLES,
    FULL,
    TOP2,
    TOP3,
    K,
    batches,
    images,
    searched,
    small,
)


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
    with pytest.raises(ValueError, match="2 interim networks are too few for 3 teachers"):
        choose_teachers([1.0, 2, 3], 3)


@pytest.fixture(scope="module")
def graph():
    return small()


def build(folder, graph, history, batches, layout=FULL):
    return build_bank(
        folder,
        graph,
        history,
        lambda first: batches[first:],
        layout=layout,
        fingerprint="abc",
        compile=False,
    )


def test_row_n_belongs_to_example_n_whatever_the_order(tmp_path, graph):
    orders = [range(EXAMPLES), [7, 3, 9, 0, 1, 8, 2, 5, 4, 6]]
    for number, order in enumerate(orders):
        folder, history = searched(tmp_path / str(number), graph)
        manifest = build(folder, graph, history, batches(order))
        bank = open_bank(folder, manifest, "abc")["teacher"]
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
        "kind": "full",
        "shapes": {"bank.npy": [EXAMPLES, CLASSES, K]},
        "features": 0,
        "dataset_fingerprint": "abc",
        "batches_done": 3,
        "examples_done": EXAMPLES,
        "complete": True,
    }
    folder.close()


class Killed(Exception):
    """Stands for the end of the process."""


class DyingBatches(list):
    """Batches that end the process when number `last` has been read, and those before it worked
    off."""

    def __init__(self, batches, last):
        super().__init__(batches)
        self.last = last

    def __getitem__(self, rows):
        for number, batch in enumerate(super().__getitem__(rows)):
            if number > self.last:
                raise Killed
            yield batch


@pytest.mark.parametrize(("last", "block", "kept"), [(1, 0, 1), (1, 60, 0)])
@pytest.mark.parametrize("kind", [FULL, TOP2], ids=lambda layout: layout.kind)
def test_a_bank_that_was_stopped_half_way_ends_the_same(
    tmp_path, graph, last, block, kept, kind, monkeypatch
):
    monkeypatch.setattr(bank_module, "BLOCK_SECONDS", block)
    order = np.random.default_rng(1).permutation(EXAMPLES)
    whole, history = searched(tmp_path / "whole", graph)
    build(whole, graph, history, batches(order), kind)
    folder, history = searched(tmp_path / "stopped", graph)
    with pytest.raises(Killed):
        build(folder, graph, history, DyingBatches(batches(order), last), kind)
    assert folder.read_json("bank.json")["batches_done"] == kept
    with pytest.raises(UserError, match=r"bank\.npy is unfinished: run the search on its"):
        open_bank(folder, folder.read_json("bank.json"), "abc")
    # The finished blocks are not read again.
    rest = batches(order)
    rest[:kept] = [None] * kept
    build(folder, graph, history, rest, kind)
    for name in ("bank.npy", "bank.json"):
        assert folder.file(name).read_bytes() == whole.file(name).read_bytes()
    # A third call finds everything done and reads no batch.
    assert build(folder, graph, history, None, kind)["complete"]
    whole.close()
    folder.close()


# ---------------------------------------------------------------- top-k


@pytest.mark.parametrize(
    ("options", "classes", "kind", "shape", "bytes_"),
    [
        (Bank(), 999, "full", (7, 999, 5), 7 * 999 * 5 * 2),
        (Bank(), 1000, "topk", (7, 5), 7 * 5 * (16 * 4 + 2)),
        (Bank("full"), 1000, "full", (7, 1000, 5), 7 * 1000 * 5 * 2),
        (Bank("topk", k=4), 10, "topk", (7, 5), 7 * 5 * (4 * 4 + 2)),
    ],
)
def test_layouts(options, classes, kind, shape, bytes_):
    planned = layout(options, 7, [(classes,)], 5)
    ((_, found),) = planned.arrays.values()
    assert (planned.kind, found, planned.bytes) == (kind, shape, bytes_)


def test_layouts_that_cannot_be():
    with pytest.raises(UserError, match="k 11 of the bank is more than the 10 classes"):
        layout(Bank("topk", k=11), 7, [(10,)], 5)
    with pytest.raises(
        UserError, match="40000 classes are too many for a topk bank: use a full one"
    ):
        layout(Bank(), 7, [(40_000,)], 5)


def numpy_distribution(logits, k):
    """Softmax whose mass beyond the k most likely classes is spread evenly."""
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    for row in p:
        rest = np.argsort(row)[: len(row) - k]
        row[rest] = row[rest].sum() / max(1, len(rest))
    return p


@pytest.mark.parametrize("k", [1, 4, 29, 30])
@pytest.mark.parametrize("compiled", [False, True])
def test_expanded_rows_are_the_distribution(k, compiled):
    logits = np.random.default_rng(0).normal(0, 3, (6, 30)).astype(np.float32)
    dtype = layout(Bank("topk", k=k), 6, [(30,)], 2).outputs[0][1]
    rows = np.stack([compressed(logits, dtype), compressed(-logits, dtype)], axis=1)
    parts = (rows[name].astype(np.float32) for name in dtype.names)
    full = tf.function(expanded, jit_compile=compiled)(*parts, 30).numpy()
    assert full.shape == (6, 30, 2)
    for teacher, original in enumerate((logits, -logits)):
        p = tf.nn.softmax(full[..., teacher]).numpy()
        np.testing.assert_allclose(p, numpy_distribution(original, k), rtol=6e-3, atol=1e-6)
        # Not just the distribution: the log-sum-exp, hence the logits themselves.
        lse = np.log(np.exp(original.astype(np.float64)).sum(-1))
        np.testing.assert_allclose(
            np.log(np.exp(full[..., teacher]).sum(-1)), lse, rtol=2e-3, atol=2e-3
        )


def test_with_all_classes_topk_is_the_full_bank(tmp_path, graph):
    banks = []
    for number, kind in enumerate((FULL, TOP3)):
        folder, history = searched(tmp_path / str(number), graph)
        manifest = build(folder, graph, history, batches(range(EXAMPLES)), kind)
        banks.append(open_bank(folder, manifest, "abc"))
        folder.close()
    assert set(banks[1]) == {"teacher_logits", "teacher_classes", "teacher_rest"}
    parts = (banks[1][f"teacher_{name}"].astype(np.float32) for name in ("logits", "classes"))
    full = expanded(*parts, banks[1]["teacher_rest"].astype(np.float32), CLASSES)
    np.testing.assert_array_equal(full, banks[0]["teacher"].astype(np.float32))


def test_a_disk_too_small_for_the_bank(tmp_path, graph, monkeypatch):
    folder, history = searched(tmp_path, graph)
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(FULL.bytes - 1))
    with pytest.raises(
        UserError, match=r"needs 0\.0 GB, .* has 0\.0 GB free: use a topk or an online bank"
    ):
        build(folder, graph, history, batches(range(EXAMPLES)))
    assert not folder.file("bank.npy").exists()
    folder.close()


# ---------------------------------------------------------------- what is refused


def test_a_training_set_of_another_size(tmp_path, graph):
    folder, history = searched(tmp_path, graph)
    with pytest.raises(RuntimeError, match="8 of 10 rows"):
        build(folder, graph, history, batches(range(EXAMPLES))[:2])
    assert not folder.read_json("bank.json")["complete"]
    folder.close()


def test_logits_beyond_float16(tmp_path, graph):
    folder, history = searched(tmp_path, graph)
    huge = [batch | {"inputs": batch["inputs"] * 1e6} for batch in batches(range(EXAMPLES))]
    with pytest.raises(
        UserError, match="output of teacher 0 isn't finite or is beyond float16, in"
    ):
        build(folder, graph, history, huge)
    folder.close()


def test_banks_that_cannot_be_used(tmp_path, graph):
    folder, history = searched(tmp_path, graph)
    manifest = build(folder, graph, history, batches(range(EXAMPLES)))
    assert open_bank(tmp_path, manifest, "abc")["teacher"].shape == (EXAMPLES, CLASSES, K)
    with pytest.raises(UserError, match="belongs to another training set"):
        open_bank(folder, manifest, "abd")
    with pytest.raises(UserError, match="unfinished"):
        open_bank(folder, manifest | {"complete": False}, "abc")
    with pytest.raises(UserError, match=r"its manifest says topk \[10, 3, 2\]"):
        open_bank(folder, manifest | {"kind": "topk"}, "abc")
    path = folder.file("bank.npy")
    np.save(path, np.zeros((EXAMPLES, CLASSES, 3), np.float16))
    with pytest.raises(
        UserError, match=r"has shape \(10, 3, 3\), its manifest says full \[10, 3, 2\]"
    ):
        open_bank(folder, manifest, "abc")
    path.write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"cannot read .*bank\.npy"):
        open_bank(folder, manifest, "abc")
    path.unlink()
    with pytest.raises(UserError, match=r"cannot read .*bank\.npy"):
        open_bank(folder, manifest, "abc")
    folder.close()
