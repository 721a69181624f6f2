"""Images per second of the training input pipeline, without a network.

    python -m ekg_tf.benchmarks.input_pipeline --out input_pipeline.json

Random uint8 data of CIFAR-10's size, batches of 128, contrast and saturation jitter, flip and
crop. "start_seconds" runs up to the first batch (what every epoch pays); images/s are of the
--batches after it. An image in two views counts as two images.
"""

from __future__ import annotations

from ..utils import devices

devices.import_tensorflow()

import time

import numpy as np

from ..cli import flags, manners
from ..dataloader import Dataset, Split, train_batches
from ..reports import machine
from ..utils.provenance import cpu_count

TRAIN_IMAGES = 50_000
SIDE = 32
BATCH_IMAGES = 128


def random_data() -> Dataset:
    """CIFAR-10's shapes and settings with random pixels."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (TRAIN_IMAGES, SIDE, SIDE, 3), np.uint8)
    labels = rng.integers(0, 10, TRAIN_IMAGES).astype(np.int32)
    split = Split(images, labels)
    return Dataset(
        name="CIFAR10",
        train=split,
        test=split,
        class_names=tuple("0123456789"),
        mean=np.full(3, 120, np.float32),
        std=np.full(3, 64, np.float32),
        pad=4,
        flip=True,
        jitter=0.2,
        subset_per_class=256,
        val_per_class=32,
    )


def measure(data: Dataset, views: int, batches: int) -> dict[str, float]:
    """Seconds to the first batch and images/s afterwards."""
    start = time.perf_counter()
    pipeline = train_batches(
        data, None, BATCH_IMAGES, seed=0, epoch=0, views=views, augment=True, jitter=True
    )
    iterator = iter(pipeline.take(batches + 1))
    next(iterator)
    first = time.perf_counter()
    timed = sum(int(batch["inputs"].shape[0]) * views for batch in iterator)
    seconds = time.perf_counter() - first
    return {
        "views": views,
        "start_seconds": round(first - start, 3),
        "images_per_second": round(timed / seconds),
    }


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = manners.Parser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--batches", type=flags.count, default=200, help="timed batches of 128 images"
    )
    machine.add_out(parser)
    args = parser.parse_args(argv)
    data = random_data()
    results = [measure(data, views, args.batches) for views in (1, 2)]
    about = {"batch_images": BATCH_IMAGES, "cpus": cpu_count()}
    machine.report(about | {"pipelines": results}, args.out)


if __name__ == "__main__":
    manners.run(main)
