"""Shared by all tests: two logical CPU devices, seeds, the real data and an undisturbed run."""

from __future__ import annotations

import fcntl
import gc
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytest.register_assert_rewrite("tests.helpers")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as utils.devices.import_tensorflow
os.environ.setdefault("MPLBACKEND", "Agg")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of tests/torture."""
    group = parser.getgroup("torture")
    group.addoption("--kills", type=int, default=4, help="of each method, in the kill storm")
    group.addoption("--torture_seed", type=int, default=0, help="of the kills' moments")
    group.addoption("--torture_results", help="JSON file that the figures are added to")


def pytest_configure(config: pytest.Config) -> None:
    """Splits the CPU in two, which must happen before TensorFlow computes anything."""
    import tensorflow as tf

    cpus = tf.config.list_physical_devices("CPU")
    halves = [tf.config.LogicalDeviceConfiguration(), tf.config.LogicalDeviceConfiguration()]
    tf.config.set_logical_device_configuration(cpus[0], halves)


@pytest.fixture(scope="module", autouse=True)
def _small_heap() -> Iterator[None]:
    """What the files before have left isn't looked through by every collection of garbage: it was a
    tenth of the time."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeds() -> None:
    import keras

    keras.utils.set_random_seed(0)


@pytest.fixture
def real_pictures() -> None:
    """For tests of report.html's own pictures, see `_quick_reports`."""


@pytest.fixture(autouse=True)
def _quick_reports(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in this process write their report.html without drawing, which takes seconds a time."""
    if "real_pictures" in request.fixturenames:
        return
    from ekg_tf.reports.page import interactive, static

    monkeypatch.setattr(static, "picture", lambda chart: "data:,")
    monkeypatch.setattr(interactive, "script", lambda: None)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the repository; tests that need it are skipped without."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the real data is not there: {folder}")
    return folder


@pytest.fixture(scope="session")
def res56_pkl(shared_data: Path) -> Path:
    """The ResNet-56 trained on CIFAR-10 by the paper's authors."""
    path = shared_data / "res56_cifar10.pkl"
    if not path.is_file():
        pytest.skip(f"the trained network is not there: {path}")
    return path


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing disturbed; report.txt beside it is what it printed.

    One for all workers of pytest-xdist: the first that comes makes it, the others wait.
    """
    from tests.helpers.runs import ARGUMENTS, command, run

    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    folder, report = root / "finished" / "run", root / "finished" / "report.txt"
    with open(root / "finished.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not report.exists():
            result = run(command("train_cifar.py", folder, *ARGUMENTS))
            report.write_text(result.stdout)
    return folder


@pytest.fixture(scope="session", autouse=True)
def _quick_latency() -> Iterator[None]:
    """Runs in this process measure no longer than they must; the programs do for 4 seconds."""
    from ekg_tf.reports import networks as measure
    from ekg_tf.training import latency

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "timings", partial(latency.timings, seconds=0.0))
        patch.setattr(measure, "compared", lambda before, after: None)
        yield
