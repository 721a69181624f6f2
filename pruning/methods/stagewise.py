"""SWP's search (Stage-wise Pruning, arXiv 2011.04908; docs/method.md 6) on a trained supernet.

Every stage is searched by itself, its versions rated by their stage loss; then one version of every
stage is chosen under one budget. Stage losses are made comparable by what they do to the output:
a stage's factor is what its version of middle widths alone does to the outputs (for classes the KL
of the softmax), divided by that version's stage loss (our reading; the paper's abstract doesn't say
how stages are weighed).
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...nets.graph import ChannelGraph
from ...options.search import SearchOptions
from ...training.task import Task
from ...utils import cluster, progress
from ...utils.arrays import load_state, save_state
from ..engine.validation import Validation
from ..history import History
from ..space.candidates import OVERSHOOT
from ..space.stages import frozen_gates
from ..space.width_grid import WidthGrid
from ..supernet.ratings import StageRater
from .base import Search
from .combine import BINS, combine, pareto
from .evolution import Archive, evolve

STATE = "search_evolution.npz"
PRECISION = 1e-3  # of a rate that `drop` ends at
INTERIM = 8  # networks between the whole one and the target: teachers of the memory bank


class StageWiseSearch(Search):
    """Rows of its history are the best combinations at falling rates, not nested in each other."""

    def __init__(
        self,
        graph: ChannelGraph,
        val: Validation,
        history: History,
        options: SearchOptions,
        task: Task,
        *,
        compile: bool = False,
        **more: Any,
    ):
        super().__init__(graph, val, history, options, task, compile=compile, **more)
        wanted = options.method
        self.rater = StageRater(
            graph,
            val,
            task,
            wanted.stages,
            compile=compile,
            cache_bytes=options.method.cache_mb << 20,
        )
        self.stages = self.rater.stages
        self.part = 1 / len(self.stages)
        frozen = frozen_gates(graph, self.stages)
        self.grid = WidthGrid(self.gates, wanted.width_steps, options.budget.round_to, frozen)
        self._archives = [Archive.empty(len(stage.gates)) for stage in self.stages]
        self._factors: np.ndarray | None = None
        self._seconds = 0.0
        self._end = self._lowest_rate() if self.wanted.rate is None else self.wanted.rate
        steps = np.linspace(1, self._end, INTERIM + 2)[1:-1]
        self._rates = sorted({*steps, *options.budget.keep, self._end}, reverse=True)

    def _begin(self, mask: np.ndarray) -> Any:
        progress.say(self.rater.plan())
        return self.rater.outputs(mask)

    def _lowest_rate(self) -> float:
        """What all stages at their narrowest leave, and what `combine` may round away of it."""
        narrowest = self.grid.mask(np.zeros_like(self.grid.sizes))
        lowest = self.budget.size(narrowest) / self.budget.full
        return lowest + (1 - lowest) * (len(self.stages) + 1) / BINS

    # ---------------------------------------------------------------- the stages

    def _masks(self, number: int, genes: np.ndarray) -> list[np.ndarray]:
        """Unit masks of versions of a stage, int [n, gates], with all else whole."""
        choices = np.repeat(self.grid.full()[None], len(genes), 0)
        choices[:, list(self.stages[number].gates)] = genes
        return [self.grid.mask(choice) for choice in choices]

    def _saved(self, number: int, genes: np.ndarray) -> np.ndarray:
        sizes = [self.budget.size(mask) for mask in self._masks(number, genes)]
        return self.budget.full - np.array(sizes, np.float64)

    def _restored(self) -> None:
        self._load()
        if self._factors is None:
            self.rater.evaluations, self.rater.images = 0, 0.0  # row 0 has what came before
            self._factors = self._measured_factors()
            self._save()
        wanted = self.options.method
        done = sum(archive.generations for archive in self._archives)
        total = wanted.generations * len(self.stages)
        if done:
            progress.say(f"evolution: goes on after generation {done} of {total}")
        with progress.bar("evolution", total, initial=done) as bar:
            for number, stage in enumerate(self.stages):
                self._evolve(number, self.grid.sizes[list(stage.gates)], bar)

    def remaining(self) -> tuple[int, int]:
        """Combinations to come, and versions of stages to be rated."""
        wanted = self.options.method
        rows = len(self._rates) + 1 - len(self.history.rows)
        done = sum(archive.generations for archive in self._archives)
        generations = wanted.generations * len(self.stages) - done
        return max(0, rows), generations * wanted.population

    def _evolve(self, number: int, sizes: np.ndarray, bar: progress.Bar) -> None:
        began = time.perf_counter()

        def done() -> None:
            nonlocal began
            now = time.perf_counter()
            self._seconds, began = self._seconds + now - began, now
            self._save()
            bar.advance(1, f"stage {number + 1} of {len(self.stages)}")

        evolve(
            self._archives[number],
            lambda genes: self.rater.rate(number, self._masks(number, genes)),
            lambda genes: self._saved(number, genes),
            sizes,
            population=self.options.method.population,
            generations=self.options.method.generations,
            seed=[self.options.sampling.seed, number],
            done=done,
        )

    def _measured_factors(self) -> np.ndarray:
        """What stages do to the outputs per stage loss, float64 [stages]; of the last one 1."""
        whole = self.rater.outputs(self.graph.open_mask())
        factors = []
        for number, stage in enumerate(self.stages[:-1]):
            middle = self._masks(number, self.grid.sizes[None, list(stage.gates)] // 2)[0]
            loss = float(self.rater.rate(number, [middle])[0])
            caused = float(self.rater.output_loss(self.rater.outputs(middle), whole))
            factors.append(caused / loss if loss > 0 else 1.0)
        return cluster.agreed(np.array([*factors, 1.0]))

    def _load(self) -> None:
        folder = self.history.folder
        if not folder.has(STATE):
            return
        state = load_state(folder.file(STATE))
        self._factors = state["factors"]
        self._seconds = float(state["seconds"])
        self.rater.evaluations = int(state["evaluations"])
        self.rater.images = float(state["images"])
        self._archives = [
            Archive(state[f"genes{n}"], state[f"losses{n}"], int(state[f"generations{n}"]))
            for n in range(len(self.stages))
        ]

    def _save(self) -> None:
        state = {
            "factors": self._factors,
            "seconds": np.float64(self._seconds),
            "evaluations": np.int64(self.rater.evaluations),
            "images": np.float64(self.rater.images),
        }
        for number, archive in enumerate(self._archives):
            state[f"genes{number}"] = archive.genes
            state[f"losses{number}"] = archive.losses
            state[f"generations{number}"] = np.int64(archive.generations)
        self.history.folder.write(STATE, lambda path: save_state(path, state))

    # ---------------------------------------------------------------- their combination

    def _step(self) -> dict | None:
        begin = time.perf_counter()
        first = len(self.history.rows) == 1
        before = (0, 0.0) if first else (self.rater.evaluations, self.rater.images)
        now = self.history.rows[-1]["rate"]
        rate = next((one for one in self._rates if one < now), None)
        if rate is None:  # as small as it gets, and good enough
            return None
        widths, loss = self._combined(rate * self.budget.full)
        if rate == self.wanted.rate or rate in self.wanted.keep:
            widths = self._finished(widths, rate * self.budget.full)
        outputs, more = self.rater.outputs(self.grid.mask_of_widths(widths)), {}
        if self._too_bad(outputs):
            found = self._last_allowed(now, rate)
            if found is None:
                return None
            rate, widths, loss, outputs = found
            more = {"last": True}
        self.gates.set_mask(self.grid.mask_of_widths(widths))
        seconds = {"combination": time.perf_counter() - begin}
        if first:
            seconds["evolution"] = self._seconds
        return self._record(
            outputs,
            seconds,
            evaluations=self.rater.evaluations - before[0],
            images=round(self.rater.images - before[1]),
            reward=-loss,
            name=f"stages combined at {100 * rate:.1f} %",
            **more,
        )

    def _last_allowed(
        self, allowed: float, refused: float
    ) -> tuple[float, np.ndarray, float, Any] | None:
        """The combination at the lowest rate between two that isn't worse than `drop` allows.

        Found by bisection, so that the one PRECISION below it is worse.

        Args:
            allowed, refused: rates of a network that is good enough and of one that isn't.

        Returns:
            (rate, widths int32 [gates], loss, outputs on D_val), None if there is no other network
            between them.
        """
        known = self.gates.mask().tobytes()
        found = None
        while allowed - refused > PRECISION:
            rate = (allowed + refused) / 2
            widths, loss = self._combined(rate * self.budget.full)
            mask = self.grid.mask_of_widths(widths)
            outputs = self.rater.outputs(mask)
            if self._too_bad(outputs):
                refused = rate
            else:
                allowed = rate
                found = None if mask.tobytes() == known else (rate, widths, loss, outputs)
        return found

    def _combined(self, size: float) -> tuple[np.ndarray, float]:
        """Widths of the best combination of at most a size, int32 [gates], and its loss."""
        saved, losses, genes = [], [], []
        for number, archive in enumerate(self._archives):
            savings = self._saved(number, archive.genes)
            values = archive.losses * self._factors[number]
            front = pareto(savings, values)
            saved.append(savings[front])
            losses.append(values[front])
            genes.append(archive.genes[front])
        chosen = combine(saved, losses, self.budget.full - size)
        if chosen is None:
            raise self._unreachable()
        choice = self.grid.full()
        for stage, options, one in zip(self.stages, genes, chosen, strict=True):
            choice[list(stage.gates)] = options[one]
        loss = sum(float(values[one]) for values, one in zip(losses, chosen, strict=True))
        return self.grid.widths(choice), loss

    def _finished(self, widths: np.ndarray, target: float) -> np.ndarray:
        """Gives filters back, one gate after the other, until the size is close below the target.

        Every gate offers as many filters as fit; the offer is taken that lowers the stage losses
        most.
        """
        widths = widths.copy()
        while target - self._size(widths) > OVERSHOOT * self.budget.full:
            offers = [
                (number, gate, offer)
                for number, stage in enumerate(self.stages)
                for gate in stage.gates
                if (offer := self._widened(widths, gate, target)) is not None
            ]
            if not offers:
                break
            gains = self._gains(widths, offers)
            widths = offers[int(np.argmax(gains))][2]
        return widths

    def _size(self, widths: np.ndarray) -> float:
        return self.budget.size(self.grid.mask_of_widths(widths))

    def _widened(self, widths: np.ndarray, gate: int, target: float) -> np.ndarray | None:
        """The widths with as many more filters in one gate as fit into the target."""
        full, step = self.gates[gate].channels, self.options.budget.round_to
        wider = {width for width in range(step, full, step) if width > widths[gate]} | {full}
        found = None
        for width in sorted(wider - {int(widths[gate])}):
            offer = widths.copy()
            offer[gate] = width
            if self._size(offer) > target:
                break
            found = offer
        return found

    def _gains(self, widths: np.ndarray, offers: Sequence[tuple]) -> np.ndarray:
        """How far each offer lowers its stage's loss, float64 [offers]."""
        gains = np.zeros(len(offers))
        for number in sorted({one[0] for one in offers}):
            own = [place for place, one in enumerate(offers) if one[0] == number]
            masks = [self.grid.mask_of_widths(offers[place][2]) for place in own]
            now, *then = self.rater.rate(number, [self.grid.mask_of_widths(widths), *masks])
            gains[own] = self._factors[number] * (now - np.array(then))
        return gains
