"""What foretells a sub-network's potential, its worth after fine-tuning (EKG paper, section 3).

    python -m ekg_tf.experiments.potential --n 50 --arch ResNet-56 --dataset CIFAR10 \\
        --data_path DIR \\
        --trained_param res56.pkl --search_target_rate 0.45 --train_path ../potential

draws n sub-networks of about equal FLOPs (`experiments.sources` says how), computes each --proxies
(`experiments.proxies`) of each, fine-tunes each for --train_epoch epochs by cross-entropy alone and
reads its test loss and accuracy: its potential. potential.json and potential.png hold Pearson's,
Kendall's and Spearman's correlations of every proxy with the potential; the paper gives Pearson's r
for the condition number (0.7337) and the validation loss (0.3228).

Rank quality of a method's own proxy is the same experiment: --sources takes its run folder,
--proxies its proxy. Each figure is a row of potential.jsonl as soon as it is known: a killed run
goes on there, and a later run with more --proxies or a larger --n adds only what is missing.
The test split is read for the potential alone and chooses nothing.
"""

from ..cli import manners
from ..utils import devices

devices.import_tensorflow()

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import keras

from ..cli import choices, flags
from ..dataloader import Dataset, eval_batches, unreadable_named
from ..options import recipes
from ..options.budgets import RATE, Flops
from ..options.data import Sampling
from ..options.fields import Options, setting, share
from ..options.methods import EKG, EVALUATORS, Method
from ..options.search import SearchOptions
from ..options.training import Training
from ..phases.opening import work_of
from ..phases.searching import check
from ..pruning.knowledge.distill import plain_loss
from ..training.evaluation import evaluate
from ..training.task import classification
from ..training.trainer import Objective, check_batch, train
from ..utils.devices import Device
from ..utils.errors import UserError
from ..utils.runfolder import RunFolder
from . import networks
from .correlations import WORTH, correlation_table, correlations, draw, known
from .proxies import PROXIES, Candidate, Scene
from .smoothness import Precision
from .sources import Source, check_alike, made, parsed, read
from .sources import draw as drawn

ROWS, RESULT, PICTURE = "potential.jsonl", "potential.json", "potential.png"
SOURCES = ("ekg:taylor:ensemble", "ekg:taylor:none", "ekg:l1:none", "uniform:l1")
DEFAULT_PROXIES = ("val_loss", "reward", "condition_number", "taylor", "l1")
EPOCHS = 3
# What may differ when a run is continued: more sub-networks or proxies.
OPEN = (*RunFolder.IGNORED_ARGS, "n", "proxies", "compile", "val_batch_size")


@dataclass(frozen=True)
class Drawing(Options):
    """Which sub-networks are drawn, and what is computed of each."""

    n: int = setting(50, flag="n", least=1, help="sub-networks")
    proxies: tuple[str, ...] = setting(
        DEFAULT_PROXIES,
        flag="proxies",
        choices=tuple(PROXIES),
        spaced=True,
        help=", ".join(PROXIES),
        shown=" ".join(DEFAULT_PROXIES),
    )
    sources: tuple[str, ...] = setting(
        SOURCES,
        flag="sources",
        spaced=True,
        help="run folders of searches, or method:score[:teacher] of searches to be made",
        shown=" ".join(SOURCES),
    )
    rate: float = share(RATE, flag="search_target_rate", help="share of the FLOPs that remains")
    leave_from: float | None = share(
        None,
        flag="leave_from",
        help="largest share of the FLOPs at which a walk leaves its search; less: the sub-networks "
        "are more alike",
        shown="1",
    )
    step: float = share(
        EKG().step,
        flag="search_step",
        help="share of a gate's original width that it loses at a time",
    )
    evaluator: str = setting(
        "fast", flag="evaluator", choices=EVALUATORS, help="of the searches to be made"
    )
    seed: int = setting(0, flag="seed", least=0, help="of the sub-networks and their fine-tuning")


@dataclass(frozen=True)
class ShortTraining(Training):
    """A fine-tuning of few epochs."""

    epochs: int | None = setting(
        EPOCHS, flag="train_epoch", least=1, help="epochs of each", shown=str(EPOCHS)
    )


class Experiment:
    """The sub-networks of a folder: their proxies and potentials, as far as they are known.

    Args:
        kept: what the folders of the experiment keep of the command.
        training: resolved (`options.recipes`).
    """

    def __init__(
        self,
        folder: RunFolder,
        kept: dict,
        drawing: Drawing,
        training: Training,
        sources: list[Source],
        scene: Scene,
        data: Dataset,
        device: Device,
    ):
        self.folder, self.kept, self.drawing, self.training = folder, kept, drawing, training
        self.sources, self.scene, self.data, self.device = sources, scene, data, device
        self.networks = networks_in(folder.rows(ROWS))

    def _add(self, row: dict) -> None:
        self.folder.append(ROWS, row)
        self.networks = networks_in(self.folder.rows(ROWS))

    def run(self, number: int) -> None:
        """Measures what is missing of sub-network `number`."""
        drawing, there = self.drawing, self.networks.get(number, {})
        missing = [name for name in drawing.proxies if name not in there.get("proxies", {})]
        if not missing and "potential" in there:
            return
        one = drawn(
            self.sources,
            number,
            target_rate=drawing.rate,
            step=drawing.step,
            seed=drawing.seed,
            leave_from=drawing.leave_from or 1.0,
        )
        graph = self.sources[one.source].graph
        model = graph.pruned(one.mask)
        if not there:
            self._add(
                {
                    "number": number,
                    "source": self.sources[one.source].name,
                    "step": one.step,
                    "left_at": self.sources[one.source].history.rows[one.step]["flops_rate"],
                    "flops_rate": graph.flops(one.mask) / graph.flops(),
                    "parameters": graph.parameters(one.mask),
                }
            )
        candidate = Candidate(model, one.mask, one.source, self.scene)
        for name in missing:
            begin = time.perf_counter()
            value = PROXIES[name].value(candidate, self.scene)
            seconds = time.perf_counter() - begin
            self._add({"number": number, "proxies": {name: value}, "seconds": {name: seconds}})
        if "potential" not in self.networks[number]:
            begin = time.perf_counter()
            potential = self._potential(number, model)
            seconds = {"potential": time.perf_counter() - begin}
            self._add({"number": number, "potential": potential, "seconds": seconds})
        self._say(number)

    def _potential(self, number: int, model: keras.Model) -> dict[str, float]:
        """Fine-tunes a network in place; {"test_loss", "test_top1"}, moving statistics."""
        path = self.folder.path / f"network_{number:03d}"
        with RunFolder.open(path, self.kept | {"do_log": False}, ignore=OPEN) as folder:
            train_plainly(folder, model, self.data, self.training, self.device)
            return tested(model, self.data, self.device)

    def _say(self, number: int) -> None:
        one = self.networks[number]
        proxies = {name: known(one["proxies"][name]) for name in self.drawing.proxies}
        figures = ", ".join(f"{name} {value:.4g}" for name, value in proxies.items())
        worth = {name: known(value) for name, value in one["potential"].items()}
        print(
            f"{number + 1} of {self.drawing.n}, {one['source']} left at {one['left_at']:.3f}: "
            f"{figures} -> test loss {worth['test_loss']:.4f}, top-1 {worth['test_top1']:.2f} %",
            flush=True,
        )

    def results(self) -> dict:
        """What potential.json holds."""
        rows = [self.networks[number] for number in range(self.drawing.n)]
        proxies = [name for name in PROXIES if all(name in row["proxies"] for row in rows)]
        return {
            "settings": self.kept | {"examples": len(self.scene.val)},
            "correlations": correlations(rows, proxies),
            "networks": rows,
        }


def train_plainly(
    folder: RunFolder, model: keras.Model, data: Dataset, training: Training, device: Device
) -> None:
    """Fine-tunes a classifier in place by cross-entropy alone; resumes in its folder."""
    objective = Objective(classification(), plain_loss(classification()))
    train(folder, "finetune", model, data, objective, training, device)


def tested(model: keras.Model, data: Dataset, device: Device) -> dict[str, float]:
    """{"test_loss", "test_top1"} of a classifier, by moving statistics."""
    batches = eval_batches(data, "test", device.val_batch_images)
    test = evaluate(model, classification(), batches, compile=device.compile)
    return {worth: test[worth.removeprefix("test_")] for worth in WORTH}


def networks_in(rows: Sequence[dict]) -> dict[int, dict]:
    """What the rows of a potential.jsonl say of every sub-network, by its number."""
    networks: dict[int, dict] = {}
    for row in rows:
        one = networks.setdefault(row["number"], {"proxies": {}, "seconds": {}})
        one["proxies"] |= row.get("proxies", {})
        one["seconds"] |= row.get("seconds", {})
        one |= {k: v for k, v in row.items() if k not in ("proxies", "seconds")}
    return networks


def open_sources(
    folder: RunFolder,
    kept: dict,
    drawing: Drawing,
    searches: dict[str, SearchOptions],
    model: keras.Model,
    data: Dataset,
    sampling: Sampling,
    device: Device,
    precision: Precision,
) -> tuple[list[Source], Scene]:
    """The searches of `drawing`, done where they have to be, and what the candidates share.

    Args:
        kept: as of `Experiment`.
        searches: those to be made, by name.
        sampling: resolved (`options.recipes`), of all searches.
        precision: of the eigenvalues among the proxies.

    Raises:
        UserError: as `sources.read`, `sources.made` and `sources.check_alike`.
    """
    val = networks.validation(data, sampling)
    sources: list[Source] = []
    for text in drawing.sources:
        if text not in searches:
            sources.append(read(Path(text), kept, len(val), drawing.rate))
            continue
        print(f"search {text}", flush=True)
        path = folder.path / f"search_{text.replace(':', '_')}"
        with RunFolder.open(path, kept | {"do_log": False}, ignore=OPEN) as own:
            sources.append(made(text, own, model, data, searches[text], device))
    check_alike(sources)
    tolerance = precision.tolerance
    return sources, Scene(sources, val, compile=device.compile, tolerance=tolerance)


def methods_of(drawing: Drawing) -> dict[str, Method]:
    """The methods of the searches to be made, by name.

    Raises:
        UserError: as `sources.parsed`.
    """
    settings = {"step": drawing.step, "evaluator": drawing.evaluator}
    return {text: parsed(text, **settings) for text in drawing.sources if not Path(text).is_dir()}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """All flags of the experiment."""
    group = parser.add_argument_group("run folder")
    group.add_argument("--train_path", required=True, help="folder that the experiment writes to")
    group.add_argument("--overwrite", action="store_true", help="delete a former one in the folder")
    flags.add_data(parser)
    flags.add_own(parser)
    flags.add_device(parser)
    flags.add_settings(parser.add_argument_group("sub-networks"), Drawing, Precision)
    networks.add_validation(parser)
    flags.add_settings(parser.add_argument_group("fine-tuning"), ShortTraining)


@unreadable_named()
def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = manners.Parser(
        prog="python -m ekg_tf.experiments.potential", description=__doc__.split("\n")[0]
    )
    add_flags(parser)
    args = parser.parse_args(argv)
    drawing, precision = choices.made(Drawing, args), choices.made(Precision, args)
    methods = methods_of(drawing)
    if not (args.trained_param or args.model):
        raise UserError("--trained_param (or --model) is missing: which network is pruned?")
    begun = [Path(text) for text in drawing.sources if text not in methods]
    sampling = networks.sampling_of(args, begun[0] if begun else None)
    device = choices.device_of(args)
    keras.utils.set_random_seed(drawing.seed)
    work = work_of(args)
    given, data = work.given, work.data
    if not work.task.is_classifier:
        raise UserError("experiments.potential compares classifiers: this network is none")
    sampling = recipes.sampling(sampling, data)
    training = replace(choices.made(ShortTraining, args), seed=drawing.seed)
    training = recipes.training(training, data)
    check_batch(training, data, device)
    searches = {
        text: recipes.search(SearchOptions(Flops(drawing.rate), method, sampling), data)
        for text, method in methods.items()
    }
    for options in searches.values():
        check(given, data, options, None)  # before there is a folder
    kept = choices.record(args, drawing, precision, sampling, training)
    with RunFolder.open(args.train_path, kept, overwrite=args.overwrite, ignore=OPEN) as folder:
        sources, scene = open_sources(
            folder, kept, drawing, searches, given.core, data, sampling, device, precision
        )
        experiment = Experiment(folder, kept, drawing, training, sources, scene, data, device)
        for number in range(drawing.n):
            experiment.run(number)
        results = experiment.results()
        folder.write_json(RESULT, results)
        draw(folder.file(PICTURE), results)
        print(correlation_table(results))


if __name__ == "__main__":
    manners.run(main)
