"""A search by a function of the user's own that scores networks."""

from __future__ import annotations

from dataclasses import dataclass, field

from .budgets import Budget, Flops
from .control import Control
from .fields import Options, setting, share
from .search import with_rate


@dataclass(frozen=True)
class Scored(Options):
    """Greedy removal by a score of the user's own; no data is looked at."""

    budget: Budget = field(default_factory=Flops)
    control: Control = field(default_factory=Control)
    step: float = share(0.2, help="share of a gate's original width that it offers at a time")
    proposals: int = setting(
        8, least=1, help="networks that are scored in a step at most, the cheapest by weight"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "budget", with_rate(self.budget, self.control))
