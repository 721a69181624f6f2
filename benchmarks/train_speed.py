"""Images per second of a two-view fine-tuning step, beside plain Keras `train_on_batch`.

    python -m ekg_tf.benchmarks.train_speed --arch ResNet-56 --out docs/results/train_speed.json

Every variant takes a step in turn, for some rounds, so that noise hits all alike; one that took
five times as long as the fastest is left out of the rounds that follow. The first step of each,
which traces and compiles, is reported apart. A view counts as an image: a step of batch 128 sees
256. Images are random, CIFAR-10's size; the loss is that of the memory bank with 5 teachers.
"""

from ..cli import flags, manners
from ..utils import devices

devices.import_tensorflow()

import itertools
import time
from collections.abc import Callable
from fnmatch import fnmatch
from functools import partial

import keras
import numpy as np
import tensorflow as tf

from ..nets.rebuild import to_policy
from ..nets.zoo.builders import build
from ..nets.zoo.load import load_network
from ..op_utils import make_train_step
from ..pruning.knowledge.distill import ensemble_loss
from ..reports import machine
from ..training.task import classification
from ..utils.errors import UserError
from . import input_pipeline

TEACHERS, VIEWS = 5, 2
CLASSES = {32: 10, 224: 1000}  # by the side of an image
HOPELESS = 5  # times the fastest variant's step


def random_batch(images: int, side: int) -> dict[str, np.ndarray]:
    """A fine-tuning batch of two views and five teachers."""
    rng, classes = np.random.default_rng(0), CLASSES[side]
    return {
        "inputs": rng.normal(size=(images, VIEWS, side, side, 3)).astype(np.float32),
        "targets": rng.integers(0, classes, images, np.int32),
        "teacher": rng.normal(size=(images, classes, TEACHERS)).astype(np.float32),
    }


def sgd() -> keras.optimizers.Optimizer:
    return keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True)


def our_step(model: keras.Model, batch: dict, *, mixed: bool, compile: bool, accum: int):
    """A function that takes one two-view step of op_utils."""
    trained = to_policy(model, "mixed_bfloat16" if mixed else "float32")
    steps = make_train_step(
        trained,
        sgd(),
        ensemble_loss(classification(), 4.0),
        tf.distribute.get_strategy(),
        accum=accum,
        weight_decay=5e-4,
        compile=compile,
    )
    batches = iter(tf.data.Dataset.from_tensors(batch).repeat())
    return lambda: steps(batches, tf.constant(1))["loss"].numpy()


def keras_step(model: keras.Model, batch: dict, *, compile: bool):
    """A function that takes one `train_on_batch` of as many images, by cross-entropy alone."""
    trained = to_policy(model, "float32")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trained.compile(sgd(), loss, jit_compile=compile)
    images = batch["inputs"].reshape(-1, *batch["inputs"].shape[2:])
    labels = np.repeat(batch["targets"], VIEWS)
    return lambda: trained.train_on_batch(images, labels)


def all_variants(model: keras.Model, batch: dict, chosen: list[str]) -> dict[str, Callable]:
    """Steps by name: those whose name fits one of the shell patterns `chosen`."""
    made = {}
    for xla, mixed, accum in itertools.product((False, True), (False, True), (1, 4)):
        name = f"two-view step{', XLA' * xla}{', bfloat16' * mixed}, accum {accum}"
        made[name] = partial(our_step, model, batch, mixed=mixed, compile=xla, accum=accum)
    for xla in (False, True):
        name = f"Keras train_on_batch{', XLA' * xla}"
        made[name] = partial(keras_step, model, batch, compile=xla)
    fits = {name for name in made for pattern in chosen if fnmatch(name, pattern)}
    return {name: make() for name, make in made.items() if name in fits}


def measure(variants: dict[str, Callable[[], object]], images: int, rounds: int) -> list[dict]:
    """Median images per second of every variant, one step of each in turn."""
    first = {}
    for name, step in variants.items():
        begin = time.perf_counter()
        step()
        first[name] = time.perf_counter() - begin
        print(f"{name}: first step {first[name]:.1f} s", flush=True)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    left = variants
    for _ in range(rounds):
        for name, step in left.items():
            begin = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - begin)
        slowest = HOPELESS * min(min(one) for one in seconds.values())
        left = {name: step for name, step in left.items() if min(seconds[name]) <= slowest}
    return [
        {
            "name": name,
            "first_step_seconds": first[name],
            "images_per_second": images / float(np.median(seconds[name])),
        }
        for name in variants
    ]


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = manners.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="ResNet-56")
    parser.add_argument(
        "--trained_param", help="a .keras network for 10 classes, e.g. a pruned one"
    )
    parser.add_argument("--batch_size", type=flags.count, default=128)
    parser.add_argument("--side", type=int, choices=CLASSES, default=32, help="of the images")
    parser.add_argument(
        "--variants", nargs="+", default=["*"], help='patterns of their names; default: "*"'
    )
    parser.add_argument("--rounds", type=flags.count, default=5)
    parser.add_argument("--gpu_id", type=devices.gpu_ids, default=[0])
    machine.add_out(parser)
    args = parser.parse_args(argv)
    devices.choose(args.gpu_id[:1])
    about = machine.describe()
    shape = (args.side, args.side, 3)
    if args.trained_param:
        model = load_network(args.trained_param, args.arch, CLASSES[args.side], shape)
    else:
        model = build(args.arch, CLASSES[args.side], shape)
    variants = all_variants(model, random_batch(args.batch_size, args.side), args.variants)
    if not variants:
        raise UserError(f"no variant is named like {' or '.join(args.variants)}")
    images = args.batch_size * VIEWS
    results = measure(variants, images, args.rounds)
    figures = {
        "machine": about,
        "network": args.trained_param or args.arch,
        "images_per_step": images,
        "steps": results,
    }
    if args.side == input_pipeline.SIDE:
        pipeline = input_pipeline.measure(input_pipeline.random_data(), VIEWS, 50)
        figures["input_pipeline_images_per_second"] = pipeline["images_per_second"]
    machine.report(figures, args.out)


if __name__ == "__main__":
    manners.run(main)
