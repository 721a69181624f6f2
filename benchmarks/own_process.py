"""A measurement in a process of its own, whose memory is its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

from ..utils.errors import UserError


def in_own_process(benchmark: str, settings: Iterable[Any], what: str) -> dict[str, Any]:
    """Runs a benchmark of this folder that prints its figures as JSON in its last line.

    Args:
        settings: words of its command line. what: is measured, for the message.

    Raises:
        UserError: it failed.
    """
    command = [sys.executable, "-m", f"ekg_tf.benchmarks.{benchmark}", *map(str, settings)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise UserError(f"{what} failed: {done.stdout[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])
