"""utils/runfolder.py, utils/locks.py, utils/jsonl.py and utils/provenance.py."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from ekg_tf.utils import provenance
from ekg_tf.utils.errors import UserError
from ekg_tf.utils.runfiles import verify
from ekg_tf.utils.runfolder import RunFolder

ROOT = Path(__file__).resolve().parents[1]
LEFTOVER = f".ekg_tf-{'0a' * 16}.tmp.npz"
ARGS = {"arch": "resnet56", "lr": 0.1, "train_path": "a", "do_log": False}


@pytest.fixture
def folder(tmp_path):
    with RunFolder.open(tmp_path / "run", ARGS) as opened:
        yield opened


def names(path: Path) -> set[str]:
    return {p.name for p in path.iterdir()}


def test_a_new_folder_records_arguments_and_versions(folder):
    assert folder.read_json("args.json") == ARGS
    assert list(json.loads(folder.file("args.json").read_text())) == sorted(ARGS)
    versions = folder.read_json("versions.json")
    assert versions["tensorflow"].startswith("2.") and versions["keras"].startswith("3.")
    assert versions["python"] == sys.version.split()[0] and versions["cpu_count"] >= 1
    assert "git" in versions and not folder.finished


def test_the_same_arguments_reopen_the_folder(tmp_path):
    with RunFolder.open(tmp_path / "run", ARGS) as first:
        first.append("history.jsonl", {"step": 1})
        first.write_json("result.json", {"top1": 0.9})
    again = {**ARGS, "train_path": "./a", "do_log": True, "gpu_id": [1]}
    with RunFolder.open(tmp_path / "run", again) as second:
        assert second.rows("history.jsonl") == [{"step": 1}]
        assert second.finished and second.do_log
        assert second.read_json("args.json") == {**ARGS, "gpu_id": [1]}


def test_different_arguments_are_named(tmp_path):
    RunFolder.open(tmp_path / "run", {**ARGS, "seed": 1}).close()
    with pytest.raises(UserError) as error:
        RunFolder.open(tmp_path / "run", {**ARGS, "lr": 0.2, "seed": None})
    message = str(error.value)
    assert "(lr: 0.1 -> 0.2; seed: 1 -> None)" in message
    assert "set overwrite" in message and "arch" not in message
    RunFolder.open(tmp_path / "run", {**ARGS, "seed": 1}).close()  # the lock was given back


def test_arguments_of_a_later_phase_are_added_and_then_hold(tmp_path):
    RunFolder.open(tmp_path / "run", ARGS).close()
    with RunFolder.open(tmp_path / "run", {"lr": 0.1, "tau": 5}) as second:
        assert second.read_json("args.json") == {**ARGS, "tau": 5}
    with pytest.raises(UserError, match="tau: 5 -> 6"):
        RunFolder.open(tmp_path / "run", {**ARGS, "tau": 6})


def test_overwrite_deletes_only_our_files(tmp_path):
    path = tmp_path / "run"
    with RunFolder.open(path, {**ARGS, "do_log": True}) as first:
        first.append("history.jsonl", {"step": 1})
        first.write_json("result.json", {})
        first.scalars("search", 1, {"loss": 1.0})
    (path / "notes.txt").write_text("mine")
    (path / "tensorboard" / "mine.txt").write_text("mine")
    with RunFolder.open(path, {**ARGS, "lr": 0.5}, overwrite=True) as second:
        assert second.rows("history.jsonl") == [] and not second.finished
        assert second.read_json("args.json")["lr"] == 0.5
    kept = {".lock", "args.json", "versions.json", "files.json", "notes.txt", "tensorboard"}
    assert names(path) == kept
    assert names(path / "tensorboard") == {"mine.txt"}


NEARLY_OURS = ("baseline_mine.keras", "search_notes.npz", "bank_backup.npy", ".thesis.7.tmp.tex")


def test_overwrite_leaves_files_that_only_look_like_ours(tmp_path):
    path = tmp_path / "run"
    with RunFolder.open(path, ARGS) as first:
        first.file("baseline.keras").write_text("ours")
    for name in NEARLY_OURS:
        (path / name).write_text("mine")
    RunFolder.open(path, ARGS, overwrite=True).close()
    assert {name for name in NEARLY_OURS if (path / name).read_text() == "mine"} == {*NEARLY_OURS}
    assert not (path / "baseline.keras").exists()


def test_overwrite_never_goes_through_a_link(tmp_path):
    path, elsewhere = tmp_path / "run", tmp_path / "logs"
    with RunFolder.open(path, {**ARGS, "do_log": True}) as first:
        first.scalars("search", 1, {"loss": 1.0})
        first.file("search_state.npz").write_text("ours")
    (path / "tensorboard").rename(elsewhere)
    (path / "tensorboard").symlink_to(elsewhere)
    (tmp_path / "kept.npz").write_text("mine")
    (path / "search_state.npz").unlink()
    (path / "search_state.npz").symlink_to(tmp_path / "kept.npz")
    RunFolder.open(path, ARGS, overwrite=True).close()
    assert len(names(elsewhere / "search")) == 1
    assert (tmp_path / "kept.npz").read_text() == "mine"


def test_a_refused_run_deletes_nothing(tmp_path):
    for name in (LEFTOVER, ".thesis.7.tmp.tex", "thesis.tex"):
        (tmp_path / name).write_text("mine")
    before = names(tmp_path)
    with pytest.raises(UserError, match="is not empty"):
        RunFolder.open(tmp_path, ARGS)
    assert names(tmp_path) == before
    run = tmp_path / "run"
    RunFolder.open(run, ARGS).close()
    (run / LEFTOVER).write_text("half")
    with pytest.raises(UserError, match="other arguments"):
        RunFolder.open(run, {**ARGS, "lr": 0.3})
    assert LEFTOVER in names(run)


def test_a_refused_run_leaves_no_empty_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TypeError):
        RunFolder.open(tmp_path / "new", {"a": object()})
    assert names(tmp_path) == {"file"}


def test_a_file_of_the_users_with_a_name_of_ours_stops_the_run(tmp_path):
    path = tmp_path / "run"
    RunFolder.open(path, ARGS).close()
    (path / "bank.npy").write_text("mine")
    with RunFolder.open(path, ARGS) as again:
        with pytest.raises(UserError, match=r"bank\.npy was not written by this run: move it"):
            again.file("bank.npy")
        assert again.has("bank.npy")
    RunFolder.open(path, ARGS, overwrite=True).close()
    assert (path / "bank.npy").read_text() == "mine"


@pytest.mark.parametrize(
    "text",
    [
        '{"format": 1, "files": {"../../kept.npz": null}}',
        '{"format": 1, "files": {"baseline_/../../kept.npz": null}}',
        '{"format": 1, "files": {"tensorboard/../../events.out.tfevents.1": null}}',
        '{"format": 1, "files": {"thesis.tex": null}}',
        '{"format": 2, "files": {}}',
        '{"format": 1, "files": []}',
        "[]",
        "null",
        '{"format',
    ],
)
def test_a_manifest_that_leads_out_of_the_folder_or_is_damaged(tmp_path, text):
    path = tmp_path / "run"
    RunFolder.open(path, ARGS).close()
    (tmp_path / "kept.npz").write_text("mine")
    (path / "files.json").write_text(text)
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"files\.json"):
            RunFolder.open(path, ARGS, overwrite=overwrite)
    assert (tmp_path / "kept.npz").read_text() == "mine"


def test_a_run_of_an_older_version_is_named(tmp_path):
    path = tmp_path / "run"
    RunFolder.open(path, ARGS).close()
    (path / "files.json").unlink()
    with pytest.raises(UserError, match="a run of an older version"):
        RunFolder.open(path, ARGS)


def test_sealed_files_are_known_again(tmp_path):
    path = tmp_path / "run"
    with RunFolder.open(path, ARGS) as folder:
        folder.file("baseline.keras").write_bytes(b"weights")
        folder.file("bank.npy").write_bytes(b"rows")
        folder.seal("baseline.keras")
    verify(path, "baseline.keras", "bank.npy")
    for damaged in (b"weightz", b"", b"weights and more"):
        (path / "baseline.keras").write_bytes(damaged)
        with pytest.raises(UserError, match=r"baseline\.keras is damaged"):
            verify(path, "baseline.keras")
    (path / "baseline.keras").unlink()
    with pytest.raises(UserError, match=r"cannot read .*baseline\.keras"):
        verify(path, "baseline.keras")


def test_a_sealed_file_that_is_written_anew_is_open_until_it_is_sealed_again(tmp_path):
    """A process may be killed in between; afterwards the file isn't taken for damaged."""
    path = tmp_path / "run"
    with RunFolder.open(path, ARGS) as folder:
        folder.write_json("search.json", {"loss": 1})
        folder.seal("search.json")
        folder.write_json("search.json", {"loss": 2})
    verify(path, "search.json")
    with RunFolder.open(path, ARGS) as folder:
        folder.seal_open("search.json")
        (path / "search.json").write_text("{}")
        folder.seal_open("search.json")  # sealed already: stays as it was written
    with pytest.raises(UserError, match=r"search\.json is damaged"):
        verify(path, "search.json")


def test_a_foreign_folder_is_refused_and_untouched(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no run"):
        RunFolder.open(tmp_path, ARGS)
    assert names(tmp_path) == {"thesis.tex"}
    RunFolder.open(tmp_path, ARGS, overwrite=True).close()
    assert (tmp_path / "thesis.tex").read_text() == "mine"


@pytest.mark.parametrize("name", ["result.json", "args.json"])
def test_a_foreign_file_with_a_name_of_ours_is_never_deleted(tmp_path, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match="move them"):
        RunFolder.open(tmp_path, ARGS, overwrite=True)
    assert (tmp_path / name).read_text() == "{}"


def test_a_file_or_a_read_only_place_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        RunFolder.open(tmp_path / "file", ARGS)
    with pytest.raises(UserError, match="cannot write in"):
        RunFolder.open(tmp_path / "file" / "below", ARGS)
    with pytest.raises(UserError, match="cannot write in"):
        RunFolder.open("/proc/run", ARGS)


def test_a_look_before_any_work_refuses_what_opening_would(tmp_path):
    RunFolder.check(tmp_path / "new", ARGS)
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").touch()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.txt").touch()
    RunFolder.open(tmp_path / "run", ARGS).close()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for name, line in (("file", "is a file"), ("foreign", "holds no run of ours")):
        with pytest.raises(UserError, match=line):
            RunFolder.check(tmp_path / name)
    with pytest.raises(UserError, match=r"lr: 0\.1 -> 0\.2"):
        RunFolder.check(tmp_path / "run", ARGS | {"lr": 0.2})
    RunFolder.check(tmp_path / "run")
    RunFolder.check(tmp_path / "run", ARGS | {"lr": 0.2}, overwrite=True)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


def test_two_opens_of_one_folder(folder):
    with pytest.raises(UserError, match=r"another process is using .*\.lock"):
        RunFolder.open(folder.path, ARGS, overwrite=True)
    folder.close()
    folder.close()
    RunFolder.open(folder.path, ARGS).close()


def test_a_killed_process_frees_the_folder_and_its_leftovers_go(tmp_path):
    path = tmp_path / "run"
    script = (
        "import sys, time\nfrom ekg_tf.utils.runfolder import RunFolder\n"
        f"f = RunFolder.open({str(path)!r}, {{}})\n"
        f"(f.path / '{LEFTOVER}').write_text('half')\n"
        "print('open', flush=True)\ntime.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "open\n"
        with pytest.raises(UserError, match="another process"):
            RunFolder.open(path, {})
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    (path / ".thesis.7.tmp.tex").write_text("mine")
    RunFolder.open(path, {}).close()
    marks = {".lock", "args.json", "versions.json", "files.json"}
    assert names(path) == marks | {".thesis.7.tmp.tex"}


def test_a_name_that_overwrite_would_miss_is_a_bug(folder):
    with pytest.raises(ValueError, match="KNOWN"):
        folder.file("thoughts.txt")


# ---------------------------------------------------------------- rows


def test_rows_hold_plain_json(folder):
    row = {
        "loss": np.float32(0.5),
        "nan": float("nan"),
        "inf": np.float64("inf"),
        "widths": np.array([1, 2]),
        "ok": np.bool_(True),
        "path": Path("a"),
        "pair": (1, None),
    }
    folder.append("history.jsonl", row)
    expected = {
        "loss": 0.5,
        "nan": None,
        "inf": None,
        "widths": [1, 2],
        "ok": True,
        "path": "a",
        "pair": [1, None],
    }
    assert folder.rows("history.jsonl") == [expected]
    with pytest.raises(TypeError):
        folder.append("history.jsonl", {"x": object()})


@pytest.mark.parametrize("torn", [b'{"step": 3, "lo', b'{"step": 3', b"\0\0\0\0", b'{"s\n'])
@pytest.mark.parametrize("read_first", [True, False])
def test_a_torn_last_line_is_dropped(folder, torn, read_first):
    for step in (1, 2):
        folder.append("history.jsonl", {"step": step})
    folder.close()
    path = folder.file("history.jsonl")
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    with RunFolder.open(folder.path, ARGS) as again:
        if read_first:
            assert [row["step"] for row in again.rows("history.jsonl")] == [1, 2]
            assert path.read_bytes() == whole
        again.append("history.jsonl", {"step": 3})
        assert [row["step"] for row in again.rows("history.jsonl")] == [1, 2, 3]


def test_a_whole_last_row_that_lacks_its_newline_is_kept(folder):
    folder.file("history.jsonl").write_bytes(b'{"a": 1}\n{"a": 2}')
    assert folder.rows("history.jsonl") == [{"a": 1}, {"a": 2}]
    folder.append("history.jsonl", {"a": 3})
    assert len(folder.rows("history.jsonl")) == 3


def test_a_damaged_earlier_line_is_named(folder):
    folder.file("history.jsonl").write_text('{"a": 1}\n{"a": \n{"a": 3}\n')
    with pytest.raises(UserError, match="damaged in line 2"):
        folder.rows("history.jsonl")


def test_truncate_by_number_and_by_predicate(folder):
    for step in range(6):
        folder.append("history.jsonl", {"step": step})
    folder.truncate("history.jsonl", 5)
    assert [row["step"] for row in folder.rows("history.jsonl")] == [0, 1, 2, 3, 4]
    folder.truncate("history.jsonl", lambda row: row["step"] % 2 == 0)
    assert [row["step"] for row in folder.rows("history.jsonl")] == [0, 2, 4]
    folder.truncate("history.jsonl", 0)
    assert folder.rows("history.jsonl") == []


def test_json_files(folder):
    folder.write_json("result.json", {"before": float("nan"), "after": np.int64(1)})
    assert folder.read_json("result.json") == {"after": 1, "before": None} and folder.finished
    for content, problem in (('{"a"', ""), ("[]", ": it holds a list"), ("{}", ": it lacks")):
        folder.file("result.json").write_text(content)
        with pytest.raises(UserError, match=f"is damaged{problem}"):
            folder.read_json("result.json")
    with pytest.raises(UserError, match="does not exist"):
        folder.read_json("search.json")


# ---------------------------------------------------------------- TensorBoard, provenance


def test_scalars_are_written_only_when_asked(tmp_path, folder):
    folder.scalars("search", 1, {"loss": 1.0})
    assert not (folder.path / "tensorboard").exists()
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with RunFolder.open(tmp_path / "logged", {"do_log": True}) as logged:
        for step in (1, 2):
            logged.scalars("search", step, {"loss": 1.0 / step, "accuracy": 0.5})
        events = accumulator.EventAccumulator(str(logged.path / "tensorboard" / "search"))
        events.Reload()
        assert set(events.Tags()["tensors"]) == {"loss", "accuracy"}
        steps = [event.step for event in events.Tensors("loss")]
        values = [float(tf.make_ndarray(event.tensor_proto)) for event in events.Tensors("loss")]
    assert steps == [1, 2] and values == [1.0, 0.5]


def test_scalars_do_not_need_the_tensorboard_package(tmp_path, monkeypatch):
    for module in [name for name in sys.modules if name.split(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with RunFolder.open(tmp_path / "run", {"do_log": True}) as folder:
        folder.scalars("search", 1, {"loss": 1.0})
    assert len(names(tmp_path / "run" / "tensorboard" / "search")) == 1


def test_git_state(tmp_path, monkeypatch):
    def git(*command):
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        subprocess.run(["git", *identity, *command], cwd=tmp_path, check=True, capture_output=True)

    assert provenance.git_state(tmp_path) is None
    git("init")
    assert provenance.git_state(tmp_path) is None
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "first")
    state = provenance.git_state(tmp_path)
    assert len(state["commit"]) == 40 and state["dirty"] is False
    (tmp_path / "a").write_text("2")
    assert provenance.git_state(tmp_path)["dirty"] is True
    (tmp_path / "sub").mkdir()
    assert provenance.git_state(tmp_path / "sub") is None
    monkeypatch.setenv("PATH", "")
    assert provenance.git_state(tmp_path) is None


@pytest.mark.parametrize("marks", [(), ("files.json",), ("files.json", "versions.json")])
def test_a_folder_that_was_being_made_when_its_process_was_killed(marks, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    RunFolder.open(whole, {"seed": 0}).close()
    killed.mkdir()
    for name in (".lock", *marks):
        (killed / name).write_bytes((whole / name).read_bytes())
    (killed / f".ekg_tf-{'0' * 32}.tmp.json").write_text("half of a f")
    RunFolder.open(killed, {"seed": 0}).close()
    names = [sorted(one.name for one in folder.iterdir()) for folder in (killed, whole)]
    assert names[0] == names[1]
