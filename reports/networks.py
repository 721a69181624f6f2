"""The figures of two networks side by side: size, FLOPs, accuracy, latency; and the verdict."""

import math
import resource
import textwrap
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from ..dataloader import Dataset
from ..deployment.latency import compared
from ..nets.given import Given
from ..nets.graph import ChannelGraph
from ..training.latency import latency_batches, medians, ratio_of, timings
from ..training.task import Task
from ..training.trainer import both_modes
from ..utils import progress
from ..utils.devices import Device
from .outline import of_pair
from .tables import before_after
from .verdict import Latency, Metric, next_step, verdict

MODES = (
    "moving statistics: batch norms as they are in use; batch statistics: they normalise by each "
    "test batch, as the search does"
)
_MODES = (("moving statistics", ""), ("batch statistics", "batch_"))  # words, beginning of keys
COLUMNS = 100
TOP5_CLASSES = 20  # from here up one of the five likeliest classes says something


def describe(
    before: Given | None,
    after: Given,
    task: Task,
    data: Dataset,
    device: Device,
    *,
    accuracy: bool = True,
    deployed: bool = True,
) -> dict:
    """Figures of two networks.

    Args:
        before, after: as they were given or read from a file; no `before`: its figures are null.
        task: what they are trained for.
        accuracy: False leaves the accuracy of `before` unmeasured (fresh weights).
        deployed: whether latencies in LiteRT or ONNX Runtime are measured, where one is installed.

    Returns:
        {"before": {...}, "after": {...}}: parameters, flops (multiply-accumulates per example),
        latency in ms per example by batch size, and on the test split the figures of
        `training.evaluation.evaluate` in both batch-norm modes. "classes": of a classifier. Where
        there are both networks, "network": `reports.outline` of both, "latency_ratio": {batch size:
        [lowest, highest] after / before} and, unless there is no runtime, "deployed" of
        `deployment.latency.compared`.
    """
    models = {"after": after} if before is None else {"before": before, "after": after}
    shapes = [one.shape[1:] for one in after.core.inputs]
    both = "both networks" if before else "the network"
    batches = latency_batches(data)
    with progress.doing(f"measuring the latency of {both}"):
        networks = [one.model for one in models.values()]
        rounds = {b: timings(networks, b, compile=device.compile, shapes=shapes) for b in batches}
    times = {batch: medians(rounds[batch]) for batch in batches}
    graphs = {name: ChannelGraph(given.core) for name, given in models.items()}
    results: dict = {"before": None}
    if task.is_classifier:
        results["classes"] = int(after.core.outputs[0].shape[-1])
    if before is not None:
        results["network"] = of_pair(graphs["before"], graphs["after"])
        results["latency_ratio"] = {str(batch): list(ratio_of(rounds[batch])) for batch in batches}
    if before is not None and deployed:
        with progress.doing("measuring the latency where it will run (LiteRT or ONNX Runtime)"):
            exported = [one.at_shapes(shapes) for one in models.values()]
            if found := compared(*exported):
                results["deployed"] = found
    for number, (name, given) in enumerate(models.items()):
        results[name] = {
            "parameters": given.count_params(),
            "flops": graphs[name].flops(),
            "latency_ms": {str(batch): times[batch][number] for batch in times},
        }
        if accuracy or name == "after":
            which = {"before": "network as given", "after": "pruned network"}[name]
            examples = progress.count(len(data.test), "test example")
            with progress.doing(f"testing the {which} on {examples}"):
                results[name]["test"] = both_modes(given, task, data, "test", device)
    return results


def peak_memory_mb() -> dict[str, float]:
    """The most memory of this process so far, in MiB: resident, and on each GPU."""
    peaks = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    for number in range(len(tf.config.list_logical_devices("GPU"))):
        name = f"GPU:{number}"
        peaks[name] = tf.config.experimental.get_memory_info(name)["peak"] / 2**20
    return peaks


def print_report(results: Mapping[str, Any], written: str | None = None) -> None:
    """Shows the before -> after block and the verdict of `describe`'s figures.

    Args:
        written: file of the pruned network.
    """
    progress.say(report_text(results, written))


def report_text(results: Mapping[str, Any], written: str | None = None) -> str:
    """The text of `print_report`."""

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
    tops = ("top1",) if results.get("classes", TOP5_CLASSES) < TOP5_CLASSES else ("top1", "top5")
    if "top1" in tested:
        for mode, key in modes_of(tested):
            for top in tops:
                title = f"top-{top[3:]} %{mode}"
                rows.append((title, *pair("test", f"{key}{top}"), ".2f"))
    for mode, key in modes_of(tested):
        for name in own_metrics(tested):
            rows.append((f"{name}{mode}", *pair("test", f"{key}metrics", name), ".4f"))
    rows.append((f"test loss{modes_of(tested)[0][0]}", *pair("test", "loss"), ".4f"))
    ratios = {}
    for batch in results["after"]["latency_ms"]:
        name = f"latency, ms per example, batch {batch}"
        rows.append((name, *pair("latency_ms", batch), ".3f"))
        ratios[name] = results.get("latency_ratio", {}).get(batch)
    found = results.get("deployed", {})
    if "latency_ms" in found:
        name = f"latency, ms, {found['runtime']}"
        rows.append((name, *(found["latency_ms"][side] for side in ("before", "after")), ".3f"))
        ratios[name] = found["ratio"]
    lines = [before_after(rows, ratios)]
    if "problem" in found:
        lines.append(f"latency in {found['runtime']}: not measured ({found['problem']})")
    lines += explained(tested)
    return "\n".join([*lines, "", wrapped(verdict_text(results, written))])


def modes_of(tested: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(words for a title, beginning of a key) of what batch norms normalised by in a test.

    A network without any was tested once: ("", "").
    """
    if "batch_loss" not in tested:
        return [("", "")]
    return [(f", {words}", key) for words, key in _MODES]


def explained(tested: Mapping[str, Any]) -> list[str]:
    """The lines that say what both modes are; none where there is one."""
    return [wrapped(MODES)] if "batch_loss" in tested else []


def wrapped(text: str) -> str:
    """A paragraph in lines that a terminal shows whole; files and commands stay in one piece."""
    return textwrap.fill(text, COLUMNS, break_long_words=False, break_on_hyphens=False)


def verdict_text(results: Mapping[str, Any], written: str | None = None) -> str:
    """What became of a network in a few sentences, from `describe`'s figures."""
    before, after = results["before"], results["after"]
    figure = metric_of(before, after)
    if before is None:
        return figure.sentence()
    folder = written.rpartition("/")[0] or "." if written else "FOLDER"
    return verdict(
        flops=(before["flops"], after["flops"]),
        parameters=(before["parameters"], after["parameters"]),
        metric=figure,
        latency=_latency(results),
        written=written,
        following=next_step(figure, finetuned=True, folder=folder) if written else None,
    )


def metric_of(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> Metric:
    """The figure that a network is judged by: the user's first metric, else top-1, else the loss.

    Args:
        before, after: with "test", of `training.evaluation.evaluate`; without it: not measured.
    """
    tested, former = after["test"], (before or {}).get("test") or {}
    count = tested["examples"]
    for name in own_metrics(tested):
        value = former.get("metrics", {}).get(name)
        before_error, error = (one.get("metrics_error", {}).get(name) for one in (former, tested))
        return Metric(name, value, tested["metrics"][name], count, errors=(before_error, error))
    if "top1" in tested:
        return Metric("top-1", former.get("top1"), tested["top1"], count, "%", True)
    sides = [former.get("loss"), tested["loss"]]
    errors = (former.get("loss_error"), tested.get("loss_error"))
    return Metric("loss", *sides, count, higher_is_better=False, errors=errors)


def own_metrics(tested: Mapping[str, Any]) -> list[str]:
    """Names of the user's metrics that say something else than top-1."""
    top = tested.get("top1")
    return [
        name
        for name, value in tested.get("metrics", {}).items()
        if top is None or not ("acc" in name and math.isclose(100 * value, top, abs_tol=1e-3))
    ]


def _latency(results: Mapping[str, Any]) -> Latency:
    """Where it will run, if that was measured, else in Keras; one example at a time."""
    found = results.get("deployed", {})
    if "latency_ms" in found:
        times = found["latency_ms"]
        ratio, where = tuple(found["ratio"]), found["runtime"]
        return Latency(times["before"], times["after"], found["batch"], ratio, where)
    times = [results[side]["latency_ms"]["1"] for side in ("before", "after")]
    ratio = results.get("latency_ratio", {}).get("1")
    return Latency(*times, ratio=tuple(ratio) if ratio else None, where="Keras")
