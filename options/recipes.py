"""Values that depend on the data set, where the user gave none.

The paper's for CIFAR and ImageNet (docs/method.md 3), minutes on a CPU for DIGITS. Pure functions
of settings and of what is known of the data.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from ..utils.errors import UserError
from .bank import MANY_CLASSES
from .data import Sampling
from .fields import Options, settings_of
from .finetuning import FineTuning
from .methods import PRICE, REWARD, Method
from .search import SearchOptions
from .training import BYOL, BYOL_MOMENTUM, BYOL_WEIGHT, LAMB, SGD, Baseline, Training

Group = TypeVar("Group", bound=Options)
OWN = "own"  # data of the user's


class Facts(Protocol):
    """What the defaults depend on; a `dataloader.Dataset` is one."""

    @property
    def name(self) -> str: ...
    @property
    def num_classes(self) -> int | None: ...
    @property
    def subset_per_class(self) -> int | None: ...
    @property
    def val_per_class(self) -> int | None: ...
    @property
    def subset_examples(self) -> int: ...
    @property
    def val_examples(self) -> int: ...
    @property
    def augments(self) -> bool: ...


@dataclass(frozen=True)
class Recipe:
    """Defaults of a data set. With `base_batch` the learning rates are for so many examples per
    step and grow with the batch. `choice`: of EKG; the papers', or what serves any network."""

    baseline: Baseline
    training: Training
    supernet_epochs: int
    supernet_batch_size: int
    supernet_learning_rate: float = 0.02
    base_batch: int | None = None
    choice: str = REWARD


_SMALL = Training(epochs=20, learning_rate=0.01, batch_size=64, weight_decay=5e-4)
_CIFAR = Recipe(
    Baseline(epochs=200, learning_rate=0.1, decay_points=(0.3, 0.6, 0.8), decay_rate=0.2),
    replace(_SMALL, epochs=100, batch_size=128),
    supernet_epochs=40,
    supernet_batch_size=128,
)
# One epoch of a supernet costs about five of a plain network.
_OWN = replace(_CIFAR, training=_SMALL, supernet_epochs=10, supernet_batch_size=64, choice=PRICE)
RECIPES = {
    "CIFAR10": _CIFAR,
    "CIFAR100": _CIFAR,
    "DIGITS": replace(_OWN, baseline=replace(_CIFAR.baseline, epochs=40), choice=REWARD),
    OWN: _OWN,
    "ImageNet": Recipe(
        Baseline(epochs=100, learning_rate=0.1, decay_points=(0.3, 0.6, 0.9), decay_rate=0.1),
        Training(epochs=50, learning_rate=0.01, batch_size=256, weight_decay=1e-4),
        supernet_epochs=20,
        supernet_batch_size=256,
        base_batch=256,
    ),
}
TEMPERATURE, TEMPERATURE_OF_MANY = 4.0, 10.0  # the second from MANY_CLASSES classes up


def _filled(given: Group, defaults: dict[str, Any]) -> Group:
    """The settings with defaults where they are None."""
    open_ones = [one.name for one in settings_of(type(given)) if getattr(given, one.name) is None]
    return replace(given, **{name: defaults[name] for name in open_ones if name in defaults})


def _values(options: Options) -> dict[str, Any]:
    return {one.name: getattr(options, one.name) for one in settings_of(type(options))}


def _scaled(rate: float, batch_size: int, recipe: Recipe) -> float:
    return rate * batch_size / recipe.base_batch if recipe.base_batch else rate


def training(given: Training, facts: Facts, *, lamb: bool = False) -> Training:
    """A fine-tuning's training with the defaults of a data set.

    Args:
        lamb: whether no rate of SGD is known to fit, `training.trainer.needs_lamb`.
    """
    recipe = RECIPES[facts.name]
    values = _values(recipe.training)
    batch_size = given.batch_size or values["batch_size"]
    values["learning_rate"] = _scaled(values["learning_rate"], batch_size, recipe)
    values["optimizer"] = LAMB if lamb else SGD
    if (given.optimizer or values["optimizer"]) == LAMB:
        values["weight_decay"] = 0.0
    return _filled(given, values)


def baseline(given: Baseline, of: Training, facts: Facts) -> Training:
    """A baseline's training, by SGD, with the defaults of a data set.

    Args:
        of: the training as it was asked for, which it shares the rest with but for the optimizer.
    """
    recipe = RECIPES[facts.name]
    values = _values(recipe.baseline)
    of = training(replace(of, optimizer=SGD), facts)
    assert of.batch_size is not None
    values["learning_rate"] = _scaled(values["learning_rate"], of.batch_size, recipe)
    return _filled(given, values).training(of)


def as_baseline(given: Baseline, of: Training) -> Baseline:
    """What `Baseline` says of a resolved training of a baseline.

    Args:
        given: has its teacher.
    """
    values: dict[str, Any] = {}
    if given.teacher == BYOL:
        values = {"byol_weight": BYOL_WEIGHT, "byol_momentum": BYOL_MOMENTUM}
    known = replace(
        given,
        epochs=of.epochs,
        learning_rate=of.learning_rate,
        decay_points=of.decay_points,
        decay_rate=of.decay_rate,
    )
    return _filled(known, values)


def sampling(given: Sampling, facts: Facts) -> Sampling:
    """D_subset and D_val with the sizes of a data set.

    Raises:
        UserError: a size per class and a size in all for the same set.
    """
    sizes: dict[str, Any] = {}
    for name in ("subset", "val"):
        if getattr(given, name) is not None:
            if getattr(given, f"{name}_per_class") is not None:
                raise UserError(
                    f"{name}_examples and {name}_per_class are both given: the size of D_{name} is "
                    "one or the other"
                )
        elif getattr(facts, f"{name}_per_class") is not None:
            sizes[f"{name}_per_class"] = getattr(facts, f"{name}_per_class")
        else:
            sizes[name] = getattr(facts, f"{name}_examples")
    if "subset" in sizes and given.val is not None:
        # What D_val leaves, if that is less than usual; too large a D_val is refused later.
        left = facts.subset_examples + facts.val_examples - given.val
        sizes["subset"] = max(1, min(sizes["subset"], left))
    return _filled(given, sizes)


def method(given: Method, facts: Facts) -> Method:
    """A search method with the defaults of a data set."""
    recipe = RECIPES[facts.name]
    if not given.supernet:
        return _filled(given, {"choice": recipe.choice})
    batch_size = getattr(given, "batch_size", None) or recipe.supernet_batch_size
    values = {
        "epochs": recipe.supernet_epochs,
        "batch_size": batch_size,
        "learning_rate": _scaled(recipe.supernet_learning_rate, batch_size, recipe),
    }
    return _filled(given, values)


def search(given: SearchOptions, facts: Facts) -> SearchOptions:
    """A search with the defaults of a data set."""
    return replace(
        given, method=method(given.method, facts), sampling=sampling(given.sampling, facts)
    )


def finetuning(given: FineTuning, facts: Facts) -> FineTuning:
    """A fine-tuning with its temperature and its views.

    Raises:
        UserError: two views of data that isn't augmented.
    """
    if given.views == 2 and not facts.augments:
        raise UserError(
            "two views (views) are the same where nothing is augmented, as with this data: leave "
            "views out, or augment"
        )
    many = (facts.num_classes or 0) >= MANY_CLASSES
    values: dict[str, Any] = {"temperature": TEMPERATURE_OF_MANY if many else TEMPERATURE}
    # Two views say no more than one where nothing about them is random.
    return _filled(given, values | {"views": given.usual_views if facts.augments else 1})


def shown(flag: str) -> str:
    """A flag's defaults by data set in words, "" where it has none."""
    values: dict[str, list[str]] = {}
    for name, recipe in RECIPES.items():
        known = recipe.baseline.flags() | recipe.training.flags()
        known |= {
            "supernet_epoch": recipe.supernet_epochs,
            "supernet_batch_size": recipe.supernet_batch_size,
            "supernet_learning_rate": recipe.supernet_learning_rate,
            "search_choice": recipe.choice,
        }
        if flag not in _BY_DATA or known.get(flag) is None:
            return ""
        value = known[flag]
        text = f"{value:g}" if isinstance(value, float) else str(value)
        text = ",".join(map(str, value)) if isinstance(value, tuple) else text
        values.setdefault(text, []).append(name if name != OWN else "your own data")
    if len(values) == 1:
        return next(iter(values))
    return ", ".join(f"{text} for {'/'.join(names)}" for text, names in values.items())


_BY_DATA = (
    *("baseline_epoch", "baseline_learning_rate", "baseline_decay_points", "baseline_decay_rate"),
    *("train_epoch", "learning_rate", "batch_size", "weight_decay"),
    *("supernet_epoch", "supernet_learning_rate", "supernet_batch_size"),
    "search_choice",
)
