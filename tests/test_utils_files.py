"""utils/files.py, utils/arrays.py and utils/keras_files.py."""

import collections
import io
import os
import pickle
import stat
from pathlib import Path

import keras
import numpy as np
import pytest
from ekg_tf.utils import arrays
from ekg_tf.utils.errors import UserError
from ekg_tf.utils.files import atomic_write
from ekg_tf.utils.keras_files import load_keras, save_keras

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
        arrays.save_state(tmp_path / "none" / "a.npz", {"x": np.zeros(2)})


def text(path: Path) -> None:
    path.write_text("new")


def test_a_device_is_written_to_and_stays(tmp_path):
    atomic_write("/dev/null", text)
    with pytest.raises(UserError, match=r"cannot write /dev/full: No space left"):
        atomic_write("/dev/full", text)
    for device in ("/dev/null", "/dev/full"):
        assert stat.S_ISCHR(os.stat(device).st_mode)


def test_a_link_stays_and_its_target_is_written(tmp_path):
    (tmp_path / "target.json").write_text("old")
    (tmp_path / "link.json").symlink_to(tmp_path / "target.json")
    atomic_write(tmp_path / "link.json", text)
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "target.json").read_text() == "new"


@pytest.mark.parametrize("name", ["", ".", "..", "folder"])
def test_a_folder_is_no_file(tmp_path, name, monkeypatch):
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="it is a folder; name a file"):
        atomic_write(name, text)
    assert [one.name for one in tmp_path.iterdir()] == ["folder"]


def test_long_names(tmp_path):
    longest = tmp_path / f"{'a' * 250}.json"
    atomic_write(longest, text)
    assert longest.read_text() == "new"
    with pytest.raises(UserError, match=r"cannot write .*File name too long"):
        atomic_write(tmp_path / f"{'a' * 251}.json", text)
    assert len(list(tmp_path.iterdir())) == 1


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
        arrays.restricted_load(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    "asked", [b"cbuiltins\neval\n", b"c__builtin__\ngetattr\n", b"cnumpy\nload\n"]
)
def test_other_functions_of_admitted_modules_are_refused(asked):
    with pytest.raises(UserError, match="was refused"):
        arrays.restricted_load(io.BytesIO(asked + b"(S'1'\ntR."))


def test_a_dotted_name_does_not_get_around_the_list():
    dotted = b"\x80\x04\x8c\x05numpy\x8c\x12ndarray.__class__\x93."
    dotted = dotted.replace(b"\x12", bytes([len("ndarray.__class__")]))
    with pytest.raises(UserError, match="was refused"):
        arrays.restricted_load(io.BytesIO(dotted))


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_and_arrays_load(protocol):
    data = {
        "array": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "objects": np.array([None, "text", 2.5], dtype=object),
        "scalar": np.float64(1.5),
        "plain": [(1, b"\xff"), {2}, 1j, None, collections.OrderedDict(a=1)],
    }
    loaded = arrays.restricted_load(io.BytesIO(pickle.dumps(data, protocol=protocol)))
    np.testing.assert_array_equal(loaded["array"], data["array"])
    assert loaded["objects"].tolist() == [None, "text", 2.5]
    assert loaded["scalar"] == 1.5 and loaded["plain"] == data["plain"]


def test_numpy_1_and_python_2_pickles_load():
    new = pickle.dumps(np.arange(3, dtype=np.float32), protocol=2)
    old = new.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert old != new
    assert arrays.restricted_load(io.BytesIO(old)).tolist() == [0, 1, 2]
    # what Python 2 writes for {"data": array([200, 1], uint8)}: byte strings in U opcodes
    python2 = (
        b"\x80\x02}U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
        b"K\x00\x85U\x01b\x87R(K\x01K\x02\x85cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x02\xc8\x01tbs."
    )
    assert arrays.restricted_load(io.BytesIO(python2))["data"].tolist() == [200, 1]
    by_bytes = arrays.restricted_load(io.BytesIO(python2), encoding="bytes")
    assert by_bytes[b"data"].tolist() == [200, 1]


def enlarged() -> bytes:
    """An array whose dtype is made larger once its memory is taken; numpy itself would overflow."""
    whole = pickle.dumps(np.arange(4, dtype=np.uint8), protocol=2)
    state = b"(K\x03X\x01\x00\x00\x00|q"
    assert state in whole
    before, after = whole.split(state, 1)
    number, rest = after[:1], after[1:]
    # version, byteorder, subdescr, names, fields, itemsize, alignment, flags
    tail = b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t"
    assert rest.startswith(tail)
    huge = b"NNNJ\x00\x00\x00\x40K\x01K\x00t"
    return before + state + number + huge + rest[len(tail) :]


def test_a_state_cannot_make_an_array_larger_than_its_bytes():
    assert arrays.restricted_load(io.BytesIO(enlarged())).tolist() == [0, 1, 2, 3]
    whole = pickle.dumps(np.arange(300, dtype=np.uint8), protocol=2)
    longer = whole.replace(b"M,\x01", b"M,\x02", 1)
    assert longer != whole
    with pytest.raises(UserError, match=r"an array \(556,\) of uint8 with 300 bytes"):
        arrays.restricted_load(io.BytesIO(longer))


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (b"c__builtin__\nbytearray\n(J\xff\xff\xff\x7ftR.", "2147483647 empty bytes"),
        (b"\x80\x02}r\xff\xff\xff\x7f.", "2147483647 remembered objects"),
        (b"c_codecs\nencode\n(U\x01xU\x03bz2tR.", "the codec bz2"),
        (b"cnumpy\ndtype\n(U\x06V99999tR.", "array of"),
        (b"cnumpy.core.multiarray\n_reconstruct\n(NNNtR.", "without a content"),
    ],
)
def test_what_costs_memory_or_has_no_content_is_refused(asked, why):
    with pytest.raises(UserError, match=why):
        arrays.restricted_load(io.BytesIO(asked))


def test_damaged_bytes_anywhere_never_get_through_as_something_else_than_data():
    rng, random = np.random.default_rng(0), np.random.default_rng(1)
    value = {"a": rng.normal(size=(3, 4)), "b": np.arange(5, dtype=np.uint8), "c": [1, "x"]}
    loaded = 0
    for protocol in range(6):
        whole = pickle.dumps(value, protocol=protocol)
        for _ in range(150):
            damaged = bytearray(whole)
            for place in random.integers(0, len(whole), random.integers(1, 4)):
                damaged[place] = random.integers(0, 256)
            try:
                arrays.restricted_load(io.BytesIO(bytes(damaged)))
                loaded += 1
            except UserError as error:
                assert len(str(error).splitlines()) >= 1
    assert 0 < loaded < 900


def test_damaged_and_missing_pickles(tmp_path):
    whole = pickle.dumps({"a": np.zeros(100, np.float32)}, protocol=4)
    path = tmp_path / "a.pkl"
    for content in (whole[:50], whole[:-1], b"", b"no pickle at all", whole[:200] + b"\x00" * 9):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"a\.pkl"):
            arrays.restricted_load(path)
    with pytest.raises(UserError, match="does not exist"):
        arrays.restricted_load(tmp_path / "none.pkl")
    with pytest.raises(UserError, match="is no file"):
        arrays.restricted_load(tmp_path)


# ---------------------------------------------------------------- states and networks


def test_state_round_trip(tmp_path):
    state = {
        "file": np.arange(4, dtype=np.int64),
        "opt/m/kernel:0": np.ones((2, 3), np.float32),
        "step": np.int64(7),
        "rng": np.frombuffer(b"abc", np.uint8),
        "name": np.array("text"),
    }
    arrays.save_state(tmp_path / "s.npz", state)
    loaded = arrays.load_state(tmp_path / "s.npz")
    assert list(loaded) == list(state)
    for key, array in state.items():
        np.testing.assert_array_equal(loaded[key], array)
        assert loaded[key].dtype == np.asarray(array).dtype
    with pytest.raises(TypeError, match="bad"):
        arrays.save_state(tmp_path / "s.npz", {"bad": np.array([None])})
    assert list(arrays.load_state(tmp_path / "s.npz")) == list(state)


def test_damaged_states(tmp_path):
    path = tmp_path / "s.npz"
    arrays.save_state(path, {"x": np.arange(1000)})
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[3000] ^= 255
    for content in (whole[:500], b"", b"text", bytes(flipped)):
        path.write_bytes(content)
        with pytest.raises(UserError, match="damaged"):
            arrays.load_state(path)
    with path.open("wb") as file:
        np.savez(file, x=np.array([Payload(tmp_path / "mark")], dtype=object))
    with pytest.raises(UserError, match="damaged"):
        arrays.load_state(path)
    assert not (tmp_path / "mark").exists()
    with pytest.raises(UserError, match="does not exist"):
        arrays.load_state(tmp_path / "none.npz")


def test_keras_round_trip_and_damage(tmp_path):
    image = keras.Input((8, 8, 2))
    x = keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 3)(image))
    model, path = keras.Model(image, keras.layers.Flatten()(x)), tmp_path / "net.keras"
    save_keras(path, model)
    assert [p.name for p in tmp_path.iterdir()] == ["net.keras"]
    image = np.ones((1, 8, 8, 2), np.float32)
    np.testing.assert_array_equal(load_keras(path)(image), model(image))
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"text"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="not a network that can be loaded"):
            load_keras(path)
    with pytest.raises(UserError, match="does not exist"):
        load_keras(tmp_path / "none.keras")
    with pytest.raises(UserError, match="suffix"):
        save_keras(tmp_path / "net.h5", model)


def test_code_in_a_file_is_not_run(tmp_path):
    image = keras.Input((4,))
    model = keras.Model(image, keras.layers.Lambda(lambda x: x * 2)(image))
    save_keras(tmp_path / "net.keras", model)
    with pytest.raises(
        UserError, match=r"holds code \(a Lambda layer\).*give the network to ekg_tf"
    ):
        load_keras(tmp_path / "net.keras")
