"""Means of few runs with intervals, correlations within clusters, and what is concluded."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.stats

LEVEL = 0.95  # of all intervals
RESAMPLES, SEED = 2000, 0  # of the bootstrap
# Of which an interval is made: two runs that happen to differ alike would look certain.
LEAST_RUNS, LEAST_CLUSTERS = 3, 5
SHOWN, NOT_SHOWN, CONTRADICTED = "shown", "not shown", "contradicted"
NOT_TESTABLE, UNMEASURED = "not testable here", "not measured"


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval at `LEVEL`.

    Attributes:
        n: runs, or sub-networks. low, high: infinite where n is too small for an interval.
    """

    value: float
    low: float
    high: float
    n: int

    def text(self, spec: str = "+.2f") -> str:
        """The figure with its interval, such as "+0.30 [-0.05, +0.65]"."""
        value = format(self.value, spec)
        if not np.isfinite([self.low, self.high]).all():
            return f"{value} [no interval]"
        return f"{value} [{format(self.low, spec)}, {format(self.high, spec)}]"


def mean(values: Sequence[float]) -> Estimate | None:
    """The mean with the interval of Student's t; of paired differences: the paired t-test's.

    None without values; without an interval where there are fewer than LEAST_RUNS.
    """
    values = np.asarray(values, np.float64)
    if not len(values):
        return None
    middle, n = float(values.mean()), len(values)
    if n < LEAST_RUNS:
        return Estimate(middle, -np.inf, np.inf, n)
    half = float(scipy.stats.t.ppf((1 + LEVEL) / 2, n - 1) * values.std(ddof=1) / np.sqrt(n))
    return Estimate(middle, middle - half, middle + half, n)


def partial_correlation(first: np.ndarray, second: np.ndarray, given: np.ndarray) -> float:
    """Pearson's r of what a straight line in `given` leaves of each of two series.

    NaN where it leaves nothing of one.
    """
    lines = np.stack([np.ones_like(given), given], 1)
    rest = [one - lines @ np.linalg.lstsq(lines, one, rcond=None)[0] for one in (first, second)]
    norms = [float(np.linalg.norm(one)) for one in rest]
    scales = [float(np.linalg.norm(one)) for one in (first, second)]
    if any(norm <= 1e-9 * scale for norm, scale in zip(norms, scales, strict=True)):
        return float("nan")
    return float(rest[0] @ rest[1] / (norms[0] * norms[1]))


def clustered(
    columns: Sequence[Sequence[float]], clusters: Sequence[int], *, ranks: bool = False
) -> Estimate | None:
    """The partial correlation of the first two columns given the third one.

    The interval is that of a bootstrap that draws whole clusters: members of one are alike, so each
    of them alone would make the interval too narrow.

    Args:
        columns: three, float [n]. clusters: of every row, int [n].
        ranks: of ranks (Spearman's) instead of values (Pearson's).

    Returns:
        None with fewer than four rows, or where a column is constant; without an interval where
        there are fewer than LEAST_CLUSTERS clusters.
    """
    values = np.asarray(columns, np.float64)
    if values.shape[1] < 4:
        return None
    if ranks:
        values = scipy.stats.rankdata(values, axis=1)
    found = partial_correlation(*values)
    if not np.isfinite(found):
        return None
    names = np.unique(clusters)
    if len(names) < LEAST_CLUSTERS:
        return Estimate(found, -np.inf, np.inf, values.shape[1])
    members = [np.flatnonzero(np.asarray(clusters) == name) for name in names]
    rng, drawn = np.random.default_rng(SEED), []
    for _ in range(RESAMPLES):
        rows = np.concatenate([members[k] for k in rng.integers(len(members), size=len(members))])
        drawn.append(partial_correlation(*values[:, rows]))
    low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(found, float(low), float(high), values.shape[1])


def verdict(found: Estimate | None, *, least: float = 0.0) -> str:
    """What an estimate says of a claim that the figure is larger than `least`.

    Shown: the whole interval lies above; contradicted: it lies below; not shown: it contains
    `least`, or there is none.
    """
    if found is None:
        return UNMEASURED
    if found.low > least:
        return SHOWN
    return CONTRADICTED if found.high < least else NOT_SHOWN
