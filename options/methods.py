"""The search methods and what each of them can be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from .fields import Options, setting, share

TEACHERS = ("none", "single", "ensemble")
SCORES = ("taylor", "l1", "fpgm", "random")
EVALUATORS = ("exact", "fast", "naive")
CHOICES = REWARD, PRICE = "reward", "price"
AUTO = "auto"
CACHE_MB = 2048

_SCORE: dict[str, Any] = {"flag": "score", "choices": SCORES, "help": "how filters are ranked"}
_CACHE: dict[str, Any] = {
    "flag": "cache_mb",
    "least": 1,
    "help": "memory, per device, for the activations that proposals start from",
}
_MEMORY: dict[str, Any] = {
    "flag": "memory",
    "above": 0,
    "help": "GiB that the process may take until the search has ended, on the CPU; only time "
    "depends on it",
    "shown": "what the machine has",
}
_EVALUATOR: dict[str, Any] = {
    "flag": "evaluator",
    "choices": EVALUATORS,
    "help": "fast: a fraction of the work, a slightly other choice; naive: all from scratch",
}


@dataclass(frozen=True)
class Method(Options):
    """How a sub-network is searched."""

    name: ClassVar[str]
    one_shot: ClassVar[bool] = False  # no interim networks
    supernet: ClassVar[bool] = False  # begins with the training of a supernet

    score: str = setting("taylor", **_SCORE)

    def flags(self) -> dict[str, Any]:
        """As `Options.flags`, with --method."""
        return super().flags() | {"method": self.name}


@dataclass(frozen=True)
class EKG(Method):
    """Greedy removal by validation loss and ensemble knowledge (docs/method.md 1)."""

    name: ClassVar[str] = "ekg"

    step: float = share(
        0.2,
        flag="search_step",
        help="share of a gate's original width that it offers at a time",
    )
    teacher: str = setting(
        "ensemble",
        flag="search_teacher",
        choices=TEACHERS,
        help="teacher in EKG's reward: the first network, or all networks so far",
    )
    choice: str | None = setting(
        None,
        flag="search_choice",
        choices=CHOICES,
        help="what a step takes: the largest reward, or the least loss of reward per size removed",
    )
    evaluator: str = setting("exact", **_EVALUATOR)
    cache_mb: int = setting(CACHE_MB, **_CACHE)
    memory: float | None = setting(None, **_MEMORY)


@dataclass(frozen=True)
class FFP(Method):
    """Whole-network candidates by importance, the best by loss on D_val (docs/method.md 5)."""

    name: ClassVar[str] = "ffp"
    teacher: ClassVar[str] = "none"

    step: float = share(
        0.2,
        flag="search_step",
        help="share of a gate's original width that it offers at a time",
    )
    evaluator: str = setting("exact", **_EVALUATOR)
    cache_mb: int = setting(CACHE_MB, **_CACHE)
    memory: float | None = setting(None, **_MEMORY)


@dataclass(frozen=True)
class _Supernet(Method):
    """What the methods that train a supernet share; None: by data set."""

    supernet: ClassVar[bool] = True

    epochs: int | None = setting(
        None, flag="supernet_epoch", least=1, help="epochs of the supernet's training"
    )
    learning_rate: float | None = setting(
        None,
        flag="supernet_learning_rate",
        above=0,
        help="of the supernet's training; falls along a half cosine",
    )
    batch_size: int | None = setting(
        None, flag="supernet_batch_size", least=1, help="images per step of its training"
    )
    width_steps: int = setting(
        9, flag="width_steps", least=2, help="widths of a group of filters, from 0.2 to 1.0 of them"
    )
    cache_mb: int = setting(CACHE_MB, **_CACHE)


@dataclass(frozen=True)
class SWP(_Supernet):
    """Stage-wise supernets with in-place distillation (docs/method.md 6)."""

    name: ClassVar[str] = "swp"

    stages: int | str = setting(
        AUTO,
        flag="swp_stages",
        least=1,
        words=(AUTO,),
        help="stages of the network; auto: one per resolution",
    )
    population: int = setting(
        24, flag="swp_population", least=2, help="versions of a stage per generation"
    )
    generations: int = setting(
        10, flag="swp_generations", least=1, help="generations of the evolution of each stage"
    )
    random_widths: int = setting(
        2,
        flag="swp_random_widths",
        least=1,
        help="random versions of every stage in a training step, beside the narrowest",
    )


@dataclass(frozen=True)
class AutoSlim(_Supernet):
    """A supernet trained by the sandwich rule, slimmed greedily (docs/method.md 7)."""

    name: ClassVar[str] = "autoslim"


@dataclass(frozen=True)
class Uniform(Method):
    """The same kept share of every group (docs/method.md 7)."""

    name: ClassVar[str] = "uniform"
    one_shot: ClassVar[bool] = True

    memory: float | None = setting(None, **_MEMORY)


@dataclass(frozen=True)
class GlobalThreshold(Method):
    """One threshold on normalised scores (docs/method.md 7)."""

    name: ClassVar[str] = "global"
    one_shot: ClassVar[bool] = True

    memory: float | None = setting(None, **_MEMORY)


METHODS: dict[str, type[Method]] = {
    one.name: one for one in (EKG, FFP, SWP, AutoSlim, Uniform, GlobalThreshold)
}
