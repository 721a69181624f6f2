"""All that a search needs to know."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from .budgets import RATE, Budget, Flops
from .control import Control
from .data import Sampling
from .methods import EKG, Method


def with_rate(budget: Budget, control: Control) -> Budget:
    """The budget with the usual rate where nothing else ends the search.

    Raises:
        UserError: a rate to keep on the way lies below it.
    """
    if budget.rate is None and control.max_drop is None:
        return replace(budget, rate=RATE)
    return budget


@dataclass(frozen=True)
class SearchOptions:
    """Budget, method, examples and limits of a search."""

    budget: Budget = field(default_factory=Flops)
    method: Method = field(default_factory=EKG)
    sampling: Sampling = field(default_factory=Sampling)
    control: Control = field(default_factory=Control)

    def __post_init__(self) -> None:
        object.__setattr__(self, "budget", with_rate(self.budget, self.control))

    def flags(self) -> dict[str, Any]:
        """{flag: value} of all four."""
        parts = (self.budget, self.method, self.sampling, self.control)
        return {flag: value for part in parts for flag, value in part.flags().items()}
