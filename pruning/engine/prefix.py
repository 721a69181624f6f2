"""Which activations of the current network the evaluator keeps, within a given memory."""

from collections.abc import Mapping

import numpy as np


class PrefixCuts:
    """The cuts whose activations are kept, so that proposals start behind them.

    Cut 0, the network's input, is always there and isn't counted. While the others are too large
    together, the one goes whose absence costs the fewest recomputed segments per byte.

    Args:
        sizes: bytes of the activations at every cut for all of D_val, int [cuts].
        proposals: number of gates whose first layer lies in the segment behind each cut, [cuts].
        budget: bytes that cuts 1 .. may take together.

    Attributes:
        sizes: as given.
        kept: numbers of the kept cuts, rising; 0 is the first.
        bytes: what cuts 1 .. take of the budget.
    """

    def __init__(self, sizes: list[int], proposals: list[int], budget: int):
        self._behind, self.sizes = np.asarray(proposals), sizes
        self.kept = list(range(len(sizes)))
        while self._total(sizes) > budget:
            places = range(1, len(self.kept))
            waste = [self._recomputed(place) / sizes[self.kept[place]] for place in places]
            del self.kept[places[int(np.argmin(waste))]]
        self.bytes = self._total(sizes)

    def __str__(self) -> str:
        count = f"{len(self.kept) - 1} of {len(self._behind) - 1}"
        what = f"activations kept at {count} cuts of the network"
        return f"{what}, {self.bytes / 2**20:,.0f} MiB: proposals are evaluated from there on"

    def outside(self, most_bytes: int, times: Mapping[int, float]) -> frozenset[int]:
        """The kept cuts that go to files, so that the others take at most so many bytes.

        Those that the fewest proposals start from go first, of these the largest.

        Args:
            times: {kept cut but 0: what is kept there, in its activations}.
        """
        left = dict(times)

        def starts(cut: int) -> int:
            later = [one for one in self.kept if one > cut]
            return int(self._behind[cut : later[0] if later else None].sum())

        total = sum(self.sizes[cut] * n for cut, n in left.items())
        for cut in sorted(times, key=lambda cut: (starts(cut), -self.sizes[cut])):
            if total <= most_bytes:
                break
            total -= self.sizes[cut] * left.pop(cut)
        return frozenset(times.keys() - left.keys())

    def _total(self, sizes: list[int]) -> int:
        return sum(sizes[cut] for cut in self.kept[1:])

    def _recomputed(self, place: int) -> int:
        """Segments that are run again in a step once the cut at this place of `kept` is gone."""
        following = [*self.kept, len(self._behind)][place + 1]
        cut, previous = self.kept[place], self.kept[place - 1]
        return int(self._behind[cut:following].sum()) * (cut - previous)

    def before(self, segment: int) -> int:
        """The last kept cut at or before a segment: where a proposal that begins there starts."""
        return max(cut for cut in self.kept if cut <= segment)
