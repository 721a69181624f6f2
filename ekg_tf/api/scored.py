"""A search by a score of the caller's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ekg_tf.nets.compiling import compile_like
from ekg_tf.nets.given import Given
from ekg_tf.nets.graph import ChannelGraph
from ekg_tf.options.budgets import Budget, Flops
from ekg_tf.options.scored import Scored
from ekg_tf.options.training import Training
from ekg_tf.phases.rehearsal import rehearse_network
from ekg_tf.phases.scoring import run_scored
from ekg_tf.pruning.methods.scored import check as check_scored
from ekg_tf.pruning.space.limits import located
from ekg_tf.utils import devices, progress
from ekg_tf.utils.errors import UserError
from ekg_tf.utils.provenance import digest
from ekg_tf.utils.runfolder import RunFolder
from ekg_tf.utils.trees import tree_of

from .arguments import PathLike, check_model, control_of, folder_of, path_of, shown, words
from .runs import Result


@shown
def search_with(
    model: keras.Model,
    score: Callable[[keras.Model], float],
    folder: PathLike | None = None,
    *,
    budget: float | Budget | None = None,
    exclude: str | Sequence[str] = (),
    min_width: int = 1,
    min_share: float = 0.0,
    max_drop: float | None = None,
    step: float = 0.2,
    proposals: int = 8,
    examples: Any = None,
    seed: int = 0,
    overwrite: bool = False,
    compile: bool | None = None,
    verbose: progress.Verbose = "auto",
) -> Result:
    """A search by a function of one's own, for loops of one's own: a detector, a GAN, a metric.

    Filters are ranked by their weights; in every step the cheapest proposals are pruned for real,
    and `score` decides. Nothing is fine-tuned: train the result as the network was trained. It is a
    plain functional network: what a subclass adds to `fit`, such as a detector's own loss, isn't
    part of it.

    Args:
        model: functional, Sequential or (with examples) subclassed, whatever its outputs mean.
        score: (network, the given one with fewer filters, compiled as it is) -> a finite number,
            larger is better. It may train the network that it gets. Batch norms keep the moving
            statistics of the whole network.
        folder: of the run; None: a temporary one. A killed call is taken up by the same call.
        budget: the share of the FLOPs that may remain, or `Flops`, `Parameters`, `Latency`; by
            default 0.5, with `max_drop` none.
        exclude, min_width, min_share: as of `prune`.
        max_drop: the share of the given network's score that may be lost: the search ends before
            more is, or at the budget.
        step: share of a group's filters that it offers at a time.
        proposals: networks that are scored in a step, at most.
        examples: a few inputs, float32 [n, ...], as the network takes them (several as a tuple); by
            default drawn at random.
        seed, overwrite, compile, verbose: as of `prune`.

    Returns:
        The result; "score" stands beside the sizes in `before` and `after`.

    Raises:
        UserError: a network that can't be pruned, a target that can't be reached, a score that
            isn't a finite number.

    Examples:
        >>> def score(network):
        ...     return -network.evaluate(x_test, y_test, verbose=0)[0]
        >>> small = ekg.search_with(model, score, budget=0.7).model
        >>> small.count_params() < model.count_params()
        True
    """
    control = control_of(exclude, min_width, min_share, max_drop)
    wanted = budget if isinstance(budget, Budget) else Flops(budget)
    options = Scored(wanted, control, step=step, proposals=proposals)
    Training(seed=seed)
    check_model(model)
    kept = options.budget.flags() | control.flags()
    kept |= {"step": step, "proposals": proposals, "seed": seed}
    kept |= {"model": digest(model.get_weights()), "score": words(score)}
    if folder is not None:
        RunFolder.check(path_of(folder), kept, overwrite=overwrite)
    given = Given.read(model, examples, plain=True)
    inputs = _some_inputs(given) if examples is None else examples
    options = replace(options, control=located(control, given.core, given.places))
    check_scored(ChannelGraph(given.core, closed=given.closed), options)
    graph = rehearse_network(given, inputs)[0]
    device = devices.make(tf.distribute.get_strategy(), compile)
    keras.utils.set_random_seed(seed)
    with RunFolder.open(folder_of(folder), kept, overwrite=overwrite) as opened:
        pruned = run_scored(opened, given, graph, score, options, inputs, compile=device.compile)
        compile_like(model, pruned)
        figures = opened.read_json("result.json")
        return Result(pruned, figures["before"], figures["after"], [], opened.path)


def _some_inputs(given: Given) -> Any:
    """A few random inputs from 0 to 1, float32 [4, ...]."""
    for one in given.core.inputs:
        if None in one.shape[1:]:
            raise UserError(
                f"{given.model.name} takes inputs of open size {tuple(one.shape)}: give some as "
                "examples="
            )
    rng = np.random.default_rng(0)
    return tree_of(rng.random((4, *one.shape[1:])).astype(np.float32) for one in given.core.inputs)
