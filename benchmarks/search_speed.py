"""The exact, fast and naive evaluators side by side, on the proposals of one real search.

    python -m ekg_tf.benchmarks.search_speed --search_path FINISHED_EXACT_SEARCH \\
        --out docs/results/search_speed.json

The steps are those of a finished `search.py --evaluator exact` (`benchmarks.whole_search` makes
one). At every step of it the fast evaluator, and at every fifth all three, evaluate the same
proposals from the same state. One-time building is reported apart.
"""

from ..cli import manners
from ..utils import devices

devices.import_tensorflow()

import argparse
import time
from pathlib import Path

import numpy as np

from ..cli import choices, flags, inputs
from ..nets.gates import Gates
from ..nets.given import Given
from ..nets.graph import ChannelGraph
from ..options.budgets import Flops
from ..options.data import Sampling
from ..options.methods import EKG
from ..options.search import SearchOptions
from ..phases.opening import fit_of
from ..phases.searching import prepare
from ..pruning.engine.current import CurrentNetwork
from ..pruning.engine.evaluator import ExactEvaluator, NaiveEvaluator, Outcome
from ..pruning.engine.fast import FastEvaluator
from ..pruning.engine.validation import Validation
from ..pruning.history import History, output_shapes
from ..pruning.space.candidates import Candidates, Proposal
from ..pruning.worth.rewards import Knowledge, Reward
from ..reports import machine
from ..training.task import classification
from ..utils.errors import UserError
from ..utils.jsonl import read_json
from ..utils.keras_files import load_keras
from ..utils.runfiles import START
from ..utils.runfolder import RunFolder

TIE = 1e-6  # rewards closer than this count as equal


def timed(function, *args) -> tuple[float, object]:
    """(seconds, result) of a call."""
    begin = time.perf_counter()
    result = function(*args)
    return time.perf_counter() - begin, result


class Alternating:
    """The three evaluators at work on the same proposals, step by step.

    Attributes:
        rows: one dict per step, of what each evaluator did.
        build_seconds: one-time building and tracing of each.
    """

    def __init__(self, graph: ChannelGraph, data: Validation, every: int):
        fast, self._fast = timed(FastEvaluator, graph, data)
        exact, self._exact = timed(ExactEvaluator, graph, data)
        naive, self._naive = timed(NaiveEvaluator, graph, data)
        self._exact.current = self._fast.current
        self._graph, self._every, self.rows = graph, every, []
        self.build_seconds = {"exact": exact, "fast": fast, "naive": naive}

    def importance(self, mask: np.ndarray, reward: Reward) -> np.ndarray:
        """Makes the network under a unit mask, float32 [U + 1], the current one; begins a row.

        Returns:
            Its scores, float64 [U + 1].
        """
        seconds, (_, scores) = timed(self._exact.set_current_with_importance, mask, reward)
        rate = self._graph.flops(mask) / self._graph.flops()
        self.rows.append({"flops_rate": rate, "importance_seconds": seconds})
        return scores

    def evaluate(self, proposals: list[Proposal], reward: Reward, chosen: int) -> None:
        """Fills in the row.

        Args:
            chosen: the proposal that the search which is followed took.
        """
        row = self.rows[-1] | {"proposals": len(proposals)}
        row["fast_seconds"], fast = timed(self._fast.best, proposals, reward)
        row["fast_evaluations"], row["fast_images"] = fast.evaluations, fast.images
        row["fast_same_choice"] = fast.best == chosen
        if len(self.rows) % self._every == 1 % self._every:
            if len(self.rows) == 1:
                # Its first batch traces and is no part of the step.
                self.build_seconds["naive"] += timed(self._naive.best, proposals[:1], reward)[0]
            # What the exact one would remember from the last step, had it taken it.
            self._exact.remember(self._fast.ratios())
            row["exact_seconds"], exact = timed(self._exact.best, proposals, reward)
            row["exact_images"] = exact.images
            row["naive_seconds"], naive = timed(self._naive.best, proposals, reward)
            row["naive_images"] = naive.images
            row |= compare(exact, naive)
        self.rows[-1] = row
        print({key: round(value, 4) for key, value in row.items()}, flush=True)


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
        rate = 2e-9 * flops * len(data) / seconds
        rows.append({"flops_rate": flops / graph.flops(), "gflops": rate})
    return rows


def worker_seconds(graph: ChannelGraph, data: Validation, proposals, reward: Reward) -> dict:
    """Seconds of a step by the number of proposals evaluated side by side."""
    seconds = {}
    evaluators = {count: ExactEvaluator(graph, data, workers=count) for count in (1, 2)}
    for evaluator in evaluators.values():
        evaluator.set_current(graph.open_mask())
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
        "ratio": {k: median("naive_seconds") / median(f"{k}_seconds") for k in ("exact", "fast")},
        "ratio_with_importance": {
            k: median("naive_seconds", importance) / median(f"{k}_seconds", importance)
            for k in ("exact", "fast")
        },
        "exact_same_choice": sum(row["same_choice"] for row in both),
        "ties": sum(row["tie"] for row in both),
        "reward_difference": max(row["reward_difference"] for row in both),
        "evaluations": sum(row["proposals"] for row in rows),
        "images": {k: sum(row[f"{k}_images"] for row in both) for k in ("exact", "fast", "naive")},
        "fast_evaluations": sum(row["fast_evaluations"] for row in rows),
        "fast_same_choice": sum(row["fast_same_choice"] for row in rows),
    }


def followed(history: History, graph: ChannelGraph, proposals: list[Proposal], step: int) -> int:
    """Number of the proposal that the search took at this step.

    Raises:
        UserError: none of them is.
    """
    mask = history.mask(graph, step)
    for number, proposal in enumerate(proposals):
        if (proposal.mask == mask).all():
            return number
    raise UserError(
        f"step {step} can't be followed: is it a search with --method ekg --evaluator exact of "
        "this version?"
    )


def options_of(kept: dict) -> SearchOptions:
    """The options of a search from what its run folder keeps of its command.

    Raises:
        UserError: a search of another kind than those that are followed here.
    """
    followed_ones = {"method": "ekg", "evaluator": "exact", "budget": "flops"}
    if {key: kept.get(key) for key in followed_ones} != followed_ones:
        wanted = " ".join(f"--{key} {value}" for key, value in followed_ones.items())
        raise UserError(f"only a search with {wanted} can be followed")
    args = argparse.Namespace(**kept)
    return SearchOptions(*(choices.made(kind, args) for kind in (Flops, EKG, Sampling)))


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = manners.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--search_path", type=Path, required=True, help="folder of the search")
    parser.add_argument("--every", type=flags.count, default=5, help="steps per naive one")
    machine.add_out(parser)
    own = parser.parse_args(argv)
    kept = read_json(own.search_path / inputs.ARGS)
    options, args = options_of(kept), argparse.Namespace(**kept)
    device = choices.device_of(args)
    start = load_keras(own.search_path / START, compile=False)
    data = inputs.data_of(args, fit_of(Given.read(start)))
    about, task = machine.describe(), classification()
    with RunFolder.open(own.search_path, kept) as folder:
        graph, val = prepare(folder, start, task, data, options, device)
        history = History(folder, output_shapes(graph, len(val)))
    alternating, gates = Alternating(graph, val, own.every), Gates(graph.groups)
    target = options.budget.rate * graph.flops()
    share, round_to = options.method.step, options.budget.round_to
    candidates = Candidates(gates, graph.flops, target, share, round_to=round_to)
    knowledge = Knowledge(options.method.teacher)
    proposals = candidates.propose(gates.mask())
    workers = worker_seconds(graph, val, proposals, Reward(task, val))
    results = {
        "machine": about,
        "examples": len(val),
        "flops_rate": history.rows[-1]["flops_rate"],
        "worker_seconds": workers,
        "build_seconds": alternating.build_seconds,
        "rows": alternating.rows,
    }
    for step in range(1, len(history.rows)):
        gates.set_mask(history.mask(graph, step - 1))
        knowledge.add(history.outputs(step - 1))
        reward = Reward(task, val, knowledge.outputs)
        scores = alternating.importance(gates.mask(), reward)
        for gate in gates:
            gate.rank(scores[gate.units])
        proposals = candidates.screened(candidates.propose(scores))
        alternating.evaluate(proposals, reward, followed(history, graph, proposals, step))
    steps = range(0, len(history.rows), max(1, len(history.rows) // 4))
    masks = [history.mask(graph, step) for step in steps]
    about["matmul_gflops_after"] = round(machine.matmul_gflops(), 1)
    results |= {"summary": summary(alternating.rows), "forward": forward_rates(graph, val, masks)}
    machine.report(results, own.out)


if __name__ == "__main__":
    manners.run(main)
