"""How much a fresh virtual environment takes on disk, by set of requirements.

    python -m ekg_tf.benchmarks.install_size --out docs/results/install.json

The sets are installed one after the other into one environment, each on top of the one before, by
pip's ordinary client and the package index that it is set to. Sizes are what the files hold, pip
and compiled Python files among them. No TensorFlow is imported.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from ..cli import manners
from ..utils.files import atomic_write

ROOT = Path(__file__).resolve().parent.parent
# {name: requirements files}, each set on top of the one before
SETS = {
    "core": ("requirements-core.txt",),
    "full": ("requirements.txt",),
    "export": ("requirements.txt", "requirements-export.txt"),
}


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder, links not followed."""
    return sum(one.lstat().st_size for one in folder.rglob("*") if not one.is_dir())


def measured(folder: Path) -> list[dict[str, object]]:
    """{"name", "files", "bytes", "packages"} of every set, installed into `folder`.

    Raises:
        subprocess.CalledProcessError: pip fails.
    """
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip"]
    rows: list[dict[str, object]] = []
    for name, files in SETS.items():
        wanted = [word for file in files for word in ("-r", str(ROOT / file))]
        subprocess.run([*pip, "install", "--quiet", *wanted], check=True)
        listed = subprocess.run([*pip, "list", "--format", "json"], check=True, capture_output=True)
        packages = len(json.loads(listed.stdout))
        rows.append({"name": name, "files": files, "bytes": size_of(folder), "packages": packages})
        print(f"{name}: {rows[-1]['bytes']:,} bytes, {packages} packages", flush=True)
    return rows


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = manners.Parser(description="Measures the size of fresh virtual environments.")
    parser.add_argument("--out", type=Path, required=True, help="the .json to write")
    args: argparse.Namespace = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        sets = measured(Path(folder) / "venv")
    found = {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "sets": sets,
    }
    text = json.dumps(found, indent=1) + "\n"
    atomic_write(args.out, lambda path: path.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    manners.run(main)
