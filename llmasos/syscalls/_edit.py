"""Finding the one place in a text that an edit means, and showing the change as a unified diff."""

from __future__ import annotations

import io
import re
from difflib import get_close_matches
from itertools import islice, takewhile

from llmasos.kernel.errors import Failed

_CONTEXT_LINES = 3
_CONTEXT_CHARS = 2_000
_MAX_DIFF_CHARS = 4_000
_MAX_COMPARED_LINES = 2_000


def line_end_of(text: str) -> str:
    """How the lines of a text end: with CR LF if the first one does, else with LF."""
    first = text.find("\n")
    return "\r\n" if first > 0 and text[first - 1] == "\r" else "\n"


def with_line_end(text: str, line_end: str) -> str:
    """The text with its lines ending so."""
    plain = text.replace("\r\n", "\n")
    return plain if line_end == "\n" else plain.replace("\n", line_end)


def exact_span(text: str, old: str, subject: str) -> tuple[int, int]:
    """Where `old` stands in `text`; raises `Failed` unless it is there exactly once."""
    start = text.find(old)
    if start < 0:
        raise Failed(f"That text is not in {subject}{_closest(text, old)}")
    if text.find(old, start + 1) >= 0:
        places = islice(re.finditer(re.escape(old), text), 5)
        numbers = ", ".join(str(text.count("\n", 0, place.start()) + 1) for place in places)
        raise Failed(
            f"That text is in {subject} more than once (lines {numbers}); give a longer piece."
        )
    return start, start + len(old)


def _closest(text: str, old: str) -> str:
    wanted = next((line for line in old.splitlines() if line.strip()), "").strip()
    candidates = [line.strip()[:200] for line in text.splitlines()[:_MAX_COMPARED_LINES]]
    close = get_close_matches(wanted[:200], filter(None, candidates), n=1)
    if not close:
        return "; read it with fs.read and copy the piece exactly."
    return f"; line {candidates.index(close[0]) + 1} is close: {close[0]!r}."


def diff_text(path: str, before: str, after: str, span: tuple[int, int]) -> str:
    """A unified diff of a change that only touched `span` of `before`; bounded.

    Written out directly: comparing two large texts to find what is known already would take minutes.
    """
    start = before.rfind("\n", 0, span[0]) + 1
    end = _line_end(before, span[1])
    old = _lines(before[start:end])
    new = _lines(after[start : end + len(after) - len(before)])
    num_same = _common(old, new)
    num_same_behind = _common(old[num_same:][::-1], new[num_same:][::-1])
    lead = (_lines(before[:start][-_CONTEXT_CHARS:]) + old[:num_same])[-_CONTEXT_LINES:]
    tail = old[len(old) - num_same_behind :] + _lines(before[end:][:_CONTEXT_CHARS])
    removed = old[num_same : len(old) - num_same_behind]
    added = new[num_same : len(new) - num_same_behind]
    first = before.count("\n", 0, start) + num_same - len(lead) + 1
    body = [*_marked(" ", lead), *_marked("-", removed), *_marked("+", added)]
    tail = tail[:_CONTEXT_LINES]
    num_context = len(lead) + len(tail)
    header = f"@@ -{first},{num_context + len(removed)} +{first},{num_context + len(added)} @@\n"
    diff = "".join([f"--- a/{path}\n+++ b/{path}\n", header, *body, *_marked(" ", tail)])
    return diff if len(diff) <= _MAX_DIFF_CHARS else f"{diff[:_MAX_DIFF_CHARS]}\n... (cut)\n"


def _line_end(text: str, position: int) -> int:
    """Where the line at `position` ends, its line end included."""
    return text.find("\n", position) + 1 or len(text)


def _lines(text: str) -> list[str]:
    return list(io.StringIO(text, newline="\n"))


def _common(left: list[str], right: list[str]) -> int:
    """How many first items are the same."""
    same = takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False))
    return sum(1 for _ in same)


def _marked(mark: str, lines: list[str]) -> list[str]:
    return [
        f"{mark}{line}" if line.endswith("\n") else f"{mark}{line}\n\\ No newline at end of file\n"
        for line in lines
    ]
