"""`ekg-tf report`: the figures of runs again, and a page that shows them.

ekg-tf report run                            # writes run/report.html
ekg-tf report run1 run2 --out compared.html  # side by side
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ekg_tf.cli import flags, manners
from ekg_tf.utils import devices
from ekg_tf.utils.errors import UserError
from ekg_tf.utils.files import atomic_write
from ekg_tf.utils.jsonl import believed
from ekg_tf.utils.runfiles import EXPORTED, PRUNED, REPORT, read_file
from ekg_tf.utils.runfolder import RunFolder

HEAD = 4096  # bytes in which a page of ours says that it is one


def parser() -> manners.Parser:
    """The flags of the command."""
    parser = manners.Parser(prog="ekg-tf report", description="The figures of runs, and a page.")
    parser.add_argument("folder", nargs="+", type=flags.as_path, help="run folder, finished or not")
    parser.add_argument(
        "--out",
        type=flags.as_path,
        help=f"the page; default: {REPORT} in the folder, of several in the current one",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    args = parser().parse_args(argv)
    out = args.out or (Path(REPORT) if len(args.folder) > 1 else None)
    if out is not None:
        _check_out(out)
    from ekg_tf.reports import page

    text = page.text_of(args.folder)
    if out is None:
        out = _into(args.folder[0], text)
    else:
        _write(out, text)
    _print_figures(args.folder)
    print(f"the report is {out}")


def _into(path: Path, text: str) -> Path:
    """Writes the page into its folder, which then knows the file as its own."""
    try:
        with RunFolder.again(path) as folder:
            out = folder.file(REPORT)
            _write(out, text)
    except UserError as error:
        raise UserError(f"{error}; or write the report elsewhere with --out FILE") from None
    return out


def _write(out: Path, text: str) -> None:
    atomic_write(out, lambda path: path.write_text(text, encoding="utf-8"))


def _check_out(out: Path) -> None:
    """Raises UserError for a place that can't be written or holds something else than a report."""
    if not out.parent.is_dir():
        raise UserError(f"{out.parent} is no folder: make it first")
    if out.is_dir():
        raise UserError(f"{out} is a folder: name a file for the report with --out")
    if out.exists() and b'name="generator" content="ekg-tf' not in out.read_bytes()[:HEAD]:
        raise UserError(f"{out} is there and is no report: name another file with --out")


def _print_figures(folders: Sequence[Path]) -> None:
    """The figures of what has ended, as they were printed then."""
    ended = [
        folder
        for folder in folders
        if any((folder / name).exists() for name in ("result.json", "search.json"))
    ]
    if not ended:
        return
    devices.import_tensorflow()
    from ekg_tf.reports.networks import print_report
    from ekg_tf.reports.search import print_summary

    for folder in ended:
        print(f"{folder}:")
        finished = (folder / "result.json").exists()
        searched = None if finished else str(folder / PRUNED)
        for name, side, show in (
            ("search.json", None, partial(print_summary, written=searched)),
            ("result.json", "after", partial(print_report, written=str(folder / EXPORTED))),
        ):
            if not (folder / name).exists():
                continue
            figures = read_file(folder, name)
            with believed(folder / name):
                if "test" in (figures[side] if side else figures):
                    show(figures)
