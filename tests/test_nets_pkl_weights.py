"""Weights by name in the layout of the paper's networks: round trips, and what is refused."""

import pickle

import keras
import numpy as np
import pytest
from ekg_tf.nets.zoo import pkl_weights
from ekg_tf.utils.errors import UserError


def small_network(classes: int = 3, filters: int = 4, randomise: bool = True) -> keras.Model:
    layers = keras.layers
    image = keras.Input((8, 8, 2))
    x = layers.Conv2D(filters, 3, use_bias=False, name="BasicBlock0.0_conv1")(image)
    x = layers.BatchNormalization(name="BasicBlock0.0_bn1")(x)
    x = layers.DepthwiseConv2D(3, use_bias=False, name="depthwise")(x)
    x = layers.Conv2D(5, 1, name="conv")(x)
    x = layers.GlobalAveragePooling2D()(layers.Dropout(0.1, seed=1)(x))
    model = keras.Model(image, layers.Dense(classes, name="fc")(x))
    if randomise:
        random = np.random.default_rng(0)
        for variable in model.weights:
            if variable.dtype == "float32":
                variable.assign(random.uniform(0.5, 1.5, variable.shape))
    return model


def test_load_pkl_drops_metadata_and_checks_dtypes(tmp_path):
    path = tmp_path / "w.pkl"
    weights = {"__header__": b"x", "__globals__": [], "fc/kernel:0": np.ones((2, 3), np.float32)}
    path.write_bytes(pickle.dumps(weights))
    assert list(pkl_weights.load_pkl(path)) == ["fc/kernel:0"]
    for bad, message in (
        ({"a": np.ones(2)}, "a is float64"),
        ({"a": 1}, "no arrays"),
        ([1], "no arrays"),
    ):
        path.write_bytes(pickle.dumps(bad))
        with pytest.raises(UserError, match=message):
            pkl_weights.load_pkl(path)


def test_network_survives_the_pkl_layout(tmp_path):
    model = small_network()
    arrays = pkl_weights.to_pkl(model)
    shapes = {key: array.shape for key, array in arrays.items()}
    assert shapes == {
        "BasicBlock0.0/conv1/kernel:0": (3, 3, 2, 4),
        **{
            f"BasicBlock0.0/bn1/{name}:0": (1, 1, 1, 4)
            for name in ("gamma", "beta", "moving_mean", "moving_variance")
        },
        "depthwise/kernel:0": (3, 3, 4, 1),
        "conv/kernel:0": (1, 1, 4, 5),
        "conv/biases:0": (1, 1, 1, 5),
        "fc/kernel:0": (5, 3),
        "fc/biases:0": (1, 3),
    }
    pkl_weights.save_pkl(tmp_path / "w.pkl", arrays)
    other = small_network(randomise=False)
    pkl_weights.from_pkl(other, pkl_weights.load_pkl(tmp_path / "w.pkl"), tmp_path / "w.pkl")
    image = np.random.default_rng(1).normal(size=(2, 8, 8, 2)).astype(np.float32)
    np.testing.assert_array_equal(other(image), model(image))


@pytest.mark.parametrize("ones", [0, 1, 3])
def test_vectors_may_have_any_number_of_leading_ones(ones):
    model = small_network()
    arrays = {
        key: array if "kernel" in key else array.reshape(*[1] * ones, -1)
        for key, array in pkl_weights.to_pkl(model).items()
    }
    other = small_network(randomise=False)
    pkl_weights.from_pkl(other, arrays, "w.pkl")
    np.testing.assert_array_equal(other.get_layer("fc").bias, model.get_layer("fc").bias)


def test_foreign_weights_are_refused_and_nothing_is_assigned():
    model = small_network(classes=3)
    arrays = pkl_weights.to_pkl(small_network(classes=10))
    arrays["extra/kernel:0"] = arrays.pop("conv/kernel:0")
    before = [np.asarray(variable) for variable in model.weights]
    with pytest.raises(UserError) as error:
        pkl_weights.from_pkl(model, arrays, "w.pkl")
    message = str(error.value)
    assert message.startswith("w.pkl: these are weights of another arch or another number")
    assert "1 missing (conv/kernel:0)" in message
    assert "1 unexpected (extra/kernel:0)" in message
    assert "2 of another shape (fc/kernel:0 5x10 instead of 5x3" in message
    for old, variable in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, variable)


def test_a_weight_without_a_name_in_the_layout_is_refused():
    image = keras.Input((4, 4, 2))
    model = keras.Model(image, keras.layers.PReLU(name="act")(image))
    with pytest.raises(UserError, match=r"act \(PReLU\) has a weight 'alpha'"):
        pkl_weights.to_pkl(model)


def test_the_papers_resnet56_loads(res56_pkl):
    arrays = pkl_weights.load_pkl(res56_pkl)
    assert len(arrays) == 287
    assert all(array.dtype == np.float32 for array in arrays.values())
    assert arrays["BasicBlock1.0/conv3/kernel:0"].shape == (1, 1, 16, 32)
    assert arrays["bn/moving_variance:0"].shape == (1, 1, 1, 16)
    assert arrays["fc/biases:0"].shape == (1, 10)
