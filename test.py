"""Accuracy in both batch-norm modes, size, FLOPs and latency of a network, before -> after.

    python test.py --arch ResNet-56 --dataset CIFAR10 --data_path DIR --trained_param
    ../run/trained_param.pkl

"before" is the unpruned network: the one that the run folder beside the weights began with, else
the architecture of --arch without its accuracy; a --model outside a run folder has none. The only
program that is about the test split.
"""

from utils import cli, devices

devices.import_tensorflow()

import json
from pathlib import Path

from dataloader import unreadable_named
from nets import build
from nets.head import load_logits, without_softmax
from utils import inputs
from utils import options as flags
from utils.files import atomic_write
from utils.measure import describe, print_report
from utils.runfolder import BASELINE


@unreadable_named()
def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = cli.Parser(description="Measures a saved network.")
    flags.add_data(parser)
    inputs.add_own(parser)
    flags.add_device(parser)
    parser.add_argument("--json", help="also write the figures to this file")
    args = parser.parse_args(argv)
    path = args.model or args.trained_param
    if not path:
        raise cli.UserError(
            "--trained_param (or --model) is missing: which network shall be measured?"
        )
    device = flags.device_of(args)
    if args.model and inputs.is_run(Path(path).parent):
        inputs.inherit_data(args, Path(path).parent)
    data, network = inputs.data_and_network(args)
    after, before = without_softmax(network), None
    given = Path(path).parent / BASELINE
    if given.exists():
        before = load_logits(given)
    elif args.arch:
        before = build(args.arch, data.num_classes, data.image_shape)
    results = describe(before, after, data, device, accuracy=given.exists())
    print_report(results)
    if args.json:
        text = json.dumps(results, indent=2, sort_keys=True) + "\n"
        atomic_write(args.json, lambda path: path.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    cli.run(main)
