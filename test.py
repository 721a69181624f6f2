"""Accuracy in both batch-norm modes, size, FLOPs and latency of a network, before -> after.

    python test.py --arch ResNet-56 --dataset CIFAR10 --data_path DIR --trained_param
    ../run/trained_param.pkl

"before" is the unpruned network: the one that the run folder beside the weights began with, else
the architecture of --arch without its accuracy. The only program that is about the test split.
"""

from utils import cli, devices

devices.quiet()

import json
from pathlib import Path

from dataloader import unreadable_named
from nets import build
from nets.load import load_network
from utils import options as flags
from utils.checkpoint import load_keras
from utils.files import atomic_write
from utils.measure import describe, print_report
from utils.runfolder import BASELINE


@unreadable_named()
def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = cli.Parser(description="Measures a saved network.")
    flags.add_data(parser)
    flags.add_device(parser)
    parser.add_argument("--json", help="also write the figures to this file")
    args = parser.parse_args(argv)
    if not args.trained_param:
        raise cli.UserError("--trained_param is missing: which network shall be measured?")
    device = flags.device_of(args)
    data = flags.data_of(args)
    shape = (args.arch, data.num_classes, data.image_shape)
    after = load_network(args.trained_param, *shape)
    given = Path(args.trained_param).parent / BASELINE
    before = load_keras(given) if given.exists() else build(*shape)
    results = describe(before, after, data, device, accuracy=given.exists())
    print_report(results)
    if args.json:
        text = json.dumps(results, indent=2, sort_keys=True) + "\n"
        atomic_write(args.json, lambda path: path.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    cli.run(main)
