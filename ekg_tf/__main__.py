"""The command `ekg-tf`, also `python -m ekg_tf`: one word per task, then its flags."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from ekg_tf import __version__
from ekg_tf.cli import manners

# {word: (module with main(argv) and parser(), one line)}
COMMANDS = {
    "inspect": ("ekg_tf.commands.inspect", "what can be pruned in a network, and how far"),
    "prune": ("ekg_tf.commands.prune", "search, fine-tuning and test of a network of your own"),
    "search": ("ekg_tf.search", "the search for a sub-network and its memory bank alone"),
    "finetune": ("ekg_tf.finetune", "fine-tuning of what a search has found"),
    "test": ("ekg_tf.test", "accuracy, size and latency of a saved network"),
    "export": ("ekg_tf.commands.export", "SavedModel, LiteRT and ONNX, checked and measured"),
    "report": ("ekg_tf.commands.report", "the figures of finished runs again"),
}
PROGRAM = "ekg-tf"


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {word.ljust(width)}  {text}" for word, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            f"usage: {PROGRAM} [--help] [--version] COMMAND [FLAGS]",
            "",
            "Structured (filter) pruning for Keras 3 networks.",
            "",
            *lines,
            "",
            f"{PROGRAM} COMMAND --help lists the flags of a command.",
        ]
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command that the first word names."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return
    if words[0] == "--version":
        print(f"{PROGRAM} {__version__}")
        return
    if words[0] not in COMMANDS:
        parser = manners.Parser(prog=PROGRAM)
        parser.error(f"unknown command {words[0]!r}: choose from {', '.join(COMMANDS)}")
    sys.argv[0] = f"{PROGRAM} {words[0]}"
    importlib.import_module(COMMANDS[words[0]][0]).main(words[1:])


def console() -> None:
    """The entry point of the installed command."""
    manners.run(main)


if __name__ == "__main__":
    console()
