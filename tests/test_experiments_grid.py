"""Grids of commands: order, skipping, failures, being killed."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from ekg_tf.experiments.tables import grid
from ekg_tf.experiments.tables.grid import Cell
from ekg_tf.utils.errors import UserError
from ekg_tf.utils.jsonl import read_json
from ekg_tf.utils.provenance import cores

# Counts its starts; waits while the file "wait" is there; fails if told so; writes its result.
PROGRAM = """
import json, os, pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
with open(folder / "starts", "a") as file:
    file.write("x")
while (folder.parent.parent / "wait").exists():
    time.sleep(0.02)
if "--fail" in sys.argv:
    print("something went wrong")
    sys.exit(3)
result = {"value": sys.argv[2], "cores": sorted(os.sched_getaffinity(0))}
(folder / "result.json").write_text(json.dumps(result))
"""
CORES = sorted(cores())
TWO_JOBS = [(0, CORES[0]), (1, CORES[-1])]


@pytest.fixture
def program(tmp_path: Path) -> str:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return str(path)


def cell(program: str, name: str, *args: str, needs: tuple[str, ...] = ()) -> Cell:
    args = (f"{grid.ROOT}/{name}/run", name, *args)
    return Cell(name, (program,), args, ("result.json", "value"), needs)


def starts(root: Path, name: str) -> int:
    path = root / name / "run" / "starts"
    return len(path.read_text()) if path.exists() else 0


def started(root: Path, name: str) -> None:
    limit = time.monotonic() + 30
    while not starts(root, name):
        assert time.monotonic() < limit, "the cell's command did not start"
        time.sleep(0.02)


def in_process(root: Path, program: str, name: str) -> subprocess.Popen:
    """A grid of one cell as a process of its own."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path; from ekg_tf.experiments.tables import grid\n"
        "root, program, name = Path(sys.argv[2]), sys.argv[3], sys.argv[4]\n"
        "args = f'{grid.ROOT}/{name}/run', name\n"
        "grid.run([grid.Cell(name, (program,), args, ('result.json', 'value'))], root)\n"
    )
    arguments = [str(grid.REPOSITORY), str(root), program, name]
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], start_new_session=True, stderr=subprocess.PIPE
    )


def test_order_puts_needed_cells_first_and_drops_repetitions():
    one = Cell("one", ("a",), (), ("r", "k"))
    two = Cell("two", ("a",), (), ("r", "k"), needs=("one",))
    three = Cell("three", ("a",), (), ("r", "k"), needs=("two",))
    assert [c.name for c in grid.ordered([three, one, two, two])] == ["one", "two", "three"]


def test_finished_cells_are_skipped(tmp_path, program, capsys):
    root = tmp_path / "grid"
    cells = [cell(program, "one"), cell(program, "two", needs=("one",))]
    assert grid.run(cells[:1], root) == []
    assert cells[0].read(root)["value"] == "one" and cells[1].read(root) is None
    capsys.readouterr()
    grid.show(cells, root, grid.Slot(("--gpu_id", "1")))
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("finished: one: python ")
    assert said[1].startswith("to run: two: ") and f"{root}/two/run two --gpu_id 1" in said[1]
    calls = []
    assert grid.run(cells, root, after_each=lambda: calls.append(1)) == []
    assert [starts(root, name) for name in ("one", "two")] == [1, 1] and calls == [1]


def test_a_failure_stops_only_what_needs_it(tmp_path, program, capsys):
    root = tmp_path / "grid"
    cells = [
        cell(program, "bad", "--fail"),
        cell(program, "child", needs=("bad",)),
        cell(program, "good"),
    ]
    failures = grid.run(cells, root)
    assert len(failures) == 2 and cells[2].read(root)["value"] == "good"
    assert "exit code 3" in failures[0] and "something went wrong" in failures[0]
    assert failures[1] == "child needs bad, which failed" and starts(root, "child") == 0
    assert "FAILED: bad" in capsys.readouterr().out


def test_cells_run_side_by_side_on_cores_of_their_own(tmp_path, program):
    """The third needs the first, so that the fourth overtakes it."""
    root = tmp_path / "grid"
    root.mkdir()
    (root / "wait").touch()
    child = cell(program, "child", needs=("one",))
    cells = [cell(program, "one"), child, cell(program, "two")]
    seen = []

    def release():
        for name in ("one", "two"):
            started(root, name)
        seen.append(starts(root, "child"))
        (root / "wait").unlink()

    releasing = threading.Thread(target=release)
    releasing.start()
    places = [grid.Slot(("--job", str(job)), frozenset([core])) for job, core in TWO_JOBS]
    assert grid.run(cells, root, places=places) == []
    releasing.join()
    assert seen == [0] and all(one.read(root) for one in cells)
    told = {name: read_json(root / name / "run" / "result.json") for name in ("one", "two")}
    assert [told["one"]["cores"], told["two"]["cores"]] == [[core] for _, core in TWO_JOBS]


def test_devices_and_cores_are_shared_out(monkeypatch):
    monkeypatch.setattr(grid, "cores", lambda: {0, 1, 2, 3, 4})
    assert (
        grid.slots([0, 1], 1)[0].flags == ("--gpu_id", "0,1") and grid.slots(None, 1)[0].flags == ()
    )
    two = grid.slots([0, 1, 2, 3], 2)
    assert [one.flags[1] for one in two] == ["0,2", "1,3"]
    assert [one.cores for one in two] == [{0, 2, 4}, {1, 3}]
    assert [one.flags[1] for one in grid.slots([], 3)] == ["cpu"] * 3
    for gpu_id, jobs, message in (
        ([0], 2, "--jobs 2 is more than the 1 GPUs"),
        ([], 6, "more than the 5 CPU cores"),
        (None, 2, "give --gpu_id"),
    ):
        with pytest.raises(UserError, match=message):
            grid.slots(gpu_id, jobs)


def test_a_result_of_another_command_is_refused(tmp_path, program):
    root = tmp_path / "grid"
    grid.run([cell(program, "one", "--epochs", "3")], root)
    with pytest.raises(UserError, match=r"another command \(3; now 5\): give another --train_path"):
        grid.run([cell(program, "one", "--epochs", "5")], root)
    (root / "one" / grid.COMMAND).unlink()
    with pytest.raises(UserError, match=r"one holds a result that no grid has made .* delete the"):
        grid.run([cell(program, "one", "--epochs", "3")], root)
    assert starts(root, "one") == 1


@pytest.mark.parametrize("text", ['{"other": 1}', '{"value": {}}'])
def test_a_result_with_nothing_under_its_key_is_not_finished(tmp_path, program, text):
    root = tmp_path / "grid"
    one = cell(program, "one")
    one.claim(root)
    (one.run(root) / "result.json").write_text(text)
    assert one.read(root) is None
    assert grid.run([one], root) == [] and one.read(root)["value"] == "one"


def test_killed_grid_goes_on(tmp_path, program):
    root = tmp_path / "grid"
    (tmp_path / "grid").mkdir()
    (root / "wait").touch()
    process = in_process(root, program, "one")
    started(root, "one")
    os.killpg(process.pid, signal.SIGKILL)  # the grid and its command
    process.communicate()
    (root / "wait").unlink()
    one = cell(program, "one")
    assert one.read(root) is None
    assert grid.run([one], root) == []
    assert one.read(root)["value"] == "one" and starts(root, "one") == 2


def test_the_next_grid_waits_for_a_command_that_a_killed_one_left(tmp_path, program, capsys):
    root = tmp_path / "grid"
    root.mkdir()
    (root / "wait").touch()
    process = in_process(root, program, "one")
    started(root, "one")
    process.kill()  # the command lives on
    process.communicate()
    release = f"import time, os; time.sleep(0.5); os.unlink({str(root / 'wait')!r})"
    releasing = subprocess.Popen([sys.executable, "-c", release])
    assert grid.run([cell(program, "one")], root) == []
    releasing.wait()
    assert "waiting for other grids" in capsys.readouterr().out
    assert starts(root, "one") == 1


def test_two_grids_share_out_the_cells(tmp_path, program, capsys, monkeypatch):
    """Each cell runs once, as a command of its own even where the grid is a task of many."""
    monkeypatch.setattr(grid, "OTHERS_SECONDS", 0.05)
    monkeypatch.setenv("SLURM_PROCID", "1")
    root = tmp_path / "grid"
    root.mkdir()
    (root / "wait").touch()
    other = in_process(root, program, "one")
    started(root, "one")
    code = (
        PROGRAM
        + "assert 'SLURM_PROCID' not in os.environ\nos.unlink(folder.parent.parent / 'wait')"
    )
    (tmp_path / "second.py").write_text(code.replace('wait").exists()', 'nothing").exists()'))
    cells = [cell(program, "one"), cell(str(tmp_path / "second.py"), "two")]
    assert grid.run(cells, root) == []
    assert [starts(root, name) for name in ("one", "two")] == [1, 1]
    said = capsys.readouterr().out
    assert "two: python" in said and "one: python" not in said
    other.communicate(timeout=30)


def test_what_others_of_a_kind_took_is_said_before_a_cell(tmp_path, program, capsys):
    root = tmp_path / "grid"
    cells = [cell(program, "tune_0.5_seed0"), cell(program, "tune_0.3_seed12")]
    assert grid.expected(cells[0], root) == ""
    assert grid.run(cells, root) == []
    lines = [line for line in capsys.readouterr().out.splitlines() if ": python " in line]
    assert lines[0].startswith("tune_0.5_seed0: python")
    assert lines[1].startswith("tune_0.3_seed12 (about ") and " s): python " in lines[1]
    other = cell(program, "search_0.5_seed0")
    assert grid.expected(other, root) == ""
    other.claim(root)
    (other.folder(root) / "log.txt").touch()  # of a process that was killed
    assert grid.run([other], root) == []
    assert grid.expected(other, root) == "", "it hasn't been timed from its beginning"


def test_no_cell_is_begun_after_its_time(tmp_path, program, capsys):
    root = tmp_path / "grid"
    cells = [cell(program, "one"), cell(program, "two", needs=("one",))]
    assert grid.run(cells, root, seconds=0.0) == []
    assert starts(root, "one") == starts(root, "two") == 0
    assert "time is over, not begun: one, two" in capsys.readouterr().out


def test_a_terminated_grid_takes_its_command_along(tmp_path, program):
    root = tmp_path / "grid"
    root.mkdir()
    (root / "wait").touch()
    process = in_process(root, program, "one")
    started(root, "one")
    process.terminate()
    _, said = process.communicate(timeout=30)
    assert process.returncode != 0 and b"KeyboardInterrupt" in said
    (root / "wait").unlink()
    time.sleep(0.2)
    assert cell(program, "one").read(root) is None  # the command would have written it by now
