"""The outcome of a fine-tuning: pictures, result.json, before -> after."""

import math
from pathlib import Path

from ..dataloader import Dataset, own
from ..nets.given import Given
from ..training.task import Task
from ..training.trainer import METRICS
from ..utils import progress
from ..utils.devices import Device
from ..utils.runfiles import EXPORTED, front_file, read_file
from ..utils.runfolder import RunFolder
from . import plots
from .networks import describe, peak_memory_mb, print_report
from .written import close, write_if_missing

LOSS_MARGIN = 0.02


def draw(folder: RunFolder) -> None:
    """training_curves.png of the folder's baseline and fine-tuning, as far as they are there."""
    series: dict[str, dict[str, list]] = {}
    for row in folder.rows(METRICS):
        run = series.setdefault(row["phase"], {"epoch": [], "train loss": [], "test loss": []})
        if "accuracy" in row:
            run.setdefault("train accuracy", []).append(row["accuracy"] / 100)
            run.setdefault("test accuracy", []).append(row["test_top1"] / 100)
        else:
            for name, value in row.get("test_metrics", {}).items():
                run.setdefault(f"test {name}", []).append(value)
        run["epoch"].append(row["epoch"])
        run["train loss"].append(row["loss"])
        run["test loss"].append(row["test_loss"])
    if series:
        folder.write("training_curves.png", lambda path: plots.training_curves(path, series))


def tested(search_path: Path, rate: float | None = None) -> dict | None:
    """What a search measured on the test split of the network that is fine-tuned, if it did."""
    results = read_file(search_path, "search.json")
    if rate is None:
        return results.get("test", {}).get("after")
    name = front_file(rate)
    return next(one.get("test") for one in results["front"] if front_file(one["wanted"]) == name)


def report(
    folder: RunFolder,
    before: Given,
    after: Given,
    task: Task,
    data: Dataset,
    device: Device,
    more: dict,
    untuned: dict | None,
) -> None:
    """Writes result.json, which marks the run as finished, and prints before -> after.

    Args:
        untuned: of `tested`, to say when the fine-tuning has done harm.
    """
    memory = {"peak_memory_mb": peak_memory_mb()}
    deployed = {"deployed": device.deployed_latency}
    results = describe(before, after, task, data, device, **deployed) | more | memory
    close(folder, "result.json", results)
    print_report(results, str(folder.file(EXPORTED)))
    write_if_missing(folder)
    tuned = results["after"]["test"]
    if untuned and _worse(tuned, untuned):
        own_data = data.name == own.NAME and data.moves
        augmentation = "no crops and no mirroring, " if own_data else ""
        key, name, unit = ("top1", "top-1", " %") if "top1" in tuned else ("loss", "loss", "")
        before, after = (f"{side[key]:.{2 if unit else 4}f}{unit}" for side in (untuned, tuned))
        progress.say(
            f"the fine-tuning did harm: {name} {before} before it, {after} after it; try "
            f"{augmentation}a lower learning rate or more epochs"
        )


def _worse(tuned: dict, untuned: dict) -> bool:
    """Whether top-1 fell by more than the standard error of such a difference; of other tasks:
    whether the loss rose."""
    if "top1" not in tuned:
        return tuned["loss"] > untuned["loss"] * (1 + LOSS_MARGIN)
    before, after = untuned["top1"] / 100, tuned["top1"] / 100
    variance = before * (1 - before) + after * (1 - after)
    return before - after > math.sqrt(variance / tuned["examples"])
