"""What the public functions share: their arguments, and what a run folder keeps of them."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar, cast

import keras

from ekg_tf.dataloader import Dataset, given_data, own
from ekg_tf.dataloader.fit import Fit
from ekg_tf.nets.door import check_weights
from ekg_tf.nets.keras_graph import Compiled, has_graph
from ekg_tf.nets.zoo.load import check_own
from ekg_tf.options.bank import Bank
from ekg_tf.options.budgets import Budget, Flops
from ekg_tf.options.control import Control
from ekg_tf.options.data import Data, Sampling
from ekg_tf.options.finetuning import Contrastive, FineTuning
from ekg_tf.options.methods import EKG, FFP, METHODS, Method
from ekg_tf.options.search import SearchOptions
from ekg_tf.options.training import Training
from ekg_tf.training.task import Knowledge
from ekg_tf.utils import progress
from ekg_tf.utils.errors import UserError

AUTO: Literal["auto"] = "auto"
PathLike = str | os.PathLike[str]
# One split: (x, y) or (x, y, weights), a finite tf.data.Dataset of such, or what `prune` says.
Split = Any


Taken = ParamSpec("Taken")
Made = TypeVar("Made")


def shown(function: Callable[Taken, Made]) -> Callable[Taken, Made]:
    """Shows of a call what its argument `verbose` says."""

    @functools.wraps(function)
    def call(*args: Taken.args, **kwargs: Taken.kwargs) -> Made:
        with progress.shown(cast(progress.Verbose, kwargs.get("verbose", "auto"))):
            return function(*args, **kwargs)

    return call


def given_or(name: str, value: Any, default: Any, *kinds: type) -> Any:
    """The value, or the default for None.

    Raises:
        UserError: it is none of these kinds, such as a class instead of its instance.
    """
    value = default if value is None else value
    if not isinstance(value, kinds):
        wanted = ", ".join(f"{kind.__name__}()" for kind in kinds)
        raise UserError(f"{name}={value!r}: give {wanted}")
    return value


def path_of(value: PathLike) -> Path:
    """A path, "~" in front being one's home.

    Raises:
        UserError: no path.
    """
    try:
        return Path(value).expanduser()
    except TypeError:
        raise UserError(f"{value!r} is no path") from None


def folder_of(folder: PathLike | None) -> PathLike:
    """The run folder, or a temporary one."""
    if folder is not None:
        return path_of(folder)
    folder = tempfile.mkdtemp(prefix="ekg_tf_")
    progress.say(f"no folder given: working in {folder}; this run can't be resumed")
    return folder


def check_model(model: Any) -> None:
    """Refuses what no call can take.

    Raises:
        UserError: no keras.Model of Keras 3, one that isn't built, weights that aren't finite or
            empty, or a graph that can't be read.
    """
    if any(kind.__module__.startswith("tf_keras.") for kind in type(model).__mro__):
        raise UserError(
            "the model is one of Keras 2 (tf_keras): save it as .h5 and open that by Keras 3, with "
            "keras.models.load_model"
        )
    if not isinstance(model, keras.Model):
        raise UserError(
            f"the model is a {type(model).__name__}: give a keras.Model, which "
            "keras.models.load_model reads from a file"
        )
    check_weights(model)
    if has_graph(model):
        check_own(model, model.name)


def control_of(exclude: Any, min_width: int, min_share: float, max_drop: float | None) -> Control:
    """The limits of a search; `exclude` may be one pattern."""
    return Control(exclude, min_width, min_share, max_drop)


def search_of(
    budget: float | Budget | None,
    method: Method | None,
    sampling: Sampling | None,
    control: Control,
) -> SearchOptions:
    return SearchOptions(
        budget if isinstance(budget, Budget) else Flops(budget),
        given_or("method", method, EKG(), *METHODS.values()),
        given_or("sampling", sampling, Sampling(), Sampling),
        control,
    )


def training_of(training: Training | None, optimizer: Any, seed: int) -> Training:
    """The training of a fine-tuning; an optimizer of the caller's has no L2 unless that is said.

    Raises:
        UserError: two optimizers.
    """
    found: Training = given_or("training", training, Training(), Training)
    if optimizer is not None and found.optimizer is not None:
        raise UserError("optimizer= and Training(optimizer=...) are both given: give one of them")
    if optimizer is not None and found.weight_decay is None:
        found = replace(found, weight_decay=0.0)
    return replace(found, seed=seed)


def bank_of(
    bank: Bank | Literal["auto"] | None, method: Method, finetune: FineTuning
) -> Bank | None:
    """The bank that both phases agree on."""
    if isinstance(bank, str):
        if bank != AUTO:
            raise UserError(f"bank={bank!r}: give a Bank, None or {AUTO!r}")
        features = isinstance(finetune, Contrastive) or isinstance(method, FFP)
        return Bank(features=features) if finetune.replays else None
    given: Bank | None = None if bank is None else given_or("bank", bank, None, Bank)
    kind = type(finetune).__name__
    if given is None and finetune.replays:
        raise UserError(f"finetune={kind}() replays the memory bank: bank=None leaves it without")
    if given and isinstance(finetune, Contrastive) and not given.features:
        raise UserError(f"finetune={kind}() needs the features: bank=Bank(features=True)")
    return given


@dataclass(frozen=True)
class Aims:
    """What the caller says of the task in place of what the model is compiled with."""

    loss: Any = None
    metrics: Any = None
    loss_weights: Any = None
    class_weight: Mapping[int, float] | None = None
    knowledge: Knowledge | None = None

    @property
    def compiled(self) -> Compiled:
        """The part of it that Keras knows."""
        return Compiled(self.loss, self.loss_weights, self.metrics)

    def flags(self) -> dict[str, Any]:
        """{setting: words by which it is known}, of what was said."""
        said = {key: value for key, value in vars(self).items() if value is not None}
        return {key: words(value) for key, value in said.items()}


def words(value: Any) -> Any:
    """What stands for a value in a run folder: names, numbers and configurations."""
    if isinstance(value, Mapping):
        return {str(key): words(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [words(one) for one in value]
    if value is None or isinstance(value, str | int | float):
        return value
    name = getattr(value, "__qualname__", type(value).__qualname__)
    if not hasattr(value, "get_config"):
        return name
    # Keras numbers the names of what a process makes: "adam_1" is the second Adam.
    config = {key: str(one) for key, one in value.get_config().items() if key != "name"}
    return {"class": name} | config


def kept_of(optimizer: Any, callbacks: Sequence[Any]) -> dict[str, Any]:
    """What a run folder keeps of an optimizer and callbacks."""
    kept = {} if optimizer is None else {"optimizer": words(optimizer)}
    return kept | ({"callbacks": [type(one).__name__ for one in callbacks]} if callbacks else {})


def reader(train: Split, test: Split, data: Data | None, caller: str) -> Callable[[Fit], Dataset]:
    """A function that reads both splits as a network needs them."""
    options = given_or("data", data, Data(), Data)

    def read(fit: Fit) -> Dataset:
        return own.dataset(*given_data.read(train, test, fit, options, caller), options)

    return read
