"""The flags of the supernet methods, --method swp and autoslim."""

import argparse

from pruning.stages import AUTO
from pruning.supernet import SupernetOptions
from utils import cli


def stage_count(text: str) -> int | str:
    """argparse type: "auto" or a number of stages."""
    return text if text == AUTO else cli.positive_int(text)


def at_least_two(text: str) -> int:
    """argparse type: a whole number from 2 up."""
    number = cli.positive_int(text)
    if number < 2:
        raise argparse.ArgumentTypeError(f"{text!r} is less than 2")
    return number


def add_supernet(parser: argparse.ArgumentParser) -> None:
    usual = SupernetOptions()
    group = parser.add_argument_group("supernet (--method swp and autoslim)")
    group.add_argument("--supernet_epoch", type=cli.positive_int, help="epochs of its training")
    group.add_argument("--supernet_learning_rate", type=cli.positive_float)
    group.add_argument("--supernet_batch_size", type=cli.positive_int)
    group.add_argument(
        "--width_steps",
        type=at_least_two,
        default=usual.width_steps,
        help="widths of a group of filters, from 0.2 to 1.0 of them",
    )
    group.add_argument(
        "--swp_stages", type=stage_count, default=AUTO, help="auto: one per resolution"
    )
    group.add_argument(
        "--swp_population",
        type=at_least_two,
        default=usual.population,
        help="versions of a stage per generation",
    )
    group.add_argument("--swp_generations", type=cli.positive_int, default=usual.generations)
    group.add_argument(
        "--swp_random_widths",
        type=cli.positive_int,
        default=usual.random_widths,
        help="random versions of every stage in a training step",
    )


def supernet_of(args: argparse.Namespace) -> SupernetOptions:
    """The `SupernetOptions` of the flags, after `fill_defaults`."""
    return SupernetOptions(
        epochs=args.supernet_epoch,
        learning_rate=args.supernet_learning_rate,
        batch_images=args.supernet_batch_size,
        width_steps=args.width_steps,
        stages=args.swp_stages,
        population=args.swp_population,
        generations=args.swp_generations,
        random_widths=args.swp_random_widths,
    )
