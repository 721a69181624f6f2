"""The exact, lazy and naive evaluators side by side, on the proposals of one real search.

    python -m benchmarks.search_speed --arch ResNet-56 --dataset CIFAR10 --data_path DIR \\
        --trained_param res56_cifar10.pkl --search_target_rate 0.45 \\
        --train_path NEW_FOLDER --out docs/results/search_speed.json

The search follows the exact evaluator. At every step the lazy one, and at every fifth the naive
one, evaluates the same proposals from the same state. One-time building is reported apart.
"""

from utils import cli, devices

devices.quiet()

import time

import keras
import numpy as np

from benchmarks import machine
from dataloader import load
from nets.graph import ChannelGraph
from nets.load import load_network
from pruning.candidates import Proposal
from pruning.current import CurrentNetwork, Validation
from pruning.evaluator import ExactEvaluator, LazyEvaluator, NaiveEvaluator, Outcome
from pruning.greedy import GreedySearch
from pruning.history import History
from pruning.rewards import Reward
from search import prepare
from utils import options as flags
from utils.runfolder import RunFolder

TIE = 1e-6  # rewards closer than this count as equal


def timed(function, *args) -> tuple[float, object]:
    """(seconds, result) of a call."""
    begin = time.perf_counter()
    result = function(*args)
    return time.perf_counter() - begin, result


class Alternating(ExactEvaluator):
    """The exact evaluator, with the two others at work on the same proposals.

    Attributes:
        rows: one dict per step, of what each evaluator did.
        build_seconds: one-time building and tracing of each.
    """

    def __init__(self, graph: ChannelGraph, data: Validation, every: int):
        exact, _ = timed(super().__init__, graph, data)
        lazy, self._lazy = timed(LazyEvaluator, graph, data)
        naive, self._naive = timed(NaiveEvaluator, graph, data)
        self._lazy.current = self.current
        self._graph, self._every, self.rows = graph, every, []
        self.build_seconds = {"exact": exact, "lazy": lazy, "naive": naive}

    def set_current_with_importance(self, mask: np.ndarray, reward: Reward):
        """As the exact one; begins a row."""
        seconds, result = timed(super().set_current_with_importance, mask, reward)
        rate = self._graph.flops(mask) / self._graph.flops()
        self.rows.append({"flops_rate": rate, "importance_seconds": seconds})
        return result

    def best(self, proposals: list[Proposal], reward: Reward) -> Outcome:
        """The exact one's choice; fills in the row."""
        row = self.rows[-1] | {"proposals": len(proposals)}
        row["exact_seconds"], exact = timed(super().best, proposals, reward)
        row["exact_finished"] = int(np.isfinite(exact.rewards).sum())
        row["lazy_seconds"], lazy = timed(self._lazy.best, proposals, reward)
        row["lazy_evaluations"] = lazy.evaluations
        row["lazy_same_choice"] = lazy.best == exact.best
        if len(self.rows) % self._every == 1 % self._every:
            if len(self.rows) == 1:
                # Its first batch traces and is no part of the step.
                self.build_seconds["naive"] += timed(self._naive.best, proposals[:1], reward)[0]
            row["naive_seconds"], naive = timed(self._naive.best, proposals, reward)
            row |= compare(exact, naive)
        self.rows[-1] = row
        print({key: round(value, 4) for key, value in row.items()}, flush=True)
        return exact


def compare(exact: Outcome, naive: Outcome) -> dict:
    """How the exact evaluator's choice and rewards differ from the naive one's."""
    finished = np.isfinite(exact.rewards)
    difference = np.abs(exact.rewards - naive.rewards)[finished].max()
    margin = naive.reward - naive.rewards[exact.best]
    return {
        "same_choice": exact.best == naive.best,
        "tie": exact.best != naive.best and bool(margin <= TIE),
        "reward_difference": float(difference),
    }


def forward_rates(graph: ChannelGraph, data: Validation, masks: list[np.ndarray]) -> list[dict]:
    """GFLOP/s of the current network's forward pass on D_val, for networks along the search."""
    current = CurrentNetwork(graph, data)
    rows = []
    for mask in masks:
        seconds = machine.median_seconds(lambda mask=mask: current.set(mask), runs=3, warm_up=1)
        flops = graph.flops(mask)
        rate = 2e-9 * flops * len(data.labels) / seconds
        rows.append({"flops_rate": flops / graph.flops(), "gflops": rate})
    return rows


def worker_seconds(graph: ChannelGraph, data: Validation, proposals, reward: Reward) -> dict:
    """Seconds of a step by the number of proposals evaluated side by side."""
    seconds = {}
    evaluators = {count: ExactEvaluator(graph, data, workers=count) for count in (1, 2)}
    for evaluator in evaluators.values():
        evaluator.set_current(graph.gates.mask())
    for count, evaluator in evaluators.items():
        run = lambda evaluator=evaluator: evaluator.best(proposals, reward)  # noqa: E731
        seconds[str(count)] = machine.median_seconds(run, runs=3, warm_up=1)
    return seconds


def summary(rows: list[dict]) -> dict:
    """Ratios of medians over the steps with the naive evaluator, and how often all agree."""
    both = [row for row in rows if "naive_seconds" in row]

    def median(key: str, plus: str | None = None) -> float:
        return float(np.median([row[key] + (row[plus] if plus else 0) for row in both]))

    importance = "importance_seconds"
    return {
        "steps": len(rows),
        "steps_with_naive": len(both),
        "ratio": {k: median("naive_seconds") / median(f"{k}_seconds") for k in ("exact", "lazy")},
        "ratio_with_importance": {
            k: median("naive_seconds", importance) / median(f"{k}_seconds", importance)
            for k in ("exact", "lazy")
        },
        "exact_same_choice": sum(row["same_choice"] for row in both),
        "ties": sum(row["tie"] for row in both),
        "reward_difference": max(row["reward_difference"] for row in both),
        "evaluations": sum(row["proposals"] for row in rows),
        "exact_finished": sum(row["exact_finished"] for row in rows),
        "lazy_evaluations": sum(row["lazy_evaluations"] for row in rows),
        "lazy_same_choice": sum(row["lazy_same_choice"] for row in rows),
        "seconds": {
            key: sum(row[f"{key}_seconds"] for row in rows)
            for key in ("importance", "exact", "lazy")
        },
    }


def main(argv: list[str] | None = None) -> None:
    """The command line: that of search.py."""
    parser = cli.Parser(description=__doc__.splitlines()[0])
    flags.add_run(parser)
    flags.add_data(parser)
    flags.add_device(parser)
    flags.add_search(parser)
    parser.add_argument("--every", type=cli.positive_int, default=5, help="steps per naive one")
    machine.add_out(parser)
    args = parser.parse_args(argv)
    device = flags.device_of(args)
    keras.utils.set_random_seed(args.seed)
    data = load(args.dataset, args.data_path)
    flags.fill_defaults(args, data)
    model = load_network(args.trained_param, args.arch, data.num_classes, data.image_shape)
    options = flags.search_of(args)
    about = machine.describe()
    with RunFolder.open(args.train_path, vars(args) | {"out": str(args.out)}) as folder:
        graph, val = prepare(folder, model, data, options, device)
        history = History(folder, (len(val.labels), data.num_classes))
        greedy = GreedySearch(graph, val, history, options)
        greedy.evaluator = evaluator = Alternating(graph, val, args.every)
        proposals = greedy.candidates.propose(graph.gates.mask())
        reward = Reward(val.labels, None, data.num_classes)
        workers = worker_seconds(graph, val, proposals, reward)

        def results() -> dict:
            return {
                "machine": about,
                "examples": len(val.labels),
                "flops_rate": history.rows[-1]["flops_rate"],
                "summary": summary(evaluator.rows),
                "val_loss": history.rows[-1]["val_loss"],
                "build_seconds": evaluator.build_seconds,
                "worker_seconds": workers,
                "rows": evaluator.rows,
            }

        # After every step, so that a run that is stopped leaves what it has seen.
        greedy.run(log=lambda step, scalars: machine.write(results(), args.out))
        steps = range(0, len(history.rows), max(1, len(history.rows) // 4))
        masks = [history.mask(graph, step) for step in steps]
        about["matmul_gflops_after"] = round(machine.matmul_gflops(), 1)
        machine.report(results() | {"forward": forward_rates(graph, val, masks)}, args.out)


if __name__ == "__main__":
    cli.run(main)
