"""The figures of a run before and after: which there are, what they are called, the verdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..verdict import Latency, Metric, next_step, short, verdict
from .runs import Row, Run, number

BY_BATCH = "batch statistics"
TOP5_CLASSES = 20  # with fewer the top five say little


@dataclass(frozen=True)
class Figure:
    """A figure of a network on the test split.

    Attributes:
        title: as a table calls it. unit: "%" or nothing.
        keys: where it lies in the figures of a network.
        higher_is_better: None: not known.
    """

    title: str
    unit: str
    keys: tuple[str, ...]
    higher_is_better: bool | None = None

    @property
    def label(self) -> str:
        """As an axis calls it."""
        return f"{self.title} [{self.unit}]" if self.unit else self.title

    def value(self, side: Row | None) -> float | None:
        """Of a network's figures; None: not measured."""
        return _at(side, self.keys)

    def error(self, side: Row) -> float | None:
        """Its standard error, where that is known."""
        value = self.value(side)
        return None if value is None else self.metric(None, side).standard_errors()[1]

    def metric(self, before: Row | None, after: Row) -> Metric:
        """Both sides as the verdict takes them."""
        value = self.value(after)
        assert value is not None, self.title
        examples = after.get("test", {}).get("examples")
        return Metric(
            self.title,
            self.value(before),
            value,
            None if examples is None else int(examples),
            self.unit,
            self.higher_is_better,
            errors=None
            if self.unit == "%"
            else (self._kept_error(before), self._kept_error(after)),
        )

    def _kept_error(self, side: Row | None) -> float | None:
        """The standard error that stands beside the figure: {"loss_error"}, {"metrics_error"}."""
        part, name, *rest = self.keys if len(self.keys) > 1 else ("", "")
        return _at(side, (part, f"{name}_error", *rest))


def _at(side: Row | None, keys: tuple[str, ...]) -> float | None:
    found: Any = side
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return number(found)


def of_test(side: Row, classes: int | None = None) -> list[Figure]:
    """The figures that a network has, the most telling first.

    Args:
        side: its figures. classes: None: not known.
    """
    test = side.get("test", {})
    names = list(test.get("metrics", {}))
    plain = [
        Figure("score", "", ("score",), True),
        Figure("top-1 accuracy", "%", ("test", "top1"), True),
        *([] if classes and classes < TOP5_CLASSES else [_TOP5]),
        *(Figure(str(name), "", ("test", "metrics", name)) for name in names),
        Figure("loss", "", ("test", "loss"), False),
    ]
    by_batch = [
        Figure(f"{one.title}, {BY_BATCH}", one.unit, ("test", f"batch_{one.keys[1]}", *rest))
        for one in plain[1:]
        for rest in (one.keys[2:],)
    ]
    return [one for one in plain + by_batch if one.value(side) is not None]


_TOP5 = Figure("top-5 accuracy", "%", ("test", "top5"), True)


def classes_of(run: Run) -> int | None:
    """How many classes a classifier's last layer tells apart; None: not known."""
    if run.result is not None and "classes" in run.result:
        return int(run.result["classes"])
    return int(run.network[-1]["channels"][0]) if run.network else None


def latencies_of(run: Run) -> list[Latency]:
    """Of both networks, the most telling first: where they will run, then with TensorFlow."""
    if run.result is None or run.sides is None:
        return []
    found = []
    deployed = run.result.get("deployed", {})
    if "latency_ms" in deployed:
        times, batch = deployed["latency_ms"], int(deployed["batch"])
        ratio, where = _range(deployed.get("ratio")), str(deployed["runtime"])
        found.append(Latency(times["before"], times["after"], batch, ratio, where))
    before, after = run.sides
    for batch, time in after.get("latency_ms", {}).items():
        whole = number(before.get("latency_ms", {}).get(batch))
        if whole is not None:
            ratio = _range(run.result.get("latency_ratio", {}).get(batch))
            found.append(Latency(whole, time, int(batch), ratio, "TensorFlow"))
    return found


def _range(values: Any) -> tuple[float, float] | None:
    if values is None:
        return None
    low, high = values
    return float(low), float(high)


def verdict_of(run: Run, *, advice: bool = True) -> str:
    """What became of a run, in a few sentences.

    Args:
        advice: also the file that was written, and what to do next.
    """
    following = next_step(None, finetuned=False, finished=False)
    if run.sides is None:
        return f"{_unfinished(run)} Next: {following}."
    before, after = run.sides
    told = of_test(after)
    metric = told[0].metric(before, after) if told else None
    tuned = run.finetuned
    if run.finished:
        following = next_step(metric, finetuned=tuned, folder=run.place)
    text = verdict(
        flops=(before.get("flops", 0), after["flops"]),
        parameters=(before.get("parameters", 0), after["parameters"]),
        metric=metric,
        latency=next(iter(latencies_of(run)), None),
        finetuned=tuned,
        written=run.pruned if advice else None,
        following=following if advice else None,
    )
    return text if run.finished else f"{_unfinished(run)} So far: {text}"


def _unfinished(run: Run) -> str:
    """How far a run has come that hasn't ended."""
    phases = {row["phase"]: row for row in run.metrics}
    if "finetune" in phases:
        wanted = run.args.get("train_epoch")
        of = f" of {wanted}" if isinstance(wanted, int) else ""
        return f"This run isn't finished: {phases['finetune']['epoch']}{of} epochs of fine-tuning."
    if run.history:
        last = run.history[-1]
        left = number(last.get("rate", last.get("flops_rate")))
        share = "" if left is None else f", {100 * left:.1f} % of the budget left"
        return f"This run isn't finished: its search stands at step {last['step']}{share}."
    name = next(reversed(phases), "training")
    return f"This run isn't finished: {phases[name]['epoch']} epochs of its {name}."


Cells = tuple[str, str, str, str]


def table_of(run: Run) -> list[Cells]:
    """(name, before, after, ratio) of everything that was measured of both networks."""
    if run.sides is None:
        return []
    before, after = run.sides
    cells = [
        _cells(title, number(before.get(key)), number(after.get(key)), ",.0f")
        for title, key in (("FLOPs", "flops"), ("parameters", "parameters"))
    ]
    for one in of_test(after, classes_of(run)):
        metric = one.metric(before, after)
        spec = ".2f" if one.unit else ".4f"
        sides = zip((metric.before, metric.after), metric.standard_errors(), strict=True)
        values = [_with_error(value, error, spec) for value, error in sides]
        title = f"{one.title} {one.unit}".strip()
        cells.append((title, *values, _ratio(metric.before, metric.after)))
    for one in latencies_of(run):
        title = f"latency, ms per example, {one.where}, batch {one.batch}"
        ratio = _ratio(one.before, one.after)
        if one.ratio:
            ratio += f" ({one.ratio[0]:.2f} to {one.ratio[1]:.2f})"
        cells.append((title, f"{one.before:.3f}", f"{one.after:.3f}", ratio))
    return cells


def _cells(title: str, before: float | None, after: float | None, spec: str) -> Cells:
    values = (_with_error(value, None, spec) for value in (before, after))
    return (title, *values, _ratio(before, after))


def _with_error(value: float | None, error: float | None, spec: str) -> str:
    if value is None:
        return "not measured"
    return f"{value:{spec}}" + ("" if error is None else f" ± {error:{spec}}")


def _ratio(before: float | None, after: float | None) -> str:
    return "-" if not before or after is None else f"{after / before:.3f}"


def brief(run: Run) -> list[tuple[str, str]]:
    """(what, figure) of a run's outcome, for the tiles at the head of a page."""
    if run.sides is None:
        return []
    before, after = run.sides
    tiles = []
    for title, key in (("FLOPs", "flops"), ("parameters", "parameters")):
        full, left = number(before.get(key)), number(after.get(key))
        if full and left is not None:
            share = f"{100 * left / full:.1f} %"
            tiles.append((f"{title} left", f"{share} ({short(full)} → {short(left)})"))
    told = of_test(after)
    if told:
        metric = told[0].metric(before, after)
        spec = ".2f" if told[0].unit else ".4f"
        values = (metric.before, metric.after)
        errors = metric.standard_errors()
        text = " → ".join(
            _with_error(value, error, spec) for value, error in zip(values, errors, strict=True)
        )
        tiles.append((f"{told[0].title}, test", f"{text} {told[0].unit}".strip()))
    for time in latencies_of(run)[:1]:
        title = f"latency, {time.where}, batch {time.batch}"
        tiles.append((title, f"{time.before:.2f} → {time.after:.2f} ms"))
    return tiles
