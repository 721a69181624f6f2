"""E1: what the masking rule does to a network without batch norm.

    python -m ekg_tf.experiments.claims.masking --dataset CIFAR10 --data_path DIR --train_path plain
    python -m ekg_tf.experiments.claims.masking --dataset CIFAR10 --data_path DIR \\
        --given plain/baseline.keras --rule everywhere --search_target_rate 0.5 --train_path pruned

Without --given a small convolutional network without batch norm is trained. With it the network is
searched by EKG and what comes out is fine-tuned by cross-entropy alone, both with kernels that keep
their norm (docs/method.md 1, "Masking") only where a batch norm follows, nowhere here, or
everywhere. The rule is an argument of the channel graph and no option of the package: outside this
experiment nobody should want the second.
"""

from ...cli import manners
from ...utils import devices

devices.import_tensorflow()

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import keras

from ...cli import choices, flags, inputs
from ...dataloader import unreadable_named
from ...nets.given import Given
from ...options import recipes
from ...options.budgets import Flops
from ...options.data import Sampling
from ...options.search import SearchOptions
from ...options.training import Training
from ...phases import baseline
from ...training.task import classification
from ...utils.keras_files import load_keras
from ...utils.runfolder import RunFolder
from ..potential import tested, train_plainly
from ..sources import made
from .plans import BATCH_NORM, EVERYWHERE, RULES

RESULT = "claim.json"
WIDTHS = (16, 16, 32, 32, 64, 64)  # pooling after every second one

L = keras.layers


def plain_network(shape: tuple[int, ...], classes: int) -> keras.Model:
    """A convolutional network without batch norm that gives logits.

    Args:
        shape: of an image, (height, width, channels).
    """
    x = image = L.Input(shape)
    for number, width in enumerate(WIDTHS):
        x = L.Conv2D(width, 3, padding="same", activation="relu", kernel_initializer="he_normal")(x)
        if number in (1, 3):
            x = L.MaxPooling2D()(x)
    return keras.Model(image, L.Dense(classes)(L.GlobalAveragePooling2D()(x)), name="plain")


def parser() -> manners.Parser:
    """The flags."""
    parser = manners.Parser(
        prog="python -m ekg_tf.experiments.claims.masking", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--train_path", type=Path, required=True, help="folder of the run")
    parser.add_argument("--overwrite", action="store_true", help="delete a former run in it")
    parser.add_argument("--given", type=flags.path, help="network to prune; default: train one")
    parser.add_argument(
        "--rule", choices=RULES, default=BATCH_NORM, help="where kernels are scaled"
    )
    parser.add_argument("--search_target_rate", type=flags.fraction, default=0.5, help="FLOPs left")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and augmentation")
    flags.add_dataset(parser.add_argument_group("data"))
    flags.add_device(parser)
    flags.add_settings(parser.add_argument_group("D_val"), Sampling)
    flags.add_settings(parser.add_argument_group("training"), Training)
    return parser


@unreadable_named()
def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    args = parser().parse_args(argv)
    training = replace(choices.made(Training, args), seed=args.seed)
    device = choices.device_of(args)
    keras.utils.set_random_seed(args.seed)
    data, task = inputs.data_of(args), classification()
    training = recipes.training(training, data)
    options = SearchOptions(Flops(args.search_target_rate), sampling=choices.made(Sampling, args))
    options = recipes.search(options, data)
    given = load_keras(Path(args.given)) if args.given else None
    kept = choices.record(args, options.sampling, training) | {"do_log": False}
    with RunFolder.open(args.train_path, kept, overwrite=args.overwrite) as folder:
        if given is None:
            fresh = plain_network(data.image_shape, inputs.classes_of(data))
            network = baseline.trained(folder, fresh, task, data, training, device)
            phase = Given.read(network), task, data, device
            return baseline.measure(folder, *phase, trained_here=True)
        core = Given.read(given).core
        scale_all = args.rule == EVERYWHERE
        source = made(args.rule, folder, core, data, options, device, scale_all=scale_all)
        last = source.history.rows[-1]
        pruned = source.graph.pruned(source.history.mask(source.graph, last["step"]))
        found = {"before": tested(pruned, data, device)}
        train_plainly(folder, pruned, data, training, device)
        found["after"] = tested(pruned, data, device)
        folder.write_json(RESULT, found | {key: last[key] for key in ("val_loss", "flops_rate")})
    print(found)


if __name__ == "__main__":
    manners.run(main)
