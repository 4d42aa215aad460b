"""`Brief`: what is to be written. Read from a Markdown file and from parameters, which win."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from llmasos.apps.writer.text import words
from llmasos.kernel.errors import AppError

KEYS = ("topic", "length", "audience", "style", "language", "sources", "out")
MIN_LENGTH, MAX_LENGTH = 60, 5_000
WORDS_A_SECTION = 120
MAX_SECTIONS = 12


@dataclass(frozen=True, slots=True)
class Brief:
    """What is asked for."""

    topic: str
    notes: str = ""
    points: tuple[str, ...] = ()
    """Sections that the user wants; none: the sources decide."""
    length: int = 600
    audience: str = "general readers"
    style: str = "plain"
    language: str = "en"
    sources: str = ""
    out: str = ""

    @property
    def num_sections(self) -> int:
        """How many sections below the lead."""
        if self.points:
            return min(len(self.points), MAX_SECTIONS)
        return max(1, min(8, round(self.length / WORDS_A_SECTION)))


@dataclass(slots=True)
class _Read:
    values: dict[str, str] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)
    body: list[str] = field(default_factory=list)


def brief_of(path: str, text: str, given: Mapping[str, object]) -> Brief:
    """The brief of a file's text (may be empty) and parameters. Raises `AppError`."""
    read = _read(text)
    values = {**read.values, **{k: str(v) for k, v in given.items() if v is not None}}
    title, notes, points = _body(read.body)
    topic = values.get("topic", title).strip()
    if not topic and notes:
        topic = re.split(r"(?<=[.!?])\s", notes)[0].rstrip(".")[:120]
    if not words(topic):
        where = f"{path} says nothing" if path else "There is no brief"
        raise AppError(f'{where}; give a topic, as a line `topic: ...` or topic="...".')
    return Brief(
        topic=topic,
        notes=notes,
        points=points,
        length=_length(path, values.get("length", "600"), read.lines.get("length")),
        **{key: values[key].strip() for key in KEYS[2:] if values.get(key, "").strip()},
    )


def _read(text: str) -> _Read:
    """Header lines `key: value`, between `---` or not, then the body."""
    read = _Read()
    in_header = True
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), 1):
        found = re.fullmatch(r"\s*(\w+)\s*:\s*(.*)", line)
        if in_header and found and found[1].lower() in KEYS:
            read.values[found[1].lower()] = found[2].strip().strip("\"'")
            read.lines[found[1].lower()] = number
        elif in_header and line.strip() in ("", "---"):
            continue
        else:
            in_header = False
            read.body.append(line)
    return read


def _body(lines: list[str]) -> tuple[str, str, tuple[str, ...]]:
    """The heading, the prose, and the list items or lower headings as points."""
    title, notes, points = "", [], []
    for line in lines:
        heading = re.match(r"(#{1,6})\s+(.*\S)", line)
        item = re.match(r"\s*(?:[-*+]|\d+[.)])\s+(.*\S)", line)
        if heading and len(heading[1]) == 1 and not title:
            title = heading[2]
        elif heading or item:
            points.append((heading[2] if heading else item[1] if item else "").rstrip("."))
        elif line.strip():
            notes.append(line.strip())
    return title, " ".join(notes), tuple(points)


def _length(path: str, value: str, line: int | None) -> int:
    found = re.fullmatch(r"(\d[\d,. ]*)(?:\s*words?)?", value.strip())
    length = int(re.sub(r"\D", "", found[1])) if found else 0
    if not MIN_LENGTH <= length <= MAX_LENGTH:
        where = f"{path}, line {line}: " if line else ""
        raise AppError(
            f"{where}length is {value!r}; a number of words from {MIN_LENGTH} to {MAX_LENGTH:,} is wanted."
        )
    return length
