"""The outcome of a search in figures, pictures and on the screen."""

import numpy as np

from ..nets.graph import ChannelGraph
from ..nets.proof import sentence
from ..options.budgets import LABELS
from ..options.search import SearchOptions
from ..pruning.history import History
from ..pruning.methods.by_name import smallest_mask
from ..pruning.space.candidates import OVERSHOOT
from ..utils import progress
from ..utils.runfolder import RunFolder
from . import plots
from .networks import explained, metric_of, modes_of, own_metrics, wrapped
from .outline import of_mask
from .tables import before_after, table
from .verdict import next_step, verdict

# What search.json calls the parts of a search, in words.
PARTS = {
    "start": "first look",
    "importance": "ranking filters",
    "proposals": "trying removals",
    "bank": "memory bank",
    "order": "ranking filters",
    "supernet": "training the supernet",
}


def seconds_of(history: History) -> dict[str, float]:
    """Seconds of the whole search by part, over all the processes that worked on it."""
    total: dict[str, float] = {}
    for row in history.rows:
        for part, seconds in row["seconds"].items():
            total[part] = total.get(part, 0.0) + seconds
    return total


def summary(
    graph: ChannelGraph,
    history: History,
    options: SearchOptions,
    teachers: list[dict],
    seconds: dict[str, float],
) -> dict:
    """What search.json holds: the outcome of the search in figures.

    `teachers`: those of the memory bank, as in its manifest; none without a bank.
    """
    first, last = history.rows[0], history.rows[-1]
    mask = history.mask(graph, len(history.rows) - 1)
    return {
        "method": options.method.name,
        "steps": len(history.rows) - 1,
        "evaluations": sum(row["evaluations"] for row in history.rows),
        "images": sum(row["images"] for row in history.rows),
        "flops": {"before": first["flops"], "after": last["flops"]},
        "flops_rate": last["flops_rate"],
        "parameters": {"before": graph.parameters(), "after": graph.parameters(mask)},
        "val_loss": {"before": first["val_loss"], "after": last["val_loss"]},
        "val_accuracy": {"before": first["val_accuracy"], "after": last["val_accuracy"]},
        "gates": [group.name for group in graph.groups],
        "widths": {"before": first["widths"], "after": last["widths"]},
        "layers": {
            name: [len(out_units), int(np.count_nonzero(mask[out_units]))]
            for name, (_, out_units) in graph.units.items()
        },
        "network": of_mask(graph, mask),
        "budget": options.budget.name,
        "rate": last["rate"],
        "front": front(history, options.budget.keep),
        "drop": _drop(graph, history, options),
        "teachers": teachers,
        "seconds": seconds,
    }


def _drop(graph: ChannelGraph, history: History, options: SearchOptions) -> dict | None:
    """What became of --max_drop: the figure of the network as given and in the end."""
    if options.control.max_drop is None:
        return None
    first, last = history.rows[0], history.rows[-1]
    ended_by = options.budget.name if last["rate"] <= options.budget.goal else "max_drop"
    if last["flops"] <= graph.flops(smallest_mask(graph, options)) + OVERSHOOT * graph.flops():
        ended_by = "nothing left to remove"
    return {
        "allowed": options.control.max_drop,
        "figure": first["drop"]["name"],
        "given": first["drop"]["given"],
        "after": last["watched"],
        "ended_by": ended_by,
    }


def front(history: History, rates: tuple[float, ...]) -> list[dict]:
    """The largest network at or below each rate: figures of its history row, by rising step.

    A rate that the search, ended by --max_drop, hasn't come to has none.
    """
    rows = []
    for wanted in sorted(rates, reverse=True):
        row = next((row for row in history.rows if row["rate"] <= wanted), None)
        if row is None:
            progress.say(
                f"the search ended before a rate of {wanted:g}: no network is written for it"
            )
            continue
        keys = ("step", "rate", "flops", "flops_rate", "parameters", "val_loss", "val_accuracy")
        rows.append({"wanted": wanted, **{key: row[key] for key in keys}})
    return rows


def draw(
    folder: RunFolder, history: History, target_rate: float | None, label: str = "FLOPs"
) -> None:
    """widths.png and search_curve.png of a finished search."""
    results = folder.read_json("search.json")
    widths = results["widths"]
    folder.write(
        "widths.png",
        lambda path: plots.widths(
            path,
            results["gates"],
            widths["before"],
            widths["after"],
            title="Filters kept in each channel group",
        ),
    )
    accuracies = None
    if history.rows[0]["val_accuracy"] is not None:
        accuracies = [row["val_accuracy"] / 100 for row in history.rows]
    folder.write(
        "search_curve.png",
        lambda path: plots.search_curve(
            path,
            [row["rate"] for row in history.rows],
            [row["val_loss"] for row in history.rows],
            val_accuracy=accuracies,
            target=target_rate,
            budget=label,
        ),
    )


def print_summary(results: dict, written: str | None = None) -> None:
    """Shows the before -> after block of a search's search.json and how long it took.

    Args:
        written: file of the pruned network, where the search is all there is to be: the verdict is
            shown as well.
    """
    progress.say(summary_text(results, written))


def summary_text(results: dict, written: str | None = None) -> str:
    """The text of `print_summary`."""
    rows = [
        (title, results[key]["before"], results[key]["after"], spec)
        for title, key, spec in (
            ("parameters", "parameters", ",.0f"),
            ("FLOPs (multiply-accumulates)", "flops", ",.0f"),
        )
        if results[key]["before"] is not None
    ]
    tested = results["test"]
    for mode, key in modes_of(tested["after"]):
        for title, name, spec in (("top-1 %", "top1", ".2f"), ("loss", "loss", ".4f")):
            if name == "top1" and name not in tested["after"]:
                continue
            if name == "loss" and "top1" in tested["after"]:
                continue
            sides = (tested[side][f"{key}{name}"] for side in ("before", "after"))
            rows.append((f"test {title}{mode}, not fine-tuned", *sides, spec))
        for name in own_metrics(tested["after"]):
            sides = (tested[side][f"{key}metrics"][name] for side in ("before", "after"))
            rows.append((f"test {name}{mode}, not fine-tuned", *sides, ".4f"))
    lines = [before_after(rows), *explained(tested["after"])]
    seconds = ", ".join(
        f"{PARTS.get(part, part)} {progress.duration(value)}"
        for part, value in results["seconds"].items()
    )
    steps = progress.count(results["steps"], "step")
    counts = f"{progress.count(results['evaluations'], 'smaller network')} tried"
    lines.append(wrapped(f"search by {results['method']}: {steps}, {counts}; {seconds}"))
    lines.append(wrapped(_decided(results)))
    if proof := results.get("masked_and_pruned"):  # searches before there was a proof lack it
        lines.append(sentence(proof))
    if drop := results.get("drop"):
        lines.append(
            f"max_drop {drop['allowed']:g}: {drop['figure']} {drop['given']:.4f} as given -> "
            f"{drop['after']:.4f} on D_val, not fine-tuned; what ended the search: "
            f"{drop['ended_by']}"
        )
    if results["front"]:
        lines.append(front_table(results))
    if written:
        lines += ["", wrapped(_verdict(results, written))]
    return "\n".join(lines)


def _decided(results: dict) -> str:
    """What the search decided by; its first network is the adapted one, not the one as given."""
    losses, accuracies = results["val_loss"], results["val_accuracy"]
    line = "loss on the held-out training examples that the search decides by: "
    line += f"{losses['before']:.4f} at its start (adapted to some others), {losses['after']:.4f} "
    if accuracies["before"] is None:
        return f"{line}at its end"
    tops = f"{accuracies['before']:.2f} % → {accuracies['after']:.2f} %"
    return f"{line}at its end; top-1 there {tops}"


def _verdict(results: dict, written: str) -> str:
    sides = ({"test": results["test"][side]} for side in ("before", "after"))
    figure = metric_of(*sides)
    return verdict(
        flops=(results["flops"]["before"], results["flops"]["after"]),
        parameters=(results["parameters"]["before"], results["parameters"]["after"]),
        metric=figure,
        finetuned=False,
        written=written,
        following=next_step(figure, finetuned=False, folder=written.rpartition("/")[0] or "."),
    )


def front_table(results: dict) -> str:
    """Markdown table of the networks that a search wrote on its way."""
    rows = [
        [
            f"{one['wanted']:g}",
            f"{one['rate']:.3f}",
            f"{one['flops']:,}",
            f"{one['parameters']:,}",
            f"{one['val_loss']:.4f}",
            _of_front(one["test"]),
            " / ".join(f"{value:.3f}" for value in one["latency_ms"].values()),
        ]
        for one in results["front"]
    ]
    header = ["rate wanted", f"{LABELS[results['budget']]} left", "FLOPs", "parameters"]
    figure = "top-1 %" if "top1" in results["front"][0]["test"] else "loss"
    header += [
        "loss, held-out training examples",
        f"test {figure}{_both_modes(results['front'][0]['test'])}, not fine-tuned",
    ]
    batches = " / ".join(results["front"][0]["latency_ms"])
    return table([*header, f"ms per example, batch {batches}"], rows)


def _both_modes(tested: dict) -> str:
    return ", moving / batch statistics" if len(modes_of(tested)) > 1 else ""


def _of_front(tested: dict) -> str:
    """Top-1, or the loss, in each mode of the batch norms."""
    name, spec = ("top1", ".2f") if "top1" in tested else ("loss", ".4f")
    return " / ".join(f"{tested[key + name]:{spec}}" for _, key in modes_of(tested))
