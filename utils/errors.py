"""The error of everything that is wrong with what the user gave."""

from __future__ import annotations

import re

USERS = (Exception, SystemExit)  # what code of the user's may raise; sys.exit ends no run of ours


class UserError(Exception):
    """A problem with what the user gave; the message says what is wrong and what to do."""


_COLOURS = re.compile(r"\x1b\[\d*m")
_AROUND = re.compile(  # of Keras, around another error
    r"Exception encountered(?:: | when calling .*)|Could not automatically infer .*encountered:"
)
LONGEST = 300  # characters of somebody else's words, which may hold a whole configuration


def line_of(error: BaseException) -> str:
    """The first line of an error's own words, or its type."""
    text = _AROUND.split(_COLOURS.sub("", str(error)))[-1]
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    return without_place(lines[0].partition(" Full object config: ")[0])[:LONGEST]


def words_of(error: BaseException) -> str:
    """The type of an error and the line of its message that says most."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    ended = isinstance(error, SystemExit)
    name = "it called sys.exit" if ended else type(error).__name__
    return f"{name}: {lines[-1]}" if lines else name


def without_place(message: str) -> str:
    """A line of TensorFlow's without the node that it is about."""
    return re.sub(r"\{\{.*?\}\} *| *\[Op:.*", "", message)
