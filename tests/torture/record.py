"""Figures of the torture tests, kept in a file if one is asked for by --torture_results."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest
from ekg_tf.utils.jsonl import read_json, write_json
from ekg_tf.utils.provenance import versions


def note(config: pytest.Config, kind: str, name: str, figures: dict[str, Any]) -> None:
    """Adds the figures of one test to those of its kind in the file."""
    given = config.getoption("--torture_results")
    if not given:
        return
    path = Path(given)
    content = read_json(path) if path.exists() else {}
    part = content.setdefault(kind, {"runs": {}})
    part["date"] = datetime.date.today().isoformat()
    part["versions"] = {
        key: value for key, value in versions().items() if key not in ("program", "platform")
    }
    part["runs"][name] = figures
    write_json(path, content)
