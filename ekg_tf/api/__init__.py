"""The public functions; `ekg_tf` gives them by name.

result = prune(model, (x_train, y_train), (x_test, y_test), "run", budget=0.5)
"""

from __future__ import annotations

from ekg_tf.utils import devices, progress

with progress.shown(0):  # a line of ours would be a surprise here
    devices.import_tensorflow()

from .exporting import export
from .inspection import Report, Sensitivity, inspect, register, sensitivity
from .runs import Result, prune, run_finetuning, run_search
from .scored import search_with

__all__ = [
    "Report",
    "Result",
    "Sensitivity",
    "export",
    "inspect",
    "prune",
    "register",
    "run_finetuning",
    "run_search",
    "search_with",
    "sensitivity",
]
