"""Accuracy in both batch-norm modes, size, FLOPs and latency of a network, before -> after.

    python test.py --arch ResNet-56 --dataset CIFAR10 --data_path DIR --trained_param
    ../run/trained_param.pkl

"before" is the unpruned network: the one that the run folder beside the weights began with, else
the architecture of --arch without its accuracy; a --model outside a run folder has none. The only
program that is about the test split.
"""

from __future__ import annotations

if __name__ == "__main__":  # first, so that Ctrl-C is answered in one line from here on
    from ekg_tf.cli.manners import run_module

    run_module("ekg_tf.test")  # under its own name: __main__'s classes would be others

from collections.abc import Sequence
from pathlib import Path

from ekg_tf.cli import choices, flags, manners
from ekg_tf.utils import cluster, devices
from ekg_tf.utils.errors import UserError
from ekg_tf.utils.jsonl import write_json
from ekg_tf.utils.runfiles import BASELINE


def parser() -> manners.Parser:
    """The flags of the test."""
    parser = manners.Parser(description="Measures a saved network.")
    flags.add_data(parser)
    flags.add_own(parser)
    flags.add_device(parser)
    parser.add_argument("--json", type=flags.path, help="also write the figures to this file")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    args = parser().parse_args(argv)
    path = args.model or args.trained_param
    if not path:
        raise UserError("--trained_param (or --model) is missing: which network shall be measured?")

    devices.import_tensorflow()
    from ekg_tf.cli import inputs
    from ekg_tf.dataloader import examples_of, unreadable_named
    from ekg_tf.nets.given import Given
    from ekg_tf.nets.zoo.builders import build
    from ekg_tf.phases.opening import work_of
    from ekg_tf.reports.networks import describe, print_report
    from ekg_tf.utils.keras_files import load_keras

    device = choices.device_of(args, machines=True)
    with unreadable_named():
        if args.model and inputs.is_run(Path(path).parent):
            inputs.inherit_data(args, Path(path).parent)
        work = work_of(args)
        after, before, data = work.given, None, work.data
        baseline = Path(path).parent / BASELINE
        if baseline.exists():
            before = after.read_again(load_keras(baseline, compile=False), examples_of(data))
        elif args.arch:
            before = Given.read(build(args.arch, inputs.classes_of(data), data.image_shape))
        options = {"accuracy": baseline.exists(), "deployed": device.deployed_latency}
        results = describe(before, after, work.task, data, device, **options)
    print_report(results)
    if args.json and cluster.is_chief():
        write_json(args.json, results)
