"""The loop of every search, with or without data: from the whole network to the target."""

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ...nets.gates import Gates
from ...nets.graph import ChannelGraph
from ...options.budgets import Budget, Latency
from ...options.control import Control
from ...utils import progress
from ...utils.errors import UserError
from ..history import History
from ..space.budgets import make_budget
from ..space.limits import least_widths
from ..worth.drop import Drop

LOGGED = ("score", "val_loss", "rate", "flops_rate", "reward")  # columns that are logged per step


class Loop:
    """The loop of a search on one channel graph; its state is the history on the disk.

    A method says how it begins (`_first`), how it takes up its history (`_restored`), what a step
    is (`_step`) and what is shown of it (`_shown`); a step sets the gates and ends in `_append`, or
    leaves everything as it is where its network would be worse than `drop` allows.

    Args:
        graph: of theta_0; `gates` hold the current network.
        history: rows of earlier processes, or none.
        wanted: what remains in the end.
        control: what every group must keep.
        order: rank of every unit in its gate at the beginning, int32 [U]; 0 = most important.
        compile: XLA.

    Attributes:
        drop: how much worse the network may get; None: as much as the budget asks for.
    """

    drop: Drop | None = None

    def __init__(
        self,
        graph: ChannelGraph,
        history: History,
        wanted: Budget,
        control: Control,
        *,
        order: np.ndarray | None = None,
        compile: bool = False,
    ):
        self.graph, self.history, self.wanted = graph, history, wanted
        self.gates = Gates(graph.groups, least_widths(graph, control))
        if order is not None:
            self.gates.set_order(order)
        self.full_flops = graph.flops()
        self.budget = make_budget(wanted, graph, compile=compile)
        # A latency is known only once it is measured: no proposal can be clipped to it.
        self.target = 0.0
        if not isinstance(wanted, Latency):
            self.target = wanted.goal * self.budget.full

    def run(
        self,
        log: Callable[[int, dict], None] = lambda step, values: None,
        *,
        most: int | None = None,
    ) -> None:
        """Goes on from the last step of the history to the target, or as far as `drop` allows.

        Args:
            log: called with (step, scalars) for every step taken.
            most: steps that are taken; None: as many as it needs.

        Raises:
            UserError: not even the first step is allowed, or as the steps.
        """
        if not self.history.rows:
            self._first(time.perf_counter())
        last = len(self.history.rows) - 1
        self.gates.set_mask(self.history.mask(self.graph, last))
        self.budget.restore(self.history.rows)
        self._restored()
        if last:
            progress.say(f"search: goes on after step {last}, {self._left()}")
        with progress.bar("search", 100.0, initial=self._percent()) as bar:
            end = math.inf if most is None else last + most
            while not self._at_end() and last < end:
                row = self._step()
                if row is None:
                    break
                last += 1
                log(row["step"], {key: row[key] for key in LOGGED if row.get(key) is not None})
                said = f"step {row['step']}, {self._left()}, {self._shown(row)}"
                bar.to(self._percent(), said)
            row = self.history.rows[-1]
            bar.note(f"{progress.count(row['step'], 'step')}, {self._left()}, {self._shown(row)}")
        if len(self.history.rows) == 1:
            raise self._nothing_allowed()

    def _at_end(self) -> bool:
        row = self.history.rows[-1]
        return row["rate"] <= self.wanted.goal or row.get("last", False)

    def _first(self, begin: float) -> None:
        """Appends row 0, the whole network; `begin`: when it was begun, of time.perf_counter."""
        raise NotImplementedError

    def _restored(self) -> None:
        """Takes up what the method needs to know of the history."""

    def _step(self) -> dict | None:
        """Takes a step: removes filters from the gates and returns the row of `_append`.

        None: the step would lose more than `drop` allows, or without a rate to reach nothing is
        left to remove. A row with a true "last" ends the search as well.
        """
        raise NotImplementedError

    def _shown(self, row: dict) -> str:
        """What the progress bar says of a row's network."""
        raise NotImplementedError

    def _percent(self) -> float:
        """How far the search is."""
        rate = self.history.rows[-1]["rate"]
        return min(100.0, 100 * (1 - rate) / (1 - self.wanted.goal))

    def _left(self) -> str:
        return f"{100 * self.history.rows[-1]['rate']:.1f} % of the {self.wanted.label} left"

    def _nothing_allowed(self) -> UserError:
        return UserError(
            f"no step stays within max_drop: {self.drop}; give a larger max_drop, or a smaller step"
        )

    def _unreachable(self) -> UserError:
        rate = self.history.rows[-1]["rate"]
        return UserError(
            f"a rate of {self.wanted.rate} can't be reached: no filter is left "
            f"to remove at {rate:.3f} of the {self.wanted.label}"
        )

    def _append(
        self,
        figures: dict[str, Any],
        seconds: dict[str, float],
        outputs: Any = (),
        *,
        evaluations: int = 0,
        images: int = 0,
        reward: float | None = None,
        **more: Any,
    ) -> dict:
        """Appends the network that the gates hold now to the history; returns its row.

        Args:
            figures: how good that network is.
            seconds: by part.
            outputs: on D_val, tree of float32 [n, ...]; empty where the history keeps none.
            evaluations: proposals or candidates that were looked at in this step.
            images: examples that ran forwards through some network in this step.
            reward: of the choice, in the method's own terms, larger = better.
            more: further columns.
        """
        step, mask = len(self.history.rows), self.gates.mask()
        before = self.history.mask(self.graph, step - 1)
        restored = np.flatnonzero(before < mask).tolist()
        more |= {"restored_units": restored} if restored else {}
        flops = self.graph.flops(mask)
        flops_rate = flops / self.full_flops
        row = {
            "step": step,
            "removed_units": np.flatnonzero(before > mask).tolist(),
            "reward": reward,
            "evaluations": evaluations,
            "images": images,
            **more,
            "widths": self.gates.widths,
            **figures,
            "flops": flops,
            "flops_rate": flops_rate,
            "parameters": self.graph.parameters(mask),
            "rate": self.budget.rate(mask, flops_rate),
            "seconds": seconds,
        }
        self.history.add(row, outputs)
        return row
