"""Subsets and batches: order, indices, reproducibility, rows, and the wrong arguments."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from ekg_tf.dataloader import Dataset, Split, eval_batches, per_class_indices, train_batches
from ekg_tf.dataloader.augmenting import Augment
from ekg_tf.utils.errors import UserError


def _dataset(examples: int = 23, channels: int = 3) -> Dataset:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (examples, 6, 5, channels)).astype(np.uint8)
    labels = (np.arange(examples) % 3).astype(np.int32)
    return Dataset(
        name="TINY",
        train=Split(images, labels),
        test=Split(images[::-1][:7], labels[::-1][:7]),
        class_names=("a", "b", "c"),
        mean=np.full(channels, 100, np.float32),
        std=np.full(channels, 50, np.float32),
        pad=1,
        flip=True,
        jitter=0.2,
        subset_per_class=2,
        val_per_class=1,
    )


def _epoch(data: Dataset, indices=None, batch_images=4, **changes) -> list[dict]:
    settings = dict(seed=3, epoch=0, views=2, augment=True, jitter=True) | changes
    return list(train_batches(data, indices, batch_images, **settings).as_numpy_iterator())


def _joined(batches: list[dict], key: str) -> np.ndarray:
    return np.concatenate([batch[key] for batch in batches])


# ---------------------------------------------------------------- subsets


def test_subsets_are_balanced_disjoint_and_shuffled():
    labels = np.repeat([0, 1, 2], [30, 25, 40])
    subset, held_out = per_class_indices(labels, [15, 10], seed=1)
    assert subset.dtype == held_out.dtype == np.int64
    np.testing.assert_array_equal(np.bincount(labels[subset]), [15, 15, 15])
    np.testing.assert_array_equal(np.bincount(labels[held_out]), [10, 10, 10])
    assert len(np.unique(np.concatenate([subset, held_out]))) == 75
    assert len(set(labels[subset][:15])) == 3


def test_subsets_depend_on_the_seed_alone():
    labels = np.arange(60) % 4
    first, again, other = (per_class_indices(labels, [3, 2], seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert (first[0] != other[0]).any()


def test_subsets_of_nothing_and_of_everything():
    whole, nothing = per_class_indices(np.array([0, 1, 1, 0]), [2, 0], seed=0)
    np.testing.assert_array_equal(np.sort(whole), [0, 1, 2, 3])
    assert nothing.shape == (0,)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([3, 2], r"class 1 has 4 training images.*3 \+ 2.*lower subset_per_class or val_per_class"),
        ([-1, 2], "negative"),
    ],
)
def test_too_large_subsets_are_refused(counts, message):
    with pytest.raises(UserError, match=message):
        per_class_indices(np.repeat([0, 1], [9, 4]), counts, seed=0)


# ---------------------------------------------------------------- training batches


def test_train_batches_have_static_shapes_and_dtypes():
    data = _dataset()
    rows = {"bank": np.zeros((23, 3, 5), np.float16)}
    batches = train_batches(
        data, None, 4, seed=0, epoch=0, views=2, augment=True, jitter=True, rows=rows
    )
    assert batches.element_spec == {
        "inputs": tf.TensorSpec([4, 2, 6, 5, 3], tf.float32),
        "targets": tf.TensorSpec([4], tf.int32),
        "index": tf.TensorSpec([4], tf.int32),
        "bank": tf.TensorSpec([4, 3, 5], tf.float32),
    }
    assert int(batches.cardinality()) == 5


@pytest.mark.parametrize("jitter", [True, False])
def test_without_augmentation_every_view_is_the_normalised_image(jitter):
    data = _dataset()
    for batch in _epoch(data, augment=False, jitter=jitter):
        expected = (data.train.inputs[batch["index"]].astype(np.float32) - 100) / 50
        np.testing.assert_allclose(batch["inputs"][:, 0], expected, rtol=1e-6)
        np.testing.assert_array_equal(batch["inputs"][:, 0], batch["inputs"][:, 1])
        np.testing.assert_array_equal(batch["targets"], data.train.targets[batch["index"]])


def test_an_epoch_visits_each_chosen_example_at_most_once():
    chosen = np.array([20, 3, 5, 7, 11, 2, 9, 1, 0])
    index = _joined(_epoch(_dataset(), chosen), "index")
    assert len(index) == len(set(index)) == 8
    assert set(index) <= set(chosen)


def test_batches_repeat_with_seed_and_epoch_on_any_number_of_threads():
    data = _dataset()
    settings = dict(seed=3, epoch=1, views=2, augment=True, jitter=True)
    first = _epoch(data, epoch=1)
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    single = train_batches(data, None, 4, **settings).with_options(options)
    for batch, again in zip(first, single.as_numpy_iterator(), strict=True):
        np.testing.assert_array_equal(batch["inputs"], again["inputs"])
        np.testing.assert_array_equal(batch["index"], again["index"])
    for other in (_epoch(data, epoch=2), _epoch(data, epoch=1, seed=4)):
        assert (_joined(first, "index") != _joined(other, "index")).any()


def test_views_and_batches_are_augmented_independently():
    data = _dataset()
    data.train.inputs[:] = data.train.inputs[0]  # 20 x 2 views of one image
    views = np.concatenate([batch["inputs"].reshape(8, -1) for batch in _epoch(data)])
    assert len(np.unique(views, axis=0)) == 40


def test_jitter_only_when_asked():
    data = _dataset()
    pixels = {tuple(p) for p in (data.train.inputs.reshape(-1, 3).astype(np.float32) - 100) / 50}
    plain = _joined(_epoch(data, jitter=False, views=1), "inputs").reshape(-1, 3)
    assert {tuple(p) for p in plain} <= pixels
    jittered = _joined(_epoch(data, jitter=True, views=1), "inputs").reshape(-1, 3)
    assert not {tuple(p) for p in jittered} <= pixels


def test_grey_images_are_augmented():
    batch = _epoch(_dataset(channels=1), views=3)[0]
    assert batch["inputs"].shape == (4, 3, 6, 5, 1)
    assert np.isfinite(batch["inputs"]).all()


def test_rows_come_from_a_memory_mapped_file(tmp_path):
    bank = np.memmap(tmp_path / "bank", np.float16, "w+", shape=(23, 3, 2))
    bank[:] = np.arange(23 * 6).reshape(23, 3, 2)
    bank.flush()
    reopened = np.memmap(tmp_path / "bank", np.float16, "r", shape=(23, 3, 2))
    rows = {"bank": reopened, "place": np.arange(23.0)}
    for batch in _epoch(_dataset(), rows=rows):
        np.testing.assert_array_equal(batch["bank"], bank[batch["index"]].astype(np.float32))
        np.testing.assert_array_equal(batch["place"], batch["index"])
        assert batch["bank"].dtype == batch["place"].dtype == np.float32


def test_rows_stay_with_their_example_on_two_replicas():
    if len(tf.config.list_logical_devices("CPU")) < 2:
        pytest.skip("needs two logical CPU devices")
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    batches = train_batches(
        _dataset(), None, 4, seed=0, epoch=0, views=1, augment=False, jitter=False,
        rows={"place": np.arange(23.0)},
    )  # fmt: skip
    seen = []
    for batch in strategy.experimental_distribute_dataset(batches):
        index, place = map(strategy.experimental_local_results, (batch["index"], batch["place"]))
        assert [len(part) for part in index] == [2, 2]
        np.testing.assert_array_equal(np.concatenate(index), np.concatenate(place))
        seen.extend(np.concatenate(index))
    assert len(set(seen)) == 20


def _brighter(inputs: tf.Tensor, targets: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    return inputs + tf.random.uniform([tf.shape(inputs)[0], 1, 1, 1]), targets


@pytest.mark.parametrize("augment", [None, Augment(_brighter)])
def test_parts_of_batches_are_those_of_the_whole_ones(augment):
    """What every machine of several gets, augmentation included."""
    data = dataclasses.replace(_dataset(), augment=augment)
    rows = {"place": np.arange(23.0)}
    whole = _epoch(data, batch_images=6, rows=rows)
    parts = [_epoch(data, batch_images=6, rows=rows, part=(number, 3)) for number in range(3)]
    for batch, *own in zip(whole, *parts, strict=True):
        for key, values in batch.items():
            assert len(own[0][key]) == 2
            joined = np.concatenate([one[key] for one in own])
            np.testing.assert_allclose(joined, values, rtol=1e-6)


@pytest.mark.parametrize(("examples", "first"), [(23, 0), (23, 1), (3, 0)])
def test_machines_take_evaluation_batches_in_turn(examples, first):
    def batches(**settings) -> list[list[int]]:
        found = eval_batches(_dataset(examples), "train", 4, first_batch=first, **settings)
        return [batch["index"].tolist() for batch in found.as_numpy_iterator()]

    whole = batches()
    assert [batches(part=(number, 3)) for number in range(3)] == [whole[n::3] for n in range(3)]


def test_wrong_arguments_of_train_batches():
    data = _dataset()
    with pytest.raises(ValueError, match="a batch of 4 can't be cut into 3 parts"):
        _epoch(data, part=(0, 3))
    with pytest.raises(UserError, match=r"batch of 24 images.*only 23"):
        _epoch(data, batch_images=24)
    with pytest.raises(UserError, match=r"batch of 4 images.*only 3"):
        _epoch(data, np.array([1, 2, 3]))
    with pytest.raises(ValueError, match=r"outside 0\.\.22"):
        _epoch(data, np.array([1, 2, 3, 23]))
    with pytest.raises(ValueError, match="22 rows for 23"):
        _epoch(data, rows={"bank": np.zeros((22, 3))})
    with pytest.raises(ValueError, match="'targets'"):
        _epoch(data, rows={"targets": np.zeros((23, 3))})


# ---------------------------------------------------------------- evaluation batches


@pytest.mark.parametrize(
    ("batch_images", "sizes"),
    [(10, [7, 8, 8]), (23, [23]), (100, [23]), (22, [11, 12]), (4, [3, 4, 4, 4, 4, 4])],
)
def test_eval_batches_are_of_almost_equal_size(batch_images, sizes):
    data = _dataset()
    batches = list(eval_batches(data, "train", batch_images).as_numpy_iterator())
    assert sorted(len(batch["targets"]) for batch in batches) == sizes
    index = _joined(batches, "index")
    assert (index != np.arange(23)).any()
    np.testing.assert_array_equal(np.sort(index), np.arange(23))
    expected = (data.train.inputs[index].astype(np.float32) - 100) / 50
    np.testing.assert_allclose(_joined(batches, "inputs"), expected, rtol=1e-6)
    np.testing.assert_array_equal(_joined(batches, "targets"), data.train.targets[index])


def test_eval_batches_keep_the_given_order_when_not_shuffled():
    data = _dataset()
    chosen = eval_batches(data, "train", 2, indices=np.array([5, 1, 9]), shuffle_seed=None)
    assert [batch["index"].tolist() for batch in chosen.as_numpy_iterator()] == [[5], [1, 9]]
    test = list(eval_batches(data, "test", 4, shuffle_seed=None).as_numpy_iterator())
    np.testing.assert_array_equal(_joined(test, "index"), np.arange(7))
    np.testing.assert_array_equal(_joined(test, "targets"), data.test.targets)


def test_eval_batches_shuffle_by_their_seed():
    def order(seed):
        batches = eval_batches(_dataset(), "train", 8, shuffle_seed=seed).as_numpy_iterator()
        return _joined(list(batches), "index")

    np.testing.assert_array_equal(order(1), order(1))
    assert (order(1) != order(2)).any()


def test_eval_batch_size_is_static_where_batches_are_equal():
    data = _dataset(24)
    assert eval_batches(data, "train", 10).element_spec["inputs"].shape == [8, 6, 5, 3]
    assert eval_batches(data, "train", 9).element_spec["index"].shape == [8]
    uneven = eval_batches(data, "train", 23).element_spec["inputs"].shape
    assert uneven.as_list() == [12, 6, 5, 3]
    assert eval_batches(data, "test", 4).element_spec["targets"].shape.as_list() == [None]


def test_wrong_arguments_of_eval_batches():
    with pytest.raises(ValueError, match="'val' is neither 'train' nor 'test'"):
        eval_batches(_dataset(), "val", 4)
    with pytest.raises(ValueError, match=r"outside 0\.\.6"):
        eval_batches(_dataset(), "test", 4, indices=np.array([7]))
    with pytest.raises(ValueError, match="empty"):
        eval_batches(_dataset(), "test", 4, indices=np.array([], int))
