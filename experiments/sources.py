"""Where the sub-networks of experiments.potential come from: searches, and walks that leave them.

A source is a finished search: a run folder of search.py, or one that is made here, named
method:score[:teacher], such as ekg:taylor:ensemble, ekg:l1:none or uniform:l1.

Sub-network number k belongs to source k mod S (S sources). The first S are the networks that the
searches ended with. Every other one leaves its search at a random point: a rate between the target
and 1 is drawn, uniformly, and the smallest network of the history that is not below it is taken;
from there on groups are drawn at random, each losing its share of filters (the weakest by L1 norm,
as a search's step would), down to the same target. So all have about the same FLOPs (at most 0.5 %
of the whole network below the target, where the groups allow it), a filter that was taken out by a
search is not put back, and number k depends on the sources and the seed alone, not on n.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import keras
import numpy as np

from dataloader import Dataset
from nets.graph import ChannelGraph
from pruning.candidates import Candidates
from pruning.current import Validation
from pruning.history import LOGITS, ROWS, History
from pruning.methods import SEARCHES
from pruning.rewards import TEACHERS
from pruning.scores import SCORES, weight_scores
from pruning.search import SearchOptions
from search import prepare
from utils import cli, devices
from utils.checkpoint import load_keras
from utils.inputs import is_run
from utils.jsonl import read_json, read_rows
from utils.phases import Device
from utils.runfolder import START, RunFolder

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


def parsed(text: str) -> dict[str, str]:
    """The options that method:score[:teacher] stands for.

    Raises:
        UserError: neither that nor a run folder.
    """
    words = text.split(":")
    if len(words) not in (2, 3):
        raise cli.UserError(f"--sources {text} is neither a run folder nor method:score[:teacher]")
    method, score, teacher = [*words, "none"][:3]
    known = {"method": (method, SEARCHES), "score": (score, SCORES), "teacher": (teacher, TEACHERS)}
    for kind, (word, choices) in known.items():
        if word not in choices:
            raise cli.UserError(
                f"--sources {text}: the {kind} {word!r} is none of {', '.join(choices)}"
            )
    if teacher != "none" and method != "ekg":
        raise cli.UserError(f"--sources {text}: only ekg has a teacher")
    return {"method": method, "score": score, "teacher": teacher}


def made(
    name: str,
    folder: RunFolder,
    model: keras.Model,
    data: Dataset,
    options: SearchOptions,
    device: Device,
) -> tuple[Source, Validation]:
    """Searches in a folder of its own (resumed if it was begun), without bank and fine-tuning."""
    options = replace(options, **parsed(name))
    graph, val = prepare(folder, model, data, options, device)
    history = History(folder, (len(val.labels), data.num_classes))
    SEARCHES[options.method](
        graph,
        val,
        history,
        options,
        compile=device.compile,
        devices=devices.replicas(device.strategy),
    ).run()
    return Source(name, ChannelGraph(graph.model), history), val


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
        raise cli.UserError(f"{path} holds no search: run search.py on it first")
    used = read_json(path / "args.json")
    for name in SAME:
        if used.get(name) != settings[name]:
            raise cli.UserError(
                f"{path} was searched with --{name} {used.get(name)}, not {settings[name]}: all "
                "searches need the same D_val"
            )
    rows = read_rows(path / ROWS)
    if len(rows) < 2 or any("removed_units" not in row for row in rows[1:]):
        raise cli.UserError(f"{path} holds no history of this version: run search.py again")
    if rows[-1]["flops_rate"] > target_rate:
        raise cli.UserError(
            f"{path} ends at {rows[-1]['flops_rate']:.3f} of the FLOPs, above "
            f"--search_target_rate {target_rate}: finish it, or give a larger rate"
        )
    graph = ChannelGraph(load_keras(path / START))
    shape = examples, graph.model.output_shape[-1]
    if (path / LOGITS).stat().st_size != 4 * len(rows) * shape[0] * shape[1]:
        raise cli.UserError(f"{path / LOGITS} does not hold {len(rows)} networks' logits on D_val")
    return Source(path.resolve().name, graph, History(RunFolder(path, None, False), shape))


def check_alike(sources: list[Source]) -> None:
    """Raises UserError unless all searches began with networks of one size."""
    first = sources[0]
    for one in sources[1:]:
        if one.graph.flops() != first.graph.flops() or len(one.graph.gates) != len(
            first.graph.gates
        ):
            raise cli.UserError(f"{one.name} and {first.name} are searches of different networks")


def draw(sources: list[Source], number: int, *, target_rate: float, step: float, seed: int) -> Draw:
    """Sub-network `number`, see the module's docstring.

    Args:
        target_rate: share of the FLOPs that remains.
        step: share of a group's width that it loses at a time, of a residual stream less.

    Raises:
        UserError: no filter is left to remove above the target.
    """
    chosen, turn = number % len(sources), number // len(sources)
    source = sources[chosen]
    rows, gates = source.history.rows, source.graph.gates
    full = source.graph.flops()
    if turn == 0:
        place = next(i for i, row in enumerate(rows) if row["flops_rate"] <= target_rate)
        return Draw(number, chosen, place, source.history.mask(source.graph, place))
    rng = np.random.default_rng([seed, number])
    rate = rng.uniform(target_rate, 1)
    place = max(i for i, row in enumerate(rows) if row["flops_rate"] >= rate)
    mask = source.history.mask(source.graph, place)
    candidates, kernels = Candidates(source.graph, target_rate * full, step), source.graph.kernels()
    while source.graph.flops(mask) > target_rate * full:
        gates.set_mask(mask)
        scores = weight_scores("l1", kernels, mask, [])
        for gate in gates:
            gate.rank(scores[gate.units])
        proposals = candidates.propose(scores)
        if not proposals:
            raise cli.UserError(f"--search_target_rate {target_rate} can't be reached")
        mask = proposals[rng.integers(len(proposals))].mask
    return Draw(number, chosen, place, mask)
