"""Hooks of mkdocs.yml: what the documentation site has beside docs/. No TensorFlow is imported.

* README.md, CHANGELOG.md and others of the root become pages, their links turned to pages.
* The tables of commands and flags take the place of a mark in docs/command_line.md, the settings of
  classes that of marks in docs/api.md.
* mkdocstrings gets the sources as they are once installed: in a checkout the rooms lie beside
  ekg_tf/, and it reads files without importing them.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ekg_tf.pages.command_line import page as command_line_tables
from ekg_tf.pages.command_line import settings_table

DOCS = "docs"
# {file of the repository: page of the site}
OUTSIDE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "examples/README.md": "examples.md",
}
COMMAND_LINE, MARK = "command_line.md", "<!-- flags -->"
_SETTINGS = re.compile(r"<!-- settings: ([\w.]+) -->")
_FENCE = re.compile(r"(^```.*?^```[ \t]*$)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(!?)\[([^\[\]]*)\]\(([^()\s]+)\)")


@event_priority(100)
def on_config(config: Any) -> Any:
    """Before mkdocstrings reads where the sources are."""
    sources = tempfile.TemporaryDirectory(prefix="ekg_tf_sources_")
    config.extra["sources"] = sources  # kept until the process ends
    package = Path(sources.name) / "ekg_tf"
    package.mkdir()
    for path in (ROOT / "ekg_tf").iterdir():
        (package / path.name).symlink_to(path)
    for path in ROOT.iterdir():
        is_room = path.is_dir() and any(path.glob("*.py")) and path.name not in ("ekg_tf", "tests")
        if is_room or path.suffix == ".py":
            (package / path.name).symlink_to(path)
    config.plugins["mkdocstrings"].config["handlers"]["python"]["paths"] = [sources.name]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages that lie outside of docs/."""
    for source, page in OUTSIDE.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=relinked(text, source, page)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Fills in the flags; links from docs/ to the rest of the repository become pages or text."""
    name = page.file.src_uri
    if name in OUTSIDE.values():
        return markdown
    if name == COMMAND_LINE:
        markdown = markdown.replace(MARK, command_line_tables())
    markdown = _SETTINGS.sub(lambda mark: settings_table(mark[1]), markdown)
    return relinked(markdown, f"{DOCS}/{name}", name)


def relinked(text: str, source: str, page: str) -> str:
    """Markdown of a file of the repository as a page of the site.

    Args:
        source, page: the file's path from the root, and the page's from docs/.

    Returns:
        The text: links to pages lead there, links to files that the site hasn't are their text.
    """

    def turned(match: re.Match[str]) -> str:
        sign, words, target = match.groups()
        path, _, anchor = target.partition("#")
        if not path or ":" in path:
            return match[0]
        place = os.path.normpath(PurePosixPath(source).parent / path).replace(os.sep, "/")
        if place in OUTSIDE:
            there = OUTSIDE[place]
        elif place.startswith(f"{DOCS}/"):
            there = place.removeprefix(f"{DOCS}/")
        else:
            return words
        relative = os.path.relpath(there, PurePosixPath(page).parent).replace(os.sep, "/")
        return f"{sign}[{words}]({relative}{f'#{anchor}' if anchor else ''})"

    parts = _FENCE.split(text)
    return "".join(part if part.startswith("```") else _LINK.sub(turned, part) for part in parts)
