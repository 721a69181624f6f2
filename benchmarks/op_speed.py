"""Where a forward pass spends its time: every operation of a network alone, by kind and width.

    python -m ekg_tf.benchmarks.op_speed --arch ResNet-56 --out docs/results/op_speed.json
    TF_ENABLE_ONEDNN_OPTS=0 python -m ekg_tf.benchmarks.op_speed --arch ResNet-56 \\
        --out docs/results/op_speed_without_onednn.json

Batch-norm statistics are those of the batch, as in the search. A convolution's rate counts two
operations per multiply-add; the rate of a matrix product of the same run says what is possible.
"""

from ..cli import flags, manners
from ..utils import devices

devices.import_tensorflow()

from collections import defaultdict

import keras
import numpy as np
import tensorflow as tf

from ..nets.graph import Call, ChannelGraph
from ..nets.zoo.builders import build
from ..pruning.engine.current import CurrentNetwork
from ..pruning.engine.segments import Segments
from ..pruning.engine.validation import Validation
from ..reports import machine

CLASSES, SHAPE = 10, (32, 32, 3)
WIDTHS = (6, 7, 8, 9, 12, 15, 16, 24, 31, 32)
SHARES = (1.0, 0.85, 0.7)  # of every width that remains


def seconds_of(parts: Segments, weights: dict, call: Call, images: int) -> float:
    """Median seconds of one call of the network on random activations."""
    rng = np.random.default_rng(0)
    inputs = [
        tf.constant(rng.normal(size=(images, *tensor.shape[1:])), tf.float32)
        for tensor in call.inputs
    ]
    layer = call.operation
    if layer.name in weights:
        x, values = inputs[0], weights[layer.name]
        run = tf.function(lambda: parts.layers[layer.name].apply(x, values, training=True))
    else:
        run = tf.function(lambda: layer(inputs if len(inputs) > 1 else inputs[0]))
    return machine.median_seconds(lambda: run().numpy(), runs=5)


def by_kind(graph: ChannelGraph, images: int) -> list[dict]:
    """Seconds of all calls of the same kind and output shape together."""
    parts = Segments(graph)
    weights = parts.weights(graph.open_mask())
    groups = defaultdict(list)
    for call in graph.calls:
        groups[type(call.operation).__name__, call.outputs[0].shape[1:]].append(call)
    rows = []
    for (kind, shape), calls in groups.items():
        seconds = sum(seconds_of(parts, weights, call, images) for call in calls)
        row = {"kind": kind, "shape": list(shape), "calls": len(calls), "seconds": seconds}
        if kind == "Conv2D":
            kernels = sum(np.prod(call.operation.kernel.shape) for call in calls)
            row["gflops"] = 2e-9 * images * float(np.prod(shape[:-1]) * kernels) / seconds
        rows.append(row)
        print(row, flush=True)
    return rows


def by_width(images: int) -> list[dict]:
    """Rate of a 3 x 3 convolution of equally many input and output channels on 16 x 16."""
    rows = []
    for width in WIDTHS:
        x = tf.random.stateless_normal([images, 16, 16, width], [0, 0])
        kernel = tf.random.stateless_normal([3, 3, width, width], [0, 1])
        run = tf.function(lambda x=x, kernel=kernel: keras.ops.conv(x, kernel, padding="same"))
        seconds = machine.median_seconds(lambda run=run: run().numpy())
        rate = 2e-9 * images * 16 * 16 * 9 * width**2 / seconds
        rows.append({"width": width, "seconds": seconds, "gflops": rate})
    return rows


def side_by_side(graph: ChannelGraph, images: int) -> list[dict]:
    """Seconds of a forward pass of two sub-networks of uniform widths at a time, as in a search."""
    shape = graph.model.inputs[0].shape[1:]
    pixels = np.random.default_rng(0).normal(size=(images, *shape)).astype(np.float32)
    network = CurrentNetwork(graph, Validation(pixels, np.zeros(images, np.int32), images))
    rows = []
    for share in SHARES:
        mask = graph.open_mask()
        for group in graph.groups:
            mask[group.start : group.start + group.channels - round(share * group.channels)] = 0
        seconds = machine.median_seconds(lambda mask=mask: network.evaluate([mask, mask]))
        rows.append({"flops_rate": graph.flops(mask) / graph.flops(), "seconds": seconds})
    return rows


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = manners.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="ResNet-56")
    parser.add_argument("--images", type=flags.count, default=160, help="per batch")
    machine.add_out(parser)
    args = parser.parse_args(argv)
    devices.choose([])
    about = machine.describe()
    graph = ChannelGraph(build(args.arch, CLASSES, SHAPE))
    rows = by_kind(graph, args.images)
    widths = by_width(args.images)
    networks = side_by_side(graph, args.images)
    about["matmul_gflops_after"] = round(machine.matmul_gflops(), 1)
    results = {"machine": about, "network": args.arch, "images": args.images}
    results |= {"kinds": rows, "widths": widths, "networks": networks}
    machine.report(results, args.out)


if __name__ == "__main__":
    manners.run(main)
