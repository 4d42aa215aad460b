"""What a batch does to the tables, checked first against what the writer knows by heart."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Final, Self

from llmasos.kernel.errors import KernelBug
from llmasos.kernel.journal.entries import Batch, Ending, Entry, ProcessRow
from llmasos.kernel.journal.schema import (
    COLUMNS,
    entry_crc,
    live_crc,
    lost_row,
    meta_of,
    put_account,
    put_meta,
    row_of,
    values_of,
)

_MARKS: Final = ", ".join("?" * (COLUMNS.count(",") + 2))
_INSERT: Final = f"INSERT INTO processes VALUES ({_MARKS})"
_REPLACE: Final = f"REPLACE INTO processes VALUES ({_MARKS})"


@dataclass(frozen=True, slots=True)
class Known:
    """The writer's own picture of the file."""

    num_events: dict[int, int]
    """Of each unfinished process."""
    zombies: set[int]
    next_pid: int
    num_finished: int

    @classmethod
    def read(cls, connection: sqlite3.Connection) -> Self:
        """Takes time by what is not finished; raises `sqlite3.Error`."""
        meta = meta_of(connection)
        zombies = connection.execute(
            "SELECT pid FROM processes WHERE ended_at IS NOT NULL AND reaped = 0"
        )
        return cls(
            dict(connection.execute("SELECT pid, num_events FROM live")),
            {pid for (pid,) in zombies},
            meta["next_pid"],
            meta["num_finished"],
        )

    @property
    def num_reaped(self) -> int:
        """Finished processes that were waited for."""
        return self.num_finished - len(self.zombies)


class Change:
    """A batch, checked; raises `KernelBug` where it does not fit what is there."""

    def __init__(self, batch: Batch, known: Known) -> None:
        self._batch = batch
        self._before = known
        self._moved: dict[int, int] = {}
        for row in batch.spawned:
            self._spawn(row)
        for entry in batch.entries:
            self._append(entry)
        zombies = set(known.zombies) if batch.ended or batch.reaped else known.zombies
        for ending in batch.ended:
            self._end(ending, zombies)
        for pid in batch.reaped:
            if pid not in zombies:
                raise KernelBug(f"Process {pid} is reaped, and is no zombie.")
            zombies.discard(pid)
        self._zombies = zombies

    @property
    def num_events(self) -> int:
        """How many events the batch holds."""
        return sum(entry.count for entry in self._batch.entries)

    def after(self) -> Known:
        """What is known once the batch is written."""
        ended = {ending.pid for ending in self._batch.ended}
        num_events = self._before.num_events
        num_events.update(self._moved)
        for pid in ended:
            del num_events[pid]
        return Known(num_events, self._zombies, self._next_pid, self._num_finished)

    def write(self, connection: sqlite3.Connection) -> None:
        """Do it, inside a transaction of the caller's. Raises `sqlite3.Error`."""
        batch = self._batch
        fresh = (values_of(replace(row, num_events=0)) for row in batch.spawned)
        connection.executemany(_INSERT, fresh)
        connection.executemany(
            "INSERT INTO entries VALUES (?, ?, ?, ?, ?)", map(_stored, batch.entries)
        )
        connection.executemany("REPLACE INTO live VALUES (?, ?, ?)", self._lives())
        for ending in batch.ended:
            self._write_end(connection, ending)
        for pid in batch.reaped:
            put_row(connection, replace(row_in(connection, pid), reaped=True))
        for name, text in batch.accounts:
            put_account(connection, name, text)
        self.write_pids(connection)
        if batch.ended:
            put_meta(connection, "num_finished", self._num_finished)
        if batch.audit_head:
            put_meta(connection, "audit_head", batch.audit_head)

    def write_pids(self, connection: sqlite3.Connection) -> None:
        """Note only that the pids are used."""
        if self._next_pid != self._before.next_pid:
            put_meta(connection, "next_pid", self._next_pid)

    @property
    def _next_pid(self) -> int:
        return max([self._before.next_pid, *(row.pid + 1 for row in self._batch.spawned)])

    @property
    def _num_finished(self) -> int:
        return self._before.num_finished + len(self._batch.ended)

    def _reached(self, pid: int) -> int | None:
        return self._moved.get(pid, self._before.num_events.get(pid))

    def _spawn(self, row: ProcessRow) -> None:
        if self._reached(row.pid) is not None or row.pid in self._before.zombies:
            raise KernelBug(f"Process {row.pid} is spawned a second time.")
        if row.ended_at is not None or row.reaped:
            raise KernelBug(f"Process {row.pid} is spawned, and has ended already.")
        self._moved[row.pid] = 0

    def _append(self, entry: Entry) -> None:
        reached = self._reached(entry.pid)
        if reached is None:
            raise KernelBug(f"Process {entry.pid} is not running, and has events to record.")
        if entry.first != reached:
            raise KernelBug(
                f"Process {entry.pid} has {reached} events, and its next is numbered {entry.first}."
            )
        if entry.count != entry.body.count(b"\n") + 1:
            raise KernelBug(f"An entry of process {entry.pid} does not hold {entry.count} events.")
        self._moved[entry.pid] = reached + entry.count

    def _end(self, ending: Ending, zombies: set[int]) -> None:
        if self._reached(ending.pid) is None or ending.pid in zombies:
            raise KernelBug(f"Process {ending.pid} ends, and is not running.")
        zombies.add(ending.pid)

    def _lives(self) -> Iterable[tuple[int, int, int]]:
        return ((pid, count, live_crc(pid, count)) for pid, count in self._moved.items())

    def _write_end(self, connection: sqlite3.Connection, ending: Ending) -> None:
        row = replace(
            row_in(connection, ending.pid),
            num_events=self._reached(ending.pid) or 0,
            ended_at=ending.ended_at,
            exit_code=ending.code,
            exit_message=ending.message,
            exit_signal=ending.signal,
        )
        put_row(connection, row)
        connection.execute("DELETE FROM live WHERE pid = ?", (ending.pid,))


def row_in(connection: sqlite3.Connection, pid: int) -> ProcessRow:
    """A process's row as it is stored. Raises `sqlite3.Error`."""
    values = connection.execute(
        f"SELECT {COLUMNS}, crc FROM processes WHERE pid = ?", (pid,)
    ).fetchone()
    return lost_row(pid) if values is None else row_of(values)


def put_row(connection: sqlite3.Connection, row: ProcessRow) -> None:
    """Store a process's row in place of what is there. Raises `sqlite3.Error`."""
    connection.execute(_REPLACE, values_of(row))


def _stored(entry: Entry) -> tuple[Any, ...]:
    checksum = entry_crc(entry.pid, entry.first, entry.count, entry.body)
    return entry.pid, entry.first, entry.count, entry.body, checksum
