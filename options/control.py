"""What a search must leave alone, and how much worse its network may get."""

from __future__ import annotations

from dataclasses import dataclass

from .fields import Options, setting, share


@dataclass(frozen=True)
class Control(Options):
    """Limits of a search (docs/control.md).

    A group of channels that only leave together has one width: a layer that is excluded keeps the
    whole of its group. One pattern may be given as a plain text.
    """

    exclude: tuple[str, ...] = setting(
        (),
        flag="exclude",
        spaced=True,
        help="layers, by name or shell pattern, whose groups keep all their filters",
    )
    min_width: int = setting(
        1, flag="min_width", least=1, help="filters that a group keeps at least, or all it has"
    )
    min_share: float = setting(
        0.0, flag="min_share", least=0, below=1, help="share of its filters that a group keeps"
    )
    max_drop: float | None = share(
        None,
        flag="max_drop",
        help="end before the metric on D_val is worse than the given network's by this share of it;"
        " without --search_target_rate nothing else ends the search",
        shown="the budget alone",
    )

    def __post_init__(self) -> None:
        if isinstance(self.exclude, str):
            object.__setattr__(self, "exclude", (self.exclude,))
        super().__post_init__()

    @property
    def narrows(self) -> bool:
        """Whether a group may have to keep more than one filter."""
        return bool(self.exclude) or self.min_width > 1 or self.min_share > 0
