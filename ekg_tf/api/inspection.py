"""Looking at a network: what can be pruned in it, and what each group of filters costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from ekg_tf.dataloader import unreadable_named
from ekg_tf.nets import layer_kinds
from ekg_tf.nets.door import called_on, zeros
from ekg_tf.nets.flatten import flatten
from ekg_tf.nets.graph import ChannelGraph
from ekg_tf.nets.rebuild import at_shapes
from ekg_tf.options import recipes
from ekg_tf.options.data import Data, Sampling
from ekg_tf.options.methods import SCORES
from ekg_tf.phases.opening import work_on
from ekg_tf.phases.sensitivity import run_sensitivity
from ekg_tf.pruning.sensitivity import SHARES
from ekg_tf.pruning.space.limits import located
from ekg_tf.reports import inspection
from ekg_tf.reports import sensitivity as sensitivity_report
from ekg_tf.utils import devices, progress
from ekg_tf.utils.errors import UserError

from .arguments import Aims, PathLike, Split, check_model, control_of, given_or, reader, shown


@dataclass(frozen=True)
class Report:
    """What can be pruned in a network; `print` shows it as a table.

    Attributes:
        groups: {"layers", "width", "prunable", "reason"} of every group of channels; layers that
            aren't prunable are listed one by one, with the reason.
        flops, parameters: of the whole network; multiply-accumulates for one example.
        lowest_flops, lowest_parameters: the shares that can be reached, 0 .. 1.
        figures: all of it as plain data.
    """

    groups: list[dict[str, Any]]
    flops: int
    parameters: int
    lowest_flops: float
    lowest_parameters: float
    figures: dict[str, Any]

    def __str__(self) -> str:
        return inspection.text(self.figures)


def inspect(
    model: keras.Model,
    *,
    input_shape: Sequence[Any] | None = None,
    exclude: str | Sequence[str] = (),
    min_width: int = 1,
    min_share: float = 0.0,
) -> Report:
    """What can be pruned in a network, and how far.

    Args:
        model: functional, Sequential or subclassed (with its `input_shape` if it was never called);
            it isn't changed.
        input_shape: of one example, such as (224, 224, 3), at which FLOPs are counted where the
            network leaves it open; a list of several where it has several inputs.
        exclude, min_width, min_share: as of `prune`.

    Raises:
        UserError: the network's graph can't be read, its inputs are of open size, or it lacks a
            layer to exclude.

    Examples:
        >>> report = ekg.inspect(model)
        >>> report.lowest_flops < 1
        True
        >>> [group["prunable"] for group in report.groups]
        [True, True, False]
    """
    check_model(model)
    control = control_of(exclude, min_width, min_share, None)
    shapes: Sequence[Any] = () if input_shape is None else input_shape
    if shapes and all(isinstance(size, int) for size in shapes):
        shapes = [shapes]
    found = flatten(called_on(model, zeros(shapes)))
    flat, control = found.model, located(control, found.model, found.places)
    if shapes:
        flat = at_shapes(flat, shapes)
    figures = inspection.inspection(ChannelGraph(flat, closed=found.closed), control)
    return Report(
        groups=figures["groups"],
        flops=figures["flops"],
        parameters=figures["parameters"],
        lowest_flops=figures["lowest_rate"],
        lowest_parameters=figures["lowest_parameters"],
        figures=figures,
    )


@dataclass(frozen=True)
class Sensitivity:
    """How much each group of a network costs; `print` shows the rise of the loss as a table.

    Attributes:
        shares: of a group's filters that were removed, float [shares].
        groups: {"layers", "width", "removed": filters [shares], "flops": share of the network's
            that remains [shares], "rise": of the loss [shares], "figures": [shares]} of every
            group, in the order of the network.
        whole: figures of the whole network on the same examples: "loss", and "top1" in percent or
            the user's metrics.
        figures: all of it as plain data.
    """

    shares: tuple[float, ...]
    groups: list[dict[str, Any]]
    whole: dict[str, float]
    figures: dict[str, Any]

    def __str__(self) -> str:
        return sensitivity_report.text(self.figures)

    def draw(self, path: PathLike) -> None:
        """Writes the heat map, groups against shares, as a PNG.

        Raises:
            UserError: the file can't be written.
        """
        sensitivity_report.draw(path, self.figures)


@shown
@unreadable_named()
def sensitivity(
    model: keras.Model,
    data: Split,
    *,
    shares: Sequence[float] = SHARES,
    score: str = "taylor",
    preprocessing: Data | None = None,
    sampling: Sampling | None = None,
    loss: Any = None,
    metrics: Any = None,
    loss_weights: Any = None,
    class_weight: Mapping[int, float] | None = None,
    compile: bool | None = None,
    verbose: progress.Verbose = "auto",
) -> Sensitivity:
    """How much the loss rises when each group of filters alone loses a share of them.

    The weakest filters go first. The network runs on D_val by the statistics of the batch, as in a
    search, and isn't fine-tuned (docs/control.md).

    Args:
        model: as of `prune`.
        data: as `train` of `prune`; D_val is drawn from it.
        shares: of a group's filters, strictly between 0 and 1, rising.
        score: how filters are ranked: "taylor", "l1", "fpgm" or "random".
        preprocessing: normalisation, as `data` of `prune`.
        sampling: how many examples D_val has, and their batches.
        loss, metrics, loss_weights, class_weight, compile, verbose: as of `prune`.

    Raises:
        UserError: as `prune`.

    Examples:
        >>> found = ekg.sensitivity(model, (x_train, y_train), shares=(0.25, 0.5))
        >>> [len(group["rise"]) for group in found.groups]
        [2, 2]
    """
    shares = tuple(float(one) for one in shares)
    if not shares or list(shares) != sorted(set(shares)) or not 0 < shares[0] <= shares[-1] < 1:
        raise UserError(f"shares={shares}: give rising numbers strictly between 0 and 1")
    if score not in SCORES:
        raise UserError(f"score={score!r} is none of {', '.join(SCORES)}")
    check_model(model)
    work = work_on(
        model,
        reader(data, data, preprocessing, "sensitivity"),
        aims=Aims(loss, metrics, loss_weights).compiled,
        class_weight=class_weight,
    )
    wanted = given_or("sampling", sampling, Sampling(), Sampling)
    device = devices.make(tf.distribute.get_strategy(), compile)
    found = run_sensitivity(work, recipes.sampling(wanted, work.data), device, shares, score=score)
    return Sensitivity(shares, found["groups"], found["whole"], found)


def register(
    layer: type[keras.Layer], weights: Mapping[str, int], sizes: Sequence[str] = ()
) -> None:
    """Makes a layer of one's own known: one that works channel by channel, channels last.

    Args:
        layer: its class; `call(x)` gives the shape of x, and no channel depends on another one.
        weights: {name of a weight: its axis that runs along the channels, counted from the end};
            weights that aren't named stay whole.
        sizes: entries of its configuration that hold the number of channels.

    Raises:
        UserError: not a layer class, or an axis that is not negative.

    Examples:
        >>> class ChannelShift(keras.layers.Layer):
        ...     def build(self, shape):
        ...         self.shift = self.add_weight(shape=(shape[-1],), name="shift")
        ...
        ...     def call(self, x):
        ...         return x + self.shift
        >>> ekg.register(ChannelShift, {"shift": -1})
    """
    layer_kinds.register_per_channel(layer, weights, sizes)
