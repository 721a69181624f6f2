"""Settings of a search from flat names."""

from typing import Any

from ekg_tf.options.budgets import BUDGETS
from ekg_tf.options.control import Control
from ekg_tf.options.data import Sampling
from ekg_tf.options.fields import Options, settings_of
from ekg_tf.options.methods import METHODS
from ekg_tf.options.search import SearchOptions


def search_options(
    rate: float | None = 0.5, *, method: str = "ekg", budget: str = "flops", **settings: Any
) -> SearchOptions:
    """The settings go to the budget, the sampling, the limits or the method, whichever has them.

    `batch_size` is that of D_val, `supernet_batch_size` that of a supernet's training.
    """
    kinds = BUDGETS[budget], Sampling, Control, METHODS[method]
    budget_part, sampling, control, method_part = (_taken(kind, settings) for kind in kinds)
    if "supernet_batch_size" in settings:
        method_part["batch_size"] = settings.pop("supernet_batch_size")
    assert not settings, f"{method} and {budget} have no {', '.join(settings)}"
    return SearchOptions(
        kinds[0](rate, **budget_part),
        kinds[3](**method_part),
        Sampling(**sampling),
        Control(**control),
    )


def _taken(kind: type[Options], settings: dict[str, Any]) -> dict[str, Any]:
    names = [one.name for one in settings_of(kind) if one.name in settings]
    return {name: settings.pop(name) for name in names}
