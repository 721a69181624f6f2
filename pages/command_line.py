"""The page of all commands and flags, read off the parsers: it can't be older than they are.

    python -m ekg_tf.pages.command_line   # prints its tables

`pages/site_hooks.py` puts them into docs/command_line.md when the site is built. No TensorFlow.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from ekg_tf.cli import manners
from ekg_tf.cli.flags import default_of
from ekg_tf.options.budgets import BUDGETS
from ekg_tf.options.fields import Options, settings_of
from ekg_tf.options.finetuning import FINETUNINGS
from ekg_tf.options.methods import METHODS
from ekg_tf.reports.tables import table

import ekg_tf
from ekg_tf.__main__ import COMMANDS, PROGRAM

# {command: module with parser()}
PROGRAMS = {
    "train_cifar.py": "ekg_tf.train_cifar",
    "train_imagenet.py": "ekg_tf.train_imagenet",
    "search.py": "ekg_tf.search",
    "finetune.py": "ekg_tf.finetune",
    "test.py": "ekg_tf.test",
    **{f"{PROGRAM} {word}": module for word, (module, _) in COMMANDS.items()},
}
# A program of its own, with flags that mean something else; the other experiments need TensorFlow.
TABLES = "python -m ekg_tf.experiments.tables", "ekg_tf.experiments.tables.run"
# The scripts at the top and the words of ekg-tf that are the same command
SAME = {f"{PROGRAM} {word}": f"{word}.py" for word in ("search", "finetune", "test")}
PLAIN = ("options", "positional arguments")  # argparse's own groups: flags of one command alone
DEFAULT = "default: "
ALONE = "alone"


@dataclass
class Flag:
    """A flag as one or several commands have it.

    Attributes:
        words: its spellings, the longest one first; a positional argument's name.
        values: what it may be set to, where only some words are allowed.
        meanings, defaults: as the commands say them, {text: the commands that say so}.
        group: the title of the group that the first command has it in.
    """

    words: str
    group: str
    values: tuple[str, ...] = ()
    meanings: dict[str, list[str]] = field(default_factory=dict)
    defaults: dict[str, list[str]] = field(default_factory=dict)

    @property
    def commands(self) -> list[str]:
        """The commands that have it."""
        return [command for commands in self.meanings.values() for command in commands]


def parsers() -> dict[str, argparse.ArgumentParser]:
    """{command: its parser}, each command once."""
    return {
        command: parser_of(module) for command, module in PROGRAMS.items() if command not in SAME
    }


def parser_of(module: str) -> argparse.ArgumentParser:
    """The parser of a module with a command line."""
    parser: argparse.ArgumentParser = importlib.import_module(module).parser()
    return parser


def flags(found: dict[str, argparse.ArgumentParser]) -> dict[str, Flag]:
    """{name: flag} of all commands, in the order of the commands and of their groups."""
    known: dict[str, Flag] = {}
    for command, parser in found.items():
        for group in parser._action_groups:
            for action in group._group_actions:
                if isinstance(action, argparse._HelpAction):
                    continue
                own = (group.title or "") in PLAIN
                title = ALONE if own else group.title or ""
                words = action.option_strings[0] if action.option_strings else action.dest.upper()
                one = known.setdefault(words, Flag(words, title))
                one.group = title if one.group == ALONE else one.group
                one.values = one.values or tuple(map(str, action.choices or ()))
                meaning, default = _parts(action)
                one.meanings.setdefault(meaning, []).append(command)
                one.defaults.setdefault(default, []).append(command)
    for one in known.values():
        if one.group == ALONE:
            one.group = f"{_named(one.commands)} {ALONE}"
    return known


def _parts(action: argparse.Action) -> tuple[str, str]:
    """(meaning, default) out of a help text "meaning; default: default"."""
    meaning, _, default = (action.help or "").partition(DEFAULT)
    if not default:
        switch = isinstance(action, argparse._StoreTrueAction)
        needed = action.required or (not action.option_strings and action.nargs != "*")
        default = "off" if switch else "required" if needed else ""
    return meaning.rstrip("; "), default


def python_spellings() -> dict[str, list[str]]:
    """{flag: ["EKG(step)", ...]}: the settings of the public classes that a flag stands for."""
    kinds: dict[str, Iterable[type[Options]]] = {
        "--method": METHODS.values(),
        "--budget": BUDGETS.values(),
        "--finetune_method": FINETUNINGS,
    }
    found = {flag: [f"{kind.__name__}()" for kind in some] for flag, some in kinds.items()}
    for name in ekg_tf.__all__:
        kind = getattr(ekg_tf, name) if name in _OPTION_CLASSES else None
        if isinstance(kind, type) and issubclass(kind, Options):
            for one in settings_of(kind):
                if one.flag:
                    found.setdefault(f"--{one.flag}", []).append(f"{name}({one.name})")
    return found


# Those of ekg_tf that come from options/: asking for the others would import TensorFlow.
_OPTION_CLASSES = frozenset(
    " ".join(
        names for place, names in ekg_tf._PLACES.items() if place.startswith("options.")
    ).split()
)
_MOST_SPELLINGS = 3


def page() -> str:
    """The tables in Markdown: the commands, then their flags by group."""
    found = parsers()
    parts = ["## Commands", commands_table(found)]
    spellings = python_spellings()
    grouped: dict[str, list[Flag]] = {}
    for one in flags(found).values():
        grouped.setdefault(one.group, []).append(one)
    alone = [title for title in grouped if title.startswith("`")]
    for title in [*(one for one in grouped if one not in alone), *alone]:
        rows = grouped[title]
        common = _common(rows)
        parts.append(f"## {title[:1].upper()}{title[1:]}")
        if title not in alone:
            parts.append(f"*{_named(common)}*, where no others are named.")
        parts.append(flags_table(rows, common, spellings))
    command, module = TABLES
    rows = list(flags({command: parser_of(module)}).values())
    parts += ["## The papers' tables", f"*`{command}`*", flags_table(rows, [command], {})]
    return "\n\n".join(parts)


def commands_table(found: dict[str, argparse.ArgumentParser]) -> str:
    """One row per command: what it does and which groups of flags it takes."""
    aliases = {script: command for command, script in SAME.items()}
    rows = []
    for command, parser in found.items():
        titles = [group.title or "" for group in parser._action_groups if group._group_actions]
        names = [f"`{name}`" for name in (command, aliases.get(command)) if name]
        groups = ", ".join(title.split(" (")[0] for title in titles if title not in PLAIN)
        rows.append([" or ".join(names), _escaped(parser.description or ""), groups or "its own"])
    return table(["command", "what it does", "groups of flags"], rows)


def _common(rows: Iterable[Flag]) -> list[str]:
    """The commands that have most of the flags of a group."""
    sets = [tuple(row.commands) for row in rows]
    return list(max(dict.fromkeys(sets), key=sets.count))


def flags_table(rows: Iterable[Flag], common: list[str], spellings: dict[str, list[str]]) -> str:
    """One row per flag; those that other commands than the group's have name them."""
    lines = []
    for row in rows:
        meaning = _each(row.meanings)
        if row.values:
            meaning += f"<br>one of {', '.join(f'`{value}`' for value in row.values)}"
        if row.commands != common:
            meaning += f"<br>*{_named(row.commands)}*"
        python = spellings.get(row.words, [])
        shown = ", ".join(f"`{one}`" for one in python[:_MOST_SPELLINGS])
        shown += ", …" if len(python) > _MOST_SPELLINGS else ""
        lines.append([f"`{row.words}`", _each(row.defaults), meaning, shown])
    return table(["flag", "default", "meaning", "in Python"], lines)


def settings_table(place: str) -> str:
    """The settings of a class of options, such as "options.budgets.Flops", in Markdown."""
    module, _, name = place.rpartition(".")
    kind: type[Options] = getattr(importlib.import_module(f"ekg_tf.{module}"), name)
    rows = []
    for one in settings_of(kind):
        meaning = _escaped(one.help)
        if one.choices:
            meaning += f"<br>one of {_named(map(repr, one.choices))}"
        flag = f"`--{one.flag}`" if one.flag else ""
        rows.append([f"`{one.name}`", _escaped(default_of(one)), meaning, flag])
    return table(["setting", "default", "meaning", "flag"], rows)


def _each(texts: dict[str, list[str]]) -> str:
    """What the commands say, those that differ from the first one with their names."""
    (first, _), *others = texts.items()
    said = [_escaped(first)]
    said += [f"{_escaped(text)} ({_named(names)})" for text, names in others if text]
    return "; ".join(one for one in said if one)


def _named(commands: Iterable[str]) -> str:
    return ", ".join(f"`{command}`" for command in commands)


def _escaped(text: str) -> str:
    """Help text as a cell of a Markdown table."""
    text = " ".join(text.replace("%%", "%").split())
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    manners.Parser(description="Prints the tables of commands and flags.").parse_args(argv)
    print(page())


if __name__ == "__main__":
    manners.run(main)
