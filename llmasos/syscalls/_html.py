"""The text of an HTML page, line for line where it stood, so that line numbers stay true.

Headings come out as Markdown headings; scripts, styles and comments are left out. A scanner of its own,
since the standard library's parser takes time quadratic in the size of some broken pages.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator

_TAG = re.compile(r"<(?P<end>/?)(?P<name>[a-zA-Z][a-zA-Z0-9]*)[^<>]*>|<!--|<[!?][^<>]*>")
_CLOSINGS = {
    name: re.compile(rf"</{name}\b[^<>]*>?", re.IGNORECASE)
    for name in ("script", "style", "template", "noscript", "svg")
}
_HEADINGS = {f"h{level}": "#" * level for level in range(1, 7)}
_INLINE_NAMES = "a abbr b bdi bdo cite code em font i kbd mark q s small span strong sub sup u"
_INLINE = frozenset(_INLINE_NAMES.split())


def html_text(source: str) -> str:
    """The page's text, with as many lines as the page."""
    lines = "".join(_pieces(source)).split("\n")
    return "\n".join(" ".join(line.split()) for line in lines)


def _pieces(source: str) -> Iterator[str]:
    at = 0
    while tag := _TAG.search(source, at):
        yield _text(source[at : tag.start()])
        at = _end(source, tag)
        yield _sign(tag) + "\n" * source.count("\n", tag.start(), at)
    yield _text(source[at:])


def _end(source: str, tag: re.Match[str]) -> int:
    """Where the tag ends, or all of it that is no text: a comment, a script."""
    if tag[0] == "<!--":
        close = source.find("-->", tag.end())
        return close + 3 if close >= 0 else len(source)
    closing = None if tag["end"] else _CLOSINGS.get((tag["name"] or "").lower())
    if closing is None:
        return tag.end()
    found = closing.search(source, tag.end())
    return found.end() if found else len(source)


def _sign(tag: re.Match[str]) -> str:
    """What stands for a tag in the text."""
    name = (tag["name"] or "").lower()
    if name in _HEADINGS and not tag["end"]:
        return f"{_HEADINGS[name]} "
    return "" if name in _INLINE or not name else " "


def _text(data: str) -> str:
    if "&" not in data:
        return data
    return "\n".join(html.unescape(line).replace("\n", " ") for line in data.split("\n"))
