"""Networks resized, read from files, and read by a Python that doesn't have this project."""

import json
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
from ekg_tf.nets.graph import ChannelGraph
from ekg_tf.nets.rebuild import resized
from ekg_tf.nets.zoo.builders import build
from ekg_tf.nets.zoo.load import load_network, load_own
from ekg_tf.nets.zoo.pkl_weights import load_pkl, save_pkl, to_pkl
from ekg_tf.utils.errors import UserError
from ekg_tf.utils.keras_files import load_keras, save_keras

from tests.helpers.networks import (
    dense_block,
    images_for,
    mobile,
    random_mask,
    residual,
    shaken,
    shared,
    unknown,
    vgg,
)

IMAGE = (8, 8, 3)
READER = """
import json, sys
import keras, numpy as np
sys.modules["ekg_tf"] = None  # can't be imported, whether it is installed or not
images = np.load("images.npy")
for name in json.loads(sys.argv[1]):
    model = keras.models.load_model(name + ".keras")
    np.save(name + ".npy", model(images, training=False))
    print(name, model.count_params())
assert not any(name.startswith("ekg_tf.") for name in sys.modules)
"""


@pytest.fixture(scope="module")
def resnet20():
    """A small-image ResNet-20 that is not fresh, and its pruned version."""
    model = shaken(build("ResNet-20", 10, IMAGE))
    graph = ChannelGraph(model)
    return model, graph.pruned(random_mask(graph))


def same(one, other):
    assert [v.path for v in one.variables] == [v.path for v in other.variables]
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_resized_copies_what_fits():
    model = shaken(residual())
    smaller = resized(model, {"a1": 2, "fc_of_nobody": 3})
    assert [one.name for one in smaller.layers[1:]] == [one.name for one in model.layers[1:]]
    assert smaller.get_layer("a1").kernel.shape == (3, 3, 4, 2)
    assert smaller.get_layer("a1_bn").gamma.shape == (2,)
    assert smaller.get_layer("a2").kernel.shape == (3, 3, 2, 6)
    for name in ("stem", "shortcut", "b1", "fc"):
        for new, old in zip(
            smaller.get_layer(name).weights, model.get_layer(name).weights, strict=True
        ):
            np.testing.assert_array_equal(new, old)
    same(resized(model, {}), model)


def test_resized_refuses_widths_that_do_not_add_up():
    with pytest.raises(ValueError):
        resized(residual(), {"a2": 3})


@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("suffix", [".pkl", ".keras"])
def test_round_trip(tmp_path, resnet20, suffix, pruned):
    model = resnet20[pruned]
    path = tmp_path / f"network{suffix}"
    if suffix == ".pkl":
        save_pkl(path, to_pkl(model))
    else:
        save_keras(path, model)
    loaded = load_network(path, "ResNet-20", 10, IMAGE)
    same(loaded, model)
    images = images_for(model)
    np.testing.assert_array_equal(loaded(images, training=False), model(images, training=False))


def test_the_network_of_the_papers_authors(res56_pkl):
    model = load_network(res56_pkl, "ResNet-56", 10, (32, 32, 3))
    arrays = load_pkl(res56_pkl)
    assert len(arrays) == len(model.weights)
    kernel = model.get_layer("BasicBlock2.8_conv2").kernel
    np.testing.assert_array_equal(kernel, arrays["BasicBlock2.8/conv2/kernel:0"])
    logits = model(images_for(model, count=2), training=True).numpy()
    assert np.isfinite(logits).all()
    assert 0.5 < np.abs(logits).max() < 50
    with pytest.raises(UserError, match="weights of another arch"):
        load_network(res56_pkl, "ResNet-20", 10, (32, 32, 3))


def test_weights_of_another_network(tmp_path, resnet20):
    model, _ = resnet20
    pkl, whole = tmp_path / "network.pkl", tmp_path / "network.keras"
    save_pkl(pkl, to_pkl(model))
    save_keras(whole, model)
    with pytest.raises(UserError, match=r"network\.pkl.*weights of another arch.* missing"):
        load_network(pkl, "ResNet-32", 10, IMAGE)
    for path in (pkl, whole):
        with pytest.raises(UserError, match=r"of shape \(10,\), the data has 7 classes"):
            load_network(path, "ResNet-20", 7, IMAGE)
    with pytest.raises(UserError, match=r"inputs of shape \(8, 8, 3\), the data has \(9, 9, 3\)"):
        load_network(whole, "ResNet-20", 10, (9, 9, 3))
    with pytest.raises(UserError, match=r"conv/kernel:0 3x3x3x16 instead of 3x3x1x16"):
        load_network(pkl, "ResNet-20", 10, (8, 8, 1))
    with pytest.raises(UserError, match="unknown architecture 'VGG-3'"):
        load_network(pkl, "VGG-3", 10, IMAGE)


def test_filter_counts_that_no_network_has(tmp_path, resnet20):
    arrays = to_pkl(resnet20[0])
    arrays["BasicBlock0.1/conv2/kernel:0"] = arrays["BasicBlock0.1/conv2/kernel:0"][..., :9]
    save_pkl(tmp_path / "odd.pkl", arrays)
    with pytest.raises(UserError, match=r"odd\.pkl holds filter counts that do not fit ResNet-20"):
        load_network(tmp_path / "odd.pkl", "ResNet-20", 10, IMAGE)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("weights.h5", r"weights come as \.pkl, .*, not \.h5"),
        ("weights", "not without a suffix"),
        ("absent.pkl", "does not exist"),
        ("absent.keras", "does not exist"),
        ("broken.pkl", "not a complete pickle"),
        ("broken.keras", "not a network that can be loaded"),
    ],
)
def test_files_that_are_no_networks(tmp_path, name, message):
    if name.startswith("broken"):
        (tmp_path / name).write_bytes(b"nonsense")
    with pytest.raises(UserError, match=message):
        load_network(tmp_path / name, "ResNet-20", 10, IMAGE)


def test_whole_networks_as_keras_2_wrote_them(tmp_path, resnet20):
    model = shaken(vgg())
    model.compile("sgd", "categorical_crossentropy")
    model.save(tmp_path / "old.h5")
    again = load_own(tmp_path / "old.h5")
    images = images_for(model)
    np.testing.assert_allclose(again(images), model(images), atol=1e-6)
    assert again.loss is keras.losses.categorical_crossentropy
    images = keras.Input((8, 8, 3))
    keras.Model(images, keras.layers.Lambda(lambda x: x + 1)(images)).save(tmp_path / "code.h5")
    with pytest.raises(UserError, match=r"code\.h5 holds code \(a Lambda layer\)"):
        load_own(tmp_path / "code.h5")
    resnet20[0].save_weights(tmp_path / "some.weights.h5")
    with pytest.raises(UserError, match=r"some\.weights\.h5 holds weights alone"):
        load_own(tmp_path / "some.weights.h5")
    (tmp_path / "noise.h5").write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"noise\.h5 is damaged"):
        load_own(tmp_path / "noise.h5")


def test_what_keras_3_does_not_open(tmp_path):
    with zipfile.ZipFile(tmp_path / "two.keras", "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": "2.15.0"}))
        archive.writestr("config.json", json.dumps({"class_name": "Sequential"}))
    with pytest.raises(UserError, match=r"written by Keras 2\.15\.0.* save it as \.h5"):
        load_own(tmp_path / "two.keras")
    (tmp_path / "saved.keras").mkdir()
    with pytest.raises(UserError, match=r"saved\.keras is a folder: give a \.keras or \.h5 file"):
        load_own(tmp_path / "saved.keras")


def test_pruned_networks_are_read_without_this_project(tmp_path, resnet20):
    networks = {"resnet20": resnet20[1]}
    for make in (mobile, dense_block, vgg, shared):
        model = shaken(make())
        graph = ChannelGraph(model)
        networks[make.__name__] = graph.pruned(random_mask(graph))
    images = images_for(resnet20[0])
    np.save(tmp_path / "images.npy", images)
    for name, model in networks.items():
        save_keras(tmp_path / f"{name}.keras", model)
    command = [sys.executable, "-I", "-c", READER, json.dumps(list(networks))]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = [f"{name} {model.count_params()}" for name, model in networks.items()]
    assert done.stdout.splitlines() == lines
    for name, model in networks.items():
        logits = model(images, training=False).numpy()
        assert np.abs(logits).max() > 0.1
        np.testing.assert_allclose(np.load(tmp_path / f"{name}.npy"), logits, atol=1e-5)


def test_custom_layers_are_kept_in_the_pruned_network(tmp_path):
    model = shaken(unknown())
    graph = ChannelGraph(model)
    pruned = graph.pruned(random_mask(graph))
    save_keras(tmp_path / "pruned.keras", pruned)
    same(load_keras(tmp_path / "pruned.keras"), pruned)
    assert isinstance(pruned, keras.Model)
