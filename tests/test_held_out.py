"""--val_held_out: D_val is drawn from examples that no training uses."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from ekg_tf.dataloader import Dataset, Split, held_out, parts, without_held_out
from ekg_tf.nets.given import Given
from ekg_tf.options import recipes
from ekg_tf.options.data import Sampling
from ekg_tf.options.finetuning import Plain
from ekg_tf.options.training import Training
from ekg_tf.phases import baseline, finetuning
from ekg_tf.phases.finetuning import objective_of, training_data
from ekg_tf.training import trainer
from ekg_tf.training.task import classification
from ekg_tf.utils.devices import Device
from ekg_tf.utils.errors import UserError
from ekg_tf.utils.runfolder import RunFolder

from ekg_tf import train_cifar

LABELS = np.repeat([0, 1], [60, 40]).astype(np.int32)


def data_of(labels=LABELS, **changes) -> Dataset:
    rng = np.random.default_rng(0)
    split = Split(rng.integers(0, 255, (len(labels), 4, 4, 1)).astype(np.uint8), labels)
    settings = {"pad": 1, "flip": False, "jitter": 0.0, "subset_per_class": 5, "val_per_class": 3}
    zero, one = np.zeros(1, np.float32), np.ones(1, np.float32)
    names = () if labels.dtype == np.float32 else ("a", "b")
    return Dataset("own", split, split, names, zero, one, **(settings | changes))


def small() -> keras.Model:
    image = keras.Input((4, 4, 1))
    return keras.Model(image, keras.layers.Dense(2)(keras.layers.Flatten()(image)))


def test_d_val_is_drawn_from_the_same_examples_for_every_seed():
    data = data_of()
    pool = held_out(data, 0.1)
    assert np.bincount(LABELS[pool]).tolist() == [6, 4]
    drawn = [parts(data, Sampling(seed=seed, held_out=0.1)) for seed in range(4)]
    for subset, validation in drawn:
        assert set(validation) <= set(pool) and not set(subset) & set(pool)
        assert np.bincount(LABELS[validation]).tolist() == [3, 3]
        assert np.bincount(LABELS[subset]).tolist() == [5, 5]
    assert len({tuple(sorted(validation)) for _, validation in drawn}) > 1
    kept = without_held_out(data, 0.1)
    assert sorted([*kept.trained_on, *pool]) == list(range(100))
    assert without_held_out(data, None) is data and len(data.trained_on) == 100


def test_data_without_classes():
    data = data_of(np.zeros((100,), np.float32), subset_per_class=None, val_per_class=None)
    subset, validation = parts(data, recipes.sampling(Sampling(held_out=0.1), data))
    assert len(validation) == 10 and set(validation) <= set(held_out(data, 0.1))
    assert len(subset) == 80 and not set(subset) & set(held_out(data, 0.1))


def test_more_than_is_held_out_is_refused():
    with pytest.raises(UserError, match=r"class 1 has 4 .* or raise val_held_out"):
        parts(data_of(), Sampling(held_out=0.1, val_per_class=5, subset_per_class=5))
    with pytest.raises(UserError, match="more than the 90 training images"):
        device = Device(tf.distribute.get_strategy(), compile=False)
        trainer.check_batch(Training(batch_size=95), without_held_out(data_of(), 0.1), device)


def test_a_training_leaves_them_out_and_the_other_rows_stay_with_their_examples(
    tmp_path, monkeypatch
):
    data, seen = without_held_out(data_of(), 0.1), []

    def fit(epoch_batches, steps_per_epoch, **_):
        batches = list(epoch_batches(0).as_numpy_iterator())
        assert len(batches) == steps_per_epoch == 9
        seen.extend((batch["index"], batch["teacher"]) for batch in batches)

    monkeypatch.setattr(trainer, "fit", fit)
    model = keras.Sequential(
        [keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(2)]
    )
    bank = {"teacher": np.arange(100, dtype=np.float16)[:, None]}
    objective = trainer.Objective(classification(), lambda *_: None, rows=bank)
    training = Training(epochs=1, batch_size=10, learning_rate=0.1, weight_decay=0.0)
    device = Device(tf.distribute.get_strategy(), compile=False)
    with RunFolder.open(tmp_path, {"do_log": False}) as folder:
        trainer.train(folder, "finetune", model, data, objective, training, device)
    indices = np.concatenate([index for index, _ in seen])
    assert sorted(indices) == list(data.trained_on)
    np.testing.assert_array_equal(np.concatenate([rows[:, 0] for _, rows in seen]), indices)


def test_the_fine_tuning_leaves_out_what_the_search_did(tmp_path):
    data = data_of()
    for share, left in ((0.1, 90), (None, 100)):
        (tmp_path / "args.json").write_text(json.dumps({"val_held_out": share}))
        assert len(training_data(tmp_path, data).trained_on) == left
    (tmp_path / "args.json").write_text("{}")  # of an earlier version
    assert training_data(tmp_path, data) is data
    (tmp_path / "args.json").write_text('{"val_held_out": [2]}')
    with pytest.raises(UserError):
        training_data(tmp_path, data)


class Stop(Exception):
    """Ends a command."""


@pytest.fixture
def stopped():
    """A stand-in for a training, and the data of all its arguments so far."""

    def stop(*given):
        stop.data.extend(one for one in given if isinstance(one, Dataset))
        raise Stop

    stop.data = []
    return stop


def test_the_baseline_of_the_whole_pipeline_is_trained_without_them(tmp_path, monkeypatch, stopped):
    monkeypatch.setattr(baseline, "train", stopped)
    line = f"--train_path {tmp_path / 'run'} --gpu_id cpu --val_held_out 0.2 --do_log off"
    with pytest.raises(Stop):
        train_cifar.main(line.split())
    (data,) = stopped.data
    assert len(data.train) - len(data.trained_on) == len(held_out(data, 0.2)) > 280


def test_the_fine_tuning_after_a_search_is_done_without_them(tmp_path, monkeypatch, stopped):
    model, device = small(), Device(tf.distribute.get_strategy(), compile=False)
    monkeypatch.setattr(finetuning, "train", stopped)
    monkeypatch.setattr(finetuning, "pruned_file", lambda *_: "network")
    monkeypatch.setattr(finetuning, "load_keras", lambda *_, **__: model)
    with RunFolder.open(tmp_path, {"val_held_out": 0.1, "do_log": False}) as folder:
        phase = Given.read(model), classification(), data_of()
        with pytest.raises(Stop):
            finetuning.run_finetuning(folder, tmp_path, *phase, Training(), device, Plain(views=1))
    assert len(stopped.data[0].trained_on) == 90


def test_two_views_without_a_teacher_and_one_with(tmp_path):
    device = Device(tf.distribute.get_strategy(), compile=False)
    for views in (1, 2):
        student = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        _, objective = objective_of(
            tmp_path, student, classification(), data_of(), Plain(views=views), 0, device
        )
        assert (objective.views, objective.jitter) == (views, views == 2)
