"""The greedy search: the loop of Algorithm 1 (method.md 1)."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from nets.graph import ChannelGraph
from pruning.budgets import make_budget
from pruning.candidates import Candidates
from pruning.current import Validation
from pruning.evaluator import ExactEvaluator, LazyEvaluator, NaiveEvaluator
from pruning.history import History
from pruning.rewards import Knowledge, Reward, label_loss_and_accuracy
from pruning.scores import weight_scores
from utils.cli import UserError

EVALUATORS = {"exact": ExactEvaluator, "lazy": LazyEvaluator, "naive": NaiveEvaluator}


@dataclass(frozen=True)
class SearchOptions:
    """Settings of Algorithm 1; the names are those of the flags."""

    target_rate: float
    step: float = 0.2
    teacher: str = "ensemble"
    score: str = "taylor"
    evaluator: str = "exact"
    batch_images: int = 256
    subset_per_class: int = 256
    val_per_class: int = 32
    num_teacher: int = 5
    round_to: int = 1
    cache_mb: int = 2048
    budget: str = "flops"
    latency_batch: int = 1
    rates: tuple[float, ...] = ()  # larger than target_rate: networks to keep on the way
    seed: int = 0


class GreedySearch:
    """The loop of Algorithm 1 on one channel graph; its state is the history on the disk."""

    def __init__(
        self,
        graph: ChannelGraph,
        val: Validation,
        history: History,
        options: SearchOptions,
        *,
        compile: bool = False,
        devices: Sequence[str] = (),
    ):
        self.graph, self.val, self.history, self.options = graph, val, history, options
        self.full_flops = graph.flops()
        self.budget = make_budget(
            options.budget, graph, latency_batch=options.latency_batch, compile=compile
        )
        target = options.target_rate * self.budget.full if options.budget != "latency" else 0.0
        self.candidates = Candidates(
            graph, target, options.step, round_to=options.round_to, size=self.budget.size
        )
        self.evaluator = EVALUATORS[options.evaluator](
            graph, val, compile=compile, devices=devices, cache_bytes=options.cache_mb << 20
        )
        self.knowledge = Knowledge(options.teacher)
        self._kernels = {} if options.score in ("taylor", "random") else graph.kernels()

    def run(self, log=lambda step, values: None) -> None:
        """Goes on from the last step of the history to the target.

        Args:
            log: called with (step, scalars) for every step taken.
        """
        self._restore()
        bar = tqdm(
            total=100.0,
            desc="search",
            disable=None,
            bar_format="{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}] {postfix}",
        )
        with bar:
            self._show(bar)
            while self.history.rows[-1]["rate"] > self.options.target_rate:
                row = self._step()
                log(
                    row["step"],
                    {key: row[key] for key in ("val_loss", "rate", "flops_rate", "reward")},
                )
                self._show(bar)

    def _show(self, bar: tqdm) -> None:
        rate = self.history.rows[-1]["rate"]
        bar.n = min(100.0, 100 * (1 - rate) / (1 - self.options.target_rate))
        loss = self.history.rows[-1]["val_loss"]
        bar.set_postfix_str(f"{self.options.budget} left {100 * rate:.1f} %, D_val loss {loss:.4f}")

    def _restore(self) -> None:
        if not self.history.rows:
            begin = time.perf_counter()
            logits = self.evaluator.set_current(self.graph.gates.mask())
            row = {"gate": None, "removed": [], "reward": None, "evaluations": 0}
            self._record(row, logits, {"start": time.perf_counter() - begin})
        for step in range(len(self.history.rows)):
            self.knowledge.add(self.history.logits(step))
        last = len(self.history.rows) - 1
        self.graph.gates.set_mask(self.history.mask(self.graph, last))
        drops = self.history.rows[-1].get("drops", {})
        self.budget.restore(self.history.rows)
        self.evaluator.remember({int(gate): drop for gate, drop in drops.items()})

    def _step(self) -> dict:
        begin = time.perf_counter()
        reward = Reward(self.val.labels, self.knowledge.logits, self.graph.model.output_shape[-1])
        scores = self._scores(reward)
        for gate in self.graph.gates:
            gate.rank(scores[gate.units])
        proposals = self.candidates.propose(scores)
        if not proposals:
            rate = self.history.rows[-1]["rate"]
            raise UserError(
                f"--search_target_rate {self.options.target_rate} can't be reached: no filter is "
                f"left to remove at {rate:.3f} of the {self.options.budget}"
            )
        proposals = self.candidates.screened(proposals)
        middle = time.perf_counter()
        outcome = self.evaluator.best(proposals, reward)
        if not np.isfinite(outcome.reward):
            raise UserError(
                f"step {len(self.history.rows)} of the search has a reward of {outcome.reward}: "
                "the network's logits are not finite, check the weights and the images"
            )
        best = proposals[outcome.best]
        self.graph.gates[best.gate].remove(best.channels)
        self.knowledge.add(outcome.logits)
        row = {
            "gate": best.gate,
            "removed": sorted(int(channel) for channel in best.channels),
            "reward": outcome.reward,
            "evaluations": outcome.evaluations,
        }
        if isinstance(self.evaluator, LazyEvaluator):
            row["drops"] = {str(gate): drop for gate, drop in self.evaluator.drops().items()}
        seconds = {"importance": middle - begin, "proposals": time.perf_counter() - middle}
        return self._record(row, outcome.logits, seconds)

    def _scores(self, reward: Reward) -> np.ndarray:
        mask = self.graph.gates.mask()
        if self.options.score == "taylor":
            return self.evaluator.set_current_with_importance(mask, reward)[1]
        self.evaluator.set_current(mask)
        seed = [self.options.seed, len(self.history.rows)]
        return weight_scores(self.options.score, self._kernels, mask, seed)

    def _record(self, row: dict, logits: np.ndarray, seconds: dict) -> dict:
        loss, accuracy = label_loss_and_accuracy(logits, self.val.labels)
        mask = self.graph.gates.mask()
        flops = self.graph.flops(mask)
        flops_rate = flops / self.full_flops
        row = {
            "step": len(self.history.rows),
            "name": None if row["gate"] is None else self.graph.gates[row["gate"]].name,
            **row,
            "widths": self.graph.gates.widths,
            "val_loss": loss,
            "val_accuracy": accuracy,
            "flops": flops,
            "flops_rate": flops_rate,
            "parameters": self.graph.parameters(mask),
            "rate": self.budget.rate(mask, flops_rate),
            "seconds": seconds,
        }
        self.history.add(row, logits)
        return row
