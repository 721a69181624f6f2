"""Writes docs/performance.md from the result files of the benchmarks.

    python -m ekg_tf.pages.performance

The text is docs/performance.in.md; every figure comes from docs/results/<benchmark>.json. A file
that is not there shows as "not measured".
"""

from pathlib import Path

import numpy as np

from ..cli import manners
from ..experiments.claims import statistics
from ..reports.tables import NOT_MEASURED, spread, table
from ..utils.files import atomic_write
from ..utils.jsonl import read_json
from .files import RESULTS, ROOT

DOCUMENT = ROOT / "docs" / "performance.md"
TEMPLATE = ROOT / "docs" / "performance.in.md"  # the text, with a {name} for every table


def percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f} %"


def machine_line(about: dict) -> str:
    """The machine and how fast its matrix product was during the run."""
    gpus = ", ".join(about["gpus"]) or "no GPU"
    rates = [about["matmul_gflops"]]
    rates += [about["matmul_gflops_after"]] if "matmul_gflops_after" in about else []
    rate = " before and ".join(f"{value:.0f}" for value in rates)
    after = " after" if len(rates) > 1 else ""
    kernels = "with" if about.get("onednn") else "without"
    return (
        f"{about['cpus']} CPU cores, {gpus}, TensorFlow {about['tensorflow']} {kernels} oneDNN; "
        f"matrix product in the same run: {rate} GFLOP/s{after}."
    )


def search_speed(run: dict) -> str:
    """The three evaluators on the same proposals."""
    data = run["summary"]
    ratio, whole = data["ratio"], data["ratio_with_importance"]
    images = data["images"]
    both = data["steps_with_naive"]
    same = {"exact": "100 % by construction"}
    if "fast" in ratio:
        same["fast"] = percent(data["fast_same_choice"], data["steps"])
    rows = [
        [name, f"{ratio[name]:.1f} x", f"{whole[name]:.1f} x", choice]
        for name, choice in same.items()
    ]
    header = ["evaluator", "proposals, against naive", "whole step, against naive", "same choice"]
    fast = ""
    if "fast" in ratio:
        evaluated = percent(data["fast_evaluations"], data["evaluations"])
        seen = percent(images["fast"], images["naive"])
        fast = f"Fast evaluated {evaluated} of all proposals, on {seen} of the images. "
    workers = run["worker_seconds"]
    side = workers["1"] / workers["2"]
    parts = [
        machine_line(run["machine"]),
        f"ResNet-56, D_val = {run['examples']} images, {data['steps']} steps of a search, down to "
        f"{percent(run['flops_rate'], 1)} of the FLOPs; ratios of medians over the {both} steps at "
        "which naive ran.",
        table(header, rows),
        f"Exact chose what naive chose in {data['exact_same_choice']} of {both} steps "
        f"({data['ties']} of the others were ties within 1e-6); their rewards differed by at most "
        f"{data['reward_difference']:.1e}. Exact ran {percent(images['exact'], images['naive'])} "
        f"of the images that naive ran: the rest was given up. {fast}Building and tracing, once: "
        + ", ".join(f"{name} {value:.1f} s" for name, value in run["build_seconds"].items())
        + ".",
        f"Two proposals side by side, each on one thread's worth of cores, against one proposal "
        f"after the other with TensorFlow's threads on both: {side:.2f} x as fast.",
    ]
    return "\n\n".join(parts)


def fast_quality(run: dict) -> str:
    """Final networks of fast beside exact's."""
    draws = len(run["exact"])

    def shares(key: str) -> list[float]:
        return [a[key] / b[key] for a, b in zip(run["fast"], run["exact"], strict=True)]

    rows = [
        [
            name,
            spread([one["val_loss"] for one in run[name]], ".4f"),
            spread([one["val_accuracy"] for one in run[name]], ".2f"),
            f"{np.mean([one['evaluations'] for one in run[name]]):.0f}",
        ]
        for name in ("exact", "fast")
    ]
    header = ["evaluator", "final D_val loss", "final D_val top-1 %", "evaluations"]
    losses = [float(np.mean([one["val_loss"] for one in run[name]])) for name in ("fast", "exact")]
    ratios = sorted(shares("val_loss"))
    logs = statistics.mean(list(np.log(ratios)))
    between = ""
    if logs is not None and np.isfinite([logs.low, logs.high]).all():
        middle, low, high = np.exp([logs.value, logs.low, logs.high])
        between = f", {middle:.2f} in the (geometric) mean, 95 % interval {low:.2f} to {high:.2f}"
    return "\n\n".join(
        [
            f"{run['network']}, {percent(run['target_rate'], 1)} of the FLOPs, {draws} draws of "
            "D_subset and D_val:",
            table(header, rows),
            f"Fast's mean loss is {losses[0] / losses[1]:.2f} x exact's; draw by draw the ratio "
            f"lies between {ratios[0]:.2f} and {ratios[-1]:.2f}{between}. Its proposals ran "
            f"{percent(float(np.mean(shares('proposal_images'))), 1)} of the images.",
        ]
    )


def whole_search(run: dict) -> str:
    """Wall time and memory of search.py."""
    rows = []
    for one in run["runs"]:
        seconds = one["seconds"]
        rest = one["wall_seconds"] - sum(seconds.values())
        shares = [seconds.get(key, 0.0) for key in ("importance", "proposals", "bank")] + [rest]
        rows.append(
            [
                one["evaluator"],
                f"{one['wall_seconds'] / 60:.1f} min",
                " / ".join(percent(value, one["wall_seconds"]) for value in shares),
                f"{one['peak_memory_mb'] / 1024:.1f} GB",
                str(one["evaluations"]),
                f"{one['val_loss']['after']:.4f}",
                f"{one['test']['after']['top1']:.1f} / {one['test']['after']['batch_top1']:.1f}",
            ]
        )
    header = ["evaluator", "wall time", "importance / proposals / bank / rest", "peak memory"]
    header += ["evaluations", "final D_val loss", "test top-1 %, moving / batch statistics"]
    return f"{machine_line(run['machine'])}\n\n{table(header, rows)}"


def peers(run: dict) -> str:
    """Torch-Pruning's one-shot rankings beside our searches."""
    rows = [
        [one["method"], f"not measured: {one['skipped']}", *[""] * 4]
        if "skipped" in one
        else [
            one["method"],
            f"{one['wall_seconds']:.0f} s",
            f"{one['flops_rate']:.3f}",
            f"{one['val_loss']:.4f}",
            f"{one['val_accuracy']:.1f}",
            f"{one['test_accuracy']:.1f}",
        ]
        for one in run["rows"]
    ]
    header = ["method", "wall time", "FLOPs left", "D_val loss", "D_val top-1 %", "test top-1 %"]
    return f"{machine_line(run['machine'])}\n\n{table(header, rows)}"


def op_speed(run: dict, without: dict, search: dict | None) -> str:
    """Where a forward pass goes, and the convolutions' rate.

    Args:
        run, without: measured with oneDNN's kernels and without them.
    """
    matmul = run["machine"]["matmul_gflops"]
    total = sum(row["seconds"] for row in run["kinds"])
    rows = []
    pairs = zip(run["kinds"], without["kinds"], strict=True)
    for row, other in sorted(pairs, key=lambda pair: -pair[0]["seconds"])[:10]:
        rate = f"{row['gflops']:.0f} ({percent(row['gflops'], matmul)})" if "gflops" in row else ""
        shape = " x ".join(map(str, row["shape"]))
        share = percent(row["seconds"], total)
        slower = f"{other['seconds'] / row['seconds']:.1f} x"
        rows.append([row["kind"], shape, str(row["calls"]), share, rate, slower])
    header = ["operation", "output", "calls", "share of the forward pass"]
    header += ["GFLOP/s (of the matrix product)", "time without oneDNN"]
    widths = table(
        ["channels in = out, 3 x 3 on 16 x 16", *(str(row["width"]) for row in run["widths"])],
        [
            ["milliseconds", *(f"{1e3 * row['seconds']:.1f}" for row in run["widths"])],
            ["GFLOP/s", *(f"{row['gflops']:.0f}" for row in run["widths"])],
            ["without oneDNN", *(f"{1e3 * row['seconds']:.1f}" for row in without["widths"])],
        ],
    )
    networks = ", ".join(
        f"{other['seconds'] / row['seconds']:.2f} x as long at "
        f"{percent(row['flops_rate'], 1)} of the FLOPs"
        for row, other in zip(run["networks"], without["networks"], strict=True)
    )
    parts = [
        machine_line(run["machine"]),
        table(header, rows),
        widths,
        f"Whole sub-networks of uniform widths, two side by side, take without oneDNN {networks}.",
    ]
    if search and "forward" in search:
        rate = search["machine"]["matmul_gflops"]
        forward = ", ".join(
            f"{row['gflops']:.0f} GFLOP/s ({percent(row['gflops'], rate)}) at "
            f"{percent(row['flops_rate'], 1)} of the FLOPs"
            for row in search["forward"]
        )
        parts.append(
            "The whole forward pass of the networks of a search, sliced, both cores busy: "
            f"{forward}."
        )
    return "\n\n".join(parts)


def train_speed(run: dict) -> str:
    """The two-view step beside Keras."""
    speeds = [row["images_per_second"] for row in run["steps"] if row["name"].startswith("Keras")]
    rows = [
        [
            row["name"],
            f"{row['images_per_second']:,.0f}",
            f"{row['images_per_second'] / max(speeds):.2f}" if speeds else NOT_MEASURED,
            f"{row['first_step_seconds']:.0f} s",
        ]
        for row in run["steps"]
    ]
    header = ["variant", "images/s (a view is one)", "against Keras's faster one", "first step"]
    parts = [
        machine_line(run["machine"]),
        f"{Path(run['network']).stem}, {run['images_per_step']} images a step, half of them "
        "second views.",
        table(header, rows),
    ]
    if "input_pipeline_images_per_second" in run:
        speed = run["input_pipeline_images_per_second"]
        parts.append(f"The input pipeline alone gives {speed:,} views per second.")
    return "\n\n".join(parts)


def latency(run: dict) -> str:
    """FLOPs against milliseconds."""
    full = run["rows"][0]
    rows = []
    for row in run["rows"]:
        name = "unpruned" if row["round_to"] is None else f"--round_to {row['round_to']}"
        cells = [name, f"{row['flops'] / full['flops']:.3f}"]
        for batch in (1, 128):
            key = f"ms_batch_{batch}"
            cells.append(f"{row[key]:.3f} ({row[key] / full[key]:.2f})")
        rows.append([*cells, percent(row["multiples_of_8"], 1)])
    header = ["network", "FLOPs left", "ms per image, batch 1 (ratio)"]
    header += ["ms per image, batch 128 (ratio)", "widths that are multiples of 8"]
    return f"{machine_line(run['machine'])}\n\n{table(header, rows)}"


def gpu_search(run: dict) -> str:
    """Seconds of a search by part, for a run that may have been resumed."""
    parts = ("start", "importance", "proposals", "bank")
    rows = [
        [
            one["evaluator"],
            *(f"{one['seconds'].get(key, 0.0):.0f} s" for key in parts),
            NOT_MEASURED if one["resumed"] else f"{one['wall_seconds']:.0f} s",
            str(one["evaluations"]),
            f"{one['val_loss']['after']:.4f}",
        ]
        for one in run["runs"]
    ]
    header = ["evaluator", *parts, "wall time of all", "evaluations", "final D_val loss"]
    return f"{machine_line(run['machine'])}\n\n{table(header, rows)}"


def data_memory(run: dict) -> str:
    """Memory and speed of data that doesn't fit into its limit."""
    ways = {"folder": "folder of JPEG files", "stream": "tf.data stream of the same"}
    rows = [
        [
            ways[one["way"]],
            f"{one['start_mib']:,} MiB",
            f"{one['peak_mib'] - one['start_mib']:,} MiB",
            f"{one['pipeline_images_per_second']:,}",
            f"{one['step_images_per_second']:,}",
        ]
        for one in run["ways"]
    ]
    header = ["source", "resident before", "more at the peak", "read, images/s"]
    header += ["step of a small network, images/s"]
    busy = "" if run.get("idle") else " The machine was busy: the speeds are not to be relied on."
    return (
        f"{machine_line(run['machine'])}{busy}\n\n{run['images']:,} photos of {run['side']} x "
        f"{run['side']} ({run['jpeg_kib']:.0f} KiB each, {run['decoded_mib']:,} MiB decoded), "
        f"limit {run['limit_mib']:,} MiB, batches of {run['batch_images']}, one epoch with its "
        f"augmentation, each source in a process of its own:\n\n{table(header, rows)}"
    )


def search_memory(run: dict) -> str:
    """Peak memory of searches on photographs, with and without a limit."""
    without = {_search_of(one): one for one in run["rows"] if one["limit_gib"] is None}
    rows = [
        [
            f"{one['network']}, {one['side']} x {one['side']}",
            f"{one['examples']} in batches of {one['batch']}",
            one["evaluator"],
            "none" if one["limit_gib"] is None else f"{one['limit_gib']:g} GiB",
            f"{one['peak_mib'] / 1024:.1f} GiB",
            f"{one['inspect_seconds']:.1f}",
            f"{one['first_step_seconds']:.0f}",
            "none" if one["step_seconds"] is None else f"{one['step_seconds']:.0f}",
            "" if one["limit_gib"] is None else _same(one, without.get(_search_of(one))),
        ]
        for one in run["rows"]
    ]
    there = {one["row"] for one in run["rows"]}
    for row in run["wanted"]:
        if row not in there:
            network, examples, batch, evaluator, limit = row.split(",")
            limit = limit if limit == "none" else f"{limit} GiB"
            known = [network, f"{examples} in batches of {batch}", evaluator, limit]
            rows.append([*known, NOT_MEASURED, *[""] * 4])
    header = ["network", "D_val", "evaluator", "--memory", "peak", "inspect, s", "first step, s"]
    header += ["later steps, s", "choices against no limit"]
    busy = "" if run.get("idle") else " The machine was busy: the seconds are not to be relied on."
    return (
        f"{machine_line(run['machine'])}{busy}\n\nAdapted to "
        f"{run['subset']} photos, tested on {run['test']}; the first step has its tracing."
        f"\n\n{table(header, rows)}\n\n{_of_examples(run['rows'])}"
    )


def _of_examples(rows: list[dict]) -> str:
    """What an example takes in the parts of a search, by network."""
    words = []
    for name, one in {row["network"]: row["example_mib"] for row in rows}.items():
        words.append(
            f"{name} {one['whole']:.0f} MiB in the importance pass, {one['recomputed']:.0f} "
            f"segment by segment, {one['forward']:.0f} forwards"
        )
    return f"An example takes at the peak, beside what is kept of it: {'; '.join(words)}."


def _search_of(row: dict) -> str:
    """What a row of the benchmark searches, without its limit."""
    return row["row"].rpartition(",")[0]


def _same(row: dict, unlimited: dict | None) -> str:
    """Whether a search chose what the one without a limit chose."""
    if unlimited is None:
        return NOT_MEASURED
    if unlimited["choices"] != row["choices"]:
        return "others"
    exactly = unlimited["numbers"] == row["numbers"]
    return "the same, to the last bit" if exactly else "the same"


SECTIONS = {
    "search_memory": search_memory,
    "data_memory": data_memory,
    "search_speed": search_speed,
    "fast_quality_digits": fast_quality,
    "fast_quality_cifar": fast_quality,
    "fast_quality_resnet56": fast_quality,
    "whole_search": whole_search,
    "peers": peers,
    "train_speed": train_speed,
    "latency": latency,
    "gpu_whole_search": gpu_search,
    "gpu_train_speed": train_speed,
    "gpu_train_speed_224": train_speed,
}


def document(folder: Path = RESULTS) -> str:
    """docs/performance.md as text."""
    runs = {
        name: read_json(folder / f"{name}.json")
        for name in (*SECTIONS, "op_speed", "op_speed_without_onednn")
        if (folder / f"{name}.json").exists()
    }
    parts = {
        name: section(runs[name]) if name in runs else f"{NOT_MEASURED}."
        for name, section in SECTIONS.items()
    }
    both = runs.get("op_speed"), runs.get("op_speed_without_onednn")
    search = runs.get("search_speed")
    parts["op_speed"] = op_speed(*both, search) if all(both) else f"{NOT_MEASURED}."
    return TEMPLATE.read_text(encoding="utf-8").format(**parts)


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    manners.Parser(description="Writes docs/performance.md from docs/results.").parse_args(argv)
    text = document()
    atomic_write(DOCUMENT, lambda path: path.write_text(text, encoding="utf-8"))
    print(f"wrote {DOCUMENT}")


if __name__ == "__main__":
    manners.run(main)
