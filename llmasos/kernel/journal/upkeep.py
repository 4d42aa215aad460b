"""Housekeeping of the journal's file: finished processes are compressed, the oldest deleted.

Each step is a transaction of its own, and short: the writer waits for no more than one.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from typing import Final

from llmasos.kernel.abi import Pid
from llmasos.kernel.journal.entries import Retention
from llmasos.kernel.journal.schema import MAX_PARTS, archive_crc, place_of

PART_BYTES: Final = 1 << 20
"""Events of about this size make up one row of an archive."""
SLICE_DELETED: Final = 32
SLICE_PAGES: Final = 128
_SPARE_PAGES: Final = 256
_LEVEL: Final = 6

_OLDEST: Final = (
    "SELECT pid FROM processes INDEXED BY finished WHERE ended_at IS NOT NULL AND reaped = 1"
)
_WITH_ENTRIES: Final = (
    "WITH RECURSIVE found(pid) AS (SELECT min(pid) FROM entries WHERE pid > :after UNION ALL"
    " SELECT (SELECT min(pid) FROM entries WHERE pid > found.pid) FROM found"
    " WHERE found.pid IS NOT NULL) SELECT pid FROM found WHERE pid IS NOT NULL LIMIT :limit"
)

ArchiveRow = tuple[int, int, int, bytes, int]


def pids_with_entries(connection: sqlite3.Connection, *, after: int, limit: int) -> list[int]:
    """The next few that have events which are not archived, by pid; leaps from one to the next."""
    found = connection.execute(_WITH_ENTRIES, {"after": after, "limit": limit})
    return [pid for (pid,) in found]


def has_entries(connection: sqlite3.Connection, pid: Pid) -> bool:
    """Whether there is anything to archive."""
    query = "SELECT 1 FROM entries WHERE pid = ? LIMIT 1"
    return connection.execute(query, (pid,)).fetchone() is not None


def archive_rows(pid: Pid, events: Sequence[bytes]) -> list[ArchiveRow]:
    """A process's events as rows of `archives`."""
    return [
        _archive_row(place_of(pid, part), first, texts)
        for part, (first, texts) in enumerate(_parts(events))
    ]


def put_archive(connection: sqlite3.Connection, pid: Pid, rows: Sequence[ArchiveRow]) -> None:
    """Put them in the place of the process's entries."""
    connection.executemany("INSERT INTO archives VALUES (?, ?, ?, ?, ?)", rows)
    connection.execute("DELETE FROM entries WHERE pid = ?", (pid,))


def delete_process(connection: sqlite3.Connection, pid: int) -> None:
    """Everything of one process."""
    connection.execute("DELETE FROM entries WHERE pid = ?", (pid,))
    bounds = (place_of(pid, 0), place_of(pid, MAX_PARTS))
    connection.execute("DELETE FROM archives WHERE place >= ? AND place < ?", bounds)
    connection.execute("DELETE FROM processes WHERE pid = ?", (pid,))


def outdated(
    connection: sqlite3.Connection, retention: Retention, num_reaped: int, now: float
) -> list[int]:
    """The next few processes that retention lets go, longest ended first."""
    excess = max(num_reaped - retention.max_finished, 0)
    if retention.max_bytes is not None and used_bytes(connection) > retention.max_bytes:
        excess = SLICE_DELETED
    pids = _oldest(connection, min(excess, SLICE_DELETED))
    if retention.max_age_s is not None and len(pids) < SLICE_DELETED:
        old = _oldest(connection, SLICE_DELETED, before=now - retention.max_age_s)
        pids = max(pids, old, key=len)
    return pids


def used_bytes(connection: sqlite3.Connection) -> int:
    """Of the file, without what is free in it."""
    values = (connection.execute(f"PRAGMA {name}").fetchone()[0] for name in _SIZES)
    num_pages, num_free, page_size = values
    return int((num_pages - num_free) * page_size)


def give_back(connection: sqlite3.Connection) -> None:
    """Cut a few free pages off the file, where it has many."""
    (num_free,) = connection.execute("PRAGMA freelist_count").fetchone()
    if num_free > _SPARE_PAGES:
        num_pages = min(num_free - _SPARE_PAGES, SLICE_PAGES)
        # Not `execute`: that takes one step, which frees one page.
        connection.executescript(f"PRAGMA incremental_vacuum({num_pages})")


_SIZES: Final = ("page_count", "freelist_count", "page_size")


def _oldest(
    connection: sqlite3.Connection, limit: int, *, before: float | None = None
) -> list[int]:
    condition = "" if before is None else " AND ended_at < :before"
    query = f"{_OLDEST}{condition} ORDER BY ended_at LIMIT :limit"
    return [pid for (pid,) in connection.execute(query, {"before": before, "limit": limit})]


def _parts(events: Sequence[bytes]) -> Iterator[tuple[int, Sequence[bytes]]]:
    first, size = 0, 0
    for number, event in enumerate(events):
        if size >= PART_BYTES:
            yield first, events[first:number]
            first, size = number, 0
        size += len(event) + 1
    if events:
        yield first, events[first:]


def _archive_row(place: int, first: int, events: Sequence[bytes]) -> ArchiveRow:
    body = zlib.compress(b"\n".join(events), _LEVEL)
    return place, first, len(events), body, archive_crc(place, first, len(events), body)
