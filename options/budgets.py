"""What a search has to save, and how much of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..utils.errors import UserError
from .fields import Options, setting, share

ROUND_TO = (1, 4, 8, 16)
RATE = 0.5


@dataclass(frozen=True)
class Budget(Options):
    """A share of the whole network that may remain; `Flops`, `Parameters` or `Latency`.

    A rate of None is RATE, or none at all where something else ends the search
    (`options.search.SearchOptions`).

    Raises:
        UserError: a value out of bounds, or a rate to keep that lies below the search's end.
    """

    name: ClassVar[str]
    label: ClassVar[str]

    rate: float | None = share(
        None,
        flag="search_target_rate",
        help="share of the budget that remains",
        shown=f"the smallest of --budgets, or {RATE}; none with --max_drop",
    )
    keep: tuple[float, ...] = share(
        (),
        flag="budgets",
        spaced=True,
        help="write the network at each of these rates on the way as well",
    )
    round_to: int = setting(
        1,
        flag="round_to",
        choices=ROUND_TO,
        help="kept widths are multiples of this where a group has that many filters",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rate is not None and self.keep and min(self.keep) < self.rate:
            raise UserError(
                f"the rate {min(self.keep):g} to keep on the way lies below {self.rate:g}, where "
                "the search ends"
            )
        object.__setattr__(self, "keep", tuple(sorted(set(self.keep), reverse=True)))

    @property
    def goal(self) -> float:
        """The rate at which the search ends; 0: at none."""
        return 0.0 if self.rate is None else self.rate

    def flags(self) -> dict[str, Any]:
        """As `Options.flags`, with --budget."""
        return super().flags() | {"budget": self.name}


@dataclass(frozen=True)
class Flops(Budget):
    """Multiply-accumulates for one example."""

    name: ClassVar[str] = "flops"
    label: ClassVar[str] = "FLOPs"


@dataclass(frozen=True)
class Parameters(Budget):
    """Parameters, moving statistics among them."""

    name: ClassVar[str] = "params"
    label: ClassVar[str] = "parameters"


@dataclass(frozen=True)
class Latency(Budget):
    """Latency, measured here in turn with the unpruned network."""

    name: ClassVar[str] = "latency"
    label: ClassVar[str] = "latency"

    batch: int = setting(
        1, flag="latency_batch", least=1, help="images per pass that the latency is measured at"
    )


BUDGETS: dict[str, type[Budget]] = {one.name: one for one in (Flops, Parameters, Latency)}
LABELS = {name: one.label for name, one in BUDGETS.items()}
