"""Reads the journal's store: rows and events, each checked. Knows nothing of writing or repairing.

What SQLite itself finds broken in the course of reading is damage to the process that was asked about.
"""

from __future__ import annotations

import sqlite3
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from llmasos.kernel.abi import Pid
from llmasos.kernel.errors import JournalDamaged, JournalFailed, NoSuchProcess
from llmasos.kernel.journal.connect import connect_reader, is_damage
from llmasos.kernel.journal.entries import ProcessRow
from llmasos.kernel.journal.schema import (
    COLUMNS,
    MAX_PARTS,
    accounts_of,
    archive_crc,
    entry_crc,
    live_crc,
    lost_row,
    meta_of,
    place_of,
    row_of,
)

NO_END: Final = 1 << 60
Piece = tuple[int, list[bytes]]
"""The number of the first of some consecutive events, and the events."""

_ROW: Final = f"SELECT {COLUMNS}, crc FROM processes"
_ZOMBIES: Final = (
    f"{_ROW} INDEXED BY zombies WHERE ended_at IS NOT NULL AND reaped = 0 ORDER BY pid"
)
_UNFINISHED: Final = "SELECT pid FROM processes INDEXED BY unfinished WHERE ended_at IS NULL"
_LIVE: Final = "SELECT num_events, crc FROM live WHERE pid = ?"
_ENTRIES: Final = (
    "SELECT first, count, body, crc FROM entries WHERE pid = :pid AND first < :until AND first >="
    " ifnull((SELECT max(first) FROM entries WHERE pid = :pid AND first <= :start), 0)"
    " ORDER BY first"
)
_ARCHIVES: Final = (
    "SELECT place, first, count, body, crc FROM archives WHERE place >= :place AND place < :end"
    " AND first + count > :start ORDER BY place"
)


class Damage(Exception):
    """What is wrong, and how many events before it are whole. Never leaves the journal."""

    def __init__(self, what: str, num_good: int = 0) -> None:
        super().__init__(what)
        self.num_good = num_good


class Reader:
    """One connection that many threads may use, one at a time; every call is a snapshot."""

    def __init__(self, path: Path) -> None:
        """Open it; raises `sqlite3.Error`."""
        self._connection = connect_reader(path)
        self._path = path
        self._lock = threading.Lock()

    def unfinished(self) -> list[ProcessRow]:
        """Processes that have not ended, by pid. Raises `JournalFailed`."""
        with self._snapshot() as connection:
            pids = {pid for (pid,) in connection.execute("SELECT pid FROM live")}
            pids |= {pid for (pid,) in connection.execute(_UNFINISHED)}
            rows = [self._row(pid) for pid in sorted(pids)]
        return [row for row in rows if row is not None and row.ended_at is None]

    def zombies(self) -> list[ProcessRow]:
        """Processes that ended and were not waited for, by pid. Raises `JournalFailed`."""
        with self._snapshot() as connection:
            rows = [row_of(values) for values in connection.execute(_ZOMBIES)]
        return [row for row in rows if not row.reaped]

    def accounts(self) -> dict[str, str]:
        """What is kept of accounts, by their names. Raises `JournalFailed`."""
        with self._snapshot() as connection:
            return accounts_of(meta_of(connection))

    def row(self, pid: Pid) -> ProcessRow | None:
        """One process, if it is known. Raises `JournalDamaged`, `JournalFailed`."""
        with self._snapshot(pid):
            return self._row(pid)

    def rows(self, *, limit: int, before: Pid | None) -> list[ProcessRow]:
        """The newest first. Raises `JournalFailed`."""
        query = f"{_ROW} WHERE pid < ? ORDER BY pid DESC LIMIT ?"
        with self._snapshot() as connection:
            end = NO_END if before is None else before
            found = [row_of(values) for values in connection.execute(query, (end, limit))]
            return [row if row.ended_at is not None else self._row(row.pid) or row for row in found]

    def events(self, pid: Pid, *, start: int, until: int | None) -> list[bytes]:
        """Events [start, until), checked. Raises as `JournalStore.events` does."""
        with self._snapshot(pid):
            row = self._known(pid)
            try:
                return self._events(row, max(start, 0), until)
            except Damage as damage:
                raise _damaged(pid, damage.num_good, str(damage)) from damage

    def num_good_events(self, pid: Pid) -> int:
        """How many events from the beginning are whole. Raises `NoSuchProcess`, `JournalFailed`."""
        with self._snapshot(pid):
            row = self._known(pid)
            return self._num_good(pid, None if row.is_damaged else row.num_events)

    def close(self) -> None:
        """Close the connection once nobody reads."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def _snapshot(self, pid: Pid | None = None) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                self._connection.execute("BEGIN")
                yield self._connection
            except sqlite3.Error as error:
                if pid is not None and is_damage(error):
                    raise _damaged(pid, 0, str(error)) from error
                raise JournalFailed(f"The journal {self._path} cannot be read: {error}.") from error
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")

    def _known(self, pid: Pid) -> ProcessRow:
        row = self._row(pid)
        if row is None:
            raise NoSuchProcess(f"The journal knows no process {pid}.")
        return row

    def _row(self, pid: Pid) -> ProcessRow | None:
        """A process's row; a live one's with its count of events, which is kept elsewhere."""
        values = self._connection.execute(f"{_ROW} WHERE pid = ?", (pid,)).fetchone()
        live = self._connection.execute(_LIVE, (pid,)).fetchone()
        if values is None:
            return live and replace(lost_row(pid), num_events=self._num_good(pid, None))
        row = row_of(values)
        if row.ended_at is not None:
            return row
        if live is None or live[1] != live_crc(pid, live[0]):
            return replace(row, num_events=self._num_good(pid, None), is_damaged=True)
        return replace(row, num_events=live[0])

    def _events(self, row: ProcessRow, start: int, until: int | None) -> list[bytes]:
        """Of a damaged process how many there were is not known: only what is asked for is checked."""
        if row.is_damaged and until is None:
            raise Damage("part of what was recorded is lost", self._num_good(row.pid, None))
        end = until if row.is_damaged else min(row.num_events, NO_END if until is None else until)
        if end is None or start >= end:
            return []
        found = [event for piece in self._whole(row.pid, start, end) for event in piece]
        return found[: end - start]

    def _num_good(self, pid: Pid, num_events: int | None) -> int:
        end = NO_END if num_events is None else num_events
        try:
            return min(sum(map(len, self._whole(pid, 0, end))), end)
        except Damage as damage:
            return damage.num_good

    def _whole(self, pid: Pid, start: int, until: int) -> Iterator[list[bytes]]:
        """The events from `start` on, as long as none is missing; `Damage` if that is before `until`."""
        reached, why = start, "events are missing"
        for piece in self._pieces(pid, start, until):
            if isinstance(piece, Damage):
                why = str(piece)
                continue
            first, events = piece
            if first > reached or reached >= until:
                break
            yield events[reached - first :]
            reached = max(reached, first + len(events))
        if reached < until:
            raise Damage(why, reached)

    def _pieces(self, pid: Pid, start: int, until: int) -> Iterator[Piece | Damage]:
        """Archived or not. Who has entries has no archive, and what befalls that is not theirs."""
        bounds = {"pid": pid, "start": start, "until": until}
        found = 0
        for values in self._rows(_ENTRIES, bounds):
            found += not isinstance(values, Damage)
            yield values if isinstance(values, Damage) else parted(pid, *values)
        if found == 0:
            places = {"place": place_of(pid, 0), "end": place_of(pid, MAX_PARTS), "start": start}
            for values in self._rows(_ARCHIVES, places):
                yield values if isinstance(values, Damage) else unpacked(*values)

    def _rows(self, query: str, bounds: dict[str, int]) -> Iterator[tuple[Any, ...] | Damage]:
        try:
            yield from self._connection.execute(query, bounds)
        except sqlite3.Error as error:
            if not is_damage(error):
                raise
            yield Damage(str(error))


def parted(pid: int, first: int, count: int, body: Any, crc: int) -> Piece | Damage:
    """A row of `entries` as events."""
    if not isinstance(body, bytes) or crc != entry_crc(pid, first, count, body):
        return Damage("a checksum does not match")
    return first, body.split(b"\n")


def unpacked(place: int, first: int, count: int, body: Any, crc: int) -> Piece | Damage:
    """A row of `archives` as events."""
    if not isinstance(body, bytes) or crc != archive_crc(place, first, count, body):
        return Damage("a checksum does not match")
    return first, zlib.decompress(body).split(b"\n")


def _damaged(pid: Pid, num_good: int, why: str) -> JournalDamaged:
    return JournalDamaged(f"Process {pid}'s journal is damaged at event {num_good}: {why}.")
