"""The whole EKG pipeline on CIFAR-10, CIFAR-100 or DIGITS: baseline -> search -> fine-tune -> test.

Paper: Ensemble Knowledge Guided Sub-network Search and Fine-tuning for Filter Pruning, ECCV 2022.
Command of the paper's ResNet-56 row:

    python train_cifar.py --gpu_id 0 --arch ResNet-56 --dataset CIFAR10 --search_target_rate 0.45 \\
        --train_path ../test

The paper reports 94.09 +-0.07 % for it (Table 2). Not yet measured here at the paper's length; what
has been measured, on which hardware, is in docs/results.
"""

# ------------------------------------------------------------------ imports
from utils import cli, devices

devices.import_tensorflow()

import keras

from dataloader import Dataset, unreadable_named
from nets import build
from nets.graph import ChannelGraph
from nets.head import without_softmax
from nets.load import load_network
from pruning.distill import plain_loss
from utils import inputs
from utils import options as flags
from utils.checkpoint import load_keras, save_keras
from utils.defaults import fill_defaults
from utils.measure import print_report
from utils.phases import METRICS, Device, Objective, both_modes, train
from utils.prune import check_flags, finetune_and_report, search_from_flags
from utils.runfolder import BASELINE, START, SUPERNET_ORDER, RunFolder

PHASES = ("baseline", "search", "test")


# ------------------------------------------------------------------ flags
def parser(description: str, **defaults: str) -> cli.Parser:
    """The flags of the whole pipeline.

    Args:
        defaults: of --arch and --dataset.
    """
    parser = cli.Parser(description=description)
    flags.add_run(parser)
    flags.add_data(parser, **defaults)
    flags.add_device(parser)
    flags.add_baseline(parser)
    flags.add_search(parser)
    flags.add_finetune(parser)
    parser.add_argument(
        "--until",
        choices=PHASES,
        default="test",
        help="last phase to run; the same command with a later one goes on",
    )
    return parser


# ------------------------------------------------------------------ baseline
def initial(data: Dataset, args) -> keras.Model:
    """The network of --trained_param, or a fresh one of --arch."""
    shape = (args.arch, data.num_classes, data.image_shape)
    return load_network(args.trained_param, *shape) if args.trained_param else build(*shape)


def baseline(
    folder: RunFolder, model: keras.Model, data: Dataset, args, device: Device
) -> keras.Model:
    """The network to prune: that of --trained_param, or trained here and kept as baseline.keras."""
    path = folder.file(BASELINE)
    if path.exists():
        return load_keras(path)
    if args.trained_param:
        return model
    objective, options = Objective(plain_loss()), flags.baseline_of(args)
    model = train(folder, "baseline", model, data, objective, options, device)
    save_keras(path, model)
    return model


def measure_baseline(
    folder: RunFolder, model: keras.Model, data: Dataset, args, device: Device
) -> None:
    """Keeps the network to prune as baseline.keras; writes baseline.json and prints its figures.

    `epochs` and `seconds` of its training are null when it was given.
    """
    if not folder.file(BASELINE).exists():
        save_keras(folder.file(BASELINE), model)
    rows = [row for row in folder.rows(METRICS) if row["phase"] == "baseline"]
    results = {
        "epochs": None if args.trained_param else len(rows),
        "seconds": None if args.trained_param else sum(row["seconds"] for row in rows),
        "parameters": model.count_params(),
        "flops": ChannelGraph(model).flops(),
        "test": both_modes(without_softmax(model), data, "test", device),
    }
    folder.write_json("baseline.json", results)
    test = results["test"]
    print(
        f"{folder.file(BASELINE)}: {results['parameters']:,} parameters, {results['flops']:,} FLOPs"
        f", test top-1 {test['top1']:.2f} % (batch statistics {test['batch_top1']:.2f} %)"
    )


# ------------------------------------------------------------------ the run
@unreadable_named()
def pipeline(args) -> None:
    """All phases with the flags of `parser`."""
    device = flags.device_of(args)
    keras.utils.set_random_seed(args.seed)
    data = inputs.data_of(args)
    fill_defaults(args, data)
    # Whatever is wrong with the flags shows here, before there is a folder.
    network = initial(data, args)
    check_flags(network, data, args, device)
    with flags.open_folder(args, "baseline_state.npz", START, SUPERNET_ORDER) as folder:
        if folder.finished:
            print(f"{folder.path} holds the finished run of this command:")
            print_report(folder.read_json("result.json"))
            return
        if not args.trained_param:
            print(f"baseline: {args.arch}, {args.baseline_epoch} epochs", flush=True)
        network = baseline(folder, network, data, args, device)
        if args.until == "baseline":
            return measure_baseline(folder, network, data, args, device)
        search_from_flags(folder, network, data, args, device)
        if args.until == "search":
            return
        finetune_and_report(folder, network, data, args, device)


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    pipeline(parser("Baseline, EKG search, fine-tuning and test on CIFAR.").parse_args(argv))


if __name__ == "__main__":
    cli.run(main)
