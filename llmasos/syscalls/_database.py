"""SQLite files that hold what nothing else does: their owner's alone, and sound after kill -9.

A damaged file is put aside, not thrown away, and a new one begun. Many threads and processes may write:
each takes its turn (`LOCK_S`).
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

LOCK_S = 10.0


@contextmanager
def database(file: Path, tables: str) -> Iterator[sqlite3.Connection]:
    """The open file, made with `tables` where there is none yet; for one thread.

    Raises `OSError` or `sqlite3.Error` when it can be neither opened nor made.
    """
    try:
        connection = _open(file, tables)
    except sqlite3.OperationalError:  # locked, full, not ours to write: the file may be sound
        raise
    except sqlite3.DatabaseError:
        _put_aside(file)
        connection = _open(file, tables)
    with closing(connection):
        yield connection


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All of the block's changes or none; other writers wait."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _open(file: Path, tables: str) -> sqlite3.Connection:
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))
    connection = sqlite3.connect(file, timeout=LOCK_S, isolation_level=None)
    try:
        if not _is_made(connection):
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("PRAGMA journal_mode = WAL")
            with transaction(connection):
                if not _is_made(connection):
                    _make(connection, tables)
        connection.execute("PRAGMA synchronous = FULL")
    except BaseException:
        connection.close()
        raise
    return connection


def _is_made(connection: sqlite3.Connection) -> bool:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return bool(version)


def _make(connection: sqlite3.Connection, tables: str) -> None:
    """One statement after the other: `executescript` would end the transaction."""
    statement = ""
    for line in tables.splitlines():
        statement += f"{line}\n"
        if sqlite3.complete_statement(statement):
            connection.execute(statement)
            statement = ""
    connection.execute("PRAGMA user_version = 1")


def _put_aside(file: Path) -> None:
    """Out of the way, not gone: somebody may still get something out of it."""
    for ending in ("", "-wal", "-shm"):
        with suppress(OSError):
            os.replace(f"{file}{ending}", f"{file}.damaged{ending}")
