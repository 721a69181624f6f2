"""Peak memory and images per second of photographs that don't fit into memory.

    python -m ekg_tf.benchmarks.data_memory --images 100000 --out docs/results/data_memory.json

JPEG photographs of noise and shapes are made in --folder, unless it holds them already. Each way of
reading has a process of its own: "folder" streams the files, "stream" is a tf.data.Dataset of them
that is kept in a scratch folder (TMPDIR). "peak_mib" is the process's largest resident memory,
"start_mib" that of TensorFlow and the networks alone before any image is read. Images/s are of one
epoch of one view each with flip, crop and jitter, after its first batch; beside it the training
step of a small network on a batch that is there already, in the same process.
"""

from __future__ import annotations

from ..cli import flags, manners
from ..utils import devices

devices.import_tensorflow()

import argparse
import functools
import json
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from PIL import Image, ImageDraw

from ..dataloader import Dataset, own, train_batches
from ..dataloader.fit import Fit, Output
from ..dataloader.given_data import read
from ..op_utils import make_train_step
from ..options.data import Data
from ..reports import machine
from .own_process import in_own_process

CLASSES, BATCH, TEST_SHARE = 10, 64, 100  # of so many images one is for testing
WAYS = ("folder", "stream")
STEPS = 20


def make_photos(folder: Path, count: int, side: int) -> int:
    """Makes {train,test}/<class>/<number>.jpg where they are missing; returns their bytes."""
    for split in ("train", "test"):
        for label in range(CLASSES):
            (folder / split / str(label)).mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor() as pool:
        return sum(pool.map(functools.partial(_photo, folder, side), range(count), chunksize=100))


def _photo(folder: Path, side: int, number: int) -> int:
    split = "test" if number % TEST_SHARE == 0 else "train"
    path = folder / split / str(number // TEST_SHARE % CLASSES) / f"{number:07d}.jpg"
    if not path.exists():
        rng = np.random.default_rng(number)
        angle = np.linspace(0, 1, side, dtype=np.float32)[:, None] * rng.uniform(2, 12, (2, 1, 3))
        rows, columns = np.exp(1j * angle).astype(np.complex64)
        waves = (rows[:, None] * columns[None]).imag
        top, left = rng.integers(0, side, 2)
        pixels = 128 + 60 * waves + _noise(side)[top : top + side, left : left + side]
        image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        pen = ImageDraw.Draw(image)
        for left, top, width, height in rng.uniform(0, side / 2, (6, 4)):
            colour = tuple(int(one) for one in rng.integers(0, 256, 3))
            pen.ellipse([left, top, left + width + 4, top + height + 4], fill=colour)
        image.save(path, quality=85)
    return path.stat().st_size


@functools.cache
def _noise(side: int) -> np.ndarray:
    """Twice as large as a photograph, which takes a piece of it."""
    noise = np.random.default_rng(0).normal(0, 9, (2 * side, 2 * side, 3))
    return noise.astype(np.float32)


def _stream(folder: Path, side: int) -> tf.data.Dataset:
    """(image uint8, label) of a folder's files, as users write it."""
    paths = sorted(str(path) for path in folder.glob("*/*.jpg"))

    def load(path: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
        image = tf.cast(tf.round(tf.image.resize(image, [side, side])), tf.uint8)
        label = tf.strings.to_number(tf.strings.split(path, "/")[-2], tf.int32)
        return tf.ensure_shape(image, [side, side, 3]), label

    return tf.data.Dataset.from_tensor_slices(paths).shuffle(len(paths)).map(load, tf.data.AUTOTUNE)


def load(way: str, folder: Path, side: int, options: Data) -> Dataset:
    """The data set of the photographs."""
    shape = (side, side, 3)
    if way == "folder":
        return own.load(str(folder), shape, options)
    fit = Fit(("image",), (shape,), (Output("label", "classes", (CLASSES,)),))
    splits = [_stream(folder / split, side) for split in ("train", "test")]
    return own.dataset(*read(*splits, fit, options, "the benchmark"), options)


def network(side: int) -> keras.Model:
    """Three convolutions, a quarter of the side at first."""
    layers = [keras.Input((side, side, 3)), keras.layers.Rescaling(1 / 255)]
    for width, stride in ((16, 4), (32, 2), (64, 2)):
        layers += [
            keras.layers.Conv2D(width, 3, stride, "same", use_bias=False),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
        ]
    layers += [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(CLASSES)]
    return keras.Sequential(layers)


def step_rate(side: int) -> float:
    """Images per second of a training step alone."""

    def loss_fn(outputs, batch, taught):
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(batch["targets"], outputs[0])
        return tf.reduce_mean(losses), {}

    optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
    steps = make_train_step(network(side), optimizer, loss_fn, tf.distribute.get_strategy())
    batch = {"inputs": tf.zeros([BATCH, 1, side, side, 3]), "targets": tf.zeros([BATCH], tf.int32)}
    batches = iter(tf.data.Dataset.from_tensors(batch).repeat())

    def run() -> None:
        steps(batches, tf.constant(STEPS))["loss"].numpy()

    return BATCH * STEPS / machine.median_seconds(run, runs=3, warm_up=1)


def measure(way: str, folder: Path, side: int, memory: float) -> dict[str, float | int | str]:
    """Reads the photographs and runs an epoch, in this process."""
    step = step_rate(side)
    start = _memory("VmRSS")
    begin = time.perf_counter()
    data = load(way, folder, side, Data(memory=memory))
    ready = time.perf_counter() - begin
    batches = train_batches(data, None, BATCH, seed=0, epoch=0, views=1, augment=True, jitter=True)
    seen, first = 0, 0.0
    for batch in batches:
        if not first:
            first = time.perf_counter()
        else:
            seen += int(batch["inputs"].shape[0])
    seconds = time.perf_counter() - first
    return {
        "way": way,
        "held": type(data.train.inputs).__name__ if way == "stream" else type(data.train).__name__,
        "start_mib": round(start),
        "peak_mib": round(_memory("VmHWM")),
        "ready_seconds": round(ready, 1),
        "epoch_images": seen + BATCH,
        "pipeline_images_per_second": round(seen / seconds),
        "step_images_per_second": round(step),
    }


def _memory(field: str) -> float:
    """MiB of a field of /proc/self/status; VmHWM is the largest resident size so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = manners.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=flags.count, default=3000, help="default: 3000")
    parser.add_argument("--side", type=flags.count, default=224, help="in pixels; default: 224")
    parser.add_argument("--memory", type=float, default=1.0, help="limit in GiB; default: 1")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(tempfile.gettempdir(), "ekg_tf_photos"),
        help="of the photographs; default: ekg_tf_photos in TMPDIR",
    )
    parser.add_argument(
        "--idle", action="store_true", help="nothing else ran, so that seconds count; default: off"
    )
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)  # of a process of its own
    machine.add_out(parser)
    args = parser.parse_args(argv)
    if args.way:
        print(json.dumps(measure(args.way, args.folder, args.side, args.memory)))
        return
    folder = args.folder / f"{args.images}_{args.side}"
    size = make_photos(folder, args.images, args.side)
    about = {
        "images": args.images,
        "side": args.side,
        "jpeg_kib": round(size / args.images / 1024, 1),
        "decoded_mib": round(args.images * args.side**2 * 3 / 2**20),
        "limit_mib": round(args.memory * 1024),
        "batch_images": BATCH,
    }
    ways = [_in_own_process(way, folder, args) for way in WAYS]
    machine.report(
        about | {"machine": machine.describe(), "idle": args.idle, "ways": ways}, args.out
    )


def _in_own_process(way: str, folder: Path, args: argparse.Namespace) -> dict:
    settings = ("--way", way, "--folder", folder, "--side", args.side, "--memory", args.memory)
    return in_own_process("data_memory", settings, f"reading by {way}")


if __name__ == "__main__":
    manners.run(main)
