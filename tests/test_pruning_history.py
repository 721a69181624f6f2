"""The search's journal after every kind of sudden death."""

import numpy as np
import pytest
from ekg_tf.nets.graph import ChannelGraph
from ekg_tf.pruning.history import History
from ekg_tf.utils.errors import UserError
from ekg_tf.utils.runfolder import RunFolder

from tests.helpers.networks import residual

SHAPE = (4, 3)
RECORD = 4 * 4 * 3


@pytest.fixture
def folder(tmp_path):
    with RunFolder.open(tmp_path / "run", {"seed": 0}) as folder:
        yield folder


def logits_of(step):
    return (np.arange(12, dtype=np.float32) + 100 * step).reshape(SHAPE)


def row_of(step):
    removed = [] if step == 0 else [step]
    return {"step": step, "removed_units": removed, "val_loss": 0.5}


def written(folder, steps):
    history = History(folder, [SHAPE])
    for step in range(steps):
        history.add(row_of(step), logits_of(step))
    return history


def plain(rows):
    return [{key: value for key, value in row.items() if key != "chain"} for row in rows]


def files(folder):
    return folder.path / "history.jsonl", folder.path / "search_logits.f32"


def assert_goes_on(folder, steps):
    """A new process sees `steps` steps, and what it adds is as if nothing had happened."""
    history = History(folder, [SHAPE])
    assert plain(history.rows) == [row_of(step) for step in range(steps)]
    history.add(row_of(steps), logits_of(steps))
    again = History(folder, [SHAPE])
    assert plain(again.rows) == [row_of(step) for step in range(steps + 1)]
    for step in range(steps + 1):
        np.testing.assert_array_equal(again.outputs(step), logits_of(step))
    rows, records = files(folder)
    assert len(rows.read_text().splitlines()) == steps + 1
    assert records.stat().st_size == (steps + 1) * RECORD


def test_a_new_folder(folder):
    assert_goes_on(folder, 0)


def test_an_unbroken_history(folder):
    history = written(folder, 3)
    assert len(history.rows) == 3
    assert history.outputs(1).dtype == np.float32
    assert_goes_on(folder, 3)


def test_a_torn_row(folder):
    written(folder, 3)
    rows, _ = files(folder)
    rows.write_bytes(rows.read_bytes()[:-7])
    assert_goes_on(folder, 2)


@pytest.mark.parametrize("extra", [1, RECORD, RECORD + 5])
def test_a_record_without_its_row(folder, extra):
    written(folder, 2)
    _, records = files(folder)
    records.write_bytes(records.read_bytes() + b"x" * extra)
    assert_goes_on(folder, 2)


def test_a_first_record_without_its_row(folder):
    folder.file("search_logits.f32").write_bytes(b"x" * RECORD)
    assert_goes_on(folder, 0)


@pytest.mark.parametrize(("lost", "left"), [(1, 2), (RECORD, 2), (RECORD + 1, 1), (3 * RECORD, 0)])
def test_rows_without_their_record(folder, lost, left):
    written(folder, 3)
    _, records = files(folder)
    records.write_bytes(records.read_bytes()[:-lost])
    assert_goes_on(folder, left)


def test_rows_whose_records_are_gone(folder):
    written(folder, 3)
    files(folder)[1].unlink()
    assert_goes_on(folder, 0)


@pytest.mark.parametrize("line", [0, 1, 2])
def test_a_row_that_was_taken_out_or_changed_is_noticed(folder, line):
    written(folder, 4)
    rows, records = files(folder)
    lines, whole = rows.read_text().splitlines(keepends=True), records.read_bytes()
    rows.write_text("".join(lines[:line] + lines[line + 1 :]))
    with pytest.raises(UserError, match=rf"line {line + 1}, .* is not what the search has written"):
        History(folder, [SHAPE])
    rows.write_text("".join(lines).replace("0.5", "0.25"))
    with pytest.raises(UserError, match="line 1,"):
        History(folder, [SHAPE])
    rows.write_text("".join(lines))
    records.write_bytes(whole[: line * RECORD] + bytes(RECORD) + whole[(line + 1) * RECORD :])
    with pytest.raises(UserError, match=f"line {line + 1},"):
        History(folder, [SHAPE])
    records.write_bytes(whole)
    assert_goes_on(folder, 4)


def test_masks_of_the_steps(folder):
    graph = ChannelGraph(residual())
    history = History(folder, [SHAPE])
    for step, units in enumerate([[], [4, 0], [12], [1]]):
        history.add({"step": step, "removed_units": units}, logits_of(step))
    closed = [[], [0, 4], [0, 4, 12], [0, 1, 4, 12]]
    for step, units in enumerate(closed):
        mask = history.mask(graph, step)
        assert np.flatnonzero(mask == 0).tolist() == units
        assert mask.shape == (graph.num_units + 1,)
