"""All that a search needs to know."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .budgets import Budget, Flops
from .data import Sampling
from .methods import EKG, Method


@dataclass(frozen=True)
class SearchOptions:
    """Budget, method and examples of a search."""

    budget: Budget = field(default_factory=Flops)
    method: Method = field(default_factory=EKG)
    sampling: Sampling = field(default_factory=Sampling)

    def flags(self) -> dict[str, Any]:
        """{flag: value} of all three."""
        return self.budget.flags() | self.method.flags() | self.sampling.flags()
