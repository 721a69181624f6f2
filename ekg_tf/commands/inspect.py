"""`ekg-tf inspect`: what can be pruned in a network, before any search.

ekg-tf inspect my.keras --search_target_rate 0.5 --exclude "stem*" --min_width 8
ekg-tf inspect applications:ResNet50 --json resnet50.json
ekg-tf inspect my.keras --sensitivity --data photos --picture sensitivity.png
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ekg_tf.cli import choices, flags, manners
from ekg_tf.options.control import Control
from ekg_tf.options.data import Sampling
from ekg_tf.options.fields import settings_of
from ekg_tf.options.methods import Method
from ekg_tf.utils import devices
from ekg_tf.utils.errors import UserError
from ekg_tf.utils.jsonl import write_json

APPLICATIONS = "applications:"
PICTURE = "sensitivity.png"
LIMITS = ("exclude", "min_width", "min_share")
OF_SENSITIVITY = (
    *("picture", "score", *flags.AIMS, *flags.NAMED_DATA, *flags.OWN_DATA),
    *(one.flag for one in settings_of(Sampling) if one.flag),
)


def parser() -> manners.Parser:
    """The flags of the command."""
    parser = manners.Parser(prog="ekg-tf inspect", description="What can be pruned in a network.")
    parser.add_argument(
        "network",
        type=flags.path,
        help=".keras or .h5 file, hf://USER/NAME, or applications:NAME of keras.applications",
    )
    parser.add_argument(
        "--search_target_rate", type=flags.fraction, help="FLOPs that shall remain, as a share"
    )
    parser.add_argument(
        "--input_shape",
        type=flags.shape,
        nargs="+",
        help="of one example, 224,224,3, for a network that leaves it open; one for every input",
    )
    flags.add_named(parser, Control, LIMITS)
    flags.add_custom(parser)
    parser.add_argument("--json", type=flags.as_path, help="also write the figures to this file")
    group = parser.add_argument_group("sensitivity, on data that this says where to find")
    group.add_argument(
        "--sensitivity",
        action="store_true",
        help="how much the loss rises when each group alone loses 10 to 90 %% of its filters",
    )
    group.add_argument(
        "--picture",
        type=flags.as_path,
        help=f"where its picture goes; default: {PICTURE} in this folder",
    )
    flags.add_named(group, Method, ("score",))
    flags.add_dataset(parser, None, "none")
    flags.add_own_data(parser)
    flags.add_aims(parser)
    flags.add_settings(parser.add_argument_group("D_val"), Sampling)
    flags.add_device(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    args = parser().parse_args(argv)
    _check(args)
    control = choices.made(Control, args)
    devices.import_tensorflow()
    import tensorflow as tf

    from ekg_tf.cli import inputs
    from ekg_tf.dataloader import unreadable_named
    from ekg_tf.nets.door import called_on, check_weights, zeros
    from ekg_tf.nets.flatten import flatten
    from ekg_tf.nets.given import Given
    from ekg_tf.nets.graph import ChannelGraph
    from ekg_tf.nets.rebuild import at_shapes
    from ekg_tf.nets.zoo.applications import fresh_application
    from ekg_tf.phases.opening import work_of
    from ekg_tf.pruning.space.budgets import check_reachable
    from ekg_tf.pruning.space.limits import heaviest_in_words, located, smallest_in_words
    from ekg_tf.reports.inspection import inspection, text
    from ekg_tf.utils.keras_files import load_keras

    if args.sensitivity:
        device = choices.device_of(args)
        with unreadable_named():
            work = work_of(args)
        model = work.given.model
    else:
        with devices.hold_stderr():  # the lines about GPU drivers come at the first look for a GPU
            tf.config.list_physical_devices("GPU")
        inputs.import_custom(args.custom_module)
        if args.network.startswith(APPLICATIONS):
            model = fresh_application(args.network.removeprefix(APPLICATIONS))
        else:
            model = load_keras(args.network)
        model = called_on(model, zeros(args.input_shape or ()))
    check_weights(model)
    parts = work.given if args.sensitivity else flatten(model)
    flat = parts.core if isinstance(parts, Given) else parts.model
    control = located(control, flat, parts.places)
    flat = at_shapes(flat, args.input_shape) if args.input_shape else flat
    graph = ChannelGraph(flat, closed=parts.closed)
    result = inspection(graph, control)
    print(text(result))
    if args.sensitivity:
        from ekg_tf.options import recipes
        from ekg_tf.phases.sensitivity import run_sensitivity
        from ekg_tf.reports import sensitivity

        sampling = recipes.sampling(choices.made(Sampling, args), work.data)
        score = choices.made(Method, args).score
        with unreadable_named():
            found = run_sensitivity(work, sampling, device, score=score)
        print(f"\n{sensitivity.text(found)}")
        picture = args.picture or Path(PICTURE)
        sensitivity.draw(picture, found)
        print(f"the picture is {picture}")
        result = {**result, "sensitivity": found}
    if args.json:
        write_json(args.json, result)
    if args.search_target_rate is not None:
        smallest = smallest_in_words(graph, control, 1)
        most = partial(heaviest_in_words, graph)
        check_reachable(args.search_target_rate, result["lowest_rate"], smallest, most=most)
        print(f"a rate of {args.search_target_rate} can be reached")


def _check(args: argparse.Namespace) -> None:
    """Refuses flags that don't go together; makes of the network what `work_of` reads."""
    if not args.sensitivity:
        if idle := [name for name in OF_SENSITIVITY if getattr(args, name) is not None]:
            raise UserError(f"--{idle[0]} is for --sensitivity: give that as well")
        return
    if args.network.startswith(APPLICATIONS):
        raise UserError(
            f"--sensitivity is for a trained network in a .keras file, and {args.network} is fresh"
        )
    if args.data is None and args.dataset is None:
        raise UserError("--sensitivity runs the network on data: give --data, or --dataset")
    for path in (args.picture or Path(PICTURE), args.json):
        if path is not None and not path.parent.is_dir():
            raise UserError(f"{path.parent} is no folder: make it first")
    args.model, args.arch, args.trained_param = args.network, None, None
