"""How much memory a search takes, and how it keeps within a limit without changing a number.

TensorFlow's allocator on the CPU (oneDNN's) counts its bytes: every part of the work is run once on
a few examples, and grows with the examples from there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import tensorflow as tf

from ...nets.graph import ChannelGraph
from ...training.task import Task
from ...utils.trees import parts_of
from ..worth.rewards import Reward
from .current import CurrentNetwork, MemoryPlan, joined
from .importance import ImportancePass
from .recomputed import RecomputedPass
from .validation import Validation

EXAMPLES = 8  # that the work is measured on
DEVICE = "CPU:0"
# The allocator's blocks don't fit seamlessly (5 to 14 % more bytes were resident), and
# threads decide in which order operations run (another 13 % from one run to the next).
SLACK = 1.25


def resident_bytes() -> int:
    """The memory of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmRSS")).split()[1])


def is_counted() -> bool:
    """Whether TensorFlow counts the bytes of its tensors on the CPU, and Linux the process's."""
    if not Path("/proc/self/status").exists():
        return False
    try:
        tf.config.experimental.get_memory_info(DEVICE)
    except ValueError:
        return False
    return True


def reusable_bytes() -> int:
    """What TensorFlow's allocator holds of memory that nothing takes at the moment; it gives none
    back. Known since `counted` was called for the last time."""
    info = tf.config.experimental.get_memory_info(DEVICE)
    return info["peak"] - info["current"]


@contextmanager
def counted() -> Iterator[Callable[[], int]]:
    """Gives a function: bytes that tensors took at most inside, beyond those that are still there
    when it is called, and those that were there before."""
    info = tf.config.experimental.get_memory_info
    tf.config.experimental.reset_memory_stats(DEVICE)
    before = info(DEVICE)["current"]

    def beyond() -> int:
        now = info(DEVICE)
        return max(0, now["peak"] - max(before, now["current"]))

    yield beyond


@dataclass(frozen=True)
class Needs:
    """What the parts of a search take, in bytes of TensorFlow's.

    Attributes:
        batch: examples of a batch of D_val; batches: of them in all.
        whole, recomputed: of the importance pass of a batch, beside what is kept of it.
        forward: of a network's forward pass on a batch.
        ranking: whether filters are ranked by the importance pass, else a forward pass does.
        inputs: D_val.
        kept: all activations and slopes that are kept.
        outside: the largest activations of a batch that could be in a file.
    """

    batch: int
    batches: int
    whole: int
    recomputed: int
    forward: int
    ranking: bool
    inputs: int
    kept: int
    outside: int

    def peak(self, plan: MemoryPlan, workers: int) -> int:
        """Bytes that the evaluator takes at most.

        Args:
            workers: networks side by side where the plan doesn't say.
        """
        workers = plan.workers or workers
        passes = plan.passes or workers
        each = self.recomputed if plan.recompute else self.whole
        each = each if self.ranking else self.forward
        in_memory, reading = self.kept, 0
        if plan.cached_bytes is not None and plan.cached_bytes < self.kept:
            in_memory, reading = plan.cached_bytes, 2 * self.outside
            each += math.ceil(self.kept / self.batches)  # until it is in its files
        work = max(passes * each, workers * (self.forward + reading))
        return int(SLACK * (self.inputs + in_memory + work))


def needs_of(
    graph: ChannelGraph,
    few: Validation,
    examples: int,
    batch_images: int,
    task: Task,
    *,
    cache_bytes: int,
    slopes: bool,
    ranking: bool,
) -> Needs:
    """Measures what a search takes, on a few examples of D_val in one batch.

    Args:
        examples: of D_val in all. batch_images: most of them in a batch.
        cache_bytes, slopes: as of `CurrentNetwork`.
        ranking: whether filters are ranked by the importance pass.
    """
    batches = math.ceil(examples / batch_images)
    batch, share = math.ceil(examples / batches), len(few) / examples
    # The same cuts as for all of D_val.
    options = {"cache_bytes": math.ceil(cache_bytes * share), "slopes": slopes, "workers": 1}
    current = CurrentNetwork(graph, few, **options)
    parts, (inputs,) = current.segments, current.inputs
    mask = graph.open_mask()
    weights = parts.weights(mask)
    with counted() as beyond:
        outputs = parts.outputs_from(inputs, weights)
        forward = beyond()
    reward, works = Reward(task, few, joined([outputs])), []
    for kind in (ImportancePass, RecomputedPass):
        one = kind(parts, current.cuts.kept, reward, current.sloped)
        with counted() as beyond:
            found = one.run(inputs, reward.terms(slice(None)), weights, mask)
            works.append(beyond())
        del found
    current.pool.shutdown()
    times, kept = batch / len(few), current.cuts.kept[1:]
    sizes = {cut: current.cuts.sizes[cut] for cut in kept}
    both = sum(size * (1.5 if cut in current.sloped else 1) for cut, size in sizes.items())
    return Needs(
        batch=batch,
        batches=batches,
        whole=int(times * works[0]),
        recomputed=int(times * min(works)),
        forward=int(times * forward),
        ranking=ranking,
        inputs=int(sum(one.nbytes for one in parts_of(few.inputs)) / share),
        kept=int(both / share),
        outside=int(times * max(sizes.values(), default=0)),
    )


def plan_within(room: float, needs: Needs, workers: int) -> MemoryPlan | None:
    """The fastest way of a search to keep within so many bytes; None: there is none.

    Args:
        room: bytes. workers: networks side by side where there is room.
    """
    counts = range(workers, 0, -1)
    ways = [MemoryPlan(passes=n, recompute=again) for again in (False, True) for n in counts]
    for way in ways:
        if needs.peak(way, workers) <= room:
            return replace(way, passes=None if way.passes == workers else way.passes)
    lean = MemoryPlan(passes=1, recompute=True)
    for count in counts:
        bare = replace(lean, workers=count, cached_bytes=0)
        left = math.floor((room - needs.peak(bare, workers)) / SLACK)
        if left >= 0:
            return replace(bare, cached_bytes=left if left < needs.kept else None)
    return None


def least(needs: Needs) -> int:
    """The smallest room, in bytes, in which `plan_within` finds a way."""
    return needs.peak(MemoryPlan(1, 1, recompute=True, cached_bytes=0), 1)
