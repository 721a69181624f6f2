"""HTML as a tree: what is text stays text, since the standard library escapes it on writing."""

from __future__ import annotations

from xml.etree import ElementTree

Element = ElementTree.Element
Child = Element | str | None
_CONTROL = {code: "\ufffd" for code in range(32) if chr(code) not in "\t\n\r"}


def clean(text: object) -> str:
    """A value as text that a page can hold: control characters and half surrogates replaced."""
    plain = str(text).translate(_CONTROL)
    return plain.encode("utf-8", "replace").decode("utf-8")


def tag(name: str, /, *children: Child, **attributes: object) -> Element:
    """An element; None among the children or attributes is left out, `class_` is class."""
    known = {
        key.rstrip("_").replace("_", "-"): clean(value)
        for key, value in attributes.items()
        if value is not None
    }
    element = Element(name, known)
    for child in children:
        if child is None:
            continue
        if not isinstance(child, str):
            element.append(child)
        elif len(element):
            element[-1].tail = (element[-1].tail or "") + clean(child)
        else:
            element.text = (element.text or "") + clean(child)
    return element


def table(header: list[Child], rows: list[list[Child]], *, caption: str | None = None) -> Element:
    """A table whose first column names its rows, in a box that scrolls when it is too wide."""
    head = tag("tr", *(tag("th", cell, scope="col") for cell in header))
    body = [
        tag("tr", tag("th", first, scope="row"), *(tag("td", cell) for cell in rest))
        for first, *rest in rows
    ]
    inner = tag(
        "table",
        tag("caption", caption) if caption else None,
        tag("thead", head),
        tag("tbody", *body),
    )
    return tag("div", inner, class_="scroll", tabindex="0")


def written(page: Element) -> str:
    """The page as text."""
    text = ElementTree.tostring(page, encoding="unicode", method="html")
    return f"<!DOCTYPE html>\n{text}\n"
