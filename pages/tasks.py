"""docs/tasks.md from docs/tasks.in.md and docs/results/tasks.json.

python -m ekg_tf.pages.tasks
"""

from ..cli import manners
from ..experiments.task_networks import TASKS
from ..experiments.tasks import RESULTS
from ..reports.tables import NOT_MEASURED, spread, table
from ..utils.files import atomic_write
from ..utils.jsonl import read_json
from .files import ROOT

PAGE = ROOT / "docs" / "tasks.md"
TEMPLATE = ROOT / "docs" / "tasks.in.md"  # the text, with {results} for what was measured


def page(results: dict) -> str:
    """docs/tasks.md from the results by task and seed."""
    rows, exported = [], []
    for name, task in TASKS.items():
        runs = [run for key, run in results["runs"].items() if key.split()[0] == name]
        for metric, (words, _) in task.metrics.items():
            rows.append([f"{task.title}: {words}", *_measured(runs, metric)])
        exported.append([task.title, *_litert(runs)])
    header = ["network: metric", "before", "EKG", "uniform widths", "EKG keeps", "uniform keeps"]
    header += ["EKG less uniform, paired", "the same before fine-tuning", "FLOPs kept, EKG"]
    trained, tuned = results.get("epochs", [0, 0])
    train, test = results.get("examples", [0, 0])
    measured = (
        f"Four small networks, trained for {trained} epochs on {train:,} photos of CIFAR-10 (or "
        "drawn signals), pruned to half\n"
        f"of their FLOPs and fine-tuned for {tuned} epochs without augmentation, by Adam with a "
        f"falling rate as in their training\n(`optimizer=`); tested on {test:,} others. Uniform "
        "widths are fine-tuned alike; their bank has one teacher, since their\nsearch has one "
        'step. Mean ± standard deviation over seeds; "explained" is the share of the targets\' '
        "mean absolute\ndeviation that the error leaves out; what is kept is the metric over its "
        "own value before.\n\n"
        f"{table(header, rows)}\n\n"
        "In LiteRT on one thread, EKG's network of the first seed beside the given one:\n\n"
        f"{table(['network', 'ms', 'KiB', 'largest difference to Keras'], exported)}"
    )
    return TEMPLATE.read_text(encoding="utf-8").replace("{results}", measured)


def _measured(runs: list[dict], metric: str) -> list[str]:
    if not runs:
        return [NOT_MEASURED] * 8
    columns = [
        [run[side]["metrics"][metric] for run in runs] for side in ("before", "ekg", "uniform")
    ]
    kept = [
        [100 * after / before for before, after in zip(columns[0], column, strict=True)]
        for column in columns[1:]
    ]
    flops = [100 * run["ekg"]["flops"] / run["before"]["flops"] for run in runs]
    shares = [f"{spread(values, '.1f')} %" for values in kept]
    apart = [
        [run["ekg"][when][metric] - run["uniform"][when][metric] for run in runs]
        for when in ("metrics", "untuned")
    ]
    figures = [spread(values, ".4f") for values in columns]
    return [*figures, *shares, *(spread(one, ".4f") for one in apart), f"{max(flops):.1f} %"]


def _litert(runs: list[dict]) -> list[str]:
    one = next((run["litert"] for run in runs if "litert" in run), None)
    if one is None:
        return [NOT_MEASURED] * 3
    return [
        f"{one['reference_latency_ms']:.3f} → {one['latency_ms']:.3f}",
        f"{one['reference_bytes'] / 1024:,.0f} → {one['bytes'] / 1024:,.0f}",
        f"{one['max_difference']:.1g}",
    ]


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    manners.Parser(description="Writes docs/tasks.md from what was measured.").parse_args(argv)
    text = page(read_json(RESULTS) if RESULTS.exists() else {"runs": {}})
    atomic_write(PAGE, lambda path: path.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    manners.run(main)
