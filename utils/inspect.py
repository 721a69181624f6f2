"""What can be pruned in a network, before any search.

python -m utils.inspect my.keras --search_target_rate 0.5
python -m utils.inspect applications:ResNet50 --json resnet50.json
"""

from utils import cli, devices

devices.import_tensorflow()

import json
from pathlib import Path

import keras
import numpy as np

from nets.graph import ChannelGraph
from nets.layer_rules import DEPTHWISE, KERNEL_LAYERS, is_depthwise
from pruning.budgets import check_reachable
from utils.checkpoint import load_keras
from utils.files import atomic_write

APPLICATIONS = "applications:"
LARGEST_LIST = 4  # layers named per group


def application(name: str, **options) -> keras.Model:
    """A network of keras.applications with random weights that gives logits.

    Args:
        options: of the builder, such as input_shape and classes; the default image size is the
            builder's own.

    Raises:
        UserError: there is no network of this name.
    """
    builder = getattr(keras.applications, name, None)
    if not callable(builder) or not name[:1].isupper():
        known = ", ".join(application_names())
        raise cli.UserError(f"keras.applications has no {name!r}: choose one of {known}")
    if name.startswith("MobileNetV3"):  # the only ones whose default image size is open
        options.setdefault("input_shape", (224, 224, 3))
    return builder(weights=None, classifier_activation=None, **options)


def application_names() -> list[str]:
    """Names of the networks in keras.applications."""
    members = ((name, getattr(keras.applications, name)) for name in dir(keras.applications))
    return [name for name, one in members if name[:1].isupper() and callable(one)]


def filters(graph: ChannelGraph) -> tuple[int, int]:
    """(filters in prunable groups, all filters).

    Counted are the output channels of convolutions and dense layers but for depthwise ones, whose
    channels are their input's.
    """
    prunable = total = 0
    for layer in {id(call.operation): call.operation for call in graph.calls}.values():
        if type(layer) not in KERNEL_LAYERS or type(layer) in DEPTHWISE:
            continue
        in_units, units = graph.units.get(layer.name, ((), None))
        if is_depthwise(layer, len(in_units)) if hasattr(layer, "kernel_size") else False:
            continue
        if units is None:  # no rule: never pruned
            total += getattr(layer, "filters", 0)
        else:
            total += len(units)
            prunable += int(np.count_nonzero(units < graph.gates.num_units))
    return prunable, total


def inspect(graph: ChannelGraph) -> dict:
    """All that is known about a network before a search, as plain data.

    Returns:
        {"network", "flops", "parameters", "filters", "prunable_filters", "lowest_rate": FLOPs left
        with one filter per group, "groups": [{"layers", "width", "prunable", "reason"}]}; layers
        that aren't prunable are listed one by one.
    """
    prunable, total = filters(graph)
    groups = [
        {"layers": list(gate.layers), "width": gate.channels, "prunable": True, "reason": None}
        for gate in graph.gates
    ]
    for name, reason in graph.frozen.items():
        layer = graph.model.get_layer(name)
        width = getattr(layer, "filters", None) or getattr(layer, "units", None)
        width = width or len(graph.units[name][1])
        groups.append({"layers": [name], "width": width, "prunable": False, "reason": reason})
    return {
        "network": graph.model.name,
        "flops": graph.flops(),
        "parameters": graph.parameters(),
        "filters": total,
        "prunable_filters": prunable,
        "lowest_rate": graph.lowest_rate(),
        "groups": groups,
    }


def report(result: dict) -> str:
    """The text of an `inspect`."""
    rows = []
    for number, group in enumerate(result["groups"]):
        shown = group["layers"][:LARGEST_LIST]
        names = ", ".join(shown)
        if len(group["layers"]) > len(shown):
            names += f" and {len(group['layers']) - len(shown)} more"
        state = "prunable" if group["prunable"] else f"not prunable: {group['reason']}"
        rows.append((str(number), str(group["width"]), names, state))
    rows = [("group", "width", "layers", ""), *rows]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = [
        f"{a.rjust(widths[0])}  {b.rjust(widths[1])}  {c.ljust(widths[2])}  {d}".rstrip()
        for a, b, c, d in rows
    ]
    share = 100 * result["prunable_filters"] / max(1, result["filters"])
    count = sum(group["prunable"] for group in result["groups"])
    lines += [
        "",
        f"{result['network']}: {result['parameters']:,} parameters, {result['flops']:,} FLOPs "
        "(multiply-accumulates) per image",
        f"{result['prunable_filters']:,} of {result['filters']:,} filters ({share:.1f} %) are in "
        f"{count} prunable groups",
        f"smallest FLOPs rate (one filter per group): {result['lowest_rate']:.4f}",
    ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = cli.Parser(prog="python -m utils.inspect", description="What can be pruned.")
    parser.add_argument("network", help=".keras file, or applications:NAME of keras.applications")
    parser.add_argument(
        "--search_target_rate", type=cli.fraction, help="FLOPs that shall remain, as a share"
    )
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args(argv)
    if args.network.startswith(APPLICATIONS):
        model = application(args.network.removeprefix(APPLICATIONS))
    else:
        model = load_keras(args.network)
    graph = ChannelGraph(model)
    result = inspect(graph)
    print(report(result))
    if args.json:
        text = json.dumps(result, indent=1) + "\n"
        atomic_write(args.json, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    if args.search_target_rate is not None:
        smallest = f"one filter in each of {len(graph.gates)} groups"
        check_reachable(args.search_target_rate, graph.lowest_rate(), smallest)
        print(f"--search_target_rate {args.search_target_rate} can be reached")


if __name__ == "__main__":
    cli.run(main)
