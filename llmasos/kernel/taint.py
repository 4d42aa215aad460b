"""Taint: which text from outside has reached a process, by label (`web:https://example.org/page`).

A process is the unit: its app's Python may carry a result into any context, child or argument, so once a
process is given a result that came from outside, all that it does later is suspect, and all that is derived
from it: its children, the files and memories that it writes, what it prints. Labels only ever grow.
A label is text for people and patterns; it says where from, and is bounded like everything that is foreign.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable
from dataclasses import dataclass

from llmasos.kernel.abi import Labels

MAX_LABELS = 32
"""Of one process or file: beyond these, further sources are summed up in `MORE`."""
MAX_LABEL_CHARS = 200
MORE = "more:sources that are not listed"


def label(kind: str, source: str) -> str:
    """A label for text of that kind and source, bounded and on one line."""
    text = f"{kind}:{source}"
    flat = "".join(char if char.isprintable() else "?" for char in text)
    return flat if len(flat) <= MAX_LABEL_CHARS else f"{flat[: MAX_LABEL_CHARS - 1]}…"


def joined(*groups: Iterable[str]) -> Labels:
    """All labels of these, each once, in their order."""
    found = dict.fromkeys(label for group in groups for label in group)
    if len(found) <= MAX_LABELS:
        return tuple(found)
    found.pop(MORE, None)
    return (*list(found)[: MAX_LABELS - 1], MORE)


@dataclass(frozen=True, slots=True)
class Trust:
    """Which files the operator trusts, by where they stand. Patterns are of absolute paths; one that ends in
    no wildcard also stands for all below it."""

    trusted: tuple[str, ...] = ()
    """Where not empty, every other file is from outside."""
    untrusted: tuple[str, ...] = ()
    """Files from outside wherever they stand; wins over `trusted`."""

    def is_outside(self, path: str) -> bool:
        """Whether what a file at this absolute path says comes from outside."""
        if any(_covers(pattern, path) for pattern in self.untrusted):
            return True
        return bool(self.trusted) and not any(_covers(pattern, path) for pattern in self.trusted)


def _covers(pattern: str, path: str) -> bool:
    whole = os.path.expanduser(pattern).rstrip("/") or "/"
    return fnmatch.fnmatchcase(path, whole) or fnmatch.fnmatchcase(path, f"{whole.rstrip('/')}/*")
