"""What all searches share: options, the loop to the target, and the history as their state."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from ...nets.gates import Gates
from ...nets.graph import ChannelGraph
from ...options.budgets import Latency
from ...options.search import SearchOptions
from ...training.task import Task
from ...utils.errors import UserError
from ...utils.trees import parts_of
from ..engine.validation import Validation
from ..history import History
from ..space.budgets import make_budget
from ..worth.rewards import loss_and_accuracy


class Search:
    """The loop of a search on one channel graph; its state is the history on the disk.

    A method says how it begins (`_begin`), how it takes up its history (`_restored`) and what a
    step is (`_step`); a step sets the gates and ends in `_record`.

    Args:
        graph: of theta_0; `gates` hold the current network.
        val: D_val.
        history: rows of earlier processes, or none.
        task: what the network is trained for.
        order: rank of every unit in its gate at the beginning, int32 [U]; 0 = most important.
        compile: XLA.
        devices: names of the devices that share the work; default: TensorFlow's default device.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        val: Validation,
        history: History,
        options: SearchOptions,
        task: Task,
        *,
        order: np.ndarray | None = None,
        compile: bool = False,
        devices: Sequence[str] = (),
    ):
        self.graph, self.val, self.history, self.options = graph, val, history, options
        self.task = task
        self.gates = Gates(graph.groups)
        if order is not None:
            self.gates.set_order(order)
        self.full_flops = graph.flops()
        self.budget = make_budget(options.budget, graph, compile=compile)
        # A latency is known only once it is measured: no proposal can be clipped to it.
        self.target = 0.0
        if not isinstance(options.budget, Latency):
            self.target = options.budget.rate * self.budget.full

    def run(self, log: Callable[[int, dict], None] = lambda step, values: None) -> None:
        """Goes on from the last step of the history to the target.

        Args:
            log: called with (step, scalars) for every step taken.
        """
        if not self.history.rows:
            begin = time.perf_counter()
            outputs = self._begin(self.gates.mask())
            seconds = {"start": time.perf_counter() - begin}
            self._record(outputs, seconds, images=len(self.val))
        last = len(self.history.rows) - 1
        self.gates.set_mask(self.history.mask(self.graph, last))
        self.budget.restore(self.history.rows)
        self._restored()
        bar = tqdm(
            total=100.0,
            desc="search",
            disable=None,
            bar_format="{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}] {postfix}",
        )
        with bar:
            self._show(bar)
            while self.history.rows[-1]["rate"] > self.options.budget.rate:
                row = self._step()
                keys = ("val_loss", "rate", "flops_rate", "reward")
                log(row["step"], {key: row[key] for key in keys if row[key] is not None})
                self._show(bar)

    def _begin(self, mask: np.ndarray) -> Any:
        """Outputs of theta_0 on D_val, tree of float32 [n, ...]."""
        raise NotImplementedError

    def _restored(self) -> None:
        """Takes up what the method needs to know of the history."""

    def _step(self) -> dict:
        """Takes a step: removes filters from the gates and returns the row of `_record`."""
        raise NotImplementedError

    def _show(self, bar: tqdm) -> None:
        rate = self.history.rows[-1]["rate"]
        bar.n = min(100.0, 100 * (1 - rate) / (1 - self.options.budget.rate))
        loss = self.history.rows[-1]["val_loss"]
        bar.set_postfix_str(
            f"{self.options.budget.name} left {100 * rate:.1f} %, D_val loss {loss:.4f}"
        )

    def _unreachable(self) -> UserError:
        rate = self.history.rows[-1]["rate"]
        return UserError(
            f"a rate of {self.options.budget.rate} can't be reached: no filter is left "
            f"to remove at {rate:.3f} of the {self.options.budget.label}"
        )

    def _record(
        self,
        outputs: Any,
        seconds: dict[str, float],
        *,
        evaluations: int = 0,
        images: int = 0,
        reward: float | None = None,
        **more,
    ) -> dict:
        """Appends the network that the gates hold now to the history; returns its row.

        Args:
            outputs: of that network on D_val, tree of float32 [n, ...].
            seconds: by part.
            evaluations: proposals or candidates that were looked at in this step.
            images: examples that ran forwards through some network in this step.
            reward: of the choice, in the method's own terms, larger = better.
            more: further columns.

        Raises:
            UserError: the outputs or their loss aren't finite.
        """
        step = len(self.history.rows)
        if not all(np.isfinite(one).all() for one in parts_of(outputs)):
            raise UserError(
                f"step {step} of the search: the network's outputs are not finite, check the "
                "weights and the data"
            )
        loss, accuracy = loss_and_accuracy(self.task, self.val, outputs)
        if not np.isfinite(loss):
            raise UserError(
                f"step {step} of the search: the loss on D_val is {loss}, check the loss and the "
                "targets"
            )
        mask = self.gates.mask()
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
            "val_loss": loss,
            "val_accuracy": accuracy,
            "flops": flops,
            "flops_rate": flops_rate,
            "parameters": self.graph.parameters(mask),
            "rate": self.budget.rate(mask, flops_rate),
            "seconds": seconds,
        }
        self.history.add(row, outputs)
        return row
