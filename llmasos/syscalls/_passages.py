"""A file's text cut into passages: pieces of a few hundred characters that make sense alone.

A passage ends where a heading begins, else at the paragraph's end nearest to the target size, else at a
line's, else within a line. It knows its lines and the headings it stands under; a table's passages
stand under its first row.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from llmasos.syscalls._html import html_text

TARGET_CHARS = 700
MAX_CHARS = 1_400
MAX_HEADING_CHARS = 200

_HEADING = re.compile(r" {0,3}(#{1,6})[ \t]+(.*?)[ \t#]*")
_UNDERLINE = re.compile(r"(=|-){3,}[ \t]*")
_FENCE = re.compile(r"[ \t]{0,3}(```|~~~)")
_BREAK = re.compile(r"[.!?。！？;,\s]\s*")

_PROSE = frozenset({"", "md", "markdown", "mdx", "txt", "text", "rst", "adoc", "org"})
_HTML = frozenset({"html", "htm", "xhtml"})
_TABLES = frozenset({"csv", "tsv"})


@dataclass(frozen=True, slots=True)
class Passage:
    """Lines `start_line` to `end_line` of a file."""

    start_line: int
    end_line: int
    heading: str
    """The headings above, outermost first, joined by ` > `; often empty."""
    text: str


@dataclass(frozen=True, slots=True)
class _Line:
    number: int
    text: str
    heading: str
    is_heading: bool = False


def passages(path: str, text: str) -> Iterator[Passage]:
    """Cut a file's text. Its name's ending decides what counts as a heading."""
    name = path.rpartition("/")[2]
    ending = name.rpartition(".")[2].lower() if "." in name else ""
    if ending in _HTML:
        text = html_text(text)
    lines = text.split("\n")
    if ending in _PROSE or ending in _HTML:
        return _cut(_under_headings(lines))
    heading = lines[0].strip()[:MAX_HEADING_CHARS] if ending in _TABLES else ""
    return _cut(_Line(number, line, heading) for number, line in enumerate(lines, 1))


def _under_headings(lines: list[str]) -> Iterator[_Line]:
    """Each line with the headings it stands under; a heading stands under itself too."""
    above: dict[int, str] = {}
    in_code = False
    for at, line in enumerate(lines):
        in_code ^= bool(_FENCE.match(line))
        level, title = (0, "") if in_code else _heading(line, lines[at + 1 : at + 2])
        if level:
            above = {depth: text for depth, text in above.items() if depth < level}
            above[level] = title
        chain = " > ".join(above[depth] for depth in sorted(above))
        yield _Line(at + 1, line, chain[-MAX_HEADING_CHARS:], bool(level))


def _heading(line: str, following: list[str]) -> tuple[int, str]:
    """The level and title of a heading, `# so` or underlined; level 0 if it is none."""
    marked = _HEADING.fullmatch(line) if "#" in line else None
    if marked:
        return len(marked[1]), marked[2]
    if following and line.strip() and len(line) < MAX_HEADING_CHARS:
        underline = _UNDERLINE.fullmatch(following[0])
        if underline and not _UNDERLINE.fullmatch(line):
            return (1 if underline[1] == "=" else 2), line.strip()
    return 0, ""


def _cut(lines: Iterable[_Line]) -> Iterator[Passage]:
    held: list[_Line] = []
    size = 0
    for line in lines:
        for piece in _pieces(line):
            is_full = size + len(piece.text) > MAX_CHARS
            is_pause = size >= TARGET_CHARS and not piece.text.strip()
            if held and (is_full or is_pause or (piece.is_heading and _has_body(held))):
                yield from _passage(held)
                held, size = [], 0
            held.append(piece)
            size += len(piece.text) + 1
    yield from _passage(held)


def _has_body(lines: list[_Line]) -> bool:
    """Whether there is more than headings, which stay together when nothing stands between them."""
    return any(line.text.strip() and not line.is_heading for line in lines)


def _passage(lines: list[_Line]) -> Iterator[Passage]:
    """A passage without the blank lines around it; none if nothing else is there."""
    told = [at for at, line in enumerate(lines) if line.text.strip()]
    if told:
        inner = lines[told[0] : told[-1] + 1]
        text = "\n".join(line.text.rstrip() for line in inner)
        yield Passage(inner[0].number, inner[-1].number, inner[-1].heading, text)


def _pieces(line: _Line) -> Iterator[_Line]:
    """A line in pieces that fit a passage, cut behind a sentence or a word where there is one."""
    start = 0
    while len(line.text) - start > MAX_CHARS:
        most = start + MAX_CHARS
        breaks = [match.end() for match in _BREAK.finditer(line.text, start + TARGET_CHARS, most)]
        end = breaks[-1] if breaks else most
        yield _Line(line.number, line.text[start:end], line.heading)
        start = end
    yield _Line(line.number, line.text[start:], line.heading, line.is_heading) if start else line
