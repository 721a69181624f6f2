"""Every network of keras.applications through the channel graph, for docs/models.md.

    python -m ekg_tf.benchmarks.models [--networks ResNet50 VGG16]

Each network is built with random weights at its default image size for the counts, and at a small
one for the proof: random batch norms and biases, 60 % of the filters of every group kept at random,
masked against pruned logits on 8 random images. Results are kept in docs/results/models.json after
every network; networks in it are not measured again. `python -m ekg_tf.pages.models` writes
docs/models.md from that file.
"""

from __future__ import annotations

from ..utils import devices

devices.import_tensorflow()

import json
import time
from pathlib import Path

import keras
import numpy as np

from ..cli import manners
from ..nets.graph import ChannelGraph
from ..nets.proof import agreement
from ..nets.zoo.applications import application_names
from ..nets.zoo.applications import fresh_application as application
from ..reports.inspection import inspection
from ..utils.files import atomic_write

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs/results/models.json"
SMALLEST = {"InceptionV3": 75, "InceptionResNetV2": 75, "Xception": 71}
PROOF_IMAGES, CALIBRATION_IMAGES, KEEP = 8, 32, 0.6


def small(name: str) -> keras.Model:
    """A network of keras.applications for ten classes and the smallest images it takes, or 64."""
    size = SMALLEST.get(name, 64)
    return application(name, input_shape=(size, size, 3), classes=10)


def random_mask(graph: ChannelGraph, keep: float, rng: np.random.Generator) -> np.ndarray:
    """A unit mask that keeps this share of every group, at least one filter."""
    mask = graph.open_mask()
    for gate in graph.groups:
        kept = max(1, round(keep * gate.channels))
        mask[gate.start + rng.permutation(gate.channels)[kept:]] = 0
    return mask


def randomise(graph: ChannelGraph, rng: np.random.Generator) -> None:
    """Biases, scales and shifts that are not fresh, which would hide mistakes."""
    for variable in graph.model.weights:
        if variable.name == "gamma":
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        elif variable.name in ("beta", "bias"):
            variable.assign(rng.uniform(-0.4, 0.4, variable.shape))


def prune_and_calibrate(
    graph: ChannelGraph, mask: np.ndarray, images: np.ndarray, rng: np.random.Generator
) -> keras.Model:
    """The pruned network with moving statistics near those of its activations.

    The kept channels of the original network get the same ones. Without them the activations of a
    deep random network overflow or vanish, and rounding errors grow with them.
    """
    pruned = graph.pruned(mask)
    norms = [one for one in pruned.layers if isinstance(one, keras.layers.BatchNormalization)]
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 0.0
    pruned(images, training=True)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum
        variance = layer.moving_variance.numpy()
        # A channel that hardly varies here would be magnified until rounding errors show.
        variance = np.maximum(variance, variance.mean()) * rng.uniform(0.7, 1.4, variance.shape)
        shift = 0.3 * np.sqrt(variance) * rng.normal(size=variance.shape)
        layer.moving_mean.assign(layer.moving_mean + shift)
        layer.moving_variance.assign(variance)
        original = graph.model.get_layer(layer.name)
        kept = mask[graph.units[layer.name][1]] > 0
        for name in ("moving_mean", "moving_variance"):
            values = getattr(original, name).numpy()
            values[kept] = getattr(layer, name).numpy()
            getattr(original, name).assign(values)
    return pruned


def prove(model: keras.Model, *, batch_statistics: bool = False) -> dict:
    """`agreement` of a randomised network, and what was measured beside it."""
    rng = np.random.default_rng(0)
    graph = ChannelGraph(model)
    randomise(graph, rng)
    mask = random_mask(graph, KEEP, rng)
    shape = model.input_shape[1:]
    images = rng.normal(0.2, 1, (CALIBRATION_IMAGES, *shape)).astype(np.float32)
    pruned = prune_and_calibrate(graph, mask, images, rng)
    proof = agreement(graph, mask, pruned, images[:PROOF_IMAGES], batch_statistics=batch_statistics)
    counted = pruned.count_params() == graph.parameters(mask)
    return proof | {"image_size": shape[0], "parameters_counted": counted}


def measure(name: str) -> dict:
    """All figures of one network."""
    model = application(name)
    begin = time.perf_counter()
    graph = ChannelGraph(model)
    seconds = time.perf_counter() - begin
    result = inspection(graph)
    size = model.input_shape[1]
    counted = sum(group["prunable"] for group in result.pop("groups"))
    del model, graph
    keras.backend.clear_session()
    result |= {"groups": counted, "image_size": size, "graph_seconds": round(seconds, 2)}
    result["proof"] = prove(small(name))
    keras.backend.clear_session()
    return result


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = manners.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=application_names(), metavar="NAME")
    args = parser.parse_args(argv)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in args.networks or application_names():
        if name not in results:
            results[name] = measure(name)
            text = json.dumps(results, indent=1) + "\n"
            atomic_write(RESULTS, lambda path, text=text: path.write_text(text))
            print(name, json.dumps(results[name]), flush=True)


if __name__ == "__main__":
    manners.run(main)
