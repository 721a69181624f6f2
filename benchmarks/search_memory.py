"""Peak memory and seconds a step of searches on photographs, with and without a limit of memory.

    python -m ekg_tf.benchmarks.search_memory --photos DIR --out docs/results/search_memory.json

DIR holds class/*.jpg (or .JPEG). The networks are those of keras.applications with random weights:
what a search takes and how long doesn't depend on them. Each row is a process of its own that looks
at the network (`inspect`), adapts it to 64 photographs and searches by `ekg.run_search` until a
little of the FLOPs has gone, the tests at the end included.

* "peak_mib" is its largest resident memory; "example_mib" what an example takes in the importance
  pass, whole and segment by segment, and in a forward pass.
* "first_step_seconds" includes tracing, "step_seconds" is the mean of the steps behind the first.
* "choices" is a digest of what was removed in every step, "numbers" one of the losses and rewards
  to their last bit.

Rows that are in --out already are kept: an interrupted run goes on. A row is named
NETWORK,D_VAL,BATCH,EVALUATOR,LIMIT with a limit in GiB or "none".
"""

from __future__ import annotations

from ..cli import flags, manners
from ..utils import devices

devices.import_tensorflow()

import argparse
import hashlib
import json
import resource
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
from PIL import Image

from .. import api
from ..nets.given import Given
from ..nets.graph import ChannelGraph
from ..options.budgets import Flops
from ..options.data import Data, Sampling
from ..options.methods import EKG
from ..pruning.engine.memory import EXAMPLES, needs_of
from ..pruning.engine.validation import Validation
from ..reports import machine
from ..training.task import classification
from ..utils.errors import UserError
from ..utils.jsonl import read_json, read_rows
from .own_process import in_own_process

SIDE, CLASSES, SUBSET, TEST, SEED = 224, 20, 64, 64, 0
RATE = 0.985  # of the FLOPs, after one step or a few
ROWS = (
    "MobileNetV2,100,50,exact,none",
    "MobileNetV2,100,50,exact,3.5",
    "ResNet50,400,50,fast,none",
    "ResNet50,400,50,fast,6",
)


def read_photos(folder: Path, count: int) -> np.ndarray:
    """Photographs of as many classes as there are, uint8 [count, SIDE, SIDE, 3].

    Raises:
        UserError: the folder holds fewer.
    """
    paths = sorted(path for path in folder.glob("*/*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if len(paths) < count:
        raise UserError(f"{folder} holds {len(paths)} photographs: {count} are needed")
    return np.stack([_photo(path) for path in paths[:count]])


def _photo(path: Path) -> np.ndarray:
    image = Image.open(path).convert("RGB")
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return np.asarray(image.crop((left, top, left + side, top + side)).resize((SIDE, SIDE)))


def measure(row: str, photos: Path) -> dict:
    """One search, in this process."""
    network, examples, batch, evaluator, limit = row.split(",")
    images = read_photos(photos, int(examples) + SUBSET + TEST)
    labels = np.arange(len(images), dtype=np.int32) % CLASSES
    keras.utils.set_random_seed(SEED)
    build = getattr(keras.applications, network)
    model = build(weights=None, input_shape=(SIDE, SIDE, 3), classes=CLASSES)
    begin = time.perf_counter()
    api.inspect(model)
    inspected = time.perf_counter() - begin
    start = _peak_mib()
    with tempfile.TemporaryDirectory(prefix="ekg_tf_memory_") as folder:
        begin = time.perf_counter()
        api.run_search(
            model,
            (images[TEST:], labels[TEST:]),
            (images[:TEST], labels[:TEST]),
            Path(folder, "run"),
            budget=Flops(RATE),
            method=EKG(evaluator=evaluator, memory=None if limit == "none" else float(limit)),
            sampling=Sampling(subset=SUBSET, val=int(examples), batch_size=int(batch)),
            data=Data(mean=(127.5,), std=(127.5,)),
            log=False,
            val_batch_size=TEST,
        )
        seconds = time.perf_counter() - begin
        history = read_rows(Path(folder, "run", "history.jsonl"))
    peak = _peak_mib()
    steps = [one["seconds"]["importance"] + one["seconds"]["proposals"] for one in history[1:]]
    return {
        "row": row,
        "network": network,
        "side": SIDE,
        "examples": int(examples),
        "batch": int(batch),
        "evaluator": evaluator,
        "limit_gib": None if limit == "none" else float(limit),
        "inspect_seconds": round(inspected, 1),
        "first_step_seconds": round(steps[0], 1),
        "step_seconds": round(float(np.mean(steps[1:])), 1) if steps[1:] else None,
        "steps": len(steps),
        "wall_seconds": round(seconds, 1),
        "start_mib": round(start),
        "peak_mib": round(peak),
        "example_mib": _of_an_example(model, images, labels),
        "choices": digest([one["removed_units"] for one in history]),
        "numbers": digest([[one["val_loss"], one["reward"]] for one in history]),
    }


def _of_an_example(model: keras.Model, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """MiB of an example in the importance pass, whole and segment by segment, and forwards."""
    few = Validation(images[:EXAMPLES].astype(np.float32), labels[:EXAMPLES], EXAMPLES)
    settings = {"cache_bytes": 0, "slopes": False, "ranking": True}
    graph = ChannelGraph(Given.read(model).core)
    needs = needs_of(graph, few, EXAMPLES, EXAMPLES, classification(), **settings)
    names = ("whole", "recomputed", "forward")
    return {name: round(getattr(needs, name) / 2**20 / EXAMPLES, 1) for name in names}


def digest(values: list) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = manners.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=flags.as_path, required=True, help="folder class/*.jpg")
    parser.add_argument("--rows", nargs="+", default=ROWS, help=f"default: {' '.join(ROWS)}")
    parser.add_argument(
        "--idle", action="store_true", help="nothing else ran, so that seconds count; default: off"
    )
    parser.add_argument("--row", help=argparse.SUPPRESS)  # of a process of its own
    machine.add_out(parser)
    args = parser.parse_args(argv)
    if args.row:
        print(json.dumps(measure(args.row, args.photos)))
        return
    former = read_json(args.out) if args.out and args.out.exists() else {"rows": []}
    done = {one["row"]: one for one in former["rows"]}
    about = former.get("machine") or machine.describe()
    for row in args.rows:
        if row not in done:
            done[row] = _in_own_process(row, args)
            facts = {"wanted": ROWS, "subset": SUBSET, "test": TEST, "idle": args.idle}
            results = {"machine": about} | facts | {"rows": list(done.values())}
            machine.report(results, args.out)


def _in_own_process(row: str, args: argparse.Namespace) -> dict:
    settings = ("--row", row, "--photos", args.photos)
    return in_own_process("search_memory", settings, f"the search {row}")


if __name__ == "__main__":
    manners.run(main)
