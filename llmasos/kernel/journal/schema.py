"""The tables of `journal.db`, their versions, and the checksum that every row carries.

    meta        home_id, next_pid, num_finished, version, a checksum of the tables' definitions; accounts
    processes   one row a process; `num_events` is 0 until it has ended
    live        how many events each unfinished process has: a few pages, written with every batch
    entries     events as they were written, of unfinished and of lately finished processes
    archives    events of finished processes, compressed; `place` is pid * 2**20 + part

A checksum covers which table a row is of, its numbers and its content, so a row says by itself whether
it is whole: also one that salvage finds on a page that no table leads to any more.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from llmasos.kernel.abi import Pid
from llmasos.kernel.errors import ConfigError
from llmasos.kernel.journal.entries import ProcessRow

Migration = Callable[[sqlite3.Connection], None]

PART_BITS: Final = 20
MAX_PARTS: Final = 1 << PART_BITS
META_KEYS: Final = ("home_id", "next_pid", "num_finished", "tables", "version")
"""`meta` and these keys are in every version of the file, later ones included."""
ACCOUNT: Final = "account "
"""How the keys of accounts begin: budgets of groups, and of processes whose relatives have ended."""
_canonical: Final = json.JSONEncoder(separators=(",", ":"), default=repr).encode
_ENTRY: Final = struct.Struct("<cqqq")

COLUMNS: Final = (
    "pid, ppid, app, title, started_at, num_events, ended_at, exit_code, exit_message, exit_signal,"
    " reaped, is_damaged"
)

_TABLES: Final = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value, crc INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE processes (pid INTEGER PRIMARY KEY, ppid INTEGER NOT NULL, app TEXT NOT NULL,"
    " title TEXT NOT NULL, started_at REAL NOT NULL, num_events INTEGER NOT NULL, ended_at REAL,"
    " exit_code INTEGER, exit_message TEXT NOT NULL, exit_signal INTEGER, reaped INTEGER NOT NULL,"
    " is_damaged INTEGER NOT NULL, crc INTEGER NOT NULL)",
    "CREATE INDEX unfinished ON processes (pid) WHERE ended_at IS NULL",
    "CREATE INDEX zombies ON processes (pid) WHERE ended_at IS NOT NULL AND reaped = 0",
    "CREATE INDEX finished ON processes (ended_at) WHERE ended_at IS NOT NULL AND reaped = 1",
    "CREATE TABLE live (pid INTEGER PRIMARY KEY, num_events INTEGER NOT NULL, crc INTEGER NOT NULL)",
    "CREATE TABLE entries (pid INTEGER NOT NULL, first INTEGER NOT NULL, count INTEGER NOT NULL,"
    " body BLOB NOT NULL, crc INTEGER NOT NULL, PRIMARY KEY (pid, first)) WITHOUT ROWID",
    "CREATE TABLE archives (place INTEGER PRIMARY KEY, first INTEGER NOT NULL,"
    " count INTEGER NOT NULL, body BLOB NOT NULL, crc INTEGER NOT NULL)",
)


def _version_1(connection: sqlite3.Connection) -> None:
    for statement in _TABLES:
        connection.execute(statement)
    for key, value in (("home_id", secrets.token_hex(16)), ("next_pid", 1), ("num_finished", 0)):
        put_meta(connection, key, value)


MIGRATIONS: Final[tuple[Migration, ...]] = (_version_1,)
"""What leads from version N to N + 1, at place N; version 0 is an empty file."""


def version_of(connection: sqlite3.Connection) -> int:
    """The file's version; reads its header."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


def migrate(connection: sqlite3.Connection, migrations: Sequence[Migration]) -> None:
    """Bring a file to the latest version, a transaction a version. Raises `ConfigError` for a newer."""
    refuse_newer(connection, migrations)
    for version in range(version_of(connection), len(migrations)):
        connection.execute("BEGIN IMMEDIATE")
        try:
            migrations[version](connection)
            put_meta(connection, "version", version + 1)
            put_meta(connection, "tables", tables_crc(connection))
            connection.execute(f"PRAGMA user_version = {version + 1}")
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise


def refuse_newer(connection: sqlite3.Connection, migrations: Sequence[Migration]) -> None:
    """Raises `ConfigError` where a later LLMasOS has written the file."""
    version, newest = version_of(connection), len(migrations)
    if version > newest:
        raise ConfigError(
            f"The journal is of version {version} and this LLMasOS knows versions up to {newest}:"
            " a newer one has written it; upgrade, or choose another home."
        )


def refuse_other(connection: sqlite3.Connection, migrations: Sequence[Migration]) -> None:
    """Raises `ConfigError` unless the file is of the latest version."""
    refuse_newer(connection, migrations)
    version = version_of(connection)
    if version < len(migrations):
        raise ConfigError(
            f"The journal is of version {version} and this LLMasOS reads version {len(migrations)}:"
            " a kernel that boots in this home brings it up to date."
        )


def put_meta(connection: sqlite3.Connection, key: str, value: str | int) -> None:
    """Set one of the journal's own values."""
    connection.execute("REPLACE INTO meta VALUES (?, ?, ?)", (key, value, meta_crc(key, value)))


def put_account(connection: sqlite3.Connection, name: str, text: str | None) -> None:
    """Set, or forget, what is kept of an account."""
    if text is None:
        connection.execute("DELETE FROM meta WHERE key = ?", (ACCOUNT + name,))
    else:
        put_meta(connection, ACCOUNT + name, text)


def accounts_of(meta: Mapping[str, Any]) -> dict[str, str]:
    """What is kept of accounts, by their names."""
    return {key.removeprefix(ACCOUNT): meta[key] for key in meta if key.startswith(ACCOUNT)}


def meta_of(connection: sqlite3.Connection) -> dict[str, Any]:
    """The journal's own values that are whole."""
    rows = connection.execute("SELECT key, value, crc FROM meta")
    return {key: value for key, value, crc in rows if crc == meta_crc(key, value)}


def meta_crc(key: str, value: object) -> int:
    """The checksum of a row of `meta`."""
    return _crc_of("meta", key, value)


def tables_crc(connection: sqlite3.Connection) -> int:
    """A checksum of what SQLite knows of the tables, and of where they begin."""
    query = "SELECT type, name, tbl_name, rootpage, sql FROM sqlite_schema ORDER BY rootpage, name"
    return _crc_of("tables", *map(list, connection.execute(query)))


def live_crc(pid: int, num_events: int) -> int:
    """The checksum of a row of `live`."""
    return _numbered_crc(b"l", (pid, num_events, 0), b"")


def process_crc(values: Sequence[Any]) -> int:
    """The checksum of a row of `processes`, of its values in the columns' order."""
    return _crc_of("process", *values)


def entry_crc(pid: int, first: int, count: int, body: bytes) -> int:
    """The checksum of a row of `entries`."""
    return _numbered_crc(b"e", (pid, first, count), body)


def archive_crc(place: int, first: int, count: int, body: bytes) -> int:
    """The checksum of a row of `archives`; the body is compressed."""
    return _numbered_crc(b"a", (place, first, count), body)


def place_of(pid: int, part: int) -> int:
    """Where a part of a process's archive lies; MAX_PARTS lie between two processes."""
    return (pid << PART_BITS) + part


def values_of(row: ProcessRow) -> tuple[Any, ...]:
    """A row as it is stored, with its checksum last."""
    values = (
        *(int(row.pid), int(row.ppid), _storable(row.app), _storable(row.title)),
        *(float(row.started_at), row.num_events),
        None if row.ended_at is None else float(row.ended_at),
        *(row.exit_code, _storable(row.exit_message), row.exit_signal),
        *(int(row.reaped), int(row.is_damaged)),
    )
    return (*values, process_crc(values))


def row_of(values: Sequence[Any]) -> ProcessRow:
    """The other way round; one that fails its checksum is told by its pid alone, as damaged."""
    *plain, crc = values
    if crc != process_crc(plain):
        return lost_row(plain[0])
    row = ProcessRow(*plain)
    return replace(row, reaped=bool(row.reaped), is_damaged=bool(row.is_damaged))


def lost_row(pid: int) -> ProcessRow:
    """What stands for a process of which nothing but the pid is known."""
    return ProcessRow(Pid(pid), Pid(0), "", "", 0.0, 0, is_damaged=True)


def _numbered_crc(table: bytes, numbers: tuple[int, int, int], body: bytes) -> int:
    """No checksum is negative: that is what a row gets whose numbers are none any more."""
    try:
        return zlib.crc32(body, zlib.crc32(_ENTRY.pack(table, *numbers)))
    except struct.error:
        return -1


def _crc_of(*values: object) -> int:
    return zlib.crc32(_canonical(values).encode())


def _storable(text: str) -> str:
    """Lone surrogates have no place in a database."""
    return text.encode("utf-8", "replace").decode("utf-8")
