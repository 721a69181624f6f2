"""`ekg-tf report`: the figures of finished runs again.

ekg-tf report run1 run2
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ekg_tf.cli import manners
from ekg_tf.utils import devices
from ekg_tf.utils.errors import UserError
from ekg_tf.utils.jsonl import read_json
from ekg_tf.utils.runfolder import EXPORTED, PRUNED


def parser() -> manners.Parser:
    """The flags of the command."""
    parser = manners.Parser(prog="ekg-tf report", description="The figures of runs.")
    parser.add_argument("folder", nargs="+", type=Path, help="run folder")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    args = parser().parse_args(argv)
    for folder in args.folder:
        if not any((folder / name).exists() for name in ("result.json", "search.json")):
            raise UserError(f"{folder} holds no finished search or fine-tuning")
    devices.import_tensorflow()
    from ekg_tf.reports.networks import print_report
    from ekg_tf.reports.search import print_summary

    for folder in args.folder:
        print(f"{folder}:")
        finished = (folder / "result.json").exists()
        if (folder / "search.json").exists():
            searched = None if finished else str(folder / PRUNED)
            print_summary(read_json(folder / "search.json"), searched)
        if finished:
            print_report(read_json(folder / "result.json"), str(folder / EXPORTED))
