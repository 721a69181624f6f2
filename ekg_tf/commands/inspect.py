"""`ekg-tf inspect`: what can be pruned in a network, before any search.

ekg-tf inspect my.keras --search_target_rate 0.5
ekg-tf inspect applications:ResNet50 --json resnet50.json
"""

from __future__ import annotations

from collections.abc import Sequence

from ekg_tf.cli import flags, manners
from ekg_tf.utils import devices
from ekg_tf.utils.jsonl import write_json

APPLICATIONS = "applications:"


def parser() -> manners.Parser:
    """The flags of the command."""
    parser = manners.Parser(prog="ekg-tf inspect", description="What can be pruned in a network.")
    parser.add_argument(
        "network", type=flags.path, help=".keras file, or applications:NAME of keras.applications"
    )
    parser.add_argument(
        "--search_target_rate", type=flags.fraction, help="FLOPs that shall remain, as a share"
    )
    flags.add_custom(parser)
    parser.add_argument("--json", type=flags.path, help="also write the figures to this file")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    args = parser().parse_args(argv)
    devices.import_tensorflow()
    import tensorflow as tf

    from ekg_tf.cli import inputs
    from ekg_tf.nets.flatten import flatten
    from ekg_tf.nets.given import check_weights
    from ekg_tf.nets.graph import ChannelGraph
    from ekg_tf.nets.zoo.applications import fresh_application
    from ekg_tf.pruning.space.budgets import check_reachable
    from ekg_tf.reports.inspection import inspection, text
    from ekg_tf.utils.keras_files import load_keras

    with devices.hold_stderr():  # the lines about GPU drivers come at the first look for a GPU
        tf.config.list_physical_devices("GPU")
    inputs.import_custom(args.custom_module)
    if args.network.startswith(APPLICATIONS):
        model = fresh_application(args.network.removeprefix(APPLICATIONS))
    else:
        model = load_keras(args.network)
    check_weights(model)
    graph = ChannelGraph(flatten(model).model)
    result = inspection(graph)
    print(text(result))
    if args.json:
        write_json(args.json, result)
    if args.search_target_rate is not None:
        smallest = f"one filter in each of {len(graph.groups)} groups"
        check_reachable(args.search_target_rate, graph.lowest_rate(), smallest)
        print(f"a rate of {args.search_target_rate} can be reached")
