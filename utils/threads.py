"""Work side by side, where TensorFlow allows it: on the CPU.

On a GPU, operations that several Python threads run one by one can get damaged shapes, and end in
an error or worse (tensorflow#123980; seen in a search on an H200). There, all is done by the
calling thread: the GPU computes while Python prepares what is next.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

from .provenance import cpu_count


def side_by_side(*, compile: bool) -> int:
    """How many networks are computed at once: on the CPU one per core, else one.

    Args:
        compile: whether XLA computes them, which takes all cores for one.
    """
    import tensorflow as tf

    return 1 if compile or tf.config.get_visible_devices("GPU") else cpu_count()


def pool(workers: int) -> Executor:
    """As many threads; for a single worker none but the calling one."""
    return ThreadPoolExecutor(workers) if workers > 1 else InTurn()


class InTurn(Executor):
    """Does what it is given in the calling thread, one after the other."""

    def submit(self, function: Callable, /, *args: Any, **kwargs: Any) -> Future:
        """A future that is done; what the function raises is raised at once."""
        done: Future = Future()
        done.set_result(function(*args, **kwargs))
        return done

    def map(self, function: Callable, *iterables: Iterable, **_: Any) -> Iterator:
        """The results; each is computed when it is asked for."""
        return map(function, *iterables)
