"""Audit entries as a chain: each a line of JSON with the hash of the one before, so that none can be changed,
taken out, put in or moved without every later hash being wrong. Pure, but for reading the files.

    {"n": 7, "at": 1764033488.1, "kind": "call", ..., "prev": "<hash of entry 6>", "hash": "<hash>"}

The hash is SHA-256 over the entry's canonical JSON (sorted keys, no spaces) without `hash`. The first entry
holds a random name, so that no two homes have the same chain. What a chain cannot show by itself is that its
end was cut off, or that all of it was written anew: for that somebody must know an earlier *head*, the number
and the hash of what was the last entry then.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

NAME: Final = "audit.log"
MAX_LINE_BYTES: Final = 1 << 16
Entry = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Head:
    """The last entry of a log, at some time."""

    number: int
    hash: str

    def __str__(self) -> str:
        return f"{self.number}:{self.hash}"

    @classmethod
    def parse(cls, text: str) -> Head:
        """The opposite of `str`. Raises `ValueError`."""
        number, _, digest = text.partition(":")
        if not number.isdecimal() or len(digest) != 64 or set(digest) - set("0123456789abcdef"):
            raise ValueError(f"{text[:100]!r} is no head of an audit log, such as 12:9f86d0...")
        return cls(int(number), digest)


@dataclass(frozen=True, slots=True)
class Finding:
    """What a verification came to."""

    head: Head
    """Of the last entry that is proven."""
    problem: str = ""
    """What is wrong, and with which entry; empty where nothing is."""
    torn_bytes: int = 0
    """Of a last line that a crash cut short: it was never counted as written."""


ORIGIN: Final = Head(0, "0" * 64)
"""What comes before the first entry."""


def link(head: Head, values: Mapping[str, Any]) -> tuple[bytes, Head]:
    """The next entry's line, and the head that it makes."""
    entry = {"n": head.number + 1, **values, "prev": head.hash}
    digest = _digest(entry)
    return _canonical({**entry, "hash": digest}) + b"\n", Head(head.number + 1, digest)


def files_of(folder: Path) -> list[Path]:
    """A home's audit files, the oldest first: `audit.log.1`, `audit.log.2` ..., then `audit.log`."""
    aside = [path for path in folder.glob(f"{NAME}.*") if path.suffix[1:].isdecimal()]
    ordered = sorted(aside, key=lambda path: int(path.suffix[1:]))
    return ordered + [path for path in [folder / NAME] if path.exists()]


def entries_of(files: Sequence[Path]) -> Iterator[Entry]:
    """Every entry that can be read, in order, believed or not."""
    for _, line in _lines(files):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict):
            yield entry


def verify(files: Sequence[Path], known: Sequence[Head] = ()) -> Finding:
    """Walk the whole chain. `known` are heads that it must pass through. Raises `OSError`."""
    head = ORIGIN
    wanted = {each.number: each.hash for each in known if each.number > 0}
    for place, line in _lines(files):
        if not line.endswith(b"\n"):
            return _torn(head, wanted, place, files, len(line))
        problem = _fault(line, head)
        if problem:
            return Finding(head, f"Entry {head.number + 1} ({place}) {problem}.")
        entry = json.loads(line)
        head = Head(head.number + 1, entry["hash"])
        if wanted.get(head.number, head.hash) != head.hash:
            return Finding(
                Head(head.number - 1, entry["prev"]),
                f"Entry {head.number} ({place}) is another than the one that was there before: the log was"
                " written anew from there or earlier.",
            )
    return _ended(head, wanted, files)


def _torn(
    head: Head, wanted: Mapping[int, str], place: str, files: Sequence[Path], num_bytes: int
) -> Finding:
    if not place.startswith(f"{files[-1].name} "):
        return Finding(head, f"Entry {head.number + 1} ({place}) is cut short.")
    ended = _ended(head, wanted, files)
    return Finding(ended.head, ended.problem, num_bytes)


def _ended(head: Head, wanted: Mapping[int, str], files: Sequence[Path]) -> Finding:
    furthest = max(wanted, default=0)
    if furthest <= head.number:
        return Finding(head)
    there = f"ends with entry {head.number}" if files else "is gone"
    return Finding(
        head,
        f"Entry {head.number + 1} is missing: the log {there}, and it had {furthest} entries at least.",
    )


def _fault(line: bytes, head: Head) -> str:
    """What is wrong with the entry that should come after a head."""
    try:
        entry = json.loads(line)
        digest = entry.pop("hash")
        number, before = entry["n"], entry["prev"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "cannot be read"
    if number != head.number + 1:
        return f"says that it is entry {number}: entries were taken out, put in or moved"
    if before != head.hash:
        return "does not follow from the one before it: that one was changed, or another home's log is here"
    if digest != _digest(entry) or line != _canonical({**entry, "hash": digest}) + b"\n":
        return "was changed: its hash is another"
    return ""


def _lines(files: Sequence[Path]) -> Iterator[tuple[str, bytes]]:
    for path in files:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES * 4):
                number += 1
                yield f"{path.name} line {number}", line


def _digest(entry: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(entry)).hexdigest()


def _canonical(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry, sort_keys=True, separators=(",", ":")).encode("ascii")
