"""Structured (filter) pruning for Keras 3 on TensorFlow.

    import ekg_tf as ekg

    print(ekg.inspect(model))
    result = ekg.prune(model, (x_train, y_train), (x_test, y_test), "run", budget=0.5)
    result.model, result.before, result.after

Names are imported when they are first asked for: `import ekg_tf` alone costs no TensorFlow.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

# In a checkout the rooms lie beside this folder, in an installed package inside it.
_BESIDE = Path(__file__).resolve().parent.parent
if not (Path(__file__).resolve().parent / "nets").is_dir():
    __path__.append(str(_BESIDE))

from ekg_tf._version import __version__

if TYPE_CHECKING:
    from ekg_tf.api import (
        Report,
        Result,
        Sensitivity,
        export,
        inspect,
        prune,
        register,
        run_finetuning,
        run_search,
        search_with,
        sensitivity,
    )
    from ekg_tf.options.bank import Bank
    from ekg_tf.options.budgets import Flops, Latency, Parameters
    from ekg_tf.options.data import Data, Sampling
    from ekg_tf.options.finetuning import Contrastive, Ensemble, Hinton, Plain, Single
    from ekg_tf.options.methods import EKG, FFP, SWP, AutoSlim, GlobalThreshold, Uniform
    from ekg_tf.options.training import Training
    from ekg_tf.utils.errors import UserError

_PLACES = {
    "api": "Report Result Sensitivity export inspect prune register run_finetuning run_search "
    "search_with sensitivity",
    "options.bank": "Bank",
    "options.budgets": "Flops Latency Parameters",
    "options.data": "Data Sampling",
    "options.finetuning": "Contrastive Ensemble Hinton Plain Single",
    "options.methods": "EKG FFP SWP AutoSlim GlobalThreshold Uniform",
    "options.training": "Training",
    "utils.errors": "UserError",
}
_PLACE_OF = {name: place for place, names in _PLACES.items() for name in names.split()}

__all__ = [
    "EKG",
    "FFP",
    "SWP",
    "AutoSlim",
    "Bank",
    "Contrastive",
    "Data",
    "Ensemble",
    "Flops",
    "GlobalThreshold",
    "Hinton",
    "Latency",
    "Parameters",
    "Plain",
    "Report",
    "Result",
    "Sampling",
    "Sensitivity",
    "Single",
    "Training",
    "Uniform",
    "UserError",
    "__version__",
    "export",
    "inspect",
    "prune",
    "register",
    "run_finetuning",
    "run_search",
    "search_with",
    "sensitivity",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACE_OF:
        raise AttributeError(f"module 'ekg_tf' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"ekg_tf.{_PLACE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
