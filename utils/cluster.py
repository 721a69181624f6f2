"""Several machines that run one command: who this process is, and what passes between them.

Every machine (a *worker*) runs the same program on the same arguments, and all come by the same
calls in the same order. The first of them is the *chief*: its word counts where something is
decided, and it alone writes the run folder. With one machine nothing here costs anything.

What passes between workers are TensorFlow's own collective operations, on the CPU, beside those of
`tf.distribute.MultiWorkerMirroredStrategy`. A thread lets every worker hear of the others all the
time: when one has ended, the others end as well, in one line.
"""

from __future__ import annotations

import io
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from .errors import UserError
from .jsonl import dumps
from .trees import parts_of, tree_of

if TYPE_CHECKING:
    import tensorflow as tf

TASKS = ("chief", "worker")  # jobs of a cluster that take part, in the order of their ranks
BEAT_SECONDS = 5.0  # between two signs of life
SILENCE_SECONDS = 45.0  # without a sign of life after which a worker counts as ended
GRACE_SECONDS = 3.0  # for the program to say by itself why it ends
EXIT = 2

Part = tuple[int, int]
WHOLE: Part = (0, 1)

_GROUP, _BEATS = 7_700_001, 7_700_002  # group keys that MultiWorkerMirroredStrategy never reaches
_LENGTHS, _BEAT, _FIRST = 1, 2, 16  # instance keys
LOST = (
    "another machine of this run has ended or can't be reached: start the same command on every "
    "machine again, the run goes on from what is on the disk"
)


@dataclass
class _Membership:
    """What this process is in the cluster."""

    rank: int = 0
    size: int = 1
    names: tuple[str, ...] = ()
    leaving: bool = False
    alone: bool = False  # while the chief does what it does for all
    key: int = _FIRST
    guard: threading.Lock = field(default_factory=threading.Lock)


_own = _Membership()


def size() -> int:
    """How many workers there are; 1 without a cluster, and in what the chief does for all."""
    return 1 if _own.alone else _own.size


def rank() -> int:
    """The number of this worker, from 0."""
    return _own.rank


def is_chief() -> bool:
    """Whether this is worker 0, which writes the run folder."""
    return _own.rank == 0


# ---------------------------------------------------------------- joining and leaving


def named() -> bool:
    """Whether the environment names several machines: TF_CONFIG, or more than one task of SLURM."""
    if os.environ.get("TF_CONFIG"):
        return sum(len(one) for one in _tf_config()[0].values()) > 1
    return "SLURM_PROCID" in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1


def _tf_config() -> tuple[dict[str, list[str]], str, int]:
    """Addresses by job, this process's job and its number there, of TF_CONFIG.

    Raises:
        UserError: no such JSON, another job than chief and worker, or a task that isn't there.
    """
    try:
        given = json.loads(os.environ["TF_CONFIG"])
        jobs = {str(job): [str(one) for one in found] for job, found in given["cluster"].items()}
        job, number = str(given["task"]["type"]), int(given["task"]["index"])
    except (ValueError, LookupError, TypeError, AttributeError):
        raise UserError(
            'TF_CONFIG is not of the form {"cluster": {"worker": ["host1:port", "host2:port"]}, '
            '"task": {"type": "worker", "index": 0}}'
        ) from None
    if others := sorted(jobs.keys() - set(TASKS)):
        raise UserError(f"TF_CONFIG names the job {others[0]!r}: only {' and '.join(TASKS)} here")
    if not 0 <= number < len(jobs.get(job, [])):
        raise UserError(f"TF_CONFIG says this is {job} {number}, which its cluster doesn't have")
    return jobs, job, number


def resolver() -> tf.distribute.cluster_resolver.ClusterResolver:
    """TensorFlow's resolver for the cluster that the environment names.

    Raises:
        UserError: what it names can't be one.
    """
    import tensorflow as tf

    kinds = tf.distribute.cluster_resolver
    if os.environ.get("TF_CONFIG"):
        _tf_config()
        return kinds.TFConfigClusterResolver()
    # Told of a GPU for every task, since it can't count none; we choose the GPUs ourselves.
    most = max(_tasks_per_node(os.environ["SLURM_STEP_TASKS_PER_NODE"]))
    found = kinds.SlurmClusterResolver(gpus_per_node=most, gpus_per_task=1, auto_set_gpu=False)
    spec, own = found.cluster_spec(), os.environ.get("SLURMD_NODENAME")
    address = spec.task_address(found.task_type, found.task_id)
    if own and address.rsplit(":", 1)[0] != own:
        raise UserError(
            f"SLURM runs task {os.environ['SLURM_PROCID']} on {own}, where TensorFlow's resolver "
            f"expects {address} (names of nodes of unequal length): set TF_CONFIG instead"
        )
    return found


def _tasks_per_node(text: str) -> Iterable[int]:
    """2(x3),1 -> 2, 1"""
    return [int(part.split("(")[0]) for part in text.split(",")]


def join(found: tf.distribute.cluster_resolver.ClusterResolver) -> None:
    """Makes this process a worker; called once, when TensorFlow has connected the machines.

    Args:
        found: the resolver that the strategy was made with.
    """
    spec = found.cluster_spec().as_dict()
    addresses = [one for job in TASKS for one in spec.get(job, [])]
    before = len(spec.get("chief", [])) if found.task_type == "worker" else 0
    _own.rank, _own.size = before + found.task_id, len(addresses)
    _own.names = tuple(addresses)
    threading.Thread(target=_listen, daemon=True, name="beats").start()


def leave() -> None:
    """Waits until every worker is here, so that nobody takes the end of one for a failure.

    A process that ends without it takes the others along. Called at the end of a command; harmless
    without a cluster or when repeated.
    """
    if _own.size == 1 or _own.leaving:
        return
    meet()
    _own.leaving = True
    try:
        meet()  # until here everybody has to be there
    except Exception:
        return  # one was faster, and is gone as it may be


def lost(error: BaseException) -> bool:
    """Whether an exception says that another worker is gone."""
    if _own.size == 1:
        return False
    import tensorflow as tf

    kinds = tf.errors
    return isinstance(
        error,
        kinds.UnavailableError
        | kinds.AbortedError
        | kinds.CancelledError
        | kinds.DeadlineExceededError,
    )


def _listen() -> None:
    """Gives and awaits signs of life; ends the process when they stay away."""
    while not _own.leaving:
        try:
            _gather(np.zeros(1, np.int32), _BEAT, group=_BEATS, seconds=SILENCE_SECONDS)
        except Exception:
            if _own.leaving:
                return
            time.sleep(GRACE_SECONDS)
            if _own.leaving:
                return
            end(LOST)
        time.sleep(BEAT_SECONDS)


def end(message: str) -> NoReturn:
    """Prints an error in one line and ends the process at once, whatever its threads wait for."""
    with _own.guard:  # only one thread gets to print
        sys.stdout.flush()
        print(f"error: {message}", file=sys.stderr, flush=True)
        os._exit(EXIT)


# ---------------------------------------------------------------- collectives


def _gather(
    values: np.ndarray, key: int, *, group: int = _GROUP, seconds: float = 0.0
) -> np.ndarray:
    """The arrays int32 [n] or int64 [n] of all workers, [size, n] in the order of ranks."""
    import tensorflow as tf

    marked = np.concatenate([np.array([_own.rank], values.dtype), values])
    with tf.device("CPU:0"):
        found = tf.raw_ops.CollectiveGatherV2(
            input=tf.constant(marked[None]),
            group_size=_own.size,
            group_key=group,
            instance_key=key,
            ordering_token=[],
            timeout_seconds=seconds,
            communication_hint="ring",
        ).numpy()
    return found[np.argsort(found[:, 0]), 1:]


def _next_key() -> int:
    _own.key += 1
    return _own.key


def _gathered(content: bytes) -> list[bytes]:
    """What every worker gives, in the order of ranks."""
    lengths = _gather(np.array([len(content)], np.int64), _LENGTHS)[:, 0].tolist()
    words = -(-max(lengths) // 4)
    if not words:
        return [b""] * _own.size
    padded = np.zeros(words, np.int32)
    padded.view(np.uint8)[: len(content)] = np.frombuffer(content, np.uint8)
    rows = _gather(padded, _next_key())
    return [row.tobytes()[:length] for row, length in zip(rows, lengths, strict=True)]


def _from(owner: int, content: bytes) -> bytes:
    """What one worker gives; what the others give doesn't matter."""
    import tensorflow as tf

    lengths = _gather(np.array([len(content)], np.int64), _LENGTHS)[:, 0].tolist()
    length = lengths[owner]
    words = -(-length // 4)
    if not words:
        return b""
    group = {"group_size": _own.size, "group_key": _GROUP, "instance_key": _next_key()}
    with tf.device("CPU:0"):
        if _own.rank == owner:
            padded = np.zeros(words, np.int32)
            padded.view(np.uint8)[:length] = np.frombuffer(content, np.uint8)
            tf.raw_ops.CollectiveBcastSendV2(
                input=tf.constant(padded), communication_hint="ring", **group
            )
            return content
        found = tf.raw_ops.CollectiveBcastRecvV2(
            shape=tf.constant([words]), T=tf.int32, communication_hint="ring", **group
        )
    return found.numpy().tobytes()[:length]


def _packed(arrays: Sequence[np.ndarray]) -> bytes:
    file = io.BytesIO()
    for one in arrays:
        np.lib.format.write_array(file, np.asarray(one), allow_pickle=False)
    return file.getvalue()


def _unpacked(content: bytes) -> list[np.ndarray]:
    file, found = io.BytesIO(content), []
    while file.tell() < len(content):
        found.append(np.lib.format.read_array(file, allow_pickle=False))
    return found


# ---------------------------------------------------------------- what the program asks for


def meet() -> None:
    """Waits for all workers."""
    if size() > 1:
        _gather(np.zeros(1, np.int64), _LENGTHS)


def mine(count: int) -> range:
    """The numbers below `count` that this worker is to do, where work is shared out."""
    return range(_own.rank, count, size())


def part() -> Part:
    """This worker's part of what is shared out: (its rank, how many workers)."""
    return _own.rank, size()


def agreed(tree: Any, owner: int = 0) -> Any:
    """The chief's (or another owner's) arrays, on every worker.

    Args:
        tree: an array, or a tuple of arrays (`utils.trees`); the other workers' is left aside and
            may be None.
    """
    if size() == 1:
        return tree
    content = _packed(parts_of(tree)) if _own.rank == owner else b""
    return tree_of(_unpacked(_from(owner, content)))


def collected(arrays: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
    """The arrays that every worker gives, in the order of ranks."""
    if size() == 1:
        return [list(arrays)]
    return [_unpacked(one) for one in _gathered(_packed(arrays))]


def summed(array: np.ndarray) -> np.ndarray:
    """The sum of all workers' arrays of one shape, in the order of ranks."""
    return np.sum([one[0] for one in collected([array])], axis=0)


def shared(count: int, work: Callable[[list[int]], Sequence[Any]]) -> list[Any]:
    """`count` pieces of work, each done by one worker; every worker gets all results.

    Args:
        work: takes the numbers that this worker is to do; gives a tree of arrays for each.
    """
    own = list(work(list(mine(count))))
    if size() == 1:
        return own
    found: list[Any] = [None] * count
    for worker, arrays in enumerate(collected([part for one in own for part in parts_of(one)])):
        places = range(worker, count, size())
        each = len(arrays) // max(1, len(places))
        for order, place in enumerate(places):
            found[place] = tree_of(arrays[order * each : (order + 1) * each])
    return found


def on_chief(function: Callable[[], Any]) -> Any:
    """The chief calls the function; its result or its UserError reaches every worker.

    Everything that the function did has been done when this returns. The function may come by
    further calls of this module: for it the chief is alone.

    Args:
        function: gives what `jsonl.dumps` takes; every worker gets it as JSON gives it back.

    Raises:
        UserError: as the function, on every worker.
    """
    if size() == 1:
        return function()
    answer, failure = None, None
    if is_chief():
        _own.alone = True
        try:
            answer = function()
        except UserError as error:
            failure = error
        finally:
            _own.alone = False
    said = {"answer": answer, "error": None if failure is None else str(failure)}
    told = json.loads(_from(0, dumps(said).encode()))
    if failure is not None:
        raise failure
    if told["error"] is not None:
        raise UserError(told["error"])
    return told["answer"]


def together(check: Callable[[], None]) -> None:
    """Every worker makes a check of its own; if it fails on one, it has failed on all.

    Raises:
        UserError: the first worker's that has one, with its address.
    """
    if size() == 1:
        check()
        return
    message = ""
    try:
        check()
    except UserError as error:
        message = str(error)
    said = [one.decode() for one in _gathered(message.encode())]
    for number, text in enumerate(said):
        if text:
            raise UserError(text if number == _own.rank else f"{_own.names[number]}: {text}")
