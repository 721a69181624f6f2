"""What the experiments look at: networks from files or run folders, and D_val."""

import argparse
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import keras

from ..cli import choices, flags, inputs
from ..dataloader import Dataset, examples_of, normalised_inputs, parts
from ..nets.given import Given
from ..nets.zoo.load import load_network, load_own
from ..options import recipes
from ..options.data import Sampling
from ..options.kinds import ARCHITECTURES
from ..phases.opening import fit_of
from ..pruning.engine.validation import Validation
from ..reports import machine
from ..utils.errors import UserError
from ..utils.files import read_bytes
from ..utils.jsonl import read_json
from ..utils.runfiles import PRUNED


def add_networks(parser: argparse.ArgumentParser) -> None:
    """The flags that name networks, their data and D_val."""
    parser.add_argument(
        "networks",
        nargs="+",
        metavar="NETWORK",
        help=f".keras or .pkl file, or a run folder, whose {PRUNED} is taken",
    )
    group = parser.add_argument_group("data and network")
    group.add_argument(
        "--arch",
        default=flags.ARCH,
        help=f"of networks in .pkl files: {', '.join(ARCHITECTURES)}; default: {flags.ARCH}",
    )
    flags.add_dataset(group)
    flags.add_own_data(parser)
    add_validation(parser)


def add_validation(parser: argparse.ArgumentParser) -> None:
    """Flags of D_val; what they leave open comes from a run, as `sampling_of` says."""
    text = "what is left open is that of the first run folder, if there is one"
    flags.add_settings(parser.add_argument_group("D_val", text), Sampling)


def sampling_of(args: argparse.Namespace, run: Path | None) -> Sampling:
    """The `Sampling` of the flags; sizes that depend on the data set are still open.

    Args:
        run: run folder whose D_val is taken where the flags say nothing; None: there is none.

    Raises:
        UserError: its args.json is missing or damaged, or holds a value out of bounds.
    """
    used = read_json(run / inputs.ARGS) if run else {}
    given = {flag: getattr(args, flag) for flag in Sampling().flags()}
    taken = {flag: used.get(flag) for flag, value in given.items() if value is None}
    return choices.made(Sampling, argparse.Namespace(**given | taken))


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
        raise UserError("a network is given twice: name each once")
    short = [Path(one).resolve() for one in networks]
    short = [path.name if path.is_dir() else path.stem for path in short]
    return short if len(set(short)) == len(short) else list(networks)


def digests_of(networks: Sequence[str]) -> dict[str, str]:
    """A digest of each NETWORK argument's file, by its name."""
    files = [file_of(one) for one in networks]
    digests = [hashlib.sha256(read_bytes(file)).hexdigest()[:16] for file in files]
    return dict(zip(names_of(networks), digests, strict=True))


@dataclass(frozen=True)
class Subjects:
    """What an experiment on networks of the command line looks at.

    Attributes:
        networks: by name; they give logits.
        digests: of their files, by name.
        data: whose training set D_val is a part of.
        sampling: how D_val was drawn, without open sizes.
        val: D_val.
    """

    networks: dict[str, keras.Model]
    digests: dict[str, str]
    data: Dataset
    sampling: Sampling
    val: Validation

    def settings(self) -> dict:
        """What a result file says of data and D_val."""
        drawn = self.sampling.flags() | {"examples": len(self.val)}
        return {"data": self.data.name} | drawn


def subjects_of(args: argparse.Namespace) -> Subjects:
    """The networks, the data and D_val that the flags of `add_networks` name.

    What they leave open about data and D_val is taken from the run folder of the first network, if
    it lies in one.

    Raises:
        UserError: a file is missing; as `names_of`, `cli.inputs.data_of`,
            `nets.zoo.load.load_network` and `validation`.
    """
    names, files = names_of(args.networks), [file_of(one) for one in args.networks]
    for file in files:
        if not file.is_file():
            raise UserError(f"{file} does not exist: give a network's file or its run folder")
    run = files[0].parent if inputs.is_run(files[0].parent) else None
    sampling = sampling_of(args, run)
    if run:
        inputs.inherit_data(args, run)
    fit = fit_of(Given.read(load_own(files[0]))) if args.data else None
    data = inputs.data_of(args, fit)
    sampling = recipes.sampling(sampling, data)
    networks = {
        name: Given.read(
            load_network(file, args.arch, data.num_classes, data.image_shape), examples_of(data)
        ).core
        for name, file in zip(names, files, strict=True)
    }
    digests = digests_of(args.networks)
    return Subjects(networks, digests, data, sampling, validation(data, sampling))


def validation(data: Dataset, sampling: Sampling) -> Validation:
    """D_val as search.py draws it.

    Args:
        sampling: without open sizes (`options.recipes`).

    Raises:
        UserError: the training set is too small for D_subset and D_val.
    """
    examples = normalised_inputs(data, parts(data, sampling)[1])
    return Validation(examples.inputs, examples.targets, sampling.batch_size)


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
            raise UserError(
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
