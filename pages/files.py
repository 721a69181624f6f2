"""Where the pages and the figures they are printed from lie."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..cli import manners

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"


def collect_or_write(
    description: str,
    collect: Callable[[str, Path], None],
    write: Callable[[], None],
    argv: list[str] | None = None,
) -> None:
    """A command line of two commands: "collect NAME SOURCE" and "write"."""
    parser = manners.Parser(description=description)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=manners.Parser)
    collecting = commands.add_parser("collect")
    collecting.add_argument("name")
    collecting.add_argument("source", type=Path)
    commands.add_parser("write")
    args = parser.parse_args(argv)
    if args.command == "collect":
        collect(args.name, args.source)
    else:
        write()
