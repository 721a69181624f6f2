"""docs/models.md from docs/results/models.json and docs/results/hub_models.json.

python -m ekg_tf.pages.models
"""

from ..benchmarks.hub_models import NETWORKS
from ..benchmarks.hub_models import RESULTS as HUB_RESULTS
from ..benchmarks.models import KEEP, PROOF_IMAGES, RESULTS
from ..cli import manners
from ..nets.zoo.applications import application_names
from ..reports.tables import NOT_MEASURED, table
from ..utils.files import atomic_write
from ..utils.jsonl import read_json
from .files import ROOT

PAGE = ROOT / "docs" / "models.md"
REASONS = 2  # named per network, those with the most parameters


def page(results: dict, hub: dict) -> str:
    """docs/models.md from the results by network, of keras.applications and of the libraries."""
    return f"{applications(results)}\n{libraries(hub)}"


def applications(results: dict) -> str:
    """The networks of keras.applications."""
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


def libraries(results: dict) -> str:
    """The networks of KerasHub and kimm."""
    header = ["network", "library", "image", "parameters", "FLOPs", "parameters within reach"]
    header += ["lowest FLOPs rate", "masked and pruned differ by", "what stays whole"]
    rows = []
    for name, (library, _) in NETWORKS.items():
        one = results.get(name)
        start = [name.removeprefix(f"{library} "), library]
        if one is None:
            rows.append([*start, *[NOT_MEASURED] * (len(header) - 2)])
        elif "problem" in one:
            rows.append([*start, *["—"] * (len(header) - 3), one["problem"]])
        else:
            rows.append(
                [
                    *start,
                    str(one["proof"]["image_size"]),
                    f"{one['parameters'] / 1e6:.2f} M",
                    f"{one['flops'] / 1e9:.3f} G",
                    f"{100 * one['within_reach']:.1f} %",
                    f"{one['lowest_rate']:.4f}",
                    f"{one['proof']['relative_difference']:.1g}",
                    _staying(one["staying"]),
                ]
            )
    return (
        "# Networks of KerasHub and kimm\n\n"
        "Printed by `python -m ekg_tf.pages.models` from docs/results/hub_models.json, which "
        "`python -m ekg_tf.benchmarks.hub_models` writes (`pip install -r requirements-hub.txt`); "
        "neither library is a dependency.\n\n"
        "Built by the libraries' own classes with random weights for ten classes, and read as a "
        "network that a user gives: its composite layers are opened as far as possible. Within "
        "reach is the share of all parameters that goes where one filter per group is left. What "
        "stays whole: the reasons with the most parameters, and in how many layers.\n\n"
        f"{table(header, rows)}\n"
    )


def _staying(reasons: list[dict]) -> str:
    """The output layer always stays; it is named where nothing else does."""
    others = [one for one in reasons if one["reason"] != "network output"][:REASONS]
    if not others:
        return "the output layer alone"
    return "; ".join(f"{one['reason']} ({one['layers']})" for one in others)


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    manners.Parser(description="Writes docs/models.md from what was measured.").parse_args(argv)
    text = page(read_json(RESULTS), read_json(HUB_RESULTS) if HUB_RESULTS.exists() else {})
    atomic_write(PAGE, lambda path: path.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    manners.run(main)
