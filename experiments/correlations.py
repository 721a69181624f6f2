"""Correlations between proxies and potential: figures, table, scatter pictures."""

import math
import os
from collections.abc import Sequence

import numpy as np
import scipy.stats

from ..reports.plots import COLOURS, DPI
from ..reports.tables import table
from ..utils.files import atomic_write
from .proxies import PROXIES

MEASURES = {
    "pearson": scipy.stats.pearsonr,
    "kendall": scipy.stats.kendalltau,
    "spearman": scipy.stats.spearmanr,
}
# {what a sub-network is worth after its fine-tuning: 1 if a larger value is better, else -1}
WORTH = {"test_loss": -1, "test_top1": 1}


def known(value: float | None) -> float:
    """A figure of a result file, where null stands for what is not finite."""
    return math.nan if value is None else value


def correlation(first: Sequence[float], second: Sequence[float]) -> dict[str, dict]:
    """Pearson's r, Kendall's tau and Spearman's rho of two series of equal length.

    Returns:
        {measure: {"value", "p"}}, p two-sided; both None where a series is constant, not finite or
        shorter than 3.
    """
    pair = np.array([first, second], float)
    settled = pair.shape[1] >= 3 and np.isfinite(pair).all() and (np.ptp(pair, axis=1) > 0).all()
    if not settled:
        return {name: {"value": None, "p": None} for name in MEASURES}
    found = {name: function(*pair) for name, function in MEASURES.items()}
    return {
        name: {"value": float(one.statistic), "p": float(one.pvalue)} for name, one in found.items()
    }


def correlations(networks: Sequence[dict], proxies: Sequence[str]) -> dict:
    """How each proxy goes with each worth: {proxy: {worth: {measure: {"value", "p"}}}}.

    Signs are such that a positive value means that the proxy ranks rightly, whichever way each of
    the two counts; for the condition number and the loss that is the plain correlation.

    Args:
        networks: rows with "proxies" {name: value} and "potential" {worth: value}.
    """
    return {
        proxy: {
            worth: correlation(
                [PROXIES[proxy].better * known(one["proxies"][proxy]) for one in networks],
                [better * known(one["potential"][worth]) for one in networks],
            )
            for worth, better in WORTH.items()
        }
        for proxy in proxies
    }


def correlation_table(results: dict) -> str:
    """The correlations of a potential.json as a Markdown table."""

    def cell(one: dict) -> str:
        return "-" if one["value"] is None else f"{one['value']:.3f} (p {one['p']:.2g})"

    rows = []
    for proxy, by_worth in results["correlations"].items():
        loss, accuracy = by_worth["test_loss"], by_worth["test_top1"]
        rows.append(
            [proxy, PROXIES[proxy].meaning.replace("|", "\\|")]
            + [cell(loss[name]) for name in MEASURES]
            + [cell(accuracy[name]) for name in ("kendall", "spearman")]
        )
    header = ["proxy", "what it is", "potential loss: Pearson r", "Kendall tau", "Spearman rho"]
    return table([*header, "potential top-1: Kendall tau", "Spearman rho"], rows)


def draw(path: str | os.PathLike, results: dict) -> None:
    """A PNG of scatter plots: a column per proxy, potential loss above, accuracy below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    networks, proxies = results["networks"], list(results["correlations"])
    sources = sorted({one["source"] for one in networks})
    figure = Figure(figsize=(3.3 * len(proxies) + 1.8, 6.6), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(proxies), sharey="row", squeeze=False)
    labels = {"test_loss": "test loss after fine-tuning", "test_top1": "test top-1 % after it"}
    for row, (worth, label) in enumerate(labels.items()):
        for column, proxy in enumerate(proxies):
            one = axes[row][column]
            for number, source in enumerate(sources):
                own = [each for each in networks if each["source"] == source]
                one.scatter(
                    [known(each["proxies"][proxy]) for each in own],
                    [known(each["potential"][worth]) for each in own],
                    s=26,
                    color=COLOURS[number % len(COLOURS)],
                    label=source,
                )
            found = results["correlations"][proxy][worth]
            pearson, kendall = (found[name]["value"] for name in ("pearson", "kendall"))
            if pearson is not None:
                one.set_title(f"r = {pearson:.3f}, tau = {kendall:.3f}", fontsize=9)
            values = [known(each["proxies"][proxy]) for each in networks]
            if min(values) > 0 and max(values) > 30 * min(values):
                one.set_xscale("log")
            one.grid(color="#DDDDDD", linewidth=0.7)
            one.set_axisbelow(True)
            if row:
                one.set_xlabel(proxy + (", larger is better" if PROXIES[proxy].better > 0 else ""))
        axes[row][0].set_ylabel(label)
    handles, names = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right upper", frameon=False, fontsize=9)
    settings = results["settings"]
    figure.suptitle(
        f"{len(networks)} sub-networks at {100 * settings['search_target_rate']:g} % of the FLOPs, "
        f"{settings['train_epoch']} epochs of fine-tuning (r, tau > 0: ranked rightly)",
        fontsize=11,
        fontweight="bold",
    )
    atomic_write(path, lambda temporary: figure.savefig(temporary, format="png"))
