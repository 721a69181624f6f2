"""Which devices a run uses. TensorFlow is imported inside the functions."""

from __future__ import annotations

import argparse
import functools
import importlib
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import cluster, progress
from .errors import UserError
from .provenance import cpu_count, in_cores

if TYPE_CHECKING:
    import tensorflow as tf

VAL_BATCH_IMAGES = 256
_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


def import_tensorflow() -> None:
    """Imports TensorFlow with oneDNN's CPU kernels, and hides its own start-up lines.

    Call it before any other import of TensorFlow, which on its own takes oneDNN only where it
    finds instructions made for neural networks; a search gains elsewhere, too
    (docs/performance.md). A TF_ENABLE_ONEDNN_OPTS or TF_CPP_MIN_LOG_LEVEL that the user has
    set is kept; log levels 0 and 1 show all lines.

    Raises:
        UserError: Keras runs on another backend.
    """
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    # On several machines TensorFlow writes a page when one of them ends; we say it in a line.
    several = "TF_CONFIG" in os.environ or "SLURM_PROCID" in os.environ
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3" if several else "2")
    for name in ("absl", "tensorflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with hold_stderr(), progress.doing("loading TensorFlow", after=3):
        importlib.import_module("tensorflow")
        backend = importlib.import_module("keras").backend.backend()
    if backend != "tensorflow":
        raise UserError(
            f"Keras runs on {backend} here: set KERAS_BACKEND=tensorflow in the environment before "
            "keras is imported; a network saved as .keras opens on every backend"
        )


@contextmanager
def full_float32() -> Iterator[None]:
    """Products of float32 numbers as float32, for what is compared; also a decorator.

    GPUs since Ampere round the factors of a product to 10 bits of mantissa (TF32), TensorFlow's
    default. Two networks that are equal then differ by a thousandth of their outputs.
    """
    import tensorflow as tf

    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(before)


@contextmanager
def hold_stderr() -> Iterator[list[str]]:
    """Keeps what is written to file descriptor 2; appends it to the list, or shows it on failure.

    Needed beside the log level, because TensorFlow's lines about absent CUDA drivers come before
    its logging looks at the level.
    """
    held: list[str] = []
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "0") in ("0", "1"):
        yield held
        return
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        failed = True
        try:
            yield held
            failed = False
        except KeyboardInterrupt:
            failed = False  # what TensorFlow says of it helps nobody
            raise
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
            file.seek(0)
            held.append(file.read().decode(errors="replace"))
            if failed:
                sys.stderr.write(held[-1])


def gpu_ids(text: str) -> list[int]:
    """argparse type: "0" -> [0], "0,1" -> [0, 1], "cpu" -> [] (no GPU is used)."""
    if text.strip().lower() == "cpu":
        return []
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of GPU numbers such as 0 or 0,1")
    ids = [int(part) for part in parts]
    if len(set(ids)) < len(ids):
        raise argparse.ArgumentTypeError(f"{text!r} names a GPU twice")
    return ids


def choose(gpu_ids: list[int], *, machines: bool = False) -> tf.distribute.Strategy:
    """The strategy over the given GPUs, or over the CPU when the machine has none.

    Only these GPUs become visible, with memory growth; call it before anything is computed.
    One device gets TensorFlow's default strategy (no copies, no all-reduce), several a
    MirroredStrategy. With `machines`, where the environment names a cluster, it joins that
    (`utils.cluster`) and gives a MultiWorkerMirroredStrategy. Raises UserError for GPUs that are
    not there, or a cluster that can't be one.
    """
    import tensorflow as tf

    with hold_stderr() as held:
        gpus = tf.config.list_physical_devices("GPU")
    if not gpus and _NVIDIA_DRIVER.exists():
        sys.stderr.write("".join(held))  # why TensorFlow cannot use the GPU that is there
    if not gpus or not gpu_ids:
        reason = "" if gpus else "no GPU found: "
        tf.config.set_visible_devices([], "GPU")
        progress.say(f"{reason}running on the CPU ({in_cores(cpu_count())})")
        return _over_machines() if machines and cluster.named() else tf.distribute.get_strategy()
    unknown = [str(number) for number in gpu_ids if number >= len(gpus)]
    if unknown:
        there = ", ".join(map(str, range(len(gpus))))
        raise UserError(f"there is no GPU {', '.join(unknown)} here, choose from {there}")
    chosen = [gpus[number] for number in gpu_ids]
    tf.config.set_visible_devices(chosen, "GPU")
    for gpu in chosen:
        tf.config.experimental.set_memory_growth(gpu, True)
    _warn_of_missing_kernels(chosen)
    if machines and cluster.named():
        return _over_machines()
    if len(chosen) == 1:
        return tf.distribute.get_strategy()
    # once chosen, visible GPUs are counted from 0 again
    return tf.distribute.MirroredStrategy([f"GPU:{number}" for number in range(len(chosen))])


@functools.cache  # TensorFlow connects a process with the others once
def _over_machines() -> tf.distribute.Strategy:
    """The strategy over the visible devices of all machines, which are waited for."""
    import tensorflow as tf

    found = cluster.resolver()
    spec = found.cluster_spec()
    others = sum(spec.num_tasks(job) for job in spec.jobs) - 1
    own = spec.task_address(found.task_type, found.task_id)
    progress.say(f"this is {own}: waiting for {others} other machine(s)")
    strategy = tf.distribute.MultiWorkerMirroredStrategy(found)
    cluster.join(found)
    # Every step takes as many batches as were counted before: nothing to agree on in each.
    strategy.extended.experimental_enable_get_next_as_optional = False
    devices = len(strategy.extended.worker_devices)
    counts = [int(one[0]) for one in cluster.collected([np.array(devices)])]
    if len(set(counts)) > 1:
        raise UserError(
            f"the machines have {', '.join(map(str, counts))} devices: all need the same number, "
            "choose them by --gpu_id"
        )
    place = f"machine {cluster.rank() + 1} of {cluster.size()}, {devices} device(s) on each"
    if cluster.is_chief():
        progress.say(f"{place}: this one writes the run folder")
    else:
        progress.say(f"{place}: the first one shows how the run goes")
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)
    return strategy


def _warn_of_missing_kernels(gpus: list[tf.config.PhysicalDevice]) -> None:
    import tensorflow as tf

    for gpu in gpus:
        details = tf.config.experimental.get_device_details(gpu)
        major, minor = details.get("compute_capability") or (0, 0)
        if major == 12:
            progress.warn(
                f"{details.get('device_name', 'the GPU')} has compute capability "
                f"{major}.{minor}, for which the TensorFlow 2.21 wheels hold no kernels: use "
                "NVIDIA's TensorFlow container, or switch XLA off (compile)"
            )
            return


@dataclass(frozen=True)
class Device:
    """Where and how steps run and are measured.

    Attributes:
        strategy: of training. compile: XLA. val_batch_images: examples per evaluation batch.
        deployed_latency: whether latencies are measured in LiteRT or ONNX Runtime as well.
    """

    strategy: tf.distribute.Strategy
    compile: bool
    val_batch_images: int = VAL_BATCH_IMAGES
    deployed_latency: bool = True


def make(
    strategy: tf.distribute.Strategy,
    compile: bool | None = None,
    *,
    val_batch_images: int = VAL_BATCH_IMAGES,
    deployed_latency: bool = True,
) -> Device:
    """A `Device` of a strategy; `compile` None: XLA where there is a visible GPU.

    Raises:
        UserError: a strategy over machines that `choose` hasn't made.
    """
    import tensorflow as tf

    several = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
    if several and cluster.size() == 1:
        raise UserError(
            "a MultiWorkerMirroredStrategy of your own can't be used here: on several machines use "
            "the commands (docs/machines.md)"
        )
    on_gpu = bool(tf.config.get_visible_devices("GPU"))
    chosen = on_gpu if compile is None else compile
    return Device(strategy, chosen, val_batch_images, deployed_latency)
