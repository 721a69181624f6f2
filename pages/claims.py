"""docs/claims.md from docs/claims.in.md and docs/results/claims.json.

python -m ekg_tf.pages.claims

Every verdict follows from the figures by `experiments.claims.statistics.verdict`; nothing is typed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..cli import manners
from ..experiments.claims import plans, statistics
from ..experiments.claims.run import RESULTS as FILE
from ..experiments.claims.statistics import (
    CONTRADICTED,
    NOT_TESTABLE,
    SHOWN,
    UNMEASURED,
    Estimate,
    verdict,
)
from ..options.finetuning import ALL, CODE, PAPER, TEACHER_RULES
from ..options.training import BYOL
from ..reports.tables import NOT_MEASURED, plus_minus, table
from ..utils.files import atomic_write
from ..utils.jsonl import read_json
from .files import RESULTS, ROOT

PAGE = ROOT / "docs" / "claims.md"
TEMPLATE = ROOT / "docs" / "claims.in.md"  # the text, with a {name} for every table
SMOOTHNESS = RESULTS / "smoothness.json"
UNPRUNED = "res56_cifar10"  # the name of the unpruned network there
TOP1, LOSS = "test_top1", "test_loss"
DIFFERENT = 0.1  # share of a search's steps from which on its choices count as others
PAIRS = ("none/single", "none/ensemble", "single/ensemble")
CURVATURES = {"condition_number": "|λ_min / λ_max|", "lambda_max": "λ_max", "trace": "trace"}
CONDITIONS = {
    plans.FITTED: "fitted well, D_val among what it was trained on",
    plans.UNFITTED: "hardly trained",
    plans.HELD_OUT: "fitted well, D_val held out",
}
Rows = Sequence[Mapping[str, Any]]


def differences(
    rows: Rows, key: str, first: dict[str, Any], second: dict[str, Any], also: str | None = None
) -> list[float]:
    """What `first` has more than `second` of a figure, one difference for each seed.

    Args:
        first, second: labels of two arms.
        also: a label by which runs are paired as well; a seed's differences are then averaged.
    """

    def of(labels: dict[str, Any]) -> dict[tuple[Any, Any], float]:
        return {
            (row["seed"], row.get(also)): row[key]
            for row in rows
            if all(row[name] == value for name, value in labels.items())
        }

    one, other = of(first), of(second)
    by_seed: dict[Any, list[float]] = {}
    for seed, place in sorted(one.keys() & other.keys(), key=str):
        by_seed.setdefault(seed, []).append(one[seed, place] - other[seed, place])
    return [float(np.mean(found)) for found in by_seed.values()]


@dataclass(frozen=True)
class Claim:
    """A claim of the paper.

    Attributes:
        text: of the claim, with where the paper makes it.
        experiment: that tests it; None: none does.
        found: (runs of the experiment) -> (the figure that decides, figures in words); the claim is
            that the figure is above `least`.
        advice: to users, by verdict; "" stands for the other verdicts of an experiment.
        otherwise: the verdict where there is no experiment.
    """

    text: str
    experiment: str | None
    found: Callable[[Rows], tuple[Estimate | None, str]] | None
    advice: dict[str, str]
    least: float = 0.0
    otherwise: str = UNMEASURED

    def row(self, results: dict[str, Any]) -> list[str]:
        """Its line of the page's table."""
        estimate, words, said = None, "", self.otherwise
        if self.experiment and self.found:
            runs = results.get(self.experiment, {}).get("runs", [])
            estimate, words = self.found(runs)
            said = verdict(estimate, least=self.least)
        name = f" ({self.experiment})" if self.experiment else ""
        advice = self.advice.get(said, self.advice[""])
        if self.experiment and said == UNMEASURED:
            advice = "the defaults stay"
        return [f"{self.text}{name}", f"**{said}**", words if estimate else "", advice]


def _arms(
    first: dict[str, Any], second: dict[str, Any], also: str | None = None
) -> Callable[[Rows], tuple[Estimate | None, str]]:
    """Top-1 of one arm above the other's decides; the loss stands beside it."""

    def found(rows: Rows) -> tuple[Estimate | None, str]:
        top1, loss = (
            statistics.mean(differences(rows, key, first, second, also)) for key in (TOP1, LOSS)
        )
        if top1 is None or loss is None:
            return None, ""
        return top1, f"top-1 {top1.text()} points, loss {loss.text('+.4f')}, n = {top1.n}"

    return found


def _teacher_decides(condition: str) -> Callable[[Rows], tuple[Estimate | None, str]]:
    """The share of steps in which the labels alone choose otherwise than with the ensemble."""

    def found(rows: Rows) -> tuple[Estimate | None, str]:
        pair = [row["agreement"]["none/ensemble"] for row in rows if row["condition"] == condition]
        other = statistics.mean([100 * (1 - one["same"]) for one in pair])
        if other is None:
            return None, ""
        tau = statistics.mean([one["tau"] for one in pair])
        assert tau is not None
        words = f"{other.text('.1f')} % of the steps choose otherwise, τ {tau.text('.3f')}"
        return other, f"{words}, n = {other.n} searches"

    return found


def _partial(rows: Rows, key: str, *, ranks: bool = False) -> Estimate | None:
    """How a curvature goes with the test loss among networks of equal loss on D_val."""
    networks = [network for row in rows for network in row["networks"]]
    known = [one for one in networks if all(one[name] is not None for name in (key, LOSS))]
    if not known:
        return None
    columns = [[one[name] for one in known] for name in (key, LOSS, "val_loss")]
    return statistics.clustered(columns, [one["step"] for one in known], ranks=ranks)


def _smoothness(rows: Rows) -> tuple[Estimate | None, str]:
    found = _partial(rows, "condition_number")
    if found is None:
        return None, ""
    return found, f"partial r {found.text()}, n = {found.n} sub-networks"


CLAIMS = (
    Claim(
        "Kernels keep their norm under a mask: better than factor 1, on a network without batch "
        "norm (section 3)",
        "E1",
        _arms({"rule": plans.EVERYWHERE}, {"rule": plans.BATCH_NORM}, also="rate"),
        {
            SHOWN: "none: the rule should be used everywhere",
            "": "none: the rule is used where a batch norm takes the factor out again, and nowhere "
            "else",
        },
    ),
    Claim(
        "Fine-tuning with the memory bank beats fine-tuning without a teacher, each as published "
        "(Table 2)",
        "E2",
        _arms({"arm": "ensemble"}, {"arm": "one_view"}),
        {
            SHOWN: "fine-tune with the ensemble, the default",
            CONTRADICTED: "for short fine-tunings `--finetune_teacher none`",
            "": "`--finetune_teacher none` needs half the work per epoch: try both",
        },
    ),
    Claim(
        "The teachers do that, not the second view: better than two views without a teacher",
        "E2",
        _arms({"arm": "ensemble"}, {"arm": "two_views"}),
        {
            SHOWN: "fine-tune with the ensemble, the default",
            "": "without a bank `--finetune_teacher none --views 2` is the fair comparison",
        },
    ),
    Claim(
        "An ensemble teaches better than the unpruned network alone (Table 2)",
        "E2",
        _arms({"arm": "ensemble"}, {"arm": "single"}),
        {
            SHOWN: "the ensemble, the default; it is cheaper per step as well",
            CONTRADICTED: "`--finetune_teacher single` where the time doesn't matter",
            "": "the ensemble, the default: it is cheaper per step",
        },
    ),
    *(
        Claim(
            f"Teachers worse than the student should not teach: better than all, from a network "
            f"{words} (section 3)",
            "E3",
            _arms({"baseline": kind, "rule": PAPER}, {"baseline": kind, "rule": ALL}),
            {
                SHOWN: "`--teacher_rule paper`, the default",
                CONTRADICTED: "`--teacher_rule all`",
                "": "these runs can't tell the rules apart: the paper's stays the default",
            },
        )
        for kind, words in ((plans.FITTED, "fitted well"), (plans.UNFITTED, "hardly trained"))
    ),
    Claim(
        "The printed test for teachers beats the one of the published code, from a network fitted "
        "well (section 3)",
        "E3",
        _arms(
            {"baseline": plans.FITTED, "rule": PAPER},
            {"baseline": plans.FITTED, "rule": CODE},
        ),
        {
            SHOWN: "`--teacher_rule paper`, the default",
            CONTRADICTED: "`--teacher_rule code`",
            "": "these runs can't tell the rules apart: the printed one stays the default",
        },
    ),
    *(
        Claim(
            f"The teacher changes the search: in more than {100 * DIFFERENT:.0f} % of its steps, "
            f"from a network {words} (Table 2)",
            "E4",
            _teacher_decides(kind),
            {
                SHOWN: "what its choices are worth is E7's question",
                CONTRADICTED: "`--search_teacher` hardly matters; the paper's stays the default",
                "": "these runs can't tell: the paper's `--search_teacher ensemble` stays",
            },
            least=100 * DIFFERENT,
        )
        for kind, words in CONDITIONS.items()
    ),
    Claim(
        "What a search with the ensemble leaves is worth more after fine-tuning than what one by "
        "the labels alone leaves (Table 2)",
        "E7",
        _arms({"teacher": plans.TOGETHER}, {"teacher": plans.NOBODY}),
        {
            SHOWN: "`--search_teacher ensemble`, the default",
            CONTRADICTED: "`--search_teacher none`, which costs less",
            "": "these runs can't tell: the paper's `--search_teacher ensemble` stays",
        },
    ),
    Claim(
        "A smoother sub-network has the better potential, also among those of equal loss on D_val "
        "(section 3)",
        "E5",
        _smoothness,
        {
            SHOWN: "between networks of equal D_val loss take the one of the smaller condition "
            "number",
            "": "choose by the loss on D_val alone",
        },
    ),
    Claim(
        "A network that learnt from a teacher of its own, BYOL's, is the better start: after the "
        "same search and fine-tuning (Table 3)",
        "E6",
        _arms({"baseline": BYOL}, {"baseline": plans.ALONE}),
        {
            SHOWN: "`--baseline_teacher byol` where the network is trained here",
            "": "none: with the teacher every step runs two views and a second network",
        },
    ),
    Claim(
        "ResNet-56 on CIFAR-10 has 94.09 % top-1 with 45 % of its FLOPs after 100 epochs (Table 2)",
        None,
        None,
        {"": "what shorter runs give is in [the tables](tables.md)"},
    ),
    Claim(
        "ResNet-18, -34 and -50 on ImageNet, with and without BYOL (Table 3)",
        None,
        None,
        {"": "`python -m ekg_tf.experiments.tables --table 3` where ImageNet and GPUs are at hand"},
        otherwise=NOT_TESTABLE,
    ),
    Claim(
        "Search and fine-tuning take few GPU hours (Table 3)",
        None,
        None,
        {"": "seconds on other machines are in [performance](performance.md)"},
        otherwise=NOT_TESTABLE,
    ),
)


def verdicts(results: dict[str, Any]) -> str:
    """A line for every claim."""
    header = ["claim of the paper", "verdict", "figures", "what we recommend"]
    return table(header, [claim.row(results) for claim in CLAIMS])


# ---------------------------------------------------------------- figures of the experiments


def _means(rows: Rows, labels: Sequence[Mapping[str, Any]], keys: Mapping[str, str]) -> list:
    """Cells of a table: mean ± standard deviation and n of the runs with each set of labels."""
    lines = []
    for one in labels:
        own = [row for row in rows if all(row[name] == value for name, value in one.items())]
        cells = [plus_minus([row[key] for row in own], spec) for key, spec in keys.items()]
        lines.append([*cells, str(len(own))])
    return lines


def of_masking(rows: Rows) -> str:
    """E1."""
    words = {plans.BATCH_NORM: "factor 1, as here", plans.EVERYWHERE: "the rule everywhere"}
    rates = sorted({row["rate"] for row in rows}, reverse=True)
    labels = [{"rate": rate, "rule": rule} for rate in rates for rule in plans.RULES]
    keys = {"val_loss": ".3f", f"before_{TOP1}": ".2f", TOP1: ".2f", LOSS: ".3f"}
    lines = [
        [f"{100 * one['rate']:g} %", words[one["rule"]], *cells]
        for one, cells in zip(labels, _means(rows, labels, keys), strict=True)
    ]
    header = ["FLOPs left", "kernels", "D_val loss", "top-1 % before fine-tuning", "after", "loss"]
    return table([*header, "n"], lines)


def of_fine_tuning(rows: Rows) -> str:
    """E2."""
    words = {
        "one_view": "no teacher, one view",
        "two_views": "no teacher, two views",
        "single": "the unpruned network, two views",
        "ensemble": "the memory bank, two views",
    }
    labels = [{"arm": arm} for arm in plans.ARMS]
    found = _means(rows, labels, {TOP1: ".2f", LOSS: ".4f"})
    lines = [[words[one["arm"]], *cells] for one, cells in zip(labels, found, strict=True)]
    return table(["fine-tuning", "top-1 %", "loss", "n"], lines)


def of_teacher_rules(rows: Rows) -> str:
    """E3."""
    words = {plans.FITTED: "fitted well", plans.UNFITTED: "hardly trained"}
    labels = [{"baseline": kind, "rule": rule} for kind in words for rule in TEACHER_RULES]
    lines = []
    for one, cells in zip(labels, _means(rows, labels, {TOP1: ".2f", LOSS: ".4f"}), strict=True):
        own = [row for row in rows if all(row[name] == value for name, value in one.items())]
        used = [format(float(np.mean(epoch)), ".2f") for epoch in zip(*_teachers(own), strict=True)]
        teachers = " → ".join(used) or NOT_MEASURED
        lines.append([words[one["baseline"]], f"`{one['rule']}`", teachers, *cells])
    header = ["baseline", "rule", "teachers used, by epoch", "top-1 %", "loss", "n"]
    return table(header, lines)


def _teachers(rows: Rows) -> list[list[float]]:
    return [row["teachers"] for row in rows if row.get("teachers")]


def of_baselines(rows: Rows) -> str:
    """E6."""
    words = {plans.ALONE: "cross-entropy alone", BYOL: "with BYOL's teacher"}
    labels = [{"baseline": kind} for kind in words]
    found = _means(rows, labels, {"baseline_top1": ".2f", TOP1: ".2f", LOSS: ".4f"})
    lines = [[words[one["baseline"]], *cells] for one, cells in zip(labels, found, strict=True)]
    header = ["baseline", "its top-1 %", "top-1 % after search and fine-tuning", "loss", "n"]
    return table(header, lines)


def of_searches(rows: Rows) -> str:
    """E7."""
    words = {plans.NOBODY: "the labels alone", plans.TOGETHER: "the labels and the ensemble"}
    labels = [{"teacher": teacher} for teacher in words]
    keys = {"searched_top1": ".2f", TOP1: ".2f", LOSS: ".4f"}
    lines = [
        [words[one["teacher"]], *cells]
        for one, cells in zip(labels, _means(rows, labels, keys), strict=True)
    ]
    header = ["reward", "top-1 % before fine-tuning", "after", "loss", "n"]
    return table(header, lines)


def of_rewards(rows: Rows) -> str:
    """E4."""
    lines = []
    for condition, words in CONDITIONS.items():
        own = [row for row in rows if row["condition"] == condition]
        start = plus_minus([row["start"]["val_loss"] for row in own], ".4f")
        same = [
            plus_minus([100 * row["agreement"][pair]["same"] for row in own], ".1f")
            for pair in PAIRS
        ]
        tau = [plus_minus([row["agreement"][pair]["tau"] for row in own], ".3f") for pair in PAIRS]
        lines.append([words, start, *same, *tau, str(len(own))])
    header = ["θ_0", "its D_val loss"]
    header += [f"same choice %, {pair}" for pair in PAIRS] + [f"τ, {pair}" for pair in PAIRS]
    return table([*header, "n"], lines)


def of_smoothness(rows: Rows) -> str:
    """E5."""
    networks = [network for row in rows for network in row["networks"]]
    clusters = len({one["step"] for one in networks})
    lines = []
    for key, words in CURVATURES.items():
        found = [_partial(rows, key, ranks=ranks) for ranks in (False, True)]
        cells = [NOT_MEASURED if one is None else one.text() for one in found]
        lines.append([words.replace("|", "\\|"), *cells])
    loss, val = ([one[key] for one in networks] for key in (LOSS, "val_loss"))
    header = ["given the D_val loss", "partial Pearson r with the test loss", "Spearman"]
    return (
        f"{len(networks)} sub-networks that left their search at {clusters} different steps "
        f"(clusters); D_val loss {min(val):.3f} to {max(val):.3f}, test loss after fine-tuning "
        f"{min(loss):.3f} to {max(loss):.3f}.\n\n{table(header, lines)}"
    )


SHOWS: dict[str, Callable[[Rows], str]] = {
    "E1": of_masking,
    "E2": of_fine_tuning,
    "E3": of_teacher_rules,
    "E4": of_rewards,
    "E5": of_smoothness,
    "E6": of_baselines,
    "E7": of_searches,
}


def of_setting(setting: dict[str, Any]) -> str:
    """What was run, in a few words."""
    return (
        f"{setting['title']}, {100 * setting['rate']:g} % of the FLOPs left; baselines of "
        f"{setting['fitted']} epochs (fitted well) and {setting['unfitted']} (hardly trained), "
        f"{setting['baselines']} of each, {100 * setting['held_out']:g} % of the training set kept "
        f"from them; {setting['alike']} epochs in E6; fine-tuning for {setting['tuning']} epochs "
        f"({setting['potential']} in E5)"
    )


def of_unpruned(smoothness: dict[str, Any] | None) -> str:
    """The condition numbers of the unpruned network and of what the searches left of it."""
    if smoothness is None or UNPRUNED not in smoothness["networks"]:
        return NOT_MEASURED
    others = [one for name, one in smoothness["networks"].items() if name != UNPRUNED]
    whole = smoothness["networks"][UNPRUNED]
    ranges = {
        key: f"{min(one[key] for one in others):.4g} to {max(one[key] for one in others):.4g}"
        for key in ("condition_number", "lambda_max", "val_loss")
    }
    return (
        f"The unpruned ResNet-56 has {whole['condition_number']:.4f}, more than its pruned "
        f"sub-networks with {ranges['condition_number']}: by that figure it is the least smooth of "
        f"all. Its λ_max is {whole['lambda_max']:.4g} (theirs: {ranges['lambda_max']}), its loss "
        f"on D_val {whole['val_loss']:.4g} (theirs: {ranges['val_loss']})."
    )


def page(found: dict[str, Any], smoothness: dict[str, Any] | None = None) -> str:
    """docs/claims.md.

    Args:
        found: claims.json, or {} where there is none. smoothness: smoothness.json.
    """
    results = found.get("experiments", {})
    text = TEMPLATE.read_text(encoding="utf-8")
    for name, show in SHOWS.items():
        one = results.get(name)
        shown = NOT_MEASURED.capitalize() + "."
        if one:
            machines = ", ".join(one["machines"])
            shown = show(one["runs"]) + (f"\n\nOn {machines}." if machines else "")
        text = text.replace("{" + name + "}", shown)
    text = text.replace("{setting}", of_setting(found["setting"]) if found else NOT_MEASURED)
    text = text.replace("{unpruned}", of_unpruned(smoothness))
    return text.replace("{verdicts}", verdicts(results))


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = manners.Parser(description="Writes docs/claims.md from what was measured.")
    parser.add_argument("--results", type=Path, default=ROOT / FILE, help=f"default: {FILE}")
    parser.add_argument("--page", type=Path, default=PAGE, help="default: docs/claims.md")
    args = parser.parse_args(argv)
    found = read_json(args.results, "setting", "experiments") if args.results.exists() else {}
    text = page(found, read_json(SMOOTHNESS) if SMOOTHNESS.exists() else None)
    atomic_write(args.page, lambda path: path.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    manners.run(main)
