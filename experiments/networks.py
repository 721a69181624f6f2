"""What the experiments look at: networks from files or run folders, and D_val."""

import argparse
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import keras

from benchmarks import machine
from dataloader import Dataset, normalised_images, per_class_indices
from nets import BUILDERS
from nets.head import without_softmax
from nets.load import load_network, load_own
from pruning.current import Validation
from utils import cli, inputs
from utils.defaults import fill_defaults
from utils.files import read_bytes
from utils.jsonl import read_json
from utils.runfolder import PRUNED

D_VAL = ("subset_per_class", "val_per_class", "search_seed", "search_batch_size")


def add_networks(parser: argparse.ArgumentParser) -> None:
    """The arguments that name networks, their data and D_val."""
    parser.add_argument(
        "networks",
        nargs="+",
        metavar="NETWORK",
        help=f".keras or .pkl file, or a run folder, whose {PRUNED} is taken",
    )
    group = parser.add_argument_group("data and network")
    group.add_argument(
        "--arch", default=inputs.ARCH, help="of networks in .pkl files: " + ", ".join(BUILDERS)
    )
    inputs.add_dataset(group)
    inputs.add_own_data(parser)
    add_validation(parser)


def add_validation(parser: argparse.ArgumentParser) -> None:
    """Flags of D_val; what is left open comes from the first network's run, else by data set."""
    group = parser.add_argument_group("D_val")
    group.add_argument("--subset_per_class", type=cli.positive_int)
    group.add_argument("--val_per_class", type=cli.positive_int)
    group.add_argument("--search_seed", type=int)
    group.add_argument("--search_batch_size", type=cli.positive_int)


def file_of(network: str) -> Path:
    """The file that a NETWORK argument stands for."""
    path = Path(network)
    return path / PRUNED if path.is_dir() else path


def names_of(networks: Sequence[str]) -> list[str]:
    """A name for each NETWORK argument: its last part without suffix if these are all different.

    Raises:
        UserError: a network is given twice.
    """
    if len(set(networks)) < len(networks):
        raise cli.UserError("a network is given twice: name each once")
    short = [Path(one).resolve() for one in networks]
    short = [path.name if path.is_dir() else path.stem for path in short]
    return short if len(set(short)) == len(short) else list(networks)


def digests_of(networks: Sequence[str]) -> dict[str, str]:
    """A digest of each NETWORK argument's file, by its name."""
    files = [file_of(one) for one in networks]
    digests = [hashlib.sha256(read_bytes(file)).hexdigest()[:16] for file in files]
    return dict(zip(names_of(networks), digests, strict=True))


def data_and_networks(args: argparse.Namespace) -> tuple[Dataset, dict[str, keras.Model]]:
    """The data and, by name, the networks that give logits, which the arguments name.

    What the command line leaves open about data and D_val is taken from the run folder of the
    first network, if it lies in one.

    Raises:
        UserError: as `utils.inputs.data_of` and `nets.load.load_network`.
    """
    names, files = names_of(args.networks), [file_of(one) for one in args.networks]
    for file in files:
        if not file.is_file():
            raise cli.UserError(f"{file} does not exist: give a network's file or its run folder")
    if inputs.is_run(files[0].parent):
        inputs.inherit_data(args, files[0].parent)
        inherit_validation(args, files[0].parent)
    data = inputs.data_of(args, load_own(files[0]) if args.data else None)
    networks = {
        name: without_softmax(load_network(file, args.arch, data.num_classes, data.image_shape))
        for name, file in zip(names, files, strict=True)
    }
    return data, networks


def inherit_validation(args: argparse.Namespace, folder: Path) -> None:
    """Takes what the command line leaves open about D_val from the run in `folder`."""
    used = read_json(folder / inputs.ARGS)
    for name in D_VAL:
        if getattr(args, name) is None:
            setattr(args, name, used.get(name))


def fill_validation(args: argparse.Namespace, data: Dataset) -> None:
    """Sets the defaults of the flags of D_val, those of search.py."""
    fill_defaults(args, data)
    args.search_seed = args.search_seed or 0
    args.search_batch_size = args.search_batch_size or 256


def validation(args: argparse.Namespace, data: Dataset) -> Validation:
    """D_val as search.py draws it; fills in the defaults of its flags.

    Raises:
        UserError: the training set is too small for D_subset and D_val.
    """
    fill_validation(args, data)
    sizes = args.subset_per_class, args.val_per_class
    indices = per_class_indices(data.train.labels, sizes, args.search_seed)[1]
    return Validation(*normalised_images(data, indices), args.search_batch_size)


def describe_validation(args: argparse.Namespace, val: Validation) -> dict:
    """D_val for a result file: its flags and its number of examples."""
    return {name: getattr(args, name) for name in D_VAL} | {"examples": len(val.labels)}


def measure(
    settings: dict,
    loaded: dict[str, keras.Model],
    digests: dict[str, str],
    one: Callable[[keras.Model], dict],
    out: Path | None,
) -> dict:
    """one(network) for every network that the result file `out` lacks; written after each.

    Args:
        settings: of this command; a file of other ones isn't continued.
        loaded, digests: the networks and digests of their files, by name; what the file holds of
            another network of the same name is replaced.

    Returns:
        {"settings", "machine", "networks": {name: ... | {"digest"}}}.

    Raises:
        UserError: the file holds results of other settings, or can't be written.
    """
    results = {"settings": settings, "machine": machine.describe(), "networks": {}}
    if out and out.exists():
        old = read_json(out)
        if old.get("settings") != settings:
            raise cli.UserError(
                f"{out} holds results of other settings ({old.get('settings')}): give another --out"
            )
        results["networks"] = old["networks"]
    machine.write(results, out)  # whatever is wrong with the file shows before the work
    for name, model in loaded.items():
        if results["networks"].get(name, {}).get("digest") != digests[name]:
            results["networks"][name] = one(model) | {"digest": digests[name]}
            machine.write(results, out)
            print(f"{name}: measured", flush=True)
    return results
