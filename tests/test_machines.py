"""Several machines: workers on the loopback against one process (utils/cluster.py)."""

import json
import signal
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from ekg_tf.pages import machines as page
from ekg_tf.utils import cluster, devices
from ekg_tf.utils.errors import UserError
from ekg_tf.utils.jsonl import read_json, read_rows

from tests.helpers.machines import ROOT, ends, start
from tests.helpers.replicas import two_replicas

# ---------------------------------------------------------------- without a cluster


def test_alone_nothing_is_sent():
    array = np.arange(3)
    assert (cluster.size(), cluster.rank(), cluster.is_chief()) == (1, 0, True)
    assert cluster.agreed(array) is array
    assert cluster.shared(3, lambda own: [10 * number for number in own]) == [0, 10, 20]
    assert cluster.collected([array])[0][0] is array
    assert cluster.on_chief(lambda: {"a": (1, 2)}) == {"a": (1, 2)}
    cluster.meet()
    cluster.leave()


@pytest.mark.parametrize(
    "config, problem",
    [
        ("{", "TF_CONFIG is not of the form"),
        ('{"cluster": {"worker": ["a:1", "b:1"]}}', "TF_CONFIG is not of the form"),
        (
            '{"cluster": {"ps": ["a:1"], "worker": ["b:1"]}, "task": {"type": "ps", "index": 0}}',
            "names the job 'ps'",
        ),
        (
            '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 2}}',
            "this is worker 2, which its cluster doesn't have",
        ),
    ],
)
def test_a_wrong_tf_config_is_refused(monkeypatch, config, problem):
    monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(UserError, match=problem):
        cluster.named()


def test_a_cluster_of_one_machine_is_none(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    assert not cluster.named()
    one = {"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(one))
    assert not cluster.named()


SLURM = {
    "SLURM_PROCID": "1",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
}


def test_tensorflows_resolver_reads_slurms_environment(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    for name, text in (SLURM | {"SLURMD_NODENAME": "node2"}).items():
        monkeypatch.setenv(name, text)
    assert cluster.named()
    found = cluster.resolver()
    assert found.cluster_spec().as_dict() == {"worker": ["node1:8888", "node2:8888"]}
    assert (found.task_type, found.task_id) == ("worker", 1)
    monkeypatch.setenv("SLURMD_NODENAME", "node1")
    with pytest.raises(UserError, match="SLURM runs task 1 on node1, where TensorFlow's resolver"):
        cluster.resolver()


def test_the_page_shows_the_model_on_paper():
    document = (ROOT / "docs" / "machines.md").read_text(encoding="utf-8")
    assert page.page() in document
    of = page.Assumptions()
    assert page.bank_hours(8, of) == pytest.approx(page.bank_hours(1, of) / 8)
    assert page.tuning_hours(1, of) / 8 < page.tuning_hours(8, of) < page.tuning_hours(1, of)


def test_a_strategy_of_ones_own_over_machines_is_refused():
    given = object.__new__(tf.distribute.MultiWorkerMirroredStrategy)  # without a cluster
    with pytest.raises(UserError, match="on several machines use the commands"):
        devices.make(given)


# ---------------------------------------------------------------- two workers

PRIMITIVES = """
import pathlib
from ekg_tf.utils import runfolder, shared_folder


def folders(rank):
    shared_folder._SEEN_SECONDS = 0.5
    cases = ((f"other{rank}", 0, "is not the folder"), ("same", rank, "other settings"))
    for path, seed, problem in cases:
        try:
            runfolder.RunFolder.open(path, {"seed": seed})
        except UserError as error:
            assert problem in str(error)
        else:
            raise AssertionError("nothing was refused")
        assert not pathlib.Path(path).exists()
    shared_folder._SEEN_SECONDS = 60
    with runfolder.RunFolder.open("same", {"seed": 0}) as folder:
        said = '{"before": %d, "after": 0}'
        path = folder.write("result.json", lambda path: path.write_text(said % rank))
        assert path.read_text() == said % 0 and folder.finished
        assert folder.read_json("result.json") == {"before": 0, "after": 0}
        row = {"phase": "baseline", "epoch": 1, "seconds": rank}
        folder.append("metrics.jsonl", row)
        assert folder.rows("metrics.jsonl") == [row | {"seconds": 0}]
        cluster.meet()
        assert (path.parent / "metrics.jsonl").read_text().count("phase") == 1


def main(argv):
    devices.import_tensorflow()
    devices.choose([], machines=True)
    rank = cluster.rank()
    assert (cluster.size(), cluster.is_chief()) == (2, rank == 0)
    assert cluster.agreed(np.arange(3.0) + rank, owner=1).tolist() == [1, 2, 3]
    two = cluster.agreed((np.array([rank]), np.array("text")))
    assert two[0].tolist() == [0] and str(two[1]) == "text"
    assert [len(one) for one in cluster.collected([np.zeros(2)] * rank)] == [0, 1]
    assert cluster.summed(np.array([1.0, rank])).tolist() == [2, 1]
    done = []
    found = cluster.shared(5, lambda own: [done.append(n) or np.array(10 * n) for n in own])
    assert [int(one) for one in found] == [0, 10, 20, 30, 40] and done == [[0, 2, 4], [1, 3]][rank]
    calls = []
    assert cluster.on_chief(lambda: calls.append(1) or cluster.size()) == 1  # alone meanwhile
    assert len(calls) == (rank == 0)
    for fails in (0, 1):
        def check():
            if rank == fails:
                raise UserError("no")
        try:
            cluster.together(check)
        except UserError as error:
            assert str(error).endswith("no") and (str(error) == "no") == (rank == fails)
        else:
            raise AssertionError("nothing was refused")
    try:
        cluster.on_chief(lambda: int("x") if False else (_ for _ in ()).throw(UserError("full")))
    except UserError as error:
        assert str(error) == "full"
    folders(rank)
    print("kept what it should", file=sys.stderr)
    if "--kill" in argv and rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if "--kill" in argv:
        import time
        time.sleep(120)  # it computes, and asks for nothing

manners.run(lambda _: main(sys.argv[1:]))
"""


def test_two_workers_agree_and_end_together(tmp_path):
    for code, said, errors in ends(start(PRIMITIVES, 2, tmp_path), 240):
        assert code == 0 and "kept what it should" in errors, errors
        assert "machine" in said


def test_a_killed_worker_ends_the_other_in_one_line(tmp_path):
    first, second = ends(start(PRIMITIVES, 2, tmp_path, "--kill"), 240)
    assert second[0] == -signal.SIGKILL
    assert first[0] == 2
    lines = [line for line in first[2].splitlines() if line.startswith("error: ")]
    assert lines == [f"error: {cluster.LOST}"] and "Traceback" not in first[2]


# ---------------------------------------------------------------- whole runs

COMMANDS = """
from ekg_tf import finetune, search

def main(argv):
    ways = json.loads(argv[0])
    for module, arguments in zip((search, finetune), ways):
        module.main(arguments)

import json
manners.run(lambda _: main(sys.argv[1:]))
"""
SEARCH = ["--dataset", "DIGITS", "--search_target_rate", "0.6", "--do_log", "off"]
TUNING = ["--train_epoch", "2", "--batch_size", "96", "--do_log", "off"]


def tiny(path: Path) -> str:
    """A small trained network with a residual sum, in a file."""
    keras.utils.set_random_seed(1)
    x = inputs = keras.Input([8, 8, 1])
    for filters in (8, 8, 12):
        y = keras.layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        y = keras.layers.ReLU()(keras.layers.BatchNormalization()(y))
        x = keras.layers.Add()([x, y]) if x.shape[-1] == filters else y
    outputs = keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x))
    keras.Model(inputs, outputs).save(path)
    return str(path)


def commands(root: Path, model: str) -> list[list[str]]:
    run = ["--train_path", str(root)]
    return [["--model", model, *SEARCH, *run], [*TUNING, *run]]


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_several_workers_equal_one_process(tmp_path, monkeypatch, count):
    """The search one process on one device, the fine-tuning two replicas of one process."""
    from ekg_tf import finetune, search

    model = tiny(tmp_path / "tiny.keras")
    shared = tmp_path / "shared"
    ways = commands(shared, model)
    for code, _, errors in ends(start(COMMANDS, count, tmp_path, json.dumps(ways)), 900):
        assert code == 0, errors
    alone = tmp_path / "alone"
    ways = commands(alone, model)
    search.main(ways[0])
    assert_same_search(shared, alone)
    if count == 2:
        monkeypatch.setattr(devices, "choose", lambda ids, machines=False: two_replicas())
        finetune.main(ways[1])
        assert_same_tuning(shared, alone)


def assert_same_search(shared: Path, alone: Path) -> None:
    rows, expected = (read_rows(one / "history.jsonl") for one in (shared, alone))
    assert len(rows) == len(expected) > 3
    for one, other in zip(rows, expected, strict=True):
        assert one["removed_units"] == other["removed_units"]
        assert one["val_loss"] == pytest.approx(other["val_loss"], rel=1e-5)
    banks = [np.load(one / "bank.npy").astype(np.float32) for one in (shared, alone)]
    np.testing.assert_allclose(*banks, atol=2e-2)  # float16 of equal numbers up to rounding
    ours, theirs = (read_json(one / "search.json")["test"]["after"] for one in (shared, alone))
    assert ours == pytest.approx(theirs, rel=1e-4)


def assert_same_tuning(shared: Path, alone: Path) -> None:
    rows, expected = (read_rows(one / "metrics.jsonl") for one in (shared, alone))
    assert len(rows) == len(expected) == 2
    for one, other in zip(rows, expected, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
    nets = [keras.models.load_model(one / "pruned.keras") for one in (shared, alone)]
    for one, other in zip(*(net.get_weights() for net in nets), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
