"""Writes the tables of docs/smoothness.md from the result files of the experiments.

    python -m ekg_tf.pages.smoothness

The files: docs/results/smoothness.json (CIFAR-10), smoothness_digits.json, landscape.json with
landscape.png, and potential.json with potential.png. One that isn't there shows as "not measured".
"""

from ..cli import manners
from ..utils import devices

devices.import_tensorflow()

from pathlib import Path

from ..experiments.correlations import correlation_table
from ..experiments.smoothness import smoothness_table
from ..experiments.tables.outcomes import PUBLISHED
from ..reports.tables import NOT_MEASURED, table
from ..utils.files import replace_between
from ..utils.jsonl import read_json
from .files import RESULTS, ROOT

PAGE = ROOT / "docs" / "smoothness.md"
BEGIN = "<!-- results: begin (python -m ekg_tf.pages.smoothness) -->"
END = "<!-- results: end -->"
# The paper's Pearson correlations with the potential loss, 50 sub-networks of ResNet-56, CIFAR-10.
PEARSON = {"condition_number": 0.7337, "val_loss": 0.3228}
# Our searches that stand for the columns of the paper's Table 1; GBN is Taylor scores alone.
COLUMN = {"search_l1_none": "l1", "search_taylor_none": "gbn", "search_taylor_ensemble": "ekg"}


def published_table(results: dict, published: dict) -> str:
    """The condition numbers of our searches beside the paper's Table 1, in Markdown.

    Args:
        results: of experiments.smoothness. published: {column: {"condition_number", "val_loss"}}.
    """
    rows = []
    for name, one in results["networks"].items():
        known = published.get(COLUMN.get(name, ""), {})
        rows.append(
            [name]
            + [f"{one[key]:.4f}" for key in ("condition_number", "val_loss")]
            + [f"{known[key]:.4f}" if known else "" for key in ("condition_number", "val_loss")]
        )
    header = ["network", "condition number", "D_val loss"]
    return table([*header, "published condition number", "published validation loss"], rows)


def machine_line(results: dict) -> str:
    """The machine, D_val and the tolerance of a result file."""
    about, settings = results["machine"], results["settings"]
    return (
        f"D_val: {settings['examples']} images of {settings['data']}; eigenvalues to "
        f"{settings['tolerance']:g}; {about['cpus']} CPU cores, busy with other work (matrix "
        f"product in the same run: {about['matmul_gflops']:.0f} GFLOP/s)."
    )


def potential_lines(results: dict) -> str:
    """What was drawn, and the table of correlations."""
    settings, networks = results["settings"], results["networks"]
    kept = [100 * one["flops_rate"] for one in networks]
    top1 = [one["potential"]["test_top1"] for one in networks]
    loss = [one["potential"]["test_loss"] for one in networks]
    minutes = sum(sum(one["seconds"].values()) for one in networks) / 60
    return "\n\n".join(
        [
            f"{len(networks)} sub-networks of {settings['arch']} on {settings['dataset']} at "
            f"{min(kept):.2f} to {max(kept):.2f} % of the FLOPs, drawn along the searches "
            f"{', '.join(settings['sources'])}; {settings['train_epoch']} epochs of fine-tuning "
            f"each; test loss {min(loss):.4f} to {max(loss):.4f}, top-1 {min(top1):.2f} to "
            f"{max(top1):.2f} %; {minutes:.0f} minutes for all without the searches. Positive: the "
            "proxy ranks rightly. p: how likely so strong a correlation is by chance.",
            correlation_table(results),
        ]
    )


def tables(folder: Path = RESULTS) -> str:
    """The page's tables and pictures in Markdown."""

    def shown(file: str, show) -> str:
        return show(read_json(folder / file)) if (folder / file).exists() else NOT_MEASURED

    published = read_json(PUBLISHED)["1"]["ResNet-56 on CIFAR10"]

    def smooth(results: dict) -> str:
        return f"{machine_line(results)}\n\n{smoothness_table(results)}"

    parts = [
        "## Condition numbers: ResNet-56 on CIFAR-10",
        "The sub-networks that four searches ended with at 45 % of the FLOPs, before fine-tuning, "
        "on a tenth of the training set (5,170 images); `res56_cifar10` is the unpruned network.",
        shown("smoothness.json", smooth),
        "Beside the paper's Table 1 (whole training set, its own searches):",
        shown("smoothness.json", lambda results: published_table(results, published)),
        "## Condition numbers: ResNet-20 on DIGITS",
        shown("smoothness_digits.json", smooth),
    ]
    for title, picture in (("Landscapes", "landscape.png"), ("Potential", "potential.png")):
        parts.append(f"## {title}: ResNet-20 on DIGITS")
        if title == "Potential":
            parts.append(shown("potential.json", potential_lines))
            known = ", ".join(f"{value} for {name}" for name, value in PEARSON.items())
            parts.append(
                "Published for 50 sub-networks of ResNet-56 on CIFAR-10: Pearson's r with the "
                f"potential loss {known}."
            )
        if (folder / picture).exists():
            parts.append(f"![{title}](results/{picture})")
    return "\n\n".join(parts)


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    manners.Parser(prog="python -m ekg_tf.pages.smoothness", description=__doc__).parse_args(argv)
    replace_between(PAGE, BEGIN, END, tables())


if __name__ == "__main__":
    manners.run(main)
