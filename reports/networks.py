"""The figures of two networks side by side: size, FLOPs, accuracy, latency."""

import resource

import tensorflow as tf

from ..dataloader import Dataset
from ..nets.given import Given
from ..nets.graph import ChannelGraph
from ..training.latency import latencies, latency_batches
from ..training.task import Task
from ..training.trainer import both_modes
from ..utils.devices import Device
from .outline import of_pair
from .tables import before_after


def describe(
    before: Given | None,
    after: Given,
    task: Task,
    data: Dataset,
    device: Device,
    *,
    accuracy: bool = True,
) -> dict:
    """Figures of two networks.

    Args:
        before, after: as they were given or read from a file; no `before`: its figures are null.
        task: what they are trained for.
        accuracy: False leaves the accuracy of `before` unmeasured (fresh weights).

    Returns:
        {"before": {...}, "after": {...}}: parameters, flops (multiply-accumulates per example),
        latency in ms per example by batch size, and on the test split the figures of
        `training.evaluation.evaluate` in both batch-norm modes. "network": `reports.outline` of
        both, where there are both.
    """
    models = {"after": after} if before is None else {"before": before, "after": after}
    given = [one.model for one in models.values()]
    shapes = [one.shape[1:] for one in after.core.inputs]
    times = {
        batch: latencies(given, batch, compile=device.compile, shapes=shapes)
        for batch in latency_batches(data)
    }
    graphs = {name: ChannelGraph(given.core) for name, given in models.items()}
    results: dict = {"before": None}
    if before is not None:
        results["network"] = of_pair(graphs["before"], graphs["after"])
    for number, (name, given) in enumerate(models.items()):
        results[name] = {
            "parameters": given.model.count_params(),
            "flops": graphs[name].flops(),
            "latency_ms": {str(batch): times[batch][number] for batch in times},
        }
        if accuracy or name == "after":
            results[name]["test"] = both_modes(given, task, data, "test", device)
    return results


def peak_memory_mb() -> dict[str, float]:
    """The most memory of this process so far, in MiB: resident, and on each GPU."""
    peaks = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    for number in range(len(tf.config.list_logical_devices("GPU"))):
        name = f"GPU:{number}"
        peaks[name] = tf.config.experimental.get_memory_info(name)["peak"] / 2**20
    return peaks


def print_report(results: dict) -> None:
    """Prints the before -> after block of `describe`'s figures."""

    def pair(*keys):
        values = []
        for side in ("before", "after"):
            value = results[side]
            for key in keys:
                value = value.get(key) if value is not None else None
            values.append(value)
        return values

    rows = [
        ("parameters", *pair("parameters"), ",.0f"),
        ("FLOPs (multiply-accumulates)", *pair("flops"), ",.0f"),
    ]
    tested = results["after"]["test"]
    modes = (("moving statistics", ""), ("batch statistics", "batch_"))
    if "top1" in tested:
        for mode, key in modes:
            rows.append((f"top-1 %, {mode}", *pair("test", f"{key}top1"), ".2f"))
            rows.append((f"top-5 %, {mode}", *pair("test", f"{key}top5"), ".2f"))
    for mode, key in modes:
        for name in tested.get("metrics", {}):
            rows.append((f"{name}, {mode}", *pair("test", f"{key}metrics", name), ".4f"))
    rows.append(("test loss, moving statistics", *pair("test", "loss"), ".4f"))
    for batch in results["after"]["latency_ms"]:
        name = f"latency, ms per example, batch {batch}"
        rows.append((name, *pair("latency_ms", batch), ".3f"))
    print(before_after(rows))
