"""`ekg-tf export`: a network out to deployment.

ekg-tf export run/pruned.keras --format savedmodel,litert,onnx --int8 \\
    --reference run/baseline.keras --json export.json
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ekg_tf.cli import flags, manners
from ekg_tf.options.kinds import FORMATS
from ekg_tf.utils import devices
from ekg_tf.utils.errors import UserError
from ekg_tf.utils.jsonl import write_json


def format_names(text: str) -> list[str]:
    """argparse type: "savedmodel,litert,onnx" -> a list of known names."""
    names = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [name for name in names if name not in FORMATS]
    if unknown or not names:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no list of formats: choose from {', '.join(FORMATS)}"
        )
    return names


def parser() -> manners.Parser:
    """The flags of the command."""
    parser = manners.Parser(prog="ekg-tf export", description="Exports a network and measures it.")
    parser.add_argument("network", type=flags.as_path, help=".keras file")
    parser.add_argument("--format", type=format_names, required=True, help="savedmodel,litert,onnx")
    parser.add_argument("--int8", action="store_true", help="int8 LiteRT and ONNX as well")
    parser.add_argument(
        "--reference", type=flags.as_path, help="the unpruned network, for comparison"
    )
    parser.add_argument("--out", type=flags.as_path, help="folder; default: the network's own")
    parser.add_argument(
        "--calibration_images",
        type=flags.count,
        default=256,
        help="training images that int8 is calibrated on; default: 256",
    )
    parser.add_argument("--json", type=flags.path, help="also write the figures to this file")
    flags.add_dataset(parser)
    flags.add_own_data(parser)
    flags.add_custom(parser)
    flags.add_aims(parser)
    flags.add_val_batch_size(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    args = parser().parse_args(argv)
    devices.import_tensorflow()
    from ekg_tf.cli import inputs
    from ekg_tf.dataloader import unreadable_named
    from ekg_tf.deployment import formats
    from ekg_tf.deployment.exporting import export, load_float32, print_table
    from ekg_tf.phases.opening import work_again

    kinds = formats.chosen(args.format, args.int8)
    inputs.import_custom(args.custom_module)
    devices.choose([])  # the CPU, where LiteRT and ONNX Runtime are as well
    with unreadable_named():
        model = load_float32(args.network)
        out = args.out or args.network.parent
        if not out.is_dir():
            raise UserError(f"{out} is no folder: make it first")
        if inputs.is_run(args.network.parent):
            inputs.inherit_data(args, args.network.parent)
        work = work_again(args, model)
        results = export(
            model,
            args.network,
            kinds,
            work.data,
            work.task,
            out=out,
            reference=args.reference,
            calibration_images=args.calibration_images,
            batch_images=args.val_batch_size,
        )
    print_table(results)
    if args.json:
        write_json(args.json, results)
