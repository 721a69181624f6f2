"""Which network and which data the flags name: ours by name, or the user's own."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras

from ..dataloader import Dataset, load
from ..dataloader import own as own_data
from ..dataloader.fit import Fit
from ..dataloader.own_function import import_module
from ..nets.keras_graph import Compiled
from ..nets.zoo.applications import PREFIX
from ..nets.zoo.builders import build
from ..nets.zoo.load import check_fits, load_network, load_own
from ..options.data import Data
from ..utils import progress
from ..utils.errors import UserError
from ..utils.jsonl import read_json
from .choices import made
from .flags import AIMS, ARCH, DATASET, NAMED_DATA, OWN_DATA

ARGS = "args.json"
TEXTS = (*AIMS, "dataset", "data_path", "val_labels", "data")  # of its entries


def import_custom(modules: Sequence[str]) -> None:
    """Imports the modules of --custom_module, so that their layers are known.

    Raises:
        UserError: as `dataloader.own_function.import_module`.
    """
    for name in modules:
        import_module(name)


def is_run(folder: Path) -> bool:
    """Whether the folder holds a run, whose arguments `inherit_data` can take."""
    return (folder / ARGS).exists()


def inherit_data(args: argparse.Namespace, folder: Path) -> None:
    """Takes from the run in `folder` what the command line leaves open about data and task.

    `--data_path` or `--data` given alone means that the run's data has been moved. What a folder
    says is data: a module of the user's that it names is never imported.

    Raises:
        UserError: an args.json that is missing or damaged, or one that names a module which the
            command line doesn't.
    """
    used = read_json(folder / ARGS)
    names = list(AIMS)
    if getattr(args, "dataset", None) is None:
        names += OWN_DATA if args.data else (*NAMED_DATA, *OWN_DATA)
        if not args.data and "dataset" not in used:
            raise UserError(
                f"{folder / ARGS} doesn't say which data the run was made with, as after a run of "
                "the Python functions: give --data"
            )
    for name in names:
        if getattr(args, name, None) is not None:
            continue
        value = used.get(name)
        words = value if isinstance(value, list) and name in AIMS else [value]
        text = all(isinstance(word, str) for word in words)
        if name in TEXTS and value is not None and not text:
            raise UserError(f"{folder / ARGS} is damaged: its {name} is {value!r}")
        _refuse_code(value, name, folder)
        setattr(args, name, value)


def _refuse_code(value: Any, name: str, folder: Path) -> None:
    """Refuses "module:name" out of a folder's file."""
    for word in value if isinstance(value, list) else [value]:
        if not isinstance(word, str) or ":" not in word or Path(word).expanduser().exists():
            continue
        raise UserError(
            f"the run in {folder} was made with --{name} {word}, code of yours: say so again by "
            f"--{name}; what a folder names is never imported"
        )


def data_of(args: argparse.Namespace, fit: Fit | None = None) -> Dataset:
    """The data that the flags name; sets the default of --dataset in `args`.

    Args:
        fit: what a network of the user's own takes and gives.

    Raises:
        UserError: flags that exclude each other, no network for --data, or as `dataloader.load` and
            `dataloader.own.load`.
    """
    if getattr(args, "data", None) is None:
        idle = [name for name in OWN_DATA if getattr(args, name, None) is not None]
        if idle:
            raise UserError(f"--{idle[0]} is for data of your own: give --data as well")
        args.dataset = args.dataset or DATASET
        more = {"val_labels": args.val_labels, "hold_out": args.hold_out}
        with progress.doing(f"reading {args.dataset}", after=3):
            return load(args.dataset, args.data_path, **more)
    if named := [name for name in NAMED_DATA if getattr(args, name, None) is not None]:
        raise UserError(f"--data excludes --{named[0]}: give one or the other")
    if fit is None:
        raise UserError("--data needs --model: your data goes with a network of your own")
    options = preprocessing(args)
    with progress.doing(f"reading {args.data}", after=3):
        return own_data.load(args.data, fit, options)


def preprocessing(args: argparse.Namespace) -> Data:
    """The `Data` of the flags; puts its defaults into `args`."""
    options = made(Data, args)
    for flag, value in options.flags().items():
        if hasattr(args, flag) and flag != "data_crop":
            setattr(args, flag, value)
    return options


def classes_of(data: Dataset) -> int:
    """How many classes data has that is known by name."""
    assert data.num_classes is not None
    return data.num_classes


def named_network(args: argparse.Namespace, data: Dataset) -> keras.Model:
    """The network of --trained_param, or a fresh one of --arch.

    Raises:
        UserError: as `load_network`.
    """
    shape = (args.arch, classes_of(data), data.image_shape)
    what = "reading" if args.trained_param else "making"
    with progress.doing(f"{what} the network", after=3):
        return load_network(args.trained_param, *shape) if args.trained_param else build(*shape)


def is_built(args: argparse.Namespace) -> bool:
    """Whether the flags of add_data name weights of an architecture that we build ourselves, not a
    network in a file."""
    path = args.trained_param or ""
    return args.model is None and not path.startswith(PREFIX) and not path.endswith(".keras")


def network_and_reader(
    args: argparse.Namespace,
) -> tuple[keras.Model, Callable[[Fit], Dataset]]:
    """The network that the flags of add_data and add_own name, and what reads its data.

    The network comes as given, with a final softmax if it has one; see `nets.given`.

    Raises:
        UserError: as `data_of` and `load_network`; flags that exclude each other.
    """
    if args.model is None:
        data = data_of(args)
        args.arch = args.arch or ARCH
        return named_network(args, data), lambda fit: data
    if args.arch or args.trained_param:
        raise UserError(
            "--model excludes --arch and --trained_param: a .keras file holds architecture and "
            "weights"
        )
    with progress.doing(f"reading {args.model}", after=3):
        network = load_own(args.model)

    def read(fit: Fit) -> Dataset:
        data = data_of(args, fit)
        if args.data is None:
            outputs = [one.shape for one in fit.outputs]
            check_fits(args.model, fit.input_shapes, outputs, classes_of(data), data.image_shape)
        return data

    return network, read


def aims_of(args: argparse.Namespace) -> Compiled:
    """What --loss and --metrics say in place of what the network is compiled with.

    Raises:
        UserError: a module or a function of the user's that isn't there.
    """
    loss, metrics = (
        _by_output(getattr(args, name, None) or (), flag)
        for name, flag in (("loss", "--loss"), ("metrics", "--metrics"))
    )
    return Compiled(loss=loss, metrics=metrics)


def _by_output(words: Sequence[str], flag: str) -> Any:
    """NAME ... or OUTPUT=NAME ..., each a name of Keras's or module:name, as Keras takes it."""
    if not words:
        return None
    pairs = [word.split("=", 1) if "=" in word else ["", word] for word in words]
    if all(not output for output, _ in pairs):
        found = [_named(name) for _, name in pairs]
        return found if flag == "--metrics" else _only(found, flag)
    if not all(output for output, _ in pairs):
        raise UserError(f"{flag} {' '.join(words)}: name the output of each, as OUTPUT=NAME")
    by_output: dict[str, Any] = {}
    for output, name in pairs:
        by_output.setdefault(output, []).append(_named(name))
    if flag == "--metrics":
        return by_output
    return {output: _only(found, flag) for output, found in by_output.items()}


def _only(found: list[Any], flag: str) -> Any:
    if len(found) > 1:
        raise UserError(f"{flag} names {len(found)} for one output: give one")
    return found[0]


def _named(name: str) -> Any:
    """A name of Keras's, or what "module:name" is."""
    if ":" not in name:
        return name
    module, _, attribute = name.partition(":")
    found = getattr(import_module(module), attribute, None)
    if found is None:
        raise UserError(f"the module {module} has no {attribute}")
    return found() if isinstance(found, type) else found
