"""The journal's store: every process's events in one SQLite file, checked when read.

Keeps bytes; what they mean is not known here. One thread writes, and one kernel at a time has the file
open for it (the home's lock sees to that); any thread may read, and so may other processes. A damaged
file is set aside and what is whole in it taken over (`salvage`). Every method blocks.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from llmasos.kernel.abi import Pid
from llmasos.kernel.errors import (
    ConfigError,
    JournalDamaged,
    KernelBug,
    NoSuchProcess,
    ProcessError,
)
from llmasos.kernel.journal import upkeep
from llmasos.kernel.journal.change import Change, Known
from llmasos.kernel.journal.checkup import fault_of, suspicion_of
from llmasos.kernel.journal.connect import (
    as_failures,
    connect_checkpointer,
    connect_reader,
    connect_writer,
    create_private,
    is_damage,
    wal_of,
)
from llmasos.kernel.journal.entries import Batch, JournalStatus, Level, ProcessRow, Retention
from llmasos.kernel.journal.reader import Reader
from llmasos.kernel.journal.salvage import finish, salvage
from llmasos.kernel.journal.schema import (
    META_KEYS,
    MIGRATIONS,
    Migration,
    meta_of,
    migrate,
    put_meta,
    refuse_other,
)

Clock = Callable[[], float]
_SLICE_ARCHIVED: Final = 8
_SLICE_LOOKED_AT: Final = 64


class JournalStore:
    """See the module. Made by `open`."""

    def __init__(self, path: Path, level: Level, *, retention: Retention, clock: Clock) -> None:
        """For `open` alone: nothing is connected yet."""
        self._path = path
        self._level = level
        self._retention = retention
        self._clock = clock
        self._lock = threading.Lock()
        """Held while the writer's connection is in use."""
        self._chores = threading.Lock()
        """Held by whoever archives or deletes: what has ended changes under it alone."""
        self._known = Known({}, set(), 1, 0)
        self._home_id = ""
        self.audit_head = ""
        """Of the audit log, as it was known when the file was opened; empty where it was not."""
        self._num_written = 0
        self._swept = 0
        """Processes up to this pid were looked at for archiving in this round."""
        self._unfit: set[int] = set()
        """Whose events are not whole, so that they stay as they are."""
        self._warning = ""
        self._reader: Reader | None = None
        self._writer: sqlite3.Connection | None = None
        self._checkpointer: sqlite3.Connection | None = None

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        level: Level = Level.DURABLE,
        retention: Retention | None = None,
        read_only: bool = False,
        clock: Clock = time.time,
        migrations: Sequence[Migration] = MIGRATIONS,
    ) -> JournalStore:
        """Open the file: made with mode 0600 if it is not there, brought to the latest version, and
        salvaged if it is damaged; `read_only` does none of that. `clock` tells what is old.

        Takes time by what is unfinished, not by what is finished. Raises `ConfigError`.
        """
        store = cls(path, level, retention=retention or Retention(), clock=clock)
        try:
            if not read_only:
                store._open_writer(migrations)
            store._open_reader(migrations)
        except (sqlite3.Error, OSError) as error:
            store.close()
            raise ConfigError(f"The journal {path} cannot be opened: {error}.") from error
        except BaseException:
            store.close()
            raise
        return store

    @property
    def home_id(self) -> str:
        """Random, made with the file, the same for its life."""
        return self._home_id

    @property
    def next_pid(self) -> int:
        """One more than any pid ever used, also of processes that are deleted."""
        return self._known.next_pid

    @property
    def status(self) -> JournalStatus:
        """Counts and sizes as they stand; reads no table."""
        files = (self._path, wal_of(self._path))
        return JournalStatus(
            self._level,
            num_live=len(self._known.num_events),
            num_finished=self._known.num_finished,
            size_bytes=sum(file.stat().st_size for file in files if file.exists()),
            num_events=self._num_written,
            warning=self._warning,
        )

    def write(self, batch: Batch) -> None:
        """Write it in one transaction; on return it is as safe as the level says.

        Raises `JournalFull` where the disk is full and `JournalFailed` for any other trouble with it:
        nothing has changed then, and the same batch may be written again. Raises `KernelBug` where the
        batch does not follow what was written before.
        """
        with self._lock:
            connection = self._connection
            change = Change(batch, self._known)
            with self._transaction():
                if self._level is Level.OFF:
                    change.write_pids(connection)
                else:
                    change.write(connection)
            self._known = change.after()
            self._num_written += change.num_events

    def unfinished(self) -> list[ProcessRow]:
        """Processes that have not ended, by pid. Raises `JournalFailed`."""
        return self._reading.unfinished()

    def zombies(self) -> list[ProcessRow]:
        """Processes that ended and were not waited for, by pid. Raises `JournalFailed`."""
        return self._reading.zombies()

    def accounts(self) -> dict[str, str]:
        """What is kept of accounts, by their names. Raises `JournalFailed`."""
        return self._reading.accounts()

    def row(self, pid: Pid) -> ProcessRow | None:
        """One process, if it is known. Raises `JournalDamaged`, `JournalFailed`."""
        return self._reading.row(pid)

    def rows(self, *, limit: int = 1000, before: Pid | None = None) -> list[ProcessRow]:
        """Processes below `before`, the newest first, finished or not. Raises `JournalFailed`."""
        return self._reading.rows(limit=limit, before=before)

    def events(self, pid: Pid, *, start: int = 0, until: int | None = None) -> list[bytes]:
        """The texts of events [start, until), whole and without a gap. Raises `JournalDamaged`,
        `NoSuchProcess`, `JournalFailed`."""
        return self._reading.events(pid, start=start, until=until)

    def num_good_events(self, pid: Pid) -> int:
        """How many events from the beginning are whole. Raises `NoSuchProcess`, `JournalFailed`."""
        return self._reading.num_good_events(pid)

    def archive(self, pid: Pid) -> None:
        """Compress a finished process's events. Raises `JournalDamaged` where they are not whole,
        `ProcessError` where it has not ended, `JournalFull` and `JournalFailed`."""
        with self._chores:
            self._archive(pid)

    def delete(self, pid: Pid) -> None:
        """Delete all that is recorded of a finished process; raises as `archive` does."""
        with self._chores:
            self._refuse_running(pid)
            if pid not in self._known.zombies and self._reading.row(pid) is None:
                raise NoSuchProcess(f"The journal knows no process {pid}.")
            self._delete([pid])

    def maintain(self) -> None:
        """A slice of housekeeping, for when nothing else is to do: archives what has ended, deletes
        what retention lets go, writes the WAL back and makes the file smaller. The writer waits for
        a few milliseconds of it at most. Raises `JournalFull`, `JournalFailed`."""
        with self._chores:
            for pid in self._next_to_archive():
                self._archive_if_whole(pid)
            self._apply_retention()
            with self._lock, self._failures():
                upkeep.give_back(self._connection)
            self._write_back()

    def close(self) -> None:
        """Close the file; what was written stays as safe as it is."""
        with self._chores, self._lock:
            for connection in (self._reader, self._checkpointer, self._writer):
                if connection is not None:
                    connection.close()

    @property
    def _reading(self) -> Reader:
        if self._reader is None:
            raise KernelBug("The journal is not open.")
        return self._reader

    @property
    def _connection(self) -> sqlite3.Connection:
        if self._writer is None:
            raise KernelBug("This journal was opened for reading.")
        return self._writer

    def _open_writer(self, migrations: Sequence[Migration]) -> None:
        finish(self._path)
        create_private(self._path)
        fault = fault_of(self._path, migrations)
        if fault is not None:
            self._warning = salvage(self._path, fault, self._clock())
        self._writer = connect_writer(self._path, self._level)
        migrate(self._writer, migrations)
        self._checkpointer = connect_checkpointer(self._path)

    def _open_reader(self, migrations: Sequence[Migration]) -> None:
        with closing(connect_reader(self._path)) as connection:
            refuse_other(connection, migrations)
            meta = meta_of(connection)
            if any(key not in meta for key in META_KEYS):
                raise ConfigError(
                    f"The journal {self._path} is damaged; a kernel that boots in this home repairs it."
                )
            self._known = Known.read(connection)
            self._home_id = str(meta["home_id"])
            self.audit_head = str(meta.get("audit_head", ""))
        self._reader = Reader(self._path)

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Errors as this module's; damage is looked into when the file is opened the next time."""
        with as_failures(self._path):
            try:
                yield
            except sqlite3.Error as error:
                if is_damage(error):
                    suspicion_of(self._path).touch(mode=0o600)
                raise

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        connection = self._connection
        with self._failures():
            try:
                connection.execute("BEGIN IMMEDIATE")
                yield connection
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    def _refuse_running(self, pid: Pid) -> None:
        if pid in self._known.num_events:
            raise ProcessError(f"Process {pid} has not ended; its journal stays as it is.")

    def _next_to_archive(self) -> list[Pid]:
        with self._lock, self._failures():
            pids = upkeep.pids_with_entries(
                self._connection, after=self._swept, limit=_SLICE_LOOKED_AT
            )
            ended = [pid for pid in pids if pid not in self._known.num_events]
        ended = [pid for pid in ended if pid not in self._unfit][:_SLICE_ARCHIVED]
        is_full = len(pids) == _SLICE_LOOKED_AT or len(ended) == _SLICE_ARCHIVED
        self._swept = (ended if len(ended) == _SLICE_ARCHIVED else pids)[-1] if is_full else 0
        return [Pid(pid) for pid in ended]

    def _archive(self, pid: Pid) -> None:
        self._refuse_running(pid)
        rows = upkeep.archive_rows(pid, self._reading.events(pid, start=0, until=None))
        with self._lock, self._failures():
            if not upkeep.has_entries(self._connection, pid):
                return
        with self._lock, self._transaction() as connection:
            upkeep.put_archive(connection, pid, rows)

    def _archive_if_whole(self, pid: Pid) -> None:
        try:
            self._archive(pid)
        except (JournalDamaged, NoSuchProcess):
            self._unfit.add(pid)

    def _apply_retention(self) -> None:
        with self._lock, self._failures():
            pids = upkeep.outdated(
                self._connection, self._retention, self._known.num_reaped, self._clock()
            )
        if pids:
            self._delete(pids)

    def _delete(self, pids: Sequence[int]) -> None:
        with self._lock:
            num_finished = self._known.num_finished - len(pids)
            with self._transaction() as connection:
                for pid in pids:
                    upkeep.delete_process(connection, pid)
                put_meta(connection, "num_finished", num_finished)
            self._known = replace(
                self._known,
                num_finished=num_finished,
                zombies=self._known.zombies - set(pids),
            )

    def _write_back(self) -> None:
        """Beside the writer, whom it does not hold up: what he adds meanwhile waits for next time."""
        if self._checkpointer is not None:
            with self._failures():
                self._checkpointer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
