"""What all searches on D_val share: the task, D_val, and the outputs in the history."""

import time
from dataclasses import asdict
from typing import Any

import numpy as np

from ...nets.graph import ChannelGraph
from ...options.search import SearchOptions
from ...training.task import Task
from ...utils.errors import UserError
from ...utils.trees import parts_of
from ..engine.validation import Validation
from ..history import History
from ..worth.drop import Drop, figure_of
from ..worth.rewards import loss_and_accuracy
from .loop import Loop


class Search(Loop):
    """A search by what a network does on D_val.

    A method says how it begins (`_begin`) and, as in `Loop`, how it takes up its history and what a
    step is; a step ends in `_record`.

    Args:
        graph: of theta_0; `gates` hold the current network.
        val: D_val.
        history: rows of earlier processes, or none.
        task: what the network is trained for.
        drop: how much worse than the given network a network may be; None: as the budget asks for.
        order: rank of every unit in its gate at the beginning, int32 [U]; 0 = most important.
        compile: XLA.

    Attributes:
        part: about what share of a network an evaluation runs.
    """

    part = 0.5  # what lies behind a gate

    def __init__(
        self,
        graph: ChannelGraph,
        val: Validation,
        history: History,
        options: SearchOptions,
        task: Task,
        *,
        drop: Drop | None = None,
        order: np.ndarray | None = None,
        compile: bool = False,
    ):
        super().__init__(
            graph, history, options.budget, options.control, order=order, compile=compile
        )
        self.val, self.options, self.task, self.drop = val, options, task, drop

    def _first(self, begin: float) -> None:
        outputs = self._begin(self.gates.mask())
        if self._too_bad(outputs):
            value = figure_of(self.task, self.val, outputs).value
            raise UserError(
                "the network that the search begins with, adapted to D_subset or trained as a "
                f"supernet, is worse than max_drop allows before anything is removed: {value:.4f}; "
                f"{self.drop}"
            )
        seconds = {"start": time.perf_counter() - begin}
        more = {} if self.drop is None else {"drop": asdict(self.drop)}
        self._record(outputs, seconds, images=len(self.val), **more)

    def _too_bad(self, outputs: Any) -> bool:
        """Whether a network with these outputs on D_val, tree of float32 [n, ...], is worse than
        `drop` allows."""
        if self.drop is None:
            return False
        return self.drop.exceeded(figure_of(self.task, self.val, outputs).value)

    def _begin(self, mask: np.ndarray) -> Any:
        """Outputs of theta_0 on D_val, tree of float32 [n, ...]."""
        raise NotImplementedError

    def remaining(self) -> tuple[int, int]:
        """About how many steps are to come until the target, and how many evaluations in them."""
        raise NotImplementedError

    def _shown(self, row: dict) -> str:
        return f"loss on held-out training examples {row['val_loss']:.4f}"

    def _record(self, outputs: Any, seconds: dict[str, float], **more: Any) -> dict:
        """Appends the network that the gates hold now to the history; returns its row.

        Args:
            outputs: of that network on D_val, tree of float32 [n, ...].
            seconds, more: as `_append` takes them.

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
        figures = {"val_loss": loss, "val_accuracy": accuracy}
        if self.drop is not None:
            more["watched"] = figure_of(self.task, self.val, outputs).value
        return self._append(figures, seconds, outputs, **more)
