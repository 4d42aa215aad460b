"""Whether a journal can be relied on for what is not finished; history is checked when it is read."""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

from llmasos.kernel.journal.connect import PAGE_BYTES, connect_checkpointer, connect_reader, has_wal
from llmasos.kernel.journal.schema import (
    COLUMNS,
    META_KEYS,
    Migration,
    live_crc,
    meta_of,
    process_crc,
    refuse_newer,
    tables_crc,
    version_of,
)
from llmasos.kernel.journal.wal import lost_frames

_EMPTY_BYTES: Final = PAGE_BYTES
"""A file in which no transaction of ours was ever written back."""
_UTF8: Final = 1
_FRACTIONS: Final = bytes((0, 64, 32, 32))
_INNOCENT: Final = (
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
)
"""What is wrong with the machine and not with the file."""
_UNFINISHED: Final = (
    "SELECT pid FROM live UNION SELECT pid FROM processes INDEXED BY unfinished"
    " WHERE ended_at IS NULL"
)
_ZOMBIES: Final = (
    "SELECT pid FROM processes INDEXED BY zombies WHERE ended_at IS NOT NULL AND reaped = 0"
)
_ENDS: Final = (
    "SELECT max(place) FROM archives",
    "SELECT max(pid) FROM entries",
    "SELECT max(pid) FROM processes",
    "SELECT max(ended_at) FROM processes INDEXED BY finished WHERE ended_at IS NOT NULL AND reaped = 1",
)
"""One way from the root to a leaf of what grows with history."""
_REACH: Final = (
    "SELECT ifnull(sum(count), 0), ifnull(max(first + count), 0) FROM entries WHERE pid = ?"
)


def suspicion_of(path: Path) -> Path:
    """A file that stands beside a journal in which SQLite has met damage while it was in use."""
    return path.with_name(path.name + ".suspect")


def fault_of(path: Path, migrations: Sequence[Migration]) -> str | None:
    """What is broken in the file, if anything; takes time by what is not finished.

    Raises `ConfigError` for a file of a newer version, `OSError` and `sqlite3.Error` where the trouble is
    not the file's.
    """
    _roll_back(path)
    if path.stat().st_size == 0:
        return "it is empty, and its log is not" if has_wal(path) else None
    if suspicion_of(path).exists():
        return "damage was met while it was in use"
    if not _is_headed(path):
        return "its header is damaged"
    try:
        with closing(connect_reader(path)) as connection:
            connection.execute("BEGIN")
            return _fault(connection, path, migrations)
    except UnicodeDecodeError:
        return "it holds what is no text"
    except sqlite3.Error as error:
        if _is_innocent(error):
            raise
        return str(error)


def _roll_back(path: Path) -> None:
    """A file that was being made, or just made, when its kernel was killed has an old-style journal."""
    if path.with_name(path.name + "-journal").exists():
        with closing(connect_checkpointer(path)) as connection, suppress(sqlite3.DatabaseError):
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()


def _is_headed(path: Path) -> bool:
    """What is the same in the first bytes of every journal. SQLite believes some of them too readily."""
    with open(path, "rb") as file:
        header = file.read(100).ljust(100, b"\0")
    page_bytes, *versions = struct.unpack_from(">H2B", header, 16)
    (encoding,) = struct.unpack_from(">I", header, 56)
    is_empty = path.stat().st_size <= _EMPTY_BYTES
    return (
        header.startswith(b"SQLite format 3\0")
        and page_bytes == PAGE_BYTES
        and set(versions) <= {1, 2}
        and header[20:24] == _FRACTIONS
        and (is_empty or (encoding == _UTF8 and header[52:56] != bytes(4) != header[64:68]))
    )


def _fault(
    connection: sqlite3.Connection, path: Path, migrations: Sequence[Migration]
) -> str | None:
    version = version_of(connection)
    (num_tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if version == 0 and num_tables == 0 and path.stat().st_size <= _EMPTY_BYTES:
        return "its log is damaged" if lost_frames(path) else None
    meta = _meta(connection, version, migrations)
    if lost_frames(path):
        return "its log is damaged"
    if meta.get("version") != version or any(key not in meta for key in META_KEYS):
        return "its own values are damaged"
    if meta["tables"] != tables_crc(connection):
        return "its tables' definitions are damaged"
    for query in _ENDS:
        connection.execute(query).fetchone()
    for pid in connection.execute(_UNFINISHED).fetchall():
        if not _is_sound(connection, *pid):
            return f"what is recorded of process {pid[0]} is damaged"
    for pid in connection.execute(_ZOMBIES).fetchall():
        values = _row(connection, *pid)
        if values is None or values[6] is None or values[10]:
            return f"what is recorded of process {pid[0]} is damaged"
    return None


def _meta(
    connection: sqlite3.Connection, version: int, migrations: Sequence[Migration]
) -> dict[str, object]:
    """A newer version says so in two places; in one alone it is a damaged number."""
    try:
        meta = meta_of(connection)
    except sqlite3.Error:
        refuse_newer(connection, migrations)
        raise
    if meta.get("version", version) == version:
        refuse_newer(connection, migrations)
    return meta


def _is_sound(connection: sqlite3.Connection, pid: int) -> bool:
    """Whether an unfinished process's row, count and entries agree; what is in these is not looked at."""
    values = _row(connection, pid)
    live = connection.execute("SELECT num_events, crc FROM live WHERE pid = ?", (pid,)).fetchone()
    if values is None or values[6] is not None or live is None or live[1] != live_crc(pid, live[0]):
        return False
    num_events, reach = connection.execute(_REACH, (pid,)).fetchone()
    return bool(values[11]) or num_events == reach == live[0]


def _row(connection: sqlite3.Connection, pid: int) -> Sequence[object] | None:
    values = connection.execute(
        f"SELECT {COLUMNS}, crc FROM processes WHERE pid = ?", (pid,)
    ).fetchone()
    if values is None or values[-1] != process_crc(values[:-1]):
        return None
    return list(values)


def _is_innocent(error: sqlite3.Error) -> bool:
    code = int(getattr(error, "sqlite_errorcode", 0) or 0)
    return code & 0xFF in _INNOCENT
