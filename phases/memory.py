"""How a search keeps within the memory that it may take; known before any work.

The parts of a search are measured on a few examples (`pruning.engine.memory`); where all of it side
by side doesn't fit, it takes its slower ways, which change no number. What fits in none of them is
refused.
"""

from __future__ import annotations

import math
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path

import keras
import tensorflow as tf

from ..dataloader import Dataset, normalised_inputs, parts
from ..nets.given import Given
from ..nets.graph import ChannelGraph
from ..options.search import SearchOptions
from ..pruning.engine.current import PLENTY, MemoryPlan
from ..pruning.engine.memory import (
    EXAMPLES,
    SLACK,
    Needs,
    counted,
    is_counted,
    least,
    needs_of,
    plan_within,
    resident_bytes,
    reusable_bytes,
)
from ..pruning.engine.validation import Validation
from ..pruning.methods.greedy import cache_bytes
from ..pruning.supernet.training import micro_batches
from ..training.evaluation import make_forward
from ..training.task import Task
from ..utils import progress, scratch
from ..utils.devices import Device
from ..utils.errors import UserError
from ..utils.limits import machine_bytes
from ..utils.threads import side_by_side
from ..utils.trees import mapped, parts_of
from .adapting import ADAPT_BATCH
from .outlook import gib

GIB = 2**30
SHARE = 0.8  # of the machine's free memory that a search without a limit is planned for
GRAIN = 0.1  # GiB, of limits that are named

# Of the training pass on stock layers, in the bytes of the importance pass: stock batch norms keep
# more.
ADAPTING, ADAPTING_IN_SECTIONS = 1.8, 1.9
WEIGHTS = 4  # copies of them: theta_0, its masked twin, gradients, effective ones
CALL_BYTES = 2**20  # of traced functions, for every call of a layer
BATCHES_READ = 4  # that are on their way to a training step or a test


@dataclass(frozen=True)
class Memory:
    """How a search is run, so that it fits.

    Attributes:
        plan: of its evaluator. sections: whether theta_0 is trained section by section.
        peak: bytes that the process takes at most until the search has ended, as estimated; None:
            not measured, since it is far from what there is.
    """

    plan: MemoryPlan = PLENTY
    sections: bool = False
    peak: int | None = None

    def __str__(self) -> str:
        ways = []
        if self.plan.passes == 1:
            ways.append("one batch at a time")
        if self.plan.recompute or self.sections:
            ways.append("gradients segment by segment")
        if self.plan.workers == 1:
            ways.append("one network at a time")
        if self.plan.cached_bytes is not None:
            ways.append(f"{gib(self.plan.cached_bytes)} of activations in memory, others in files")
        about = f"memory: about {gib(self.peak or 0)} at the peak of the search"
        return f"{about}{': ' if ways else ''}{', '.join(ways)}"


USUAL = Memory()


def planned(
    given: Given,
    task: Task,
    data: Dataset,
    options: SearchOptions,
    device: Device,
    *,
    refuse: bool = True,
) -> Memory:
    """How a search keeps within its limit, or within what the machine has.

    Args:
        refuse: False takes what needs least where nothing fits: that was refused before.

    Raises:
        UserError: a limit that nothing fits in, or that can't be kept on this device.
    """
    limit = getattr(options.method, "memory", None)
    if problem := _unplannable(options, device):
        if limit is not None:
            raise UserError(f"memory {limit:g}: no limit can be kept {problem}")
        return USUAL
    graph = ChannelGraph(given.core)
    if limit is None and not _may_be_tight(graph, data, options):
        return USUAL
    # Not all options: a layer to exclude may be called by its place here and by its name there.
    asked = options.method, options.sampling, len(data.train), len(data.test)
    asked += (device.val_batch_images,)
    before = _known.get(given.core)
    if before and before[0] == asked:
        parts = before[1]
    else:
        with progress.doing("measuring the memory that the search takes"):
            parts = _Parts.measured(graph, task, data, options, device)
        _known[given.core] = asked, parts
    if limit is not None:
        return _within(limit * GIB, parts, refuse, f"memory {limit:g}")
    return _within_machine(parts)


def _unplannable(options: SearchOptions, device: Device) -> str | None:
    """Why memory can't be planned for; None: it can."""
    if options.method.supernet:
        return "by a method that trains a supernet"
    several = device.strategy.num_replicas_in_sync > 1
    if several or device.compile or tf.config.get_visible_devices("GPU"):
        return "on a GPU, with XLA or on several machines: use search_batch_size and cache_mb"
    if not is_counted():
        return (
            "without oneDNN's allocator: leave TF_ENABLE_ONEDNN_OPTS=0 out of the environment, and "
            "in Python import ekg_tf before tensorflow"
        )
    return None


def free_bytes() -> int:
    """What the machine, or the container, has left for this process."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(one.split()[1]) for one in lines if one.startswith("MemAvailable"))
    return min(1024 * available, machine_bytes() - resident_bytes())


def _may_be_tight(graph: ChannelGraph, data: Dataset, options: SearchOptions) -> bool:
    """Whether all tensors of the batches side by side are more than half of what is free."""
    numbers = sum(
        math.prod(graph.shape_of(one)[1:]) for call in graph.calls for one in call.outputs
    )
    batch = min(options.sampling.batch_size, len(data.train))
    together = side_by_side(compile=False) * batch * 4 * numbers
    return together + cache_bytes(options.method) > free_bytes() / 2


@dataclass(frozen=True)
class _Parts:
    """What a search takes, in bytes of the process.

    Attributes:
        base: before it and beside its tensors.
        needs: of the evaluator. workers: networks side by side.
        adapting, in_sections: of the training of theta_0. testing: of the tests at the end.
    """

    base: int
    needs: Needs
    workers: int
    adapting: int
    in_sections: int
    testing: int

    @classmethod
    def measured(
        cls, graph: ChannelGraph, task: Task, data: Dataset, options: SearchOptions, device: Device
    ) -> _Parts:
        """Measures them on a few examples."""
        before = resident_bytes() - reusable_bytes()
        subset, held_out = parts(data, options.sampling)
        most, method = options.sampling.batch_size, options.method
        few = normalised_inputs(data, held_out[:EXAMPLES])
        needs = needs_of(
            graph,
            Validation(few.inputs, few.targets, EXAMPLES, few.weights),
            len(held_out),
            most,
            task,
            cache_bytes=cache_bytes(method),
            slopes=getattr(method, "evaluator", "exact") == "fast",
            ranking=method.score == "taylor",
        )
        forward = make_forward(graph.model, bn="batch")
        inputs = mapped(tf.constant, few.inputs)
        forward(inputs)  # traces
        with counted() as beyond:
            forward(inputs)
            testing = beyond() / len(parts_of(few.inputs)[0])
        weights = sum(4 * v.shape.num_elements() for v in graph.model.variables)
        example = needs.inputs / len(held_out)
        batch = min(ADAPT_BATCH, len(subset))
        micro = batch / micro_batches(batch, 1, most)
        read = BATCHES_READ * example

        def training(each: float) -> int:
            return int(SLACK * micro * each + WEIGHTS * weights + read * batch)

        tested = min(device.val_batch_images, max(len(data.train), len(data.test)))
        return cls(
            base=before + WEIGHTS * weights + CALL_BYTES * len(graph.calls) + needs.inputs,
            needs=needs,
            workers=side_by_side(compile=False),
            adapting=training(ADAPTING * needs.whole / needs.batch),
            in_sections=training(ADAPTING_IN_SECTIONS * needs.recomputed / needs.batch),
            testing=int((SLACK * testing + read) * tested),
        )

    def least(self) -> dict[str, int]:
        """{what can be made smaller: bytes of the process that the part takes at least}."""
        return {
            "search_batch_size": self.base + max(least(self.needs), self.in_sections),
            "val_batch_size": self.base + self.testing,
        }


# {core: what it was measured for, and what it takes}, so that a run measures but once.
_known: weakref.WeakKeyDictionary[keras.Model, tuple[tuple, _Parts]]
_known = weakref.WeakKeyDictionary()


def _within(room: float, parts: _Parts, refuse: bool, what: str) -> Memory:
    """How a search fits into so many bytes of the process.

    Raises:
        UserError: it doesn't.
    """
    found = parts.least()
    flag, most = max(found.items(), key=lambda one: one[1])
    plan = plan_within(room - parts.base, parts.needs, parts.workers)
    if most > room and refuse:
        raise UserError(
            f"{what} is not enough for this search: the smallest limit that would do is "
            f"{GRAIN * math.ceil(most / GIB / GRAIN):.1f} GiB; a smaller {flag} takes less"
        )
    if plan is None:
        plan = MemoryPlan(1, 1, recompute=True, cached_bytes=0)
    sections = parts.base + parts.adapting > room
    training = parts.in_sections if sections else parts.adapting
    evaluating = parts.needs.peak(plan, parts.workers)
    memory = Memory(plan, sections, parts.base + max(training, evaluating, parts.testing))
    if plan.cached_bytes is not None and plan.cached_bytes < parts.needs.kept:
        problem = scratch.lacking(parts.needs.kept - plan.cached_bytes)
        if problem and refuse:
            raise UserError(
                f"{what}: activations don't fit on the disk of {tempfile.gettempdir()} ({problem}):"
                " name a larger one by TMPDIR, or allow more memory"
            )
    return memory


def _within_machine(parts: _Parts) -> Memory:
    """How a search fits into the machine; a warning where it doesn't."""
    free = free_bytes()
    memory = _within(resident_bytes() + SHARE * free, parts, False, "")
    if (memory.peak or 0) > resident_bytes() + free:
        flag = max(parts.least().items(), key=lambda one: one[1])[0]
        progress.warn(
            f"the search takes about {gib(memory.peak or 0)} of memory, and the machine has "
            f"{gib(resident_bytes() + free)} for it: a smaller {flag} takes less"
        )
    return memory
