"""Figures of a table, read from the result files of its cells.

A table's result is plain JSON: per row the figures of every seed, and what is needed to print the
table from it alone (`experiments.tables.text`).

Figures, each a list with one value per seed that has it:
    top1, top5, batch_top1, batch_top5: percent on the test split; batch_ by batch statistics;
    top1_change, top5_change: against the baseline, by moving statistics;
    val_loss, condition_number: of the sub-network that the search ends with, on D_val;
    flops_rate, flops_removed: share of the baseline's FLOPs that is left, percent that is gone;
    evaluations, images: proposals that the search rated, and images that went through networks;
    search_seconds, search_hours, training_hours: wall-clock. The search's contain the memory bank
        only where the fine-tuning uses one, and no start of TensorFlow and no test; the training's
        are those of fine-tuning steps (of the baseline in its row) without evaluation.
"""

from collections.abc import Iterable
from pathlib import Path

from ...utils.jsonl import read_json
from ...utils.provenance import cpu_count, git_state, in_cores, installed
from .grid import REPOSITORY, Cell
from .plans import Planned, Request

HOUR = 3600.0
PUBLISHED = Path(__file__).with_name("published.json")
Figures = dict[str, float]


def published(table: str, arch: str, dataset: str) -> tuple[str, dict[str, Figures]]:
    """The name of the published figures for a network, e.g. "ResNet-56 on CIFAR10", and they.

    Where the paper has none for these, those of its ResNet-56 (Table 3: ResNet-50) on the nearest
    data set, for orientation.
    """
    settings = read_json(PUBLISHED)[table]
    name = f"{arch} on {dataset}"
    if name not in settings:
        network, data = ("ResNet-50", "ImageNet") if table == "3" else ("ResNet-56", "CIFAR10")
        nearest = f"{network} on {dataset}"
        name = nearest if nearest in settings else f"{network} on {data}"
    return name, settings[name]


def source(table: str) -> str:
    """Where the published figures of a table are from."""
    return read_json(PUBLISHED)["methods_source" if table == "methods" else "source"]


def of_baseline(result: dict) -> Figures:
    """Figures of baseline.json; no hours for a network that was given."""
    test = result["test"]
    found = {key: test[key] for key in ("top1", "top5", "batch_top1", "batch_top5")}
    if result["seconds"] is not None:
        found["training_hours"] = result["seconds"] / HOUR
    return found


def of_search(result: dict, *, with_bank: bool) -> Figures:
    """Figures of search.json."""
    seconds = {part: one for part, one in result["seconds"].items() if with_bank or part != "bank"}
    rate = result["flops_rate"]
    found = {
        "val_loss": result["val_loss"]["after"],
        "flops_rate": rate,
        "flops_removed": 100 * (1 - rate),
        "evaluations": result["evaluations"],
        "search_seconds": sum(seconds.values()),
        "search_hours": sum(seconds.values()) / HOUR,
    }
    return found | ({"images": result["images"]} if "images" in result else {})


def of_finetune(result: dict, baseline: dict | None) -> Figures:
    """Figures of a fine-tuning's result.json, and the changes against baseline.json."""
    test = result["after"]["test"]
    found = {key: test[key] for key in ("top1", "top5", "batch_top1", "batch_top5")}
    found["training_hours"] = result["seconds"] / HOUR
    if baseline:
        for key in ("top1", "top5"):
            if test[key] is not None:
                found[f"{key}_change"] = test[key] - baseline["test"][key]
    return found


def of_smoothness(result: dict) -> Figures:
    """The condition number of the one network in a smoothness.json."""
    (one,) = result["networks"].values()
    return {"condition_number": one["condition_number"]}


def figures(planned: Planned, root: Path) -> dict[str, list[float]]:
    """Per figure the values of the seeds that have it, in the order of the seeds."""
    baseline = planned.baseline.read(root)
    if planned.row.search is None:
        return {} if baseline is None else _lists([of_baseline(baseline)])
    with_bank = bool({"ensemble", "ckt"} & set(planned.row.finetune))
    readers = (
        (planned.search, lambda result: of_search(result, with_bank=with_bank)),
        (planned.finetune, lambda result: of_finetune(result, baseline)),
        (planned.smoothness, of_smoothness),
    )
    found: dict[str, list[float]] = {}
    for cells, reader in readers:
        results = (cell.read(root) for cell in cells)
        found |= _lists([reader(result) for result in results if result is not None])
    return found


def _lists(rows: Iterable[Figures]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for row in rows:
        for key, value in row.items():
            if value is not None:
                found.setdefault(key, []).append(value)
    return found


def machines(cells: Iterable[Cell], root: Path) -> list[str]:
    """What the runs used, each once: names of GPUs, or "CPU, 2 cores"."""
    found = []
    for cell in cells:
        path = cell.run(root) / "versions.json"
        if path.exists():
            versions = read_json(path)
            cpu = f"CPU, {in_cores(versions['cpu_count'])}"
            found.append(", ".join(versions["gpus"] or []) or cpu)
    return list(dict.fromkeys(found))


def collect(table: str, plans: list[Planned], request: Request, root: Path) -> dict:
    """The result of a table from whatever the grid's folder holds.

    Raises:
        UserError: a damaged file, or a cell of another command.
    """
    cells = {cell.name: cell for planned in plans for cell in planned.cells}
    name, known = published(table, request.arch, request.dataset)
    return {
        "table": table,
        "network": f"{request.arch} on {request.dataset}",
        "scale": request.scale.title,
        "flags": {
            "baseline": [request.trained_param or "trained", *request.baseline],
            "search": list(request.search),
            "finetune": list(request.finetune),
            "target_rate": request.target_rate,
        },
        "baseline_given": request.trained_param is not None,
        "machines": machines(cells.values(), root),
        "made_with": {
            **installed(("tensorflow", "keras", "numpy")),
            "cpu_count": cpu_count(),
            "git": git_state(REPOSITORY),
        },
        "rows": [
            {
                "name": planned.row.name,
                "labels": list(planned.row.labels),
                "published": known.get(planned.row.published, {}),
                "figures": figures(planned, root),
            }
            for planned in plans
        ],
        "published": {"network": name, "source": source(table), "rows": known},
    }
