"""Accepted suggestions as a new text, and as a unified diff that `patch` and `git apply` take. Pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

from llmasos.apps.writer.checks import Suggestion

CONTEXT_LINES = 1
MAX_REASON_CHARS = 400


def compatible(suggestions: Sequence[Suggestion]) -> list[Suggestion]:
    """Those that change something and do not overlap: of two that do, the one that begins first."""
    kept: list[Suggestion] = []
    for each in sorted(suggestions, key=lambda s: (s.start, -s.end)):
        if each.new is not None and (not kept or each.start >= kept[-1].end):
            kept.append(each)
    return kept


def apply(text: str, suggestions: Sequence[Suggestion]) -> str:
    """The text with the suggestions, which must be `compatible`."""
    pieces, at = [], 0
    for each in suggestions:
        start, end = each.start, each.end
        if (
            each.new == ""
            and text[end : end + 1] == " "
            and (not start or text[start - 1] in " \n")
        ):
            end += 1
        elif each.new == "" and start and text[start - 1] == " ":
            start -= 1
        pieces += [text[at:start], each.new or ""]
        at = max(at, end)
    return "".join(pieces) + text[at:]


def unified(path: str, old: str, new: str, suggestions: Iterable[Suggestion]) -> str:
    """The diff; each hunk's heading, which patch programs pass over, says why."""
    before, after = _lines(old), _lines(new)
    lines = difflib.unified_diff(before, after, f"a/{path}", f"b/{path}", n=CONTEXT_LINES)
    told = list(suggestions)
    made = []
    for line in lines:
        if line.startswith("@@"):
            made.append(f"{line.rstrip()} {_why(line, told)}".rstrip() + "\n")
        else:
            made.append(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n")
    return "".join(made)


def _lines(text: str) -> list[str]:
    """At LF alone, as patch programs see lines."""
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def _why(heading: str, suggestions: Sequence[Suggestion]) -> str:
    first, _, count = re.findall(r"-(\d+)(,(\d+))?", heading)[0]
    lines = range(int(first), int(first) + int(count or 1))
    told = "; ".join(f"{s.rule}: {s.reason}" for s in suggestions if s.line in lines)
    return told if len(told) <= MAX_REASON_CHARS else f"{told[: MAX_REASON_CHARS - 1]}…"
