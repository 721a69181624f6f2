"""docs/models.md from docs/results/models.json.

python -m ekg_tf.pages.models
"""

from ..benchmarks.models import KEEP, PROOF_IMAGES, RESULTS
from ..cli import manners
from ..nets.zoo.applications import application_names
from ..reports.tables import NOT_MEASURED, table
from ..utils.files import atomic_write
from ..utils.jsonl import read_json
from .files import ROOT

PAGE = ROOT / "docs" / "models.md"


def page(results: dict) -> str:
    """docs/models.md from the results by network."""
    header = ["network", "image", "prunable groups", "filters in them", "lowest FLOPs rate"]
    header += ["FLOPs", "parameters", "seconds of the graph", "masked and pruned differ by"]
    rows = []
    for name in application_names():
        one = results.get(name)
        if one is None:
            rows.append([name, *[NOT_MEASURED] * (len(header) - 1)])
            continue
        proof = one["proof"]
        rows.append(
            [
                name,
                str(one["image_size"]),
                str(one["groups"]),
                f"{100 * one['prunable_filters'] / one['filters']:.1f} %",
                f"{one['lowest_rate']:.4f}",
                f"{one['flops'] / 1e9:.3f} G",
                f"{one['parameters'] / 1e6:.2f} M",
                f"{one['graph_seconds']:.2f}",
                f"{proof['relative_difference']:.1g} ({proof['image_size']} px)",
            ]
        )
    return (
        "# Networks of keras.applications\n\n"
        "Printed by `python -m ekg_tf.pages.models` from docs/results/models.json, which "
        "`python -m ekg_tf.benchmarks.models` writes; `ekg-tf inspect FILE.keras` gives the same "
        "counts for any network.\n\n"
        "Random weights. FLOPs are multiply-accumulates of convolutions and dense layers for one "
        "image of the default size; the lowest rate is what one filter per group leaves. The last "
        f"column compares logits on {PROOF_IMAGES} random images, {round(100 * KEEP)} % of the "
        "filters of every group kept: the largest difference divided by the largest logit.\n\n"
        f"{table(header, rows)}\n"
    )


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    manners.Parser(description="Writes docs/models.md from docs/results/models.json.").parse_args(
        argv
    )
    text = page(read_json(RESULTS))
    atomic_write(PAGE, lambda path: path.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    manners.run(main)
