"""SQLite files that are the user's: opened under a process's root, and never trusted.

Covered: the path is walked as for `fs.*` and must be a regular file before and after it is opened; names of
tables and columns are compared with the file's own and values are bound, so no text becomes SQL; functions
in the file's schema and views are not run; a call is ended after `MAX_STEPS` of SQLite's instructions. Not
covered: somebody who swaps the file for a link between those two looks.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from urllib.parse import quote

from llmasos.kernel.errors import Failed, InvalidArguments
from llmasos.kernel.syscall import Call
from llmasos.syscalls import _labels
from llmasos.syscalls._paths import Place, Root, refuse_unless_file, shown

Value = str | int | float | bool | None
LOCK_S = 10.0
MAX_STEPS = 200_000_000
STEPS_A_LOOK = 100_000
MAX_CELL_CHARS = 4_000


@contextmanager
def opened(
    call: Call, root: Root, path: str, *, mode: str
) -> Iterator[tuple[Place, sqlite3.Connection]]:
    """An open table file, `mode` `ro` or `rw`: its labels are the process's, and where it is changed the
    process's are its own. Raises `SyscallError`, also for what SQLite says inside."""
    place = root.existing(path)
    refuse_unless_file(place.status, path)
    _labels.read_files(call, root, [place.path])
    if mode == "rw" and call.taint:
        _labels.store_of(call).mark(_labels.key_of(call, place.path), call.taint)
    file = os.path.join(call.real_root, place.path)
    try:
        with closing(_connected(file, mode)) as connection:
            again = os.stat(place.name, dir_fd=place.folder_fd, follow_symlinks=False)
            refuse_unless_file(again, path)
            yield place, connection
    except sqlite3.DatabaseError as error:
        raise Failed(f"{shown(path)} cannot be used as a table file: {error}.") from error


def _connected(file: str, mode: str) -> sqlite3.Connection:
    uri = f"file:{quote(file)}?mode={mode}"
    connection = sqlite3.connect(uri, uri=True, timeout=LOCK_S, isolation_level=None)
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA synchronous = FULL")
    looks = iter(range(MAX_STEPS // STEPS_A_LOOK))
    connection.set_progress_handler(lambda: next(looks, None) is None, STEPS_A_LOOK)
    connection.row_factory = sqlite3.Row
    return connection


def columns_of(connection: sqlite3.Connection, table: str, path: str) -> list[str]:
    """The names of a table's columns. Raises `InvalidArguments` naming the tables there are."""
    rows = connection.execute(
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name"
    )
    tables = [row["name"] for row in rows]
    if table not in tables:
        known = ", ".join(tables) or "none"
        raise InvalidArguments(f"{shown(path)} has no table {table[:60]!r}; there are: {known}.")
    return [
        row["name"] for row in connection.execute("SELECT name FROM pragma_table_info(?)", (table,))
    ]


def refuse_unknown(names: Sequence[str], columns: Sequence[str], table: str) -> None:
    """Raise `InvalidArguments` for a column that is not there."""
    for name in names:
        if name not in columns:
            known = ", ".join(columns)
            raise InvalidArguments(
                f"Table {table} has no column {name[:60]!r}; there are: {known}."
            )


def condition(where: Mapping[str, Value]) -> tuple[str, list[Value]]:
    """An SQL condition and what to bind to it: all columns equal, None meaning NULL."""
    parts = " AND ".join(f"{quoted(name)} IS ?" for name in where)
    return parts or "1", list(where.values())


def quoted(name: str) -> str:
    """A name as SQL takes it literally."""
    return '"' + name.replace('"', '""') + '"'


def plain(row: sqlite3.Row) -> dict[str, Value]:
    """A row of JSON's types, long texts cut."""
    return {name: _plain_cell(row[name]) for name in row.keys()}  # noqa: SIM118  # a Row is no mapping


def _plain_cell(value: object) -> Value:
    if isinstance(value, str):
        return value[:MAX_CELL_CHARS]
    if value is None or isinstance(value, int | float):
        return value
    return f"({len(value) if isinstance(value, bytes) else 0} bytes)"
