"""Whether a pruning was worth it, in a few sentences; plain numbers in, plain text out."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass

NOISE = 2.0  # standard errors of a difference that count as nothing
_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class Metric:
    """One figure of both networks on the test split.

    Attributes:
        name: as it is printed, such as "top-1".
        before, after: of the network as given, and of the pruned one; None: not measured.
        examples: test examples; None: not known.
        unit: "%" makes it a share of the examples that are right; anything else is printed behind
            the numbers.
        higher_is_better: None: not known.
        errors: standard errors of before and after; a share of examples has its own, sqrt(p (1 - p)
            / examples), other figures have none unless they are given.
    """

    name: str
    before: float | None
    after: float
    examples: int | None
    unit: str = ""
    higher_is_better: bool | None = None
    errors: tuple[float | None, float | None] | None = None

    def standard_errors(self) -> tuple[float | None, float | None]:
        """Of before and after, in the metric's own unit."""
        if self.errors is not None:
            return self.errors
        return self._of_share(self.before), self._of_share(self.after)

    def _of_share(self, percent: float | None) -> float | None:
        if self.unit != "%" or percent is None or not self.examples:
            return None
        least = 0.5 / self.examples  # that none of so many is wrong doesn't make the error zero
        share = min(1 - least, max(least, percent / 100))
        return 100 * math.sqrt(share * (1 - share) / self.examples)

    def noise(self) -> float | None:
        """What a difference must exceed to be one: two standard errors of it, taken as if both
        networks had been tested on examples of their own, which is more than on the same ones."""
        before, after = self.standard_errors()
        return None if before is None or after is None else NOISE * math.hypot(before, after)

    def change(self) -> str | None:
        """ "none" (inside the noise), "better", "worse", "differs", None where it isn't known."""
        noise = self.noise()
        if self.before is None or noise is None:
            return None
        difference = self.after - self.before
        if abs(difference) <= noise:
            return "none"
        if self.higher_is_better is None:
            return "differs"
        return "better" if (difference > 0) == self.higher_is_better else "worse"

    def sentence(self) -> str:
        """Before -> after with standard errors, and whether so many examples show a difference."""
        figures = [
            _with_error(value, error, self.unit)
            for value, error in zip((self.before, self.after), self.standard_errors(), strict=True)
        ]
        what = self.name
        if self.examples is not None:
            what = f"Test {self.name} on {self.examples:,} examples"
        told = f"{what}: {' → '.join(figures)}"
        change = self.change()
        if self.before is None or change is None:
            return f"{told}."
        if change == "none":
            return f"{told}, no difference that so many examples can show."
        return f"{told}, {'a difference' if change == 'differs' else change} beyond the noise."


@dataclass(frozen=True)
class Latency:
    """Milliseconds per example of both networks.

    Attributes:
        before, after: medians.
        batch: examples per pass.
        ratio: (lowest, highest) after / before that the measurement admits; None: not measured.
        where: what ran it, such as "LiteRT, one thread".
    """

    before: float
    after: float
    batch: int = 1
    ratio: tuple[float, float] | None = None
    where: str = ""

    def sentence(self) -> str:
        """Before -> after, and whether that is a change."""
        where = f", {self.where}" if self.where else ""
        times = f"{self.before:.3f} → {self.after:.3f} ms per example"
        told = f"Latency (batch {self.batch}{where}): {times}"
        if self.ratio is None:
            return f"{told}, {_ratio(self.after, self.before)} of it (spread not measured)."
        low, high = self.ratio
        if low <= 1 <= high:
            return f"{told}: no measurable change (ratio {low:.2f} to {high:.2f})."
        way = "faster" if high < 1 else "slower"
        return f"{told}: {way} (ratio {low:.2f} to {high:.2f})."


def verdict(
    *,
    flops: tuple[float, float],
    parameters: tuple[float, float],
    metric: Metric | None = None,
    latency: Latency | None = None,
    finetuned: bool = True,
    written: str | None = None,
    following: str | None = None,
) -> str:
    """What became of a network, in a few sentences on one line.

    Args:
        flops, parameters: (before, after); FLOPs are multiply-accumulates for one example.
        metric: on the test split; None: not measured.
        latency: None: not measured, and then not spoken of.
        finetuned: whether the pruned network has been trained after its search.
        written: file of the pruned network.
        following: what to do next, an imperative without a full stop.

    Example:
        >>> verdict(flops=(200, 100), parameters=(50, 20))
        '50.0 % of the FLOPs (200 → 100) and 40.0 % of the parameters (50 → 20) are left.'
    """
    size = (
        f"{_share(*flops)} of the FLOPs ({short(flops[0])} → {short(flops[1])}) and "
        f"{_share(*parameters)} of the parameters ({short(parameters[0])} → "
        f"{short(parameters[1])}) are left{'' if finetuned else ', before any fine-tuning'}."
    )
    sentences = [size]
    if metric:
        sentences.append(metric.sentence())
    if latency:
        sentences.append(latency.sentence())
    if written:
        sentences.append(f"Written: {written}.")
    if following:
        sentences.append(f"Next: {following}.")
    return " ".join(sentences)


def next_step(
    metric: Metric | None, *, finetuned: bool, finished: bool = True, folder: str = "FOLDER"
) -> str:
    """What to do with such an outcome, an imperative without a full stop."""
    if not finished:
        return "run the same command again, it goes on where it was"
    if not finetuned:
        return f"fine-tune it (ekg-tf finetune --train_path {shlex.quote(folder)})"
    network = f"{folder}/pruned.keras"
    if metric and metric.change() == "worse":
        return (
            "if that is too much, fine-tune longer or keep more (a larger --search_target_rate); "
            f"else export it (ekg-tf export {shlex.quote(network)})"
        )
    return (
        f"export it and measure it where it will run (ekg-tf export {shlex.quote(network)}), "
        "or try a smaller budget"
    )


def short(count: float) -> str:
    """A count with three digits and a unit: 2.53 M; whole below 10,000."""
    if count < 9999.5:
        return f"{count:,.0f}"
    digits = 2 - math.floor(math.log10(count))
    rounded = round(count, digits)  # 999,950 is 1.00 M
    size, unit = next(one for one in _UNITS if rounded >= one[0])
    scaled = rounded / size
    return f"{scaled:.{2 - math.floor(math.log10(scaled) + 1e-9)}f} {unit}"


def _share(before: float, after: float) -> str:
    return "an unknown share" if before <= 0 else f"{100 * after / before:.1f} %"


def _ratio(after: float, before: float) -> str:
    return f"{after / before:.2f}" if before > 0 else "an unknown share"


def _with_error(value: float | None, error: float | None, unit: str) -> str:
    if value is None:
        return "not measured"
    digits = 2 if unit == "%" else 4
    tail = f" {unit}" if unit else ""
    spread = "" if error is None else f" ± {error:.{digits}f}"
    return f"{value:.{digits}f}{spread}{tail}"
