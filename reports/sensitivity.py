"""A sensitivity in figures and as a picture: groups against shares of their filters removed."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from ..utils.columns import aligned
from . import plots

LONGEST_NAME = 34  # letters of a group's name


def group_name(group: dict[str, Any]) -> str:
    """The first layer of a group, and how many others share its width."""
    first, others = group["layers"][0], len(group["layers"]) - 1
    if len(first) > LONGEST_NAME:
        first = f"…{first[1 - LONGEST_NAME :]}"
    return f"{first} (+{others})" if others else first


def text(result: dict[str, Any]) -> str:
    """A result of `pruning.sensitivity.sensitivities` to be read: the rise of the loss."""
    shares = [f"-{100 * share:.0f} %" for share in result["shares"]]
    rows = [("group", "width", "layers", *shares)]
    for number, group in enumerate(result["groups"]):
        rises = [signed(rise) for rise in group["rise"]]
        rows.append((str(number), str(group["width"]), group_name(group), *rises))
    right = (0, 1, *range(3, 3 + len(shares)))
    whole = ", ".join(f"{name} {value:.4f}" for name, value in result["whole"].items())
    return "\n".join(
        [
            f"{result['network']}: the rise of the loss on {result['examples']} examples when one "
            "group alone loses its weakest filters, not fine-tuned",
            f"the whole network, by batch statistics: {whole}",
            "",
            aligned(rows, right=right, gap="  "),
            "",
            _extremes(result),
        ]
    )


def signed(rise: float) -> str:
    """A rise of the loss in words, with its sign."""
    shown = f"{rise:+.4f}" if abs(rise) < 1000 else f"{rise:+.3g}"
    return "0.0000" if shown in ("+0.0000", "-0.0000") else shown


def _extremes(result: dict[str, Any]) -> str:
    """Which groups cost most and least at the share nearest to a half."""
    place = int(np.argmin(np.abs(np.array(result["shares"]) - 0.5)))
    ranked = sorted(result["groups"], key=lambda group: group["rise"][place])
    share = f"{100 * result['shares'][place]:.0f} %"

    def named(groups: list[dict[str, Any]]) -> str:
        return ", ".join(f"{group_name(one)} ({signed(one['rise'][place])})" for one in groups)

    return (
        f"without {share} of its filters a group costs least in {named(ranked[:3])}; most in "
        f"{named(ranked[:-4:-1])}"
    )


def draw(path: str | os.PathLike, result: dict[str, Any]) -> None:
    """Draws a result as a heat map.

    Raises:
        UserError: the file can't be written.
    """
    whole, groups = result["whole"], result["groups"]
    shown = f"top-1 {whole['top1']:.1f} %" if "top1" in whole else f"loss {whole['loss']:.3g}"
    half = int(np.argmin(np.abs(np.array(result["shares"]) - 0.5)))
    plots.heat_map(
        path,
        [f"{group_name(group)}  {group['width']}" for group in groups],
        [100 * share for share in result["shares"]],
        np.array([group["rise"] for group in groups]),
        beside=[100 * (1 - group["flops"][half]) for group in groups],
        title=f"{result['network']} ({shown} on D_val): what each group costs",
        labels=(
            "filters removed from this group alone [%]",
            f"rise of the loss on {result['examples']} examples",
            f"FLOPs saved\nby -{100 * result['shares'][half]:.0f} % [%]",
        ),
    )
