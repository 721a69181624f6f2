"""Which devices a run uses, and what TensorFlow may print at its start."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from ekg_tf.nets import proof
from ekg_tf.utils import devices
from ekg_tf.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


class FakeConfig:
    """Stands for tf.config on a machine with GPUs."""

    def __init__(self, monkeypatch, count, capability=(9, 0)):
        self.visible, self.growth = None, []
        gpus = [f"gpu{n}" for n in range(count)]
        detail = {"device_name": "Some GPU", "compute_capability": capability}
        for name, fake in {
            "list_physical_devices": lambda kind: gpus,
            "set_visible_devices": lambda chosen, kind: setattr(self, "visible", chosen),
        }.items():
            monkeypatch.setattr(tf.config, name, fake)
        experimental = tf.config.experimental
        monkeypatch.setattr(experimental, "get_device_details", lambda gpu: detail)
        monkeypatch.setattr(
            experimental, "set_memory_growth", lambda gpu, on: self.growth.append((gpu, on))
        )
        monkeypatch.setattr(tf.distribute, "MirroredStrategy", lambda names: names)


def test_networks_are_compared_in_full_float32():
    """TF32 changes outputs by a thousandth: on newer GPUs equal networks would be refused."""
    seen = []

    def network(x):
        seen.append(tf.config.experimental.tensor_float_32_execution_enabled())
        return x

    before = tf.config.experimental.tensor_float_32_execution_enabled()
    proof.difference(network, network, np.ones((2, 3), np.float32))
    assert seen == [False] * 3
    assert tf.config.experimental.tensor_float_32_execution_enabled() == before


def test_no_gpu_runs_on_the_cpu(monkeypatch, capsys):
    FakeConfig(monkeypatch, 0)
    assert devices.choose([0]).num_replicas_in_sync == 1
    line = capsys.readouterr().out
    assert line.startswith("no GPU found: running on the CPU (") and line.count("\n") == 1


def test_one_gpu_is_the_only_visible_one(monkeypatch):
    config = FakeConfig(monkeypatch, 4)
    assert devices.choose([2]) is tf.distribute.get_strategy()
    assert config.visible == ["gpu2"] and config.growth == [("gpu2", True)]


def test_several_gpus_are_mirrored(monkeypatch):
    config = FakeConfig(monkeypatch, 4)
    assert devices.choose([1, 3]) == ["GPU:0", "GPU:1"]
    assert config.visible == ["gpu1", "gpu3"]


def test_the_cpu_can_be_asked_for(monkeypatch, capsys):
    config = FakeConfig(monkeypatch, 1)
    assert devices.choose([]) is tf.distribute.get_strategy()
    assert config.visible == []
    assert "no GPU found" not in capsys.readouterr().out


def test_unknown_gpu_lists_those_there_are(monkeypatch):
    FakeConfig(monkeypatch, 2)
    with pytest.raises(UserError, match="no GPU 5 here, choose from 0, 1"):
        devices.choose([0, 5])


def test_compute_capability_12_is_warned_of_once(monkeypatch, capsys):
    FakeConfig(monkeypatch, 2, capability=(12, 0))
    devices.choose([0, 1])
    assert capsys.readouterr().out.count("warning:") == 1


@pytest.mark.parametrize(
    ("name", "users", "ours"),
    [("TF_CPP_MIN_LOG_LEVEL", "0", "2"), ("TF_ENABLE_ONEDNN_OPTS", "0", "1")],
)
def test_what_the_user_sets_for_tensorflow_is_kept(monkeypatch, name, users, ours):
    monkeypatch.setenv(name, users)
    devices.import_tensorflow()
    assert os.environ[name] == users
    monkeypatch.delenv(name)
    devices.import_tensorflow()
    assert os.environ[name] == ours


def test_another_backend_is_refused_with_the_way_out(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(UserError, match=r"Keras runs on jax here: set KERAS_BACKEND=tensorflow"):
        devices.import_tensorflow()


def test_programs_run_on_tensorflow_whatever_the_environment_says():
    environment = os.environ | {"KERAS_BACKEND": "torch"}
    command = [sys.executable, "-m", "ekg_tf", "inspect", "applications:MobileNet"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "prunable" in done.stdout, done.stderr


def test_held_lines_come_back_on_failure_only(monkeypatch, capfd):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "2")
    with devices.hold_stderr() as held:
        os.write(2, b"noise\n")
    assert held == ["noise\n"] and capfd.readouterr().err == ""
    with pytest.raises(RuntimeError), devices.hold_stderr():
        os.write(2, b"the reason\n")
        raise RuntimeError
    assert capfd.readouterr().err == "the reason\n"
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "0")
    with devices.hold_stderr():
        os.write(2, b"asked for\n")
    assert capfd.readouterr().err == "asked for\n"


def test_only_our_lines_are_seen_at_the_start():
    script = "from ekg_tf.utils import devices\ndevices.import_tensorflow()\ndevices.choose([])\n"
    environment = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0 and result.stderr == ""
    first, *ours = result.stdout.splitlines()[::-1]
    assert first.startswith("no GPU found: running on the CPU")
    assert ours in ([], ["loading TensorFlow"])  # said where it takes seconds
