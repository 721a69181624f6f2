"""Networks whose inputs have no fixed size: they are searched at the data's, and stay open."""

import keras
import numpy as np
import pytest
from ekg_tf.nets.given import Given

import ekg_tf as ekg

L = keras.layers
FLOPS = 16 * 16 * (27 * 8 + 9 * 20 * 8 + 8) + 64 * 9 * 12 * 20  # of u_net for 16 x 16 pixels


def convolved(x, filters: int, strides: int = 1):
    x = L.Conv2D(filters, 3, strides, "same", use_bias=False)(x)
    return L.ReLU()(L.BatchNormalization()(x))


def u_net() -> keras.Model:
    entry = keras.Input((None, None, 3), name="photo")
    skip = convolved(entry, 8)
    x = L.UpSampling2D()(convolved(convolved(skip, 12, 2), 12))
    x = convolved(L.Concatenate()([x, skip]), 8)
    model = keras.Model(entry, L.Conv2D(1, 1, activation="sigmoid")(x))
    model.compile("adam", "binary_crossentropy", metrics=["binary_accuracy"])
    return model


def photos(count: int, side: int = 16) -> tuple[np.ndarray, np.ndarray]:
    images = np.random.default_rng(0).random((count, side, side, 3), np.float32)
    return images, (images.mean(-1, keepdims=True) > 0.5).astype(np.float32)


def test_a_network_of_open_size_stays_open(tmp_path):
    train, test = photos(96), photos(32)
    result = ekg.prune(
        u_net(),
        train,
        test,
        tmp_path,
        budget=0.6,
        method=ekg.EKG(step=0.4),
        bank=ekg.Bank(teachers=1),
        training=ekg.Training(epochs=1),
    )
    saved = keras.models.load_model(tmp_path / "pruned.keras")
    assert saved.input_shape == (None, None, None, 3)
    images = photos(2, 24)[0]
    assert saved.predict(images, verbose=0).shape == (2, 24, 24, 1)
    np.testing.assert_allclose(saved(images), result.model(images), atol=1e-6)
    widths = [layer.filters for layer in saved.layers if isinstance(layer, L.Conv2D)]
    given = [layer.filters for layer in u_net().layers if isinstance(layer, L.Conv2D)]
    assert sum(widths) < sum(given) and 0.4 < result.after["flops"] / result.before["flops"] <= 0.6
    # counted at the size of the data
    assert result.before["flops"] == FLOPS
    exported = ekg.export(tmp_path / "pruned.keras", ["savedmodel"], train, test)
    assert exported["exports"][1]["max_difference"] < 1e-5
    assert exported["input"]["shape"] == [None, 16, 16, 3]


def test_the_core_has_the_size_of_the_examples():
    given = Given.read(u_net())
    assert given.core.input_shape == (None, None, None, 3)
    sized = given.with_examples(photos(2)[0])
    assert sized.core.input_shape == (None, 16, 16, 3)
    finished = sized.finished(sized.core)
    assert finished.input_shape == (None, None, None, 3)
    assert sized.read_again(finished).core.input_shape == (None, 16, 16, 3)


def test_sizes_that_a_network_cannot_take_are_refused():
    """The skip of 15 x 15 and what comes up again, 16 x 16, can't be joined."""
    with pytest.raises(ekg.UserError, match=r"can't take inputs of shape \(15, 15, 3\): "):
        Given.read(u_net()).with_examples(photos(2, 15)[0])


def test_inspect_counts_at_a_shape_that_is_given():
    with pytest.raises(ekg.UserError, match=r"open size .* give the shape of an input"):
        ekg.inspect(u_net())
    assert ekg.inspect(u_net(), input_shape=(16, 16, 3)).flops == FLOPS
    with pytest.raises(ekg.UserError, match="has 1 inputs: 2 shapes for it"):
        ekg.inspect(u_net(), input_shape=[(16, 16, 3), (4,)])


def test_a_search_by_a_score_asks_for_examples():
    with pytest.raises(ekg.UserError, match=r"open size \(None, None, None, 3\): give some as ex"):
        ekg.search_with(u_net(), lambda network: 0.0)
