"""From what a user gives to what the phases work on: network, task and data, read together.

What the data must look like depends on the network, and what the network's outputs mean may show on
the data alone: so the network is read first, then the data, then what was left open.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import keras

from ..cli import inputs
from ..dataloader import Dataset, examples_of
from ..dataloader.checks import TargetError
from ..dataloader.fit import Fit, Output
from ..nets.door import check_weights
from ..nets.given import Given
from ..nets.keras_graph import Compiled, built_on, compiled_with, has_graph
from ..nets.outputs import ignored_class, kind_of_loss, takes_any_targets, takes_labels
from ..training.task import Knowledge, Task, task_of
from ..utils.errors import UserError
from ..utils.provenance import digest
from .padding import left_out

EXAMPLES = 256  # that the variance of plain numbers is taken on


@dataclass(frozen=True)
class Work:
    """What the phases work on."""

    given: Given
    task: Task
    data: Dataset

    def flags(self) -> dict[str, str]:
        """Digests that a run folder keeps, so that it isn't taken up with other weights or data."""
        weights = digest(self.given.model.get_weights())
        return {"model_digest": weights, "data_digest": self.data.fingerprint}


def work_on(
    model: keras.Model,
    read: Callable[[Fit], Dataset],
    *,
    aims: Compiled | None = None,
    class_weight: Mapping[int, float] | None = None,
    knowledge: Knowledge | None = None,
) -> Work:
    """A network, what it is trained for, and its data.

    Args:
        model: as its user gives it.
        read: gives the data that fit a network.
        aims: loss, metrics and loss weights in place of those that the model is compiled with; what
            is None there stays as compiled.
        class_weight, knowledge: as of `training.task.task_of`.

    Raises:
        UserError: as `Given.read`, `read` and `task_of`.
    """
    check_weights(model)
    own = compiled_with(model)
    aims = own if aims is None else _joined(own, aims)
    known = has_graph(model) or built_on(model) is not None
    first = Given.read(model, loss=aims.loss) if known else None
    try:
        data = read(fit_of(first) if first else _unknown_fit(aims.loss))
    except TargetError as error:
        if aims.loss is not None:
            raise
        raise UserError(
            f"{error} (if {model.name} is no classifier, compile it with its loss or give the loss)"
        ) from None
    examples = examples_of(data)
    given = first.with_examples(examples) if first else Given.read(model, examples, loss=aims.loss)
    data = left_out(given, data)
    task = task_of(
        given,
        aims=aims,
        class_weight=class_weight,
        knowledge=knowledge,
        examples=examples_of(data, EXAMPLES),
        labels=data.labels is not None,
        forms=data.train.forms,
    )
    return Work(given, task, data)


def work_of(args: argparse.Namespace) -> Work:
    """What the flags of add_data and add_own name.

    Raises:
        UserError: as `cli.inputs.network_and_reader` and `work_on`.
    """
    inputs.import_custom(args.custom_module)
    return work_on(*inputs.network_and_reader(args), aims=inputs.aims_of(args))


def work_again(args: argparse.Namespace, network: keras.Model) -> Work:
    """A network of a run and the data that the flags, or the run's, name."""
    return work_on(network, lambda fit: inputs.data_of(args, fit), aims=inputs.aims_of(args))


def fit_of(given: Given) -> Fit:
    """What a network's data must look like; a subclassed one may take inputs of other sizes than it
    was built on, of as many axes, and gives outputs of as many axes and channels then."""
    inputs, outputs = given.keys
    shapes = [tuple(one.shape[1:]) for one in given.core.inputs]
    built_on = None
    ends = [tuple(one.shape[1:]) for one in given.core.outputs]
    if not has_graph(given.model):
        built_on, shapes = shapes[0], [(None,) * len(shape) for shape in shapes]
        ends = [(*(None for _ in end[:-1]), *end[-1:]) for end in ends]
    found = zip(outputs, given.outputs, ends, given.losses, strict=True)
    kinds = [
        Output(key, one.kind, end, takes_any_targets(loss), ignored_class(loss))
        for key, one, end, loss in found
    ]
    return Fit(tuple(inputs), tuple(shapes), tuple(kinds), built_on)


def _unknown_fit(loss: Any) -> Fit:
    """Of a subclassed network that was never built."""
    kind, free = kind_of_loss(loss), takes_any_targets(loss)
    labels = takes_labels(loss)
    output = Output("output", kind, free=free, ignored=ignored_class(loss), labels=labels)
    return Fit(("input",), (None,), (output,))


def _joined(own: Compiled, wanted: Compiled) -> Compiled:
    """What was said instead, else what the network is compiled with."""
    return Compiled(
        own.loss if wanted.loss is None else wanted.loss,
        own.loss_weights if wanted.loss_weights is None else wanted.loss_weights,
        own.metrics if wanted.metrics is None else wanted.metrics,
        own.weighted_metrics if wanted.metrics is None else wanted.weighted_metrics,
        own.optimizer,
    )
