"""Condition number of the loss Hessian: how smooth the loss is around a (sub-)network.

    python -m ekg_tf.experiments.smoothness ../run1 ../run2 --out smoothness.json
    python -m ekg_tf.experiments.smoothness net.pkl --arch ResNet-56 --dataset CIFAR10 \\
        --data_path DIR

The condition number is |lambda_min / lambda_max| of the Hessian of the mean cross-entropy over
D_val (EKG paper, Table 1; our reading, docs/method.md 4; Li et al. 2018 plot the same ratio):
lambda_max is the largest, lambda_min the smallest, mostly negative, eigenvalue. Near 0 the loss is
nearly convex around the network: lower is smoother.

The Hessian is that of all trainables (kernels, biases, gammas, betas) of the pruned network in
float32, with batch statistics, without weight decay and without augmentation. It isn't normalised
by the weights' norms. A ReLU counts as having no second derivative. D_val is a part of the training
set; the test split is not read.

A result file that exists is continued: networks that it holds already, from the same files and
with the same settings, are not measured again.
"""

from ..cli import manners
from ..utils import devices

devices.import_tensorflow()

import time
from dataclasses import asdict, dataclass

import keras
import numpy as np
import scipy.sparse.linalg
import tensorflow as tf

from ..cli import choices, flags
from ..dataloader import unreadable_named
from ..nets.graph import ChannelGraph
from ..options.fields import Options, setting
from ..pruning.engine.validation import Validation
from ..reports import machine
from ..reports.tables import table
from ..utils import progress
from ..utils.errors import UserError
from . import networks
from .losses import batches_of, loss_sum, make_mean_loss, trainables

TOLERANCE = 1e-3
BASIS = 16  # Lanczos vectors between restarts
MOST_RESTARTS = 60
SEED = 0  # of the vectors that Lanczos and Hutchinson start from
PROBES = 16  # of the trace


@dataclass(frozen=True)
class Precision(Options):
    """How well the eigenvalues are to be known."""

    tolerance: float = setting(
        TOLERANCE, flag="tolerance", above=0, help="of the eigenvalues, relative"
    )


class Hessian(scipy.sparse.linalg.LinearOperator):
    """The Hessian of a network's mean loss over D_val, by its products with vectors.

    A product is the directional derivative (forward mode) of the gradient (reverse mode), computed
    in float32 and summed over the batches in float64.

    Args:
        model: gives logits; no variable is changed.
        val: D_val; its batches are those of the batch statistics.
        compile: XLA.
    """

    def __init__(self, model: keras.Model, val: Validation, *, compile: bool = False):
        weights = [tf.constant(value) for value in trainables(model)]
        shapes = [weight.shape for weight in weights]
        sizes = [shape.num_elements() for shape in shapes]
        total = loss_sum(model)

        def product(vector, images, labels):
            parts = tf.split(vector, sizes)
            parts = [tf.reshape(one, shape) for one, shape in zip(parts, shapes, strict=True)]
            with tf.autodiff.ForwardAccumulator(weights, parts) as forward:
                with tf.GradientTape() as tape:
                    tape.watch(weights)
                    loss = total(weights, images, labels)
                slopes = tape.gradient(loss, weights, unconnected_gradients="zero")
            curved = forward.jvp(slopes, unconnected_gradients="zero")
            return tf.concat([tf.reshape(one, [-1]) for one in curved], 0)

        self._product = tf.function(
            product, jit_compile=compile, autograph=False, reduce_retracing=True
        )
        self._batches, self._examples = batches_of(val), len(val)
        super().__init__(np.float64, (sum(sizes), sum(sizes)))

    def _matvec(self, vector: np.ndarray) -> np.ndarray:
        vector = np.asarray(vector, np.float64).reshape(-1)
        # A unit vector: float32 would lose small entries of a very long or short one.
        length = np.linalg.norm(vector)
        direction = tf.constant(vector / (length or 1.0), tf.float32)
        parts = [self._product(direction, *batch).numpy() for batch in self._batches]
        return sum(part.astype(np.float64) for part in parts) * (length / self._examples)


class Counted(scipy.sparse.linalg.LinearOperator):
    """A matrix whose products are counted and checked.

    Raises (a product):
        UserError: it is not finite.
    """

    def __init__(self, matrix: scipy.sparse.linalg.LinearOperator):
        self._matrix, self.products = matrix, 0
        super().__init__(np.float64, matrix.shape)

    def _matvec(self, vector: np.ndarray) -> np.ndarray:
        result = self._matrix.matvec(vector)
        if not np.isfinite(result).all():
            raise UserError(
                "a product with the Hessian is not finite: check the network's weights and images"
            )
        self.products += 1
        return result


@dataclass(frozen=True)
class Extremes:
    """The two ends of a spectrum.

    `residual_min` and `residual_max` are ||A v - lambda v|| / |lambda| of the unit eigenvectors,
    `products` counts those with the matrix, of these two checks as well.
    """

    lambda_min: float
    lambda_max: float
    residual_min: float
    residual_max: float
    products: int

    @property
    def condition_number(self) -> float:
        """|lambda_min / lambda_max|."""
        return abs(self.lambda_min / self.lambda_max)


def extremes(
    matrix: scipy.sparse.linalg.LinearOperator,
    *,
    tolerance: float = TOLERANCE,
    seed: int = SEED,
    most_restarts: int = MOST_RESTARTS,
) -> Extremes:
    """The smallest and the largest eigenvalue of a symmetric matrix.

    By ARPACK's implicitly restarted Lanczos method, which orthogonalises against all its vectors
    (scipy.sparse.linalg.eigsh).

    Args:
        matrix: float64 [n, n], n >= 3.
        tolerance: relative, of both eigenvalues.
        seed: of the vector that the iteration starts from.
        most_restarts: ends the search for eigenvalues that don't settle.

    Raises:
        UserError: the eigenvalues don't settle, or a product is not finite.
    """
    size, counted = matrix.shape[0], Counted(matrix)
    with progress.doing("Lanczos: the extreme eigenvalues of the Hessian"):
        try:
            values, vectors = scipy.sparse.linalg.eigsh(
                counted,
                k=2,
                which="BE",  # one at each end
                ncv=min(size, BASIS),
                v0=np.random.default_rng(seed).normal(size=size),
                tol=tolerance,
                maxiter=most_restarts,
            )
        except scipy.sparse.linalg.ArpackNoConvergence as error:
            raise UserError(
                f"the extreme eigenvalues did not settle to {tolerance:g} in {counted.products} "
                "products: give a larger --tolerance"
            ) from error
        residuals = [
            np.linalg.norm(counted.matvec(vector) - value * vector) / abs(value)
            for value, vector in zip(values, vectors.T, strict=True)
        ]
    found = [*map(float, values), *map(float, residuals)]
    return Extremes(*found, products=counted.products)


def trace(matrix: scipy.sparse.linalg.LinearOperator, *, probes: int = PROBES) -> float:
    """The trace of a symmetric matrix: the mean of v A v over random vectors of ones and minus ones
    (Hutchinson 1990), the same ones in every call.

    Raises:
        UserError: a product is not finite.
    """
    rng, counted = np.random.default_rng(SEED), Counted(matrix)
    with progress.doing(f"the trace of the Hessian by {progress.count(probes, 'probe')}"):
        vectors = (rng.choice([-1.0, 1.0], matrix.shape[0]) for _ in range(probes))
        return float(np.mean([vector @ counted.matvec(vector) for vector in vectors]))


def smoothness(
    model: keras.Model, val: Validation, *, tolerance: float = TOLERANCE, compile: bool = False
) -> dict:
    """The condition number of a network with all that goes with it.

    Args:
        model: gives logits; not changed.

    Returns:
        {"condition_number", "lambda_min", "lambda_max", "residual_min", "residual_max",
        "products", "seconds", "val_loss", "trainables", "flops", "parameters"}; seconds contain the
        tracing, `val_loss` is the mean cross-entropy with batch statistics.

    Raises:
        UserError: as `extremes`.
    """
    begin = time.perf_counter()
    hessian = Hessian(model, val, compile=compile)
    found = extremes(hessian, tolerance=tolerance)
    seconds = time.perf_counter() - begin
    return {"condition_number": found.condition_number, **asdict(found)} | {
        "seconds": seconds,
        "val_loss": make_mean_loss(model, val, compile=compile)(trainables(model)),
        "trainables": hessian.shape[0],
        "flops": ChannelGraph(model).flops(),
        "parameters": model.count_params(),
    }


def smoothness_table(results: dict) -> str:
    """A result file as a Markdown table, one row per network."""
    rows = [
        [
            name,
            f"{one['flops']:,}",
            f"{one['val_loss']:.4f}",
            f"{one['lambda_max']:.4g}",
            f"{one['lambda_min']:.4g}",
            f"{one['condition_number']:.4f}",
            f"{one['products']} / {one['seconds']:.0f}",
        ]
        for name, one in results["networks"].items()
    ]
    header = ["network", "FLOPs", "D_val loss", "λ_max", "λ_min", "condition number"]
    return table([*header, "products / seconds"], rows)


@unreadable_named()
def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = manners.Parser(
        prog="python -m ekg_tf.experiments.smoothness", description=__doc__.split("\n")[0]
    )
    networks.add_networks(parser)
    flags.add_device(parser)
    flags.add_settings(parser, Precision)
    machine.add_out(parser)
    args = parser.parse_args(argv)
    precision, out = choices.made(Precision, args), args.out
    device = choices.device_of(args)
    subjects = networks.subjects_of(args)

    def one(model: keras.Model) -> dict:
        return smoothness(
            model, subjects.val, tolerance=precision.tolerance, compile=device.compile
        )

    settings = subjects.settings() | precision.flags()
    results = networks.measure(settings, subjects.networks, subjects.digests, one, out)
    print(smoothness_table(results))


if __name__ == "__main__":
    manners.run(main)
