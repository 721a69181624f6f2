"""Workers of a cluster on the loopback, as processes of their own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BEGIN = """
import os, signal, sys
import numpy as np
sys.path.insert(0, {root!r})
from ekg_tf.cli import manners
from ekg_tf.utils import cluster, devices
from ekg_tf.utils.errors import UserError
"""


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on now."""
    found = [socket.socket() for _ in range(count)]
    for one in found:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in found]
    for one in found:
        one.close()
    return ports


def start(code: str, count: int, folder: Path, *args: str) -> list[subprocess.Popen]:
    """`count` workers that run the same code, without GPUs.

    Args:
        code: of a module, after what `BEGIN` imports. folder: where they run.
        args: their sys.argv[1:].
    """
    addresses = [f"127.0.0.1:{port}" for port in free_ports(count)]
    processes = []
    for number in range(count):
        task = {"type": "worker", "index": number}
        config = json.dumps({"cluster": {"worker": addresses}, "task": task})
        environment = os.environ | {"TF_CONFIG": config, "CUDA_VISIBLE_DEVICES": "-1"}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", BEGIN.format(root=str(ROOT)) + code, *args],
                env=environment,
                cwd=folder,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return processes


def ends(processes: list[subprocess.Popen], seconds: float) -> list[tuple[int, str, str]]:
    """(exit code, standard output, errors) of every worker; none of them is left running."""
    try:
        said = [one.communicate(timeout=seconds) for one in processes]
    finally:
        for one in processes:
            one.kill()
    return [(one.returncode, *text) for one, text in zip(processes, said, strict=True)]
