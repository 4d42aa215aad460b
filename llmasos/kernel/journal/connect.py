"""Connections to `journal.db`, and what SQLite's errors mean here."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from llmasos.kernel.errors import JournalFailed, JournalFull
from llmasos.kernel.journal.entries import Level

PAGE_BYTES: Final = 4096
BUSY_TIMEOUT_S: Final = 10.0
WAL_LIMIT_PAGES: Final = 16_384
"""Where nobody is ever idle, a commit that finds the WAL this long writes it back itself."""
_WAL_KEPT_BYTES: Final = 16 << 20
_CACHE_KIB: Final = 8192
_ROOM_BYTES: Final = 1 << 20
_SYNCHRONOUS: Final = {Level.DURABLE: "FULL", Level.RELAXED: "NORMAL", Level.OFF: "NORMAL"}
_DAMAGE: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def create_private(path: Path) -> None:
    """Make the file, for its owner's eyes alone, unless it is there. Raises `OSError`."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))


def connect_writer(path: Path, level: Level) -> sqlite3.Connection:
    """The connection that writes."""
    connection = _connect(f"{_uri(path)}?mode=rw")
    try:
        _lay_out(connection)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {_SYNCHRONOUS[level]}")
        connection.execute(f"PRAGMA wal_autocheckpoint = {WAL_LIMIT_PAGES}")
        connection.execute(f"PRAGMA journal_size_limit = {_WAL_KEPT_BYTES}")
        # Freed pages are zeroed: nothing stays of what was deleted, nor for salvage to mistake.
        connection.execute("PRAGMA secure_delete = ON")
    except BaseException:
        connection.close()
        raise
    return connection


def connect_builder(path: Path) -> sqlite3.Connection:
    """A connection that fills a new file, fast and with no regard for crashes."""
    connection = _connect(f"{_uri(path)}?mode=rw")
    _lay_out(connection)
    connection.execute("PRAGMA journal_mode = MEMORY")
    connection.execute("PRAGMA synchronous = OFF")
    return connection


def connect_checkpointer(path: Path) -> sqlite3.Connection:
    """A connection that only ever writes the WAL back."""
    return _connect(f"{_uri(path)}?mode=rw")


def connect_reader(path: Path) -> sqlite3.Connection:
    """A connection that cannot write; a kernel may be writing meanwhile."""
    try:
        return _checked_reader(f"{_uri(path)}?mode=ro")
    except sqlite3.OperationalError:
        if has_wal(path) or os.access(path.parent, os.W_OK):
            raise
        # On a read-only disk there can be no shared memory, nor anybody who writes.
        return _checked_reader(f"{_uri(path)}?mode=ro&immutable=1")


def has_wal(path: Path) -> bool:
    """Whether there is anything beside the file that is not yet in it."""
    wal = wal_of(path)
    return wal.exists() and wal.stat().st_size > 0


def wal_of(path: Path) -> Path:
    """Where SQLite keeps what is not yet in the file."""
    return path.with_name(path.name + "-wal")


def is_damage(error: sqlite3.Error) -> bool:
    """Whether SQLite says that the file itself is broken."""
    return _code(error) & 0xFF in _DAMAGE


def shm_of(path: Path) -> Path:
    """Where SQLite keeps the index of it, shared between connections."""
    return path.with_name(path.name + "-shm")


@contextmanager
def as_failures(path: Path) -> Iterator[None]:
    """SQLite's errors as `JournalFull` and `JournalFailed`."""
    try:
        yield
    except sqlite3.Error as error:
        if _is_full(error, path):
            raise JournalFull(
                f"The disk that holds {path} is full; make room, and what waits is written then."
            ) from error
        raise JournalFailed(f"The journal {path} cannot be used: {error}.") from error


def _is_full(error: sqlite3.Error, path: Path) -> bool:
    code = _code(error)
    if code & 0xFF == sqlite3.SQLITE_FULL:
        return True
    if code & 0xFF != sqlite3.SQLITE_IOERR:
        return False
    try:  # the memory shared between connections is a file too, and fails in its own way
        return shutil.disk_usage(path.parent).free < _ROOM_BYTES
    except OSError:
        return False


def _code(error: sqlite3.Error) -> int:
    return int(getattr(error, "sqlite_errorcode", 0) or 0)


def _lay_out(connection: sqlite3.Connection) -> None:
    """Heeded in an empty file only."""
    connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")


def _checked_reader(uri: str) -> sqlite3.Connection:
    connection = _connect(uri)
    try:
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection


def _connect(uri: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        uri, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
    )
    connection.text_factory = _text
    connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    return connection


def _text(stored: bytes) -> str:
    """A flipped bit may make text undecodable; its checksum then tells."""
    return stored.decode("utf-8", "replace")


def _uri(path: Path) -> str:
    return path.absolute().as_uri()
