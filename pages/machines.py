"""docs/machines.md's model on paper: ResNet-50 on ImageNet on 1, 8 and 32 GPUs.

    python -m ekg_tf.pages.machines

Nothing here is measured. Every number follows from the assumptions below by the formulas below; the
page shows both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

from ..cli import manners
from ..reports.tables import table
from ..utils.files import replace_between
from .files import ROOT

PAGE = ROOT / "docs" / "machines.md"
BEGIN = "<!-- model: begin (python -m ekg_tf.pages.machines) -->"
END = "<!-- model: end -->"
GPUS = (1, 8, 32)


def assumed(value: float, meaning: str, unit: str = "") -> Any:
    return field(default=value, metadata={"meaning": meaning, "unit": unit})


@dataclass(frozen=True)
class Assumptions:
    """What the model takes for granted, each with its meaning and unit."""

    images: int = assumed(1_281_167, "training images")
    gpus_per_machine: int = assumed(8, "GPUs of a machine")
    forward: float = assumed(2400, "forward passes of the whole network", "images/s and GPU")
    backward: float = assumed(2, "a backward pass costs so many forward passes")
    decoded: float = assumed(3000, "JPEGs read, decoded and cropped by a GPU's CPU cores", "/s")
    parameters: float = assumed(14e6, "parameters of the pruned network, float32 gradients")
    pruned_time: float = assumed(0.6, "time of the network at 45 % of the FLOPs, of the whole's")
    inside: float = assumed(100e9, "all-reduce inside a machine (NVLink)", "bytes/s")
    between: float = assumed(10e9, "all-reduce between machines (100 Gbit/s)", "bytes/s")
    latency: float = assumed(50e-6, "of each of the 2 (n - 1) messages of a ring", "s")
    batch: int = assumed(256, "images of a step of the fine-tuning, all GPUs together")
    views: int = assumed(2, "augmented views of an image in the fine-tuning")
    epochs: int = assumed(100, "epochs of fine-tuning")
    validation: int = assumed(4000, "images in D_val")
    steps: int = assumed(100, "steps of the search")
    proposals: int = assumed(18, "proposals of a step that are evaluated")
    share: float = assumed(0.5, "of the network that a proposal runs, from its cut on, shrinking")
    teachers: int = assumed(5, "teachers of the bank")
    teacher_time: float = assumed(0.8, "time of a teacher, of the whole network's, on average")


def search_hours(gpus: int, of: Assumptions) -> float:
    """A step: the importance pass, which every worker does for itself, then the proposals, which
    are shared out whole; workers of one GPU each."""
    whole = of.validation / of.forward
    importance = whole * (1 + of.backward)
    most = math.ceil(of.proposals / gpus)
    return of.steps * (importance + most * of.share * whole) / 3600


def bank_hours(gpus: int, of: Assumptions) -> float:
    """All teachers see every image once; images are read beside it."""
    compute = of.images * of.teachers * of.teacher_time / of.forward
    reading = of.images / of.decoded
    return max(compute, reading) / gpus / 3600


def step_seconds(gpus: int, of: Assumptions) -> tuple[float, float, float]:
    """Seconds of a fine-tuning step: computing, reading, exchanging the gradients."""
    own = of.batch * of.views / gpus
    compute = own * (1 + of.backward) * of.pruned_time / of.forward
    reading = own / of.decoded
    if gpus == 1:
        return compute, reading, 0.0
    speed = of.inside if gpus <= of.gpus_per_machine else of.between
    moved = 2 * (gpus - 1) / gpus * 4 * of.parameters
    return compute, reading, moved / speed + 2 * (gpus - 1) * of.latency


def tuning_hours(gpus: int, of: Assumptions) -> float:
    """Reading goes on beside computing; the gradients are exchanged after it."""
    compute, reading, exchange = step_seconds(gpus, of)
    steps = of.epochs * of.images / of.batch
    return steps * (max(compute, reading) + exchange) / 3600


def page(of: Assumptions = Assumptions()) -> str:
    """Both tables in Markdown: what comes out, and what was assumed."""
    phases = {"search": search_hours, "bank": bank_hours, "fine-tuning": tuning_hours}
    rows = []
    for name, hours in phases.items():
        one = hours(1, of)
        cells = [f"{hours(n, of):.2f} ({one / hours(n, of):.1f} x)" for n in GPUS]
        rows.append([name, *cells])
    totals = {n: sum(hours(n, of) for hours in phases.values()) for n in GPUS}
    rows.append(["all", *(f"{totals[n]:.2f} ({totals[1] / totals[n]:.1f} x)" for n in GPUS)])
    header = ["hours (speed-up)", *(f"{n} GPU{'s' if n > 1 else ''}" for n in GPUS)]
    parts = [
        f"{n} GPUs: {1000 * one:.0f} ms computing, {1000 * read:.0f} ms reading beside it, "
        f"{1000 * exchange:.1f} ms exchanging gradients"
        for n in GPUS[1:]
        for one, read, exchange in [step_seconds(n, of)]
    ]
    assumptions = [
        [one.metadata["meaning"], f"{_shown(getattr(of, one.name))} {one.metadata['unit']}".strip()]
        for one in fields(of)
    ]
    return "\n\n".join(
        [
            table(header, rows),
            "A step of the fine-tuning: " + "; ".join(parts) + ".",
            "Assumed, not measured:",
            table(["", "value"], assumptions),
        ]
    )


def _shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:g}"


def main(argv: list[str] | None = None) -> None:
    """The command line; it takes no flags."""
    manners.Parser(description="Writes the model on paper into docs/machines.md.").parse_args(argv)
    replace_between(PAGE, BEGIN, END, page())


if __name__ == "__main__":
    manners.run(main)
