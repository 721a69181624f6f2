"""A setting: a dataclass field with its bounds, one line of help and the flag that spells it.

    @dataclass(frozen=True)
    class Bank(Options):
        teachers: int = setting(5, flag="num_teacher", least=1, help="teachers in the memory bank")

`Bank(teachers=0)` and `--num_teacher 0` are refused by the same check, each in its own spelling.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ..utils.errors import UserError

_KEY = "setting"
SEEDS = 2**32  # NumPy and Keras take so many


@dataclass(frozen=True)
class Setting:
    """What is known of one setting.

    Attributes:
        name: of the field.
        kind: int, float, bool or str; of the elements where `many`.
        many: a tuple of `kind`.
        optional: None is a value ("decided later" or "none").
        flag: its name on the command line without the dashes; None: not to be said there.
        help: one line.
        default: of the field.
        least, above, below: bounds of numbers; `above` and `below` are not reached themselves.
        choices: the only values.
        words: strings that may stand instead of a number.
        rising: a tuple must rise strictly.
        spaced: the flag takes its values one by one, `0.7 0.5`, not as `0.7,0.5`.
        shown: the default in words, where it isn't the field's.
    """

    name: str
    kind: type
    many: bool
    optional: bool
    flag: str | None
    help: str
    default: Any
    least: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[Any, ...] = ()
    words: tuple[str, ...] = ()
    rising: bool = False
    spaced: bool = False
    shown: str | None = None

    def problem(self, value: Any) -> str | None:
        """What is wrong with a value, to go on after its name; None if nothing is."""
        if value is None:
            return None if self.optional else f"None is not {_kind_name(self.kind)}"
        if not self.many:
            return self._problem_of_one(value)
        if not isinstance(value, tuple):
            return f"{value!r} is not a list of {'texts' if self.kind is str else 'numbers'}"
        for one in value:
            if problem := self._problem_of_one(one):
                return problem
        if self.rising and (not value or list(value) != sorted(set(value))):
            return f"{value!r} is no list of increasing fractions"
        return None

    def _problem_of_one(self, value: Any) -> str | None:
        if self.choices:
            if _is(value, self.kind) and value in self.choices:
                return None
            return f"{value!r} is none of {', '.join(map(str, self.choices))}"
        if isinstance(value, str) and value in self.words:
            return None
        if not _is(value, self.kind):
            return f"{value!r} is not {_kind_name(self.kind)}"
        if self.kind not in (int, float):
            return None
        if not math.isfinite(value):
            return f"{value!r} is not a finite number"
        if (self.above, self.below) == (0, 1):
            return None if 0 < value < 1 else f"{value:g} is not strictly between 0 and 1"
        if self.least is not None and value < self.least:
            negative = f"{_shown(value)} is below 0"
            return (
                negative if self.least == 0 else f"{_shown(value)} is not at least {self.least:g}"
            )
        if self.above is not None and value <= self.above:
            return f"{value:g} is not above {self.above:g}"
        if self.below is not None and value >= self.below:
            return f"{_shown(value)} is not below {_shown(self.below)}"
        return None

    def parsed(self, text: str) -> Any:
        """The value that a text on the command line means.

        Raises:
            ValueError: with `problem` as its text.
        """
        value: Any
        if self.many:
            parts = text.strip("[]()").replace(",", " ").split()
            value = tuple(_converted(part, self.kind) for part in parts)
        elif text in self.words:
            value = text
        else:
            value = _converted(text, self.kind)
        if problem := self.problem(value):
            raise ValueError(problem.replace(repr(value), repr(text)) if self.rising else problem)
        return value


def setting(
    default: Any,
    *,
    help: str,
    flag: str | None = None,
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: tuple[Any, ...] = (),
    words: tuple[str, ...] = (),
    rising: bool = False,
    spaced: bool = False,
    shown: str | None = None,
) -> Any:
    """A dataclass field that is a `Setting`; the arguments are those of `Setting`."""
    limits = {"least": least, "above": above, "below": below, "choices": choices}
    more = {"words": words, "rising": rising, "spaced": spaced, "shown": shown}
    known = {"help": help, "flag": flag, **limits, **more}
    return field(default=default, metadata={_KEY: known})


def share(default: Any, **more: Any) -> Any:
    """A `setting` strictly between 0 and 1."""
    return setting(default, above=0, below=1, **more)


@dataclass(frozen=True)
class Options:
    """Base of all groups of settings; checks every one of them.

    Raises:
        UserError: a value out of bounds, or of another type.
    """

    def __post_init__(self) -> None:
        for one in settings_of(type(self)):
            value = _plain(getattr(self, one.name), one)
            object.__setattr__(self, one.name, value)
            if problem := one.problem(value):
                raise UserError(f"{type(self).__name__}({one.name}={value!r}): {problem}")

    def flags(self) -> dict[str, Any]:
        """{flag: value} of the settings that have a flag."""
        return {one.flag: getattr(self, one.name) for one in settings_of(type(self)) if one.flag}


def settings_of(options: type[Options]) -> Iterator[Setting]:
    """The settings of a group, in the order of its fields."""
    hints = typing.get_type_hints(options)
    for one in dataclasses.fields(options):
        if _KEY in one.metadata:
            kind, many, optional = _read_hint(hints[one.name])
            yield Setting(one.name, kind, many, optional, default=one.default, **one.metadata[_KEY])


def _read_hint(hint: Any) -> tuple[type, bool, bool]:
    """(kind, many, optional) of int, float | None, tuple[float, ...], int | str and the like."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        return arguments[0], True, False
    if not arguments:
        return hint, False, False
    optional = type(None) in arguments
    kind, many, _ = _read_hint(next(one for one in arguments if one is not type(None)))
    return kind, many, optional


def _shown(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"


def _kind_name(kind: type) -> str:
    names = {int: "a whole number", float: "a number", bool: "True or False"}
    return names.get(kind, "a text")


def _is(value: Any, kind: type) -> bool:
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))


def _plain(value: Any, one: Setting) -> Any:
    """Python's own numbers for numpy's, tuples for lists, floats where floats are meant."""
    if one.many and isinstance(value, (list, tuple)):
        return tuple(_number(part, one.kind) for part in value)
    return _number(value, one.kind)


def _number(value: Any, kind: type) -> Any:
    if hasattr(value, "item") and getattr(value, "shape", None) == ():
        value = value.item()
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value


def _converted(text: str, kind: type) -> Any:
    if kind is bool:
        return _on_off(text)
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{text!r} is not {_kind_name(kind)}") from None


def _on_off(text: str) -> bool:
    """True/1/on/yes or False/0/off/no, in any case; the paper's scripts pass `--do_log True`."""
    word = text.strip().lower()
    if word in ("true", "1", "on", "yes"):
        return True
    if word in ("false", "0", "off", "no"):
        return False
    raise ValueError(f"{text!r} is neither True nor False (also: on/off, yes/no)")
