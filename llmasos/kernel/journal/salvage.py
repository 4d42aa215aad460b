"""Takes every whole row out of a damaged journal into a new one, and sets the damaged one aside.

    journal.db.salvaging     the new file, while it is made
    journal.db.salvaged      the same, complete
    journal.db.damaged-1     the old one; its log beside it, as journal.db.damaged-1-wal

Nothing is deleted. The new file takes the place of the old one only when it is complete, and a crash at
any moment leaves what the next opening can go on from. What of a process is lost is not always known, so
whoever cannot be shown to be complete is marked as damaged.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from llmasos.kernel.journal.carve import Row, carve
from llmasos.kernel.journal.change import put_row, row_in
from llmasos.kernel.journal.checkup import suspicion_of
from llmasos.kernel.journal.connect import connect_builder, create_private, shm_of, wal_of
from llmasos.kernel.journal.entries import ProcessRow
from llmasos.kernel.journal.schema import (
    MAX_PARTS,
    MIGRATIONS,
    accounts_of,
    archive_crc,
    entry_crc,
    live_crc,
    meta_crc,
    migrate,
    place_of,
    process_crc,
    put_account,
    put_meta,
    row_of,
)

_SPARE_PIDS: Final = 1000
"""Skipped where it is not known which pids were used: the newest processes may be gone."""


def salvage(path: Path, fault: str, now: float) -> str:
    """Put a new file in the place of a damaged one; returns what to tell the operator.

    Time grows with the file. Raises `OSError`, `sqlite3.Error`; the damaged file then is where it was.
    """
    fresh, complete = (path.with_name(path.name + end) for end in (".salvaging", _COMPLETE))
    for file in (fresh, complete, *(fresh.with_name(fresh.name + end) for end in _BESIDE)):
        file.unlink(missing_ok=True)
    create_private(fresh)
    with closing(connect_builder(fresh)) as connection:
        migrate(connection, MIGRATIONS)
        num_damaged = _Rebuild(connection, now).run(carve(path))
        connection.execute("PRAGMA journal_mode = WAL")
    _sync(fresh)
    fresh.rename(complete)
    _sync(path.parent)
    aside = _put_aside(path)
    finish(path)
    return (
        f"The journal was damaged ({fault}): what is whole was taken over, {num_damaged} processes"
        f" lost something; the damaged file is kept as {aside}."
    )


def finish(path: Path) -> None:
    """Complete a salvage that was interrupted after the damaged file had been set aside."""
    fresh = path.with_name(path.name + _COMPLETE)
    if path.exists() or not fresh.exists():
        return
    aside = (_asides(path) or [_numbered(path, 1)])[-1]
    for file, kept in ((wal_of(path), wal_of(aside)), (shm_of(path), shm_of(aside))):
        if file.exists():
            file.rename(kept)
    fresh.rename(path)
    suspicion_of(path).unlink(missing_ok=True)
    _sync(path.parent)


_COMPLETE: Final = ".salvaged"
_BESIDE: Final = ("-journal", "-wal", "-shm")


class _Rebuild:
    """Fills a new journal with the whole rows of an old one, then settles what they add up to."""

    def __init__(self, connection: sqlite3.Connection, now: float) -> None:
        self._connection = connection
        self._now = now
        self._meta: dict[str, Any] = {}

    def run(self, rows: Iterator[Row]) -> int:
        """How many processes have lost something."""
        self._connection.execute("BEGIN")
        for number, values in rows:
            self._take(number, values)
        damaged = [self._settle(pid) for pid in self._pids()]
        self._settle_meta()
        self._connection.execute("COMMIT")
        return sum(damaged)

    def _take(self, number: int | None, values: tuple[Any, ...]) -> None:
        try:
            if number is None:
                self._take_unnumbered(values)
            else:
                self._take_numbered(number, values)
        except (TypeError, OverflowError, sqlite3.InterfaceError, sqlite3.IntegrityError):
            return  # a row of another table, or of nobody

    def _take_unnumbered(self, values: tuple[Any, ...]) -> None:
        if len(values) == 3 and isinstance(values[0], str) and values[2] == meta_crc(*values[:2]):
            self._meta[values[0]] = values[1]
        if len(values) == 5 and isinstance(values[3], bytes) and _is_entry(values):
            self._connection.execute("INSERT OR IGNORE INTO entries VALUES (?, ?, ?, ?, ?)", values)

    def _take_numbered(self, number: int, values: tuple[Any, ...]) -> None:
        if len(values) == 3 and values[2] == live_crc(number, values[1]):
            self._take_live(number, values[1])
        elif len(values) == 5 and isinstance(values[3], bytes):
            if values[4] == archive_crc(number, *values[1:4]):
                query = "INSERT OR IGNORE INTO archives VALUES (?, ?, ?, ?, ?)"
                self._connection.execute(query, (number, *values[1:]))
        elif len(values) > 5:
            self._take_process((number, *values[1:]))

    def _take_live(self, pid: int, num_events: int) -> None:
        query = "SELECT num_events FROM live WHERE pid = ?"
        found = self._connection.execute(query, (pid,)).fetchone()
        self._put_live(pid, max(num_events, *(found or (0,))))

    def _put_live(self, pid: int, num_events: int) -> None:
        values = (pid, num_events, live_crc(pid, num_events))
        self._connection.execute("REPLACE INTO live VALUES (?, ?, ?)", values)

    def _take_process(self, values: tuple[Any, ...]) -> None:
        """Times that are whole numbers are stored as such."""
        values = tuple(
            float(v) if n in (4, 6) and v is not None else v for n, v in enumerate(values)
        )
        if values[-1] != process_crc(values[:-1]):
            return
        row, known = row_of(values), row_in(self._connection, values[0])
        if _stage(row) > _stage(known):
            put_row(self._connection, row)

    def _pids(self) -> list[int]:
        found = self._connection.execute(
            "SELECT pid FROM processes UNION SELECT pid FROM live UNION SELECT pid FROM entries"
            f" UNION SELECT place / {MAX_PARTS} FROM archives ORDER BY 1"
        )
        return [pid for (pid,) in found.fetchall()]

    def _settle(self, pid: int) -> bool:
        """Bring a process's rows in line; says whether it has lost anything."""
        row = row_in(self._connection, pid)
        archived, reach = self._archived(pid), self._reach(pid)
        if archived and row.ended_at is None:
            row = replace(row, num_events=max(archived, reach), is_damaged=True)
            row = replace(row, ended_at=self._now, reaped=True)  # only who has ended is archived
        if row.ended_at is None:
            return self._settle_live(row, reach)
        whole = archived if archived == row.num_events else max(archived, self._whole(pid))
        if archived >= row.num_events:
            self._connection.execute("DELETE FROM entries WHERE pid = ?", (pid,))
        self._connection.execute("DELETE FROM live WHERE pid = ?", (pid,))
        return self._settle_row(row, is_damaged=row.is_damaged or whole != row.num_events)

    def _settle_live(self, row: ProcessRow, reach: int) -> bool:
        found = self._connection.execute("SELECT num_events FROM live WHERE pid = ?", (row.pid,))
        counted = found.fetchone()
        is_complete = counted is not None and counted[0] == reach == self._whole(row.pid)
        is_known = "home_id" in self._meta and not row.is_damaged
        self._put_live(row.pid, max(reach, *(counted or (0,))))
        return self._settle_row(row, is_damaged=not (is_complete and is_known))

    def _settle_row(self, row: ProcessRow, *, is_damaged: bool) -> bool:
        put_row(self._connection, replace(row, is_damaged=is_damaged))
        return is_damaged

    def _archived(self, pid: int) -> int:
        """How many events from the beginning are in archives."""
        bounds = (place_of(pid, 0), place_of(pid, MAX_PARTS))
        query = "SELECT first, count FROM archives WHERE place >= ? AND place < ? ORDER BY place"
        return _contiguous(self._connection.execute(query, bounds))

    def _whole(self, pid: int) -> int:
        query = "SELECT first, count FROM entries WHERE pid = ? ORDER BY first"
        return _contiguous(self._connection.execute(query, (pid,)))

    def _reach(self, pid: int) -> int:
        query = "SELECT ifnull(max(first + count), 0) FROM entries WHERE pid = ?"
        return int(self._connection.execute(query, (pid,)).fetchone()[0])

    def _settle_meta(self) -> None:
        query = "SELECT ifnull(max(pid), 0) + 1, count(ended_at) FROM processes"
        next_pid, num_finished = self._connection.execute(query).fetchone()
        known = self._meta.get("next_pid")
        next_pid = max(next_pid, next_pid + _SPARE_PIDS if known is None else known)
        put_meta(self._connection, "next_pid", next_pid)
        put_meta(self._connection, "num_finished", num_finished)
        if "home_id" in self._meta:
            put_meta(self._connection, "home_id", self._meta["home_id"])
        for name, text in accounts_of(self._meta).items():
            put_account(self._connection, name, text)


def _is_entry(values: Sequence[Any]) -> bool:
    pid, first, count, body, crc = values
    return bool(crc == entry_crc(pid, first, count, body))


def _stage(row: ProcessRow) -> tuple[bool, bool, bool]:
    """A process only ever gets further; a later version of its row wins."""
    is_known = bool(row.started_at or row.app or row.ended_at)
    return is_known, row.ended_at is not None, row.reaped


def _contiguous(spans: Iterator[tuple[int, int]]) -> int:
    reached = 0
    for first, count in spans:
        if first != reached:
            break
        reached += count
    return reached


def _asides(path: Path) -> list[Path]:
    """Files set aside so far, the latest last."""
    prefix = _numbered(path, 0).name[:-1]
    numbers = (file.name.removeprefix(prefix) for file in path.parent.glob(f"{prefix}*"))
    found = sorted(int(number) for number in numbers if number.isdecimal())
    return [_numbered(path, number) for number in found]


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.damaged-{number}")


def _put_aside(path: Path) -> Path:
    asides = _asides(path)
    number = int(asides[-1].name.rpartition("-")[2]) + 1 if asides else 1
    return path.rename(_numbered(path, number))


def _sync(path: Path) -> None:
    with suppress(PermissionError):  # folders cannot be opened everywhere
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
