"""What foretells a sub-network's potential, its worth after fine-tuning (EKG paper, section 3).

    python -m experiments.potential --n 50 --arch ResNet-56 --dataset CIFAR10 --data_path DIR \\
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

from utils import cli, devices

devices.import_tensorflow()

import argparse
import time
from pathlib import Path

import keras

from dataloader import Dataset, eval_batches, unreadable_named
from experiments import networks
from experiments.correlations import WORTH, correlation_table, correlations, draw, known
from experiments.proxies import PROXIES, Candidate, Scene
from experiments.sources import Source, check_alike, made, parsed, read
from experiments.sources import draw as drawn
from pruning.distill import plain_loss
from pruning.evaluator import EVALUATORS
from pruning.search import SearchOptions
from search import check
from utils import inputs
from utils import options as flags
from utils.defaults import fill_defaults
from utils.evaluation import evaluate
from utils.phases import Device, Objective, TrainOptions, check_batch, train
from utils.runfolder import RunFolder

ROWS, RESULT, PICTURE = "potential.jsonl", "potential.json", "potential.png"
SOURCES = ("ekg:taylor:ensemble", "ekg:taylor:none", "ekg:l1:none", "uniform:l1")
DEFAULT_PROXIES = ("val_loss", "reward", "condition_number", "taylor", "l1")
# What may differ when a run is continued: more sub-networks or proxies.
OPEN = (*RunFolder.IGNORED_ARGS, "n", "proxies", "compile", "val_batch_size")


class Experiment:
    """The sub-networks of a folder: their proxies and potentials, as far as they are known."""

    def __init__(self, folder: RunFolder, sources: list[Source], scene: Scene, args, data, device):
        self.folder, self.sources, self.scene = folder, sources, scene
        self.args, self.data, self.device = args, data, device
        self.networks: dict[int, dict] = {}
        for row in folder.rows(ROWS):
            self._take(row)

    def _take(self, row: dict) -> None:
        one = self.networks.setdefault(row["number"], {"proxies": {}, "seconds": {}})
        one["proxies"] |= row.get("proxies", {})
        one["seconds"] |= row.get("seconds", {})
        one |= {k: v for k, v in row.items() if k not in ("proxies", "seconds")}

    def _add(self, row: dict) -> None:
        self.folder.append(ROWS, row)
        self._take(row)

    def run(self, number: int) -> None:
        """Measures what is missing of sub-network `number`."""
        args, there = self.args, self.networks.get(number, {})
        missing = [name for name in args.proxies if name not in there.get("proxies", {})]
        if not missing and "potential" in there:
            return
        one = drawn(
            self.sources,
            number,
            target_rate=args.search_target_rate,
            step=args.search_step,
            seed=args.seed,
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
        args = self.args
        options = TrainOptions(
            epochs=args.train_epoch,
            learning_rate=args.learning_rate,
            batch_images=args.batch_size,
            weight_decay=args.weight_decay,
            seed=args.seed,
        )
        path = self.folder.path / f"network_{number:03d}"
        with RunFolder.open(path, vars(args) | {"do_log": False}, ignore=OPEN) as folder:
            objective = Objective(plain_loss())
            train(folder, "finetune", model, self.data, objective, options, self.device)
            batches = eval_batches(self.data, "test", self.device.val_batch_images)
            test = evaluate(model, batches, compile=self.device.compile)
        return {worth: test[worth.removeprefix("test_")] for worth in WORTH}

    def _say(self, number: int) -> None:
        one = self.networks[number]
        proxies = {name: known(one["proxies"][name]) for name in self.args.proxies}
        figures = ", ".join(f"{name} {value:.4g}" for name, value in proxies.items())
        worth = {name: known(value) for name, value in one["potential"].items()}
        print(
            f"{number + 1} of {self.args.n}, {one['source']} left at {one['left_at']:.3f}: "
            f"{figures} -> test loss {worth['test_loss']:.4f}, top-1 {worth['test_top1']:.2f} %",
            flush=True,
        )

    def results(self) -> dict:
        """What potential.json holds."""
        proxies = [
            name
            for name in PROXIES
            if all(name in self.networks[number]["proxies"] for number in range(self.args.n))
        ]
        rows = [self.networks[number] for number in range(self.args.n)]
        return {
            "settings": vars(self.args) | {"examples": len(self.scene.val.labels)},
            "correlations": correlations(rows, proxies),
            "networks": rows,
        }


def open_sources(
    args: argparse.Namespace, folder: RunFolder, model: keras.Model, data: Dataset, device: Device
) -> tuple[list[Source], Scene]:
    """The searches of --sources, done where they have to be, and what the candidates share.

    Raises:
        UserError: as `sources.read`, `sources.made` and `sources.check_alike`.
    """
    options = search_options(args)
    val = networks.validation(args, data)
    sources = []
    for text in args.sources:
        if Path(text).is_dir():
            sources.append(read(Path(text), vars(args), len(val.labels), args.search_target_rate))
            continue
        print(f"search {text}", flush=True)
        path = folder.path / f"search_{text.replace(':', '_')}"
        with RunFolder.open(path, vars(args) | {"do_log": False}, ignore=OPEN) as own:
            sources.append(made(text, own, model, data, options, device)[0])
    check_alike(sources)
    return sources, Scene(sources, val, compile=device.compile)


def search_options(args: argparse.Namespace) -> SearchOptions:
    """The options that the searches of --sources share."""
    return SearchOptions(
        target_rate=args.search_target_rate,
        step=args.search_step,
        evaluator=args.evaluator,
        batch_images=args.search_batch_size,
        subset_per_class=args.subset_per_class,
        val_per_class=args.val_per_class,
        seed=args.search_seed,
    )


def add_flags(parser: argparse.ArgumentParser) -> None:
    """All flags of the experiment."""
    group = parser.add_argument_group("run folder")
    group.add_argument("--train_path", required=True, help="folder that the experiment writes to")
    group.add_argument("--overwrite", action="store_true", help="delete a former one in the folder")
    group.add_argument("--seed", type=int, default=0, help="of the sub-networks and fine-tuning")
    flags.add_data(parser)
    inputs.add_own(parser)
    flags.add_device(parser)
    group = parser.add_argument_group("sub-networks")
    group.add_argument("--n", type=cli.positive_int, default=50, help="sub-networks")
    group.add_argument("--proxies", nargs="+", choices=PROXIES, default=list(DEFAULT_PROXIES))
    group.add_argument(
        "--sources",
        nargs="+",
        default=list(SOURCES),
        help="run folders of searches, or method:score[:teacher] of searches to be made",
    )
    group.add_argument("--search_target_rate", type=cli.fraction, default=0.5)
    group.add_argument("--search_step", type=cli.fraction, default=0.2)
    group.add_argument("--evaluator", choices=tuple(EVALUATORS), default="lazy")
    networks.add_validation(parser)
    group = parser.add_argument_group("fine-tuning")
    group.add_argument("--train_epoch", type=cli.positive_int, default=3, help="epochs of each")
    group.add_argument("--learning_rate", type=cli.positive_float)
    group.add_argument("--batch_size", type=cli.positive_int)
    parser.set_defaults(weight_decay=None)


@unreadable_named()
def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = cli.Parser(prog="python -m experiments.potential", description=__doc__.split("\n")[0])
    add_flags(parser)
    args = parser.parse_args(argv)
    begun = [Path(text) for text in args.sources if Path(text).is_dir()]
    for text in args.sources:
        if Path(text) not in begun:
            parsed(text)
    if not (args.trained_param or args.model):
        raise cli.UserError("--trained_param (or --model) is missing: which network is pruned?")
    for path in begun[:1]:
        networks.inherit_validation(args, path)
    device = flags.device_of(args)
    keras.utils.set_random_seed(args.seed)
    data, model = inputs.data_and_network(args)
    fill_defaults(args, data)
    networks.fill_validation(args, data)
    check_batch(args.batch_size, data, device)
    check(model, data, search_options(args))
    with RunFolder.open(
        args.train_path, vars(args), overwrite=args.overwrite, ignore=OPEN
    ) as folder:
        sources, scene = open_sources(args, folder, model, data, device)
        experiment = Experiment(folder, sources, scene, args, data, device)
        for number in range(args.n):
            experiment.run(number)
        results = experiment.results()
        folder.write_json(RESULT, results)
        draw(folder.file(PICTURE), results)
        print(correlation_table(results))


if __name__ == "__main__":
    cli.run(main)
