"""Wall time and peak memory of the whole `search.py`, once per evaluator, one after the other.

    python -m ekg_tf.benchmarks.whole_search --evaluators exact,fast --out whole_search.json \\
        --train_path NEW_FOLDER -- --arch ResNet-56 --dataset CIFAR10 --data_path DIR \\
        --trained_param res56_cifar10.pkl --search_target_rate 0.45

Everything behind `--` goes to search.py. The time holds the start of Python, the adaptation of the
network, the search, the memory bank and the test before and after. Rows of other evaluators that
the file --out holds already, of the same flags, are kept. A search that was there in part is
resumed: its row says so, and its time is that of the rest.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

from ..cli import manners
from ..utils import devices

devices.import_tensorflow()

from ..reports import machine
from ..utils.errors import UserError
from ..utils.jsonl import read_json

ROOT = Path(__file__).resolve().parent.parent
KEPT = ("steps", "evaluations", "flops_rate", "val_loss", "val_accuracy", "seconds", "test")


def measure(evaluator: str, path: Path, flags: list[str]) -> dict:
    """Runs search.py and returns its figures, wall seconds and peak resident memory in MB.

    Raises:
        UserError: it failed; its own message is on the screen.
    """
    command = [sys.executable, "search.py", *flags]
    command += ["--evaluator", evaluator, "--train_path", str(path)]
    resumed = (path / "history.jsonl").exists()
    begin = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise UserError(f"search.py ended with status {os.waitstatus_to_exitcode(status)}")
    results = read_json(path / "search.json")
    return {
        "evaluator": evaluator,
        "resumed": resumed,
        "wall_seconds": time.perf_counter() - begin,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_memory_mb": usage.ru_maxrss / 1024,
        **{key: results[key] for key in KEPT},
    }


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = manners.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--evaluators", default="exact,fast")
    parser.add_argument("--train_path", type=Path, required=True, help="folder of the run folders")
    parser.add_argument("--gpu_id", default="0", help='one GPU number, or "cpu"; default: 0')
    machine.add_out(parser)
    parser.add_argument("flags", nargs="*", help="of search.py, behind --")
    args = parser.parse_args(argv)
    devices.choose(devices.gpu_ids(args.gpu_id))
    about = machine.describe()
    former = read_json(args.out) if args.out and args.out.exists() else {}
    if former and former["flags"] != args.flags:
        raise UserError(f"{args.out} holds searches with other flags: give another --out")
    wanted = args.evaluators.split(",")
    kept = [row for row in former.get("runs", []) if row["evaluator"] not in wanted]
    flags = [*args.flags, "--gpu_id", args.gpu_id]
    rows = [measure(one, args.train_path / one, flags) for one in wanted]
    about["matmul_gflops_after"] = round(machine.matmul_gflops(), 1)
    machine.report({"machine": about, "flags": args.flags, "runs": kept + rows}, args.out)


if __name__ == "__main__":
    manners.run(main)
