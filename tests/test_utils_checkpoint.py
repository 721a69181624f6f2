"""utils/checkpoint.py and utils/files.py."""

import collections
import io
import os
import pickle

import keras
import numpy as np
import pytest

from utils import checkpoint
from utils.cli import UserError
from utils.files import atomic_write


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


# ---------------------------------------------------------------- atomic files


def test_atomic_write_keeps_the_suffix_and_leaves_only_the_file(tmp_path):
    seen = []

    def write(path):
        seen.append(path)
        path.write_text("new")

    atomic_write(tmp_path / "net.keras", write)
    assert seen[0].suffix == ".keras" and seen[0].parent == tmp_path
    assert [p.name for p in tmp_path.iterdir()] == ["net.keras"]


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_old_file(tmp_path, failure):
    (tmp_path / "a.txt").write_text("old")

    def write(path):
        path.write_text("half")
        raise failure

    with pytest.raises(failure):
        atomic_write(tmp_path / "a.txt", write)
    assert (tmp_path / "a.txt").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_writing_into_a_missing_folder_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="cannot write"):
        checkpoint.save_state(tmp_path / "none" / "a.npz", {"x": np.zeros(2)})


# ---------------------------------------------------------------- restricted pickles


class Payload:
    """A pickle of this runs a shell command when it is loaded by pickle.load."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("wrap", [lambda p: p, lambda p: {"w": np.array([p, 1], dtype=object)}])
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_payload_is_refused_and_not_run(tmp_path, wrap, protocol):
    path, mark = tmp_path / "evil.pkl", tmp_path / "mark"
    path.write_bytes(pickle.dumps(wrap(Payload(mark)), protocol=protocol))
    with pytest.raises(UserError, match=r"evil\.pkl was refused: it asks for posix\.system"):
        checkpoint.restricted_load(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    "asked", [b"cbuiltins\neval\n", b"c__builtin__\ngetattr\n", b"cnumpy\nload\n"]
)
def test_other_functions_of_admitted_modules_are_refused(asked):
    with pytest.raises(UserError, match="was refused"):
        checkpoint.restricted_load(io.BytesIO(asked + b"(S'1'\ntR."))


def test_a_dotted_name_does_not_get_around_the_list():
    dotted = b"\x80\x04\x8c\x05numpy\x8c\x12ndarray.__class__\x93."
    dotted = dotted.replace(b"\x12", bytes([len("ndarray.__class__")]))
    with pytest.raises(UserError, match="was refused"):
        checkpoint.restricted_load(io.BytesIO(dotted))


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_and_arrays_load(protocol):
    data = {
        "array": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "objects": np.array([None, "text", 2.5], dtype=object),
        "scalar": np.float64(1.5),
        "plain": [(1, b"\xff"), {2}, 1j, None, collections.OrderedDict(a=1)],
    }
    loaded = checkpoint.restricted_load(io.BytesIO(pickle.dumps(data, protocol=protocol)))
    np.testing.assert_array_equal(loaded["array"], data["array"])
    assert loaded["objects"].tolist() == [None, "text", 2.5]
    assert loaded["scalar"] == 1.5 and loaded["plain"] == data["plain"]


def test_numpy_1_and_python_2_pickles_load():
    new = pickle.dumps(np.arange(3, dtype=np.float32), protocol=2)
    old = new.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert old != new
    assert checkpoint.restricted_load(io.BytesIO(old)).tolist() == [0, 1, 2]
    # what Python 2 writes for {"data": array([200, 1], uint8)}: byte strings in U opcodes
    python2 = (
        b"\x80\x02}U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
        b"K\x00\x85U\x01b\x87R(K\x01K\x02\x85cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x02\xc8\x01tbs."
    )
    assert checkpoint.restricted_load(io.BytesIO(python2))["data"].tolist() == [200, 1]
    by_bytes = checkpoint.restricted_load(io.BytesIO(python2), encoding="bytes")
    assert by_bytes[b"data"].tolist() == [200, 1]


def test_damaged_and_missing_pickles(tmp_path):
    whole = pickle.dumps({"a": np.zeros(100, np.float32)}, protocol=4)
    path = tmp_path / "a.pkl"
    for content in (whole[:50], whole[:-1], b"", b"no pickle at all", whole[:200] + b"\x00" * 9):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"a\.pkl"):
            checkpoint.restricted_load(path)
    with pytest.raises(UserError, match="does not exist"):
        checkpoint.restricted_load(tmp_path / "none.pkl")
    with pytest.raises(UserError, match="cannot read"):
        checkpoint.restricted_load(tmp_path)


# ---------------------------------------------------------------- the .pkl layout


def test_load_pkl_drops_metadata_and_checks_dtypes(tmp_path):
    path = tmp_path / "w.pkl"
    weights = {"__header__": b"x", "__globals__": [], "fc/kernel:0": np.ones((2, 3), np.float32)}
    path.write_bytes(pickle.dumps(weights))
    assert list(checkpoint.load_pkl(path)) == ["fc/kernel:0"]
    for bad, message in (
        ({"a": np.ones(2)}, "a is float64"),
        ({"a": 1}, "no arrays"),
        ([1], "no arrays"),
    ):
        path.write_bytes(pickle.dumps(bad))
        with pytest.raises(UserError, match=message):
            checkpoint.load_pkl(path)


def test_network_survives_the_pkl_layout(tmp_path):
    model = small_network()
    arrays = checkpoint.to_pkl(model)
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
    checkpoint.save_pkl(tmp_path / "w.pkl", arrays)
    other = small_network(randomise=False)
    checkpoint.from_pkl(other, checkpoint.load_pkl(tmp_path / "w.pkl"), tmp_path / "w.pkl")
    image = np.random.default_rng(1).normal(size=(2, 8, 8, 2)).astype(np.float32)
    np.testing.assert_array_equal(other(image), model(image))


@pytest.mark.parametrize("ones", [0, 1, 3])
def test_vectors_may_have_any_number_of_leading_ones(ones):
    model = small_network()
    arrays = {
        key: array if "kernel" in key else array.reshape(*[1] * ones, -1)
        for key, array in checkpoint.to_pkl(model).items()
    }
    other = small_network(randomise=False)
    checkpoint.from_pkl(other, arrays, "w.pkl")
    np.testing.assert_array_equal(other.get_layer("fc").bias, model.get_layer("fc").bias)


def test_foreign_weights_are_refused_and_nothing_is_assigned():
    model = small_network(classes=3)
    arrays = checkpoint.to_pkl(small_network(classes=10))
    arrays["extra/kernel:0"] = arrays.pop("conv/kernel:0")
    before = [np.asarray(variable) for variable in model.weights]
    with pytest.raises(UserError) as error:
        checkpoint.from_pkl(model, arrays, "w.pkl")
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
        checkpoint.to_pkl(model)


def test_the_papers_resnet56_loads(res56_pkl):
    arrays = checkpoint.load_pkl(res56_pkl)
    assert len(arrays) == 287
    assert all(array.dtype == np.float32 for array in arrays.values())
    assert arrays["BasicBlock1.0/conv3/kernel:0"].shape == (1, 1, 16, 32)
    assert arrays["bn/moving_variance:0"].shape == (1, 1, 1, 16)
    assert arrays["fc/biases:0"].shape == (1, 10)


# ---------------------------------------------------------------- states and networks


def test_state_round_trip(tmp_path):
    state = {
        "file": np.arange(4, dtype=np.int64),
        "opt/m/kernel:0": np.ones((2, 3), np.float32),
        "step": np.int64(7),
        "rng": np.frombuffer(b"abc", np.uint8),
        "name": np.array("text"),
    }
    checkpoint.save_state(tmp_path / "s.npz", state)
    loaded = checkpoint.load_state(tmp_path / "s.npz")
    assert list(loaded) == list(state)
    for key, array in state.items():
        np.testing.assert_array_equal(loaded[key], array)
        assert loaded[key].dtype == np.asarray(array).dtype
    with pytest.raises(TypeError, match="bad"):
        checkpoint.save_state(tmp_path / "s.npz", {"bad": np.array([None])})
    assert list(checkpoint.load_state(tmp_path / "s.npz")) == list(state)


def test_damaged_states(tmp_path):
    path = tmp_path / "s.npz"
    checkpoint.save_state(path, {"x": np.arange(1000)})
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[3000] ^= 255
    for content in (whole[:500], b"", b"text", bytes(flipped)):
        path.write_bytes(content)
        with pytest.raises(UserError, match="damaged"):
            checkpoint.load_state(path)
    with path.open("wb") as file:
        np.savez(file, x=np.array([Payload(tmp_path / "mark")], dtype=object))
    with pytest.raises(UserError, match="damaged"):
        checkpoint.load_state(path)
    assert not (tmp_path / "mark").exists()
    with pytest.raises(UserError, match="does not exist"):
        checkpoint.load_state(tmp_path / "none.npz")


def test_keras_round_trip_and_damage(tmp_path):
    model, path = small_network(), tmp_path / "net.keras"
    checkpoint.save_keras(path, model)
    assert [p.name for p in tmp_path.iterdir()] == ["net.keras"]
    image = np.ones((1, 8, 8, 2), np.float32)
    np.testing.assert_array_equal(checkpoint.load_keras(path)(image), model(image))
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"text"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="not a network that can be loaded"):
            checkpoint.load_keras(path)
    with pytest.raises(UserError, match="does not exist"):
        checkpoint.load_keras(tmp_path / "none.keras")
    with pytest.raises(UserError, match="suffix"):
        checkpoint.save_keras(tmp_path / "net.h5", model)
