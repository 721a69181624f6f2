"""Filter-normalised loss landscapes (Li et al. 2018), several networks on one colour scale.

    python -m ekg_tf.experiments.landscape ../run1 ../run2 --grid 21 --out landscape.json

writes landscape.json and landscape.png: for each network the mean loss over D_val (batch
statistics) at w + a d1 + b d2, a and b from -span to span. d1 and d2 are random normal directions
in which every filter has the norm of the network's own filter; batch norms' parameters and biases
stay as they are. A network's directions depend on --seed and its own shapes alone.

A result file that exists is continued: networks that it holds already are not measured again.
"""

from ..cli import manners
from ..utils import devices

devices.import_tensorflow()

import math
import time
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from ..cli import choices, flags
from ..dataloader import unreadable_named
from ..nets import layer_rules
from ..nets.keras_graph import layers_in
from ..options.fields import Options, setting
from ..pruning.engine.validation import Validation
from ..reports.plots import DPI
from ..utils import progress
from ..utils.errors import UserError
from ..utils.files import atomic_write
from . import networks
from .losses import batches_of, loss_sum, trainables

GUESSING = 2.0  # losses above so many times that of guessing are drawn as that


@dataclass(frozen=True)
class Plane(Options):
    """The square around a network that a landscape shows.

    Raises:
        UserError: a value out of bounds; an even grid, which has no point in its middle.
    """

    grid: int = setting(21, flag="grid", least=3, help="points per side, odd")
    span: float = setting(
        1.0, flag="span", above=0, help="it reaches from -span to span along both directions"
    )
    seed: int = setting(0, flag="seed", least=0, help="of the directions")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.grid % 2 == 0:
            raise UserError(f"a grid of {self.grid} points has no middle: give an odd number")


def filter_axes(model: keras.Model) -> list[int | None]:
    """For each trainable the axis that numbers its filters; None: it has none (biases, norms).

    The filter of a depthwise convolution is one input channel's kernel.
    """
    axis_of: dict[int, int] = {}
    for layer in layers_in(model):
        for variable in getattr(layer, "trainable_variables", ()):
            if len(variable.shape) < 2 or "kernel" not in variable.name:
                continue
            depthwise = "depthwise" in variable.name or type(layer) in layer_rules.DEPTHWISE
            swapped = depthwise or type(layer) in layer_rules.TRANSPOSED
            axis_of[id(variable)] = len(variable.shape) - (2 if swapped else 1)
    return [axis_of.get(id(variable)) for variable in model.trainable_variables]


def normalised(direction: np.ndarray, weight: np.ndarray, axis: int | None) -> np.ndarray:
    """The direction with each filter scaled to the norm of the weight's filter; zero without axis.

    Args:
        direction, weight: float, of the same shape.
        axis: numbers the filters.
    """
    if axis is None:
        return np.zeros_like(weight)
    others = tuple(i for i in range(weight.ndim) if i != axis)
    wanted = np.sqrt((weight.astype(np.float64) ** 2).sum(others, keepdims=True))
    given = np.sqrt((direction.astype(np.float64) ** 2).sum(others, keepdims=True))
    return (direction * (wanted / np.where(given > 0, given, 1.0))).astype(weight.dtype)


def directions(model: keras.Model, seed: int) -> list[list[np.ndarray]]:
    """Two random filter-normalised directions, each an array per trainable of the model."""
    rng = np.random.default_rng(seed)
    pairs = list(zip(trainables(model), filter_axes(model), strict=True))
    return [
        [normalised(rng.normal(size=weight.shape), weight, axis) for weight, axis in pairs]
        for _ in range(2)
    ]


def landscape(model: keras.Model, val: Validation, plane: Plane, *, compile: bool = False) -> dict:
    """The loss on a square grid around a network, which isn't changed.

    Args:
        model: gives logits; the middle of the grid.

    Returns:
        {"loss": lists [grid][grid], row i at a = coordinate i of the first direction, null where
        it isn't finite; "coordinates": list [grid]; "centre": the network's own loss; "seconds"}.
    """
    begin, grid = time.perf_counter(), plane.grid
    weights = [tf.constant(value) for value in trainables(model)]
    first, second = ([tf.constant(one) for one in each] for each in directions(model, plane.seed))
    total, batches = loss_sum(model), batches_of(val)

    def at(a, b, images, labels):
        moved = [w + a * d + b * e for w, d, e in zip(weights, first, second, strict=True)]
        return total(moved, images, labels)

    at = tf.function(at, jit_compile=compile, autograph=False, reduce_retracing=True)
    coordinates = np.linspace(-plane.span, plane.span, grid)
    loss = np.zeros((grid, grid))
    with progress.bar("landscape", grid) as bar:
        for i, a in enumerate(coordinates):
            for j, b in enumerate(coordinates):
                place = tf.constant(a, tf.float32), tf.constant(b, tf.float32)
                loss[i, j] = sum(float(at(*place, *batch)) for batch in batches) / len(val)
            bar.to(i + 1)
    return {
        "loss": [[one if math.isfinite(one) else None for one in row] for row in loss.tolist()],
        "coordinates": coordinates.tolist(),
        "centre": float(loss[grid // 2, grid // 2]),
        "seconds": time.perf_counter() - begin,
    }


def draw(path: Path, results: dict, classes: int) -> None:
    """A PNG with a 3-D surface and a contour map for each network, all on one colour scale.

    Losses above `GUESSING` times log(classes), or not finite, are drawn as that, which the picture
    says.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    most = GUESSING * math.log(classes)
    shown, cut = {}, 0
    for name, one in results["networks"].items():
        loss = np.array(one["loss"], float)  # null becomes NaN
        over = ~(loss <= most)
        cut += int(over.sum())
        shown[name] = np.where(over, most, loss)
    lowest = max(1e-6, min(loss.min() for loss in shown.values()))
    highest = max(loss.max() for loss in shown.values())
    norm, levels = LogNorm(lowest, highest), np.geomspace(lowest, highest, 13)

    figure = Figure(figsize=(4.4 * len(shown) + 1.2, 8.2), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    flat = []
    for column, (name, loss) in enumerate(shown.items()):
        one = results["networks"][name]
        a, b = np.meshgrid(one["coordinates"], one["coordinates"], indexing="ij")
        upper = figure.add_subplot(2, len(shown), 1 + column, projection="3d")
        upper.plot_surface(a, b, loss, cmap="viridis", norm=norm, rstride=1, cstride=1)
        upper.set_zlim(0, highest)
        upper.set_title(f"{name}\nloss at the centre {one['centre']:.4f}", fontsize=10)
        upper.set_zlabel("loss on D_val")
        lower = figure.add_subplot(2, len(shown), 1 + len(shown) + column)
        filled = lower.contourf(a, b, loss, levels=levels, cmap="viridis", norm=norm)
        lower.contour(a, b, loss, levels=levels, colors="black", linewidths=0.4)
        lower.plot(0, 0, "+", color="white", markersize=9)
        lower.set_aspect("equal")
        flat.append(lower)
        for axes in (upper, lower):
            axes.set_xlabel("first direction")
            axes.set_ylabel("second direction")
    bar = figure.colorbar(filled, ax=flat, shrink=0.9, label="loss on D_val (one scale for all)")
    bar.set_ticks(levels[::2], labels=[f"{level:.2g}" for level in levels[::2]])
    note = f"{cut} points with a loss above {most:.2f} are drawn as {most:.2f}" if cut else ""
    figure.suptitle("Loss landscape, filter-normalised directions", fontweight="bold")
    figure.supxlabel(note, fontsize=9)
    atomic_write(path, lambda temporary: figure.savefig(temporary, format="png"))


@unreadable_named()
def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = manners.Parser(
        prog="python -m ekg_tf.experiments.landscape", description=__doc__.split("\n")[0]
    )
    networks.add_networks(parser)
    flags.add_device(parser)
    group = parser.add_argument_group("landscape")
    flags.add_settings(group, Plane)
    group.add_argument("--out", type=Path, required=True, help=".json; the .png lies beside it")
    args = parser.parse_args(argv)
    plane, out = choices.made(Plane, args), args.out
    if out.suffix != ".json":
        raise UserError(f"--out {out} must end in .json")
    device = choices.device_of(args)
    subjects = networks.subjects_of(args)

    def one(model: keras.Model) -> dict:
        return landscape(model, subjects.val, plane, compile=device.compile)

    settings = subjects.settings() | plane.flags()
    results = networks.measure(settings, subjects.networks, subjects.digests, one, out)
    draw(out.with_suffix(".png"), results, subjects.data.num_classes)
    print(f"{out} and {out.with_suffix('.png')} are written")


if __name__ == "__main__":
    manners.run(main)
