"""Where the sub-networks of experiments.potential come from: searches, and walks that leave them.

A source is a finished search: a run folder of search.py, or one that is made here, named
method:score[:teacher], such as ekg:taylor:ensemble, ekg:l1:none or uniform:l1.

Sub-network number k belongs to source k mod S (S sources). The first S are the networks that the
searches ended with. Every other one leaves its search at a random point: a rate between the target
and 1 (or --leave_from) is drawn, uniformly, and the smallest network of the history that is not
below it is taken; from there on groups are drawn at random, each losing its share of filters (the
weakest by L1 norm, as a search's step would), down to the same target. So all have about the same
FLOPs (at most 0.5 % of the whole network below the target, where the groups allow it), a filter
that was taken out by a search is not put back, and number k depends on the sources and the settings
alone, not on n.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from ..cli.inputs import is_run
from ..dataloader import Dataset
from ..nets.gates import Gates
from ..nets.graph import ChannelGraph
from ..options.fields import settings_of
from ..options.methods import METHODS, SCORES, TEACHERS, Method
from ..options.search import SearchOptions
from ..phases.searching import prepare
from ..pruning.history import LOGITS, ROWS, History, output_shapes
from ..pruning.methods.base import Search
from ..pruning.methods.by_name import SEARCHES
from ..pruning.space.candidates import Candidates
from ..pruning.supernet.training import order_in
from ..pruning.worth.scores import weight_scores
from ..training.task import classification
from ..utils.devices import Device
from ..utils.errors import UserError
from ..utils.jsonl import read_json, read_rows
from ..utils.keras_files import load_keras
from ..utils.runfiles import START
from ..utils.runfolder import RunFolder

SAME = ("dataset", "search_seed", "subset_per_class", "val_per_class")


@dataclass(frozen=True)
class Source:
    """A finished search: the channel graph of its theta_0 and its history."""

    name: str
    graph: ChannelGraph
    history: History


@dataclass(frozen=True)
class Draw:
    """A sub-network: `mask` float32 [U + 1] over its source's units, `step` of the history at which
    it left the search (the last one: the search's own network)."""

    number: int
    source: int
    step: int
    mask: np.ndarray


def parsed(text: str, **settings: Any) -> Method:
    """The search method that method:score[:teacher] stands for.

    Args:
        settings: further ones, for the methods that have them.

    Raises:
        UserError: neither that nor a run folder.
    """
    words = text.split(":")
    if len(words) not in (2, 3):
        raise UserError(f"--sources {text} is neither a run folder nor method:score[:teacher]")
    method, score, teacher = [*words, "none"][:3]
    known = {"method": (method, METHODS), "score": (score, SCORES), "teacher": (teacher, TEACHERS)}
    for kind, (word, choices) in known.items():
        if word not in choices:
            raise UserError(
                f"--sources {text}: the {kind} {word!r} is none of {', '.join(choices)}"
            )
    if teacher != "none" and method != "ekg":
        raise UserError(f"--sources {text}: only ekg has a teacher")
    settings |= {"score": score, "teacher": teacher}
    names = [one.name for one in settings_of(METHODS[method])]
    return METHODS[method](**{name: settings[name] for name in names if name in settings})


def made(
    name: str,
    folder: RunFolder,
    model: keras.Model,
    data: Dataset,
    options: SearchOptions,
    device: Device,
    *,
    scale_all: bool = False,
    kind: type[Search] | None = None,
) -> Source:
    """Searches in a folder of its own (resumed if it was begun), without bank and fine-tuning.

    Args:
        options: resolved (`options.recipes`).
        scale_all: as of `ChannelGraph`.
        kind: what searches; default: the options' method.
    """
    graph, val = prepare(folder, model, classification(), data, options, device)
    if scale_all:
        graph = ChannelGraph(graph.model, scale_all=True)
    history = History(folder, output_shapes(graph, len(val)))
    (kind or SEARCHES[options.method.name])(
        graph,
        val,
        history,
        options,
        classification(),
        order=order_in(folder) if options.method.supernet else None,
        compile=device.compile,
    ).run()
    return Source(name, graph, history)


def read(path: Path, settings: dict, examples: int, target_rate: float) -> Source:
    """The search of a finished run folder, which is only read.

    Args:
        settings: {flag: value} that D_val is drawn by, as in this command's arguments.
        examples: in D_val.

    Raises:
        UserError: no finished search, one of other data, of another version, or one that ended
            above the target.
    """
    if not is_run(path) or not (path / START).exists():
        raise UserError(f"{path} holds no search: run search.py on it first")
    used = read_json(path / "args.json")
    for name in SAME:
        if used.get(name) != settings[name]:
            raise UserError(
                f"{path} was searched with --{name} {used.get(name)}, not {settings[name]}: all "
                "searches need the same D_val"
            )
    rows = read_rows(path / ROWS)
    if len(rows) < 2 or any("removed_units" not in row for row in rows[1:]):
        raise UserError(f"{path} holds no history of this version: run search.py again")
    if rows[-1]["flops_rate"] > target_rate:
        raise UserError(
            f"{path} ends at {rows[-1]['flops_rate']:.3f} of the FLOPs, above "
            f"--search_target_rate {target_rate}: finish it, or give a larger rate"
        )
    graph = ChannelGraph(load_keras(path / START, compile=False))
    shapes = output_shapes(graph, examples)
    numbers = sum(map(math.prod, shapes))
    if (path / LOGITS).stat().st_size != 4 * len(rows) * numbers:
        raise UserError(f"{path / LOGITS} does not hold {len(rows)} networks' logits on D_val")
    return Source(path.resolve().name, graph, History(RunFolder(path, None, False), shapes))


def check_alike(sources: list[Source]) -> None:
    """Raises UserError unless all searches began with networks of one size."""
    first = sources[0]
    for one in sources[1:]:
        if one.graph.flops() != first.graph.flops() or len(one.graph.groups) != len(
            first.graph.groups
        ):
            raise UserError(f"{one.name} and {first.name} are searches of different networks")


def draw(
    sources: list[Source],
    number: int,
    *,
    target_rate: float,
    step: float,
    seed: int,
    leave_from: float = 1.0,
) -> Draw:
    """Sub-network `number`, see the module's docstring.

    Args:
        target_rate: share of the FLOPs that remains.
        leave_from: the largest share at which a walk leaves its search.
        step: share of a group's width that it loses at a time, of a residual stream less.

    Raises:
        UserError: no filter is left to remove above the target.
    """
    chosen, turn = number % len(sources), number // len(sources)
    source = sources[chosen]
    rows, full = source.history.rows, source.graph.flops()
    if turn == 0:
        place = next(i for i, row in enumerate(rows) if row["flops_rate"] <= target_rate)
        return Draw(number, chosen, place, source.history.mask(source.graph, place))
    rng = np.random.default_rng([seed, number])
    rate = rng.uniform(target_rate, max(leave_from, target_rate))
    place = max(i for i, row in enumerate(rows) if row["flops_rate"] >= rate)
    mask = source.history.mask(source.graph, place)
    gates, kernels = Gates(source.graph.groups), source.graph.kernels()
    candidates = Candidates(gates, source.graph.flops, target_rate * full, step)
    while source.graph.flops(mask) > target_rate * full:
        gates.set_mask(mask)
        scores = weight_scores("l1", kernels, mask, [])
        for gate in gates:
            gate.rank(scores[gate.units])
        proposals = candidates.propose(scores)
        if not proposals:
            raise UserError(f"--search_target_rate {target_rate} can't be reached")
        mask = proposals[rng.integers(len(proposals))].mask
    return Draw(number, chosen, place, mask)
