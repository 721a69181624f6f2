"""`ekg-tf report`: the figures of finished runs again.

ekg-tf report run1 run2
"""

from __future__ import annotations

from collections.abc import Sequence

from ekg_tf.cli import flags, manners
from ekg_tf.utils import devices
from ekg_tf.utils.errors import UserError
from ekg_tf.utils.jsonl import believed
from ekg_tf.utils.runfolder import read_file


def parser() -> manners.Parser:
    """The flags of the command."""
    parser = manners.Parser(prog="ekg-tf report", description="The figures of runs.")
    parser.add_argument("folder", nargs="+", type=flags.as_path, help="run folder")
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
        for name, show in (("search.json", print_summary), ("result.json", print_report)):
            if (folder / name).exists():
                figures = read_file(folder, name)
                with believed(folder / name):
                    show(figures)
