"""`table.*`: rows of a SQLite file under a process's root: looked up, and changed exactly once.

There is no SQL in any argument: a table, columns and values, which are bound. An update is one
transaction; it has on disk first which rows it found and what they will be (`_once`), so that a call cut
short by a crash is made once. Not here: making tables, joins, deleting rows.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Annotated, TypedDict, cast

from pydantic import Field

from llmasos.kernel.abi import Effect
from llmasos.kernel.errors import Failed, InvalidArguments
from llmasos.kernel.syscall import Call, syscall
from llmasos.kernel.taint import joined
from llmasos.syscalls import _labels
from llmasos.syscalls._atomic import locked, refuse_unwritable
from llmasos.syscalls._database import transaction
from llmasos.syscalls._mounts import in_mount
from llmasos.syscalls._once import digest, made_before
from llmasos.syscalls._oserrors import telling
from llmasos.syscalls._paths import TEMP_PREFIX, Place, refuse_unless_file, root_of, shown
from llmasos.syscalls._sqlite import (
    Value,
    columns_of,
    condition,
    opened,
    plain,
    quoted,
    refuse_unknown,
)

MAX_ROWS = 1_000
MAX_COLUMNS = 100
Cells = Annotated[dict[str, Value], Field(max_length=MAX_COLUMNS)]
TableFile = Annotated[str, Field(description="SQLite file, like orders.db")]


class QueryResult(TypedDict):
    """Rows found, in the table's order."""

    text: str
    columns: list[str]
    rows: list[dict[str, Value]]
    truncated: bool


class UpdateResult(TypedDict):
    """How many rows were changed."""

    text: str
    num_rows: int


class CopyResult(TypedDict):
    """A copy that was made."""

    text: str
    path: str


@syscall("table.query", effect=Effect.READ, tool=False)
@in_mount(writes=False)
def query(
    call: Call,
    path: TableFile,
    table: str,
    where: Cells | None = None,
    limit: Annotated[int, Field(ge=1, le=MAX_ROWS)] = 100,
) -> QueryResult:
    """Find the rows of a table whose columns have these values."""
    wanted = where or {}
    with root_of(call) as root, opened(call, root, path, mode="ro") as (_, connection):
        columns = columns_of(connection, table, path)
        refuse_unknown(list(wanted), columns, table)
        rows = _rows(connection, table, wanted, limit + 1)
    return QueryResult(
        text=f"{min(len(rows), limit)} rows of {table}.",
        columns=columns,
        rows=rows[:limit],
        truncated=len(rows) > limit,
    )


@syscall("table.update", effect=Effect.WRITE, tool=False, repeatable=True)
@in_mount(writes=True)
def update(
    call: Call,
    path: TableFile,
    table: str,
    where: Cells,
    values: Cells,
) -> UpdateResult:
    """Change the rows of a table whose columns have these values.

    With what was looked at in `where`,
    a row that somebody changed meanwhile is left alone.
    """
    if not where or not values:
        raise InvalidArguments(
            "table.update needs `where`, which rows, and `values`, what to change."
        )
    with root_of(call) as root, opened(call, root, path, mode="rw") as (place, connection):
        columns = columns_of(connection, table, path)
        refuse_unknown([*where, *values], columns, table)
        with transaction(connection):
            ids = _ids(connection, call, table, where)
            now = _state(connection, table, ids)
            made = made_before(call, now, lambda after: after == now)
            if made is not None:
                return cast("UpdateResult", made)
            return _change(connection, call, place, _Change(table, tuple(ids), now, dict(values)))


@dataclass(frozen=True, slots=True)
class _Change:
    """Rows by their ids, their state as found, and the new values."""

    table: str
    ids: tuple[int, ...]
    before: str
    values: Mapping[str, Value]


def _change(
    connection: sqlite3.Connection, call: Call, place: Place, change: _Change
) -> UpdateResult:
    """Make it inside the transaction, so that what it comes to can be told before it is kept."""
    ids = list(change.ids)
    marks = ", ".join("?" * len(ids))
    assignments = ", ".join(f"{quoted(name)} = ?" for name in change.values)
    connection.execute(
        f"UPDATE {quoted(change.table)} SET {assignments} WHERE rowid IN ({marks})",
        (*change.values.values(), *ids),
    )
    rows = "1 row" if len(ids) == 1 else f"{len(ids)} rows"
    result = UpdateResult(text=f"Changed {rows} of {change.table}.", num_rows=len(ids))
    after = _state(connection, change.table, ids)
    call.intend(
        {"path": place.path, "before": change.before, "after": after, "result": result, "ids": ids}
    )
    return result


def _ids(
    connection: sqlite3.Connection, call: Call, table: str, where: Mapping[str, Value]
) -> list[int]:
    """The rows that the call is about: the ones found now, or those of its earlier try."""
    if call.receipt is not None:
        return [int(item) for item in call.receipt["ids"]]
    clause, values = condition(where)
    found = connection.execute(
        f"SELECT rowid FROM {quoted(table)} WHERE {clause} LIMIT ?", (*values, MAX_ROWS + 1)
    ).fetchall()
    if len(found) > MAX_ROWS:
        raise Failed(f"More than {MAX_ROWS} rows are like that; say more exactly which.")
    return [row[0] for row in found]


def _state(connection: sqlite3.Connection, table: str, ids: Sequence[int]) -> str:
    """A digest of rows as they are."""
    marks = ", ".join("?" * len(ids))
    rows = connection.execute(
        f"SELECT rowid, * FROM {quoted(table)} WHERE rowid IN ({marks}) ORDER BY rowid", ids
    )
    return digest(json.dumps([[str(cell) for cell in row] for row in rows]).encode())


def _rows(
    connection: sqlite3.Connection, table: str, where: Mapping[str, Value], limit: int
) -> list[dict[str, Value]]:
    clause, values = condition(where)
    found = connection.execute(
        f"SELECT * FROM {quoted(table)} WHERE {clause} LIMIT ?", (*values, limit)
    )
    return [plain(row) for row in found]


@syscall("table.copy", effect=Effect.WRITE, tool=False, repeatable=True)
@in_mount(writes=True)
def copy(call: Call, path: TableFile, to: TableFile) -> CopyResult:
    """Copy a table file as it is at one moment; it replaces an old copy."""
    with root_of(call) as root, opened(call, root, path, mode="ro") as (source, connection):
        target = root.locate(to, make_folders=True)
        if target.status is not None:
            refuse_unless_file(target.status, to)
        if target.path == source.path:
            raise InvalidArguments("A table file cannot be copied onto itself.")
        with locked(target.folder_fd):
            refuse_unwritable(target, to)
            call.charge_bytes(source.status.st_size if source.status else 0)
            _labels.made_folders(call, root, target.path)
            if labels := joined(call.taint, _labels.names(call, [source.path])):
                _labels.store_of(call).mark(_labels.key_of(call, target.path), labels)
            _copy(call, connection, target)
    return CopyResult(text=f"Copied {shown(path)} to {shown(to)}.", path=target.path)


def _copy(call: Call, connection: sqlite3.Connection, target: Place) -> None:
    """By way of a temporary file, which takes the target's place when it is whole."""
    name = f"{TEMP_PREFIX}{call.pid}-{target.name}"
    folder = os.path.dirname(os.path.join(call.real_root, target.path))
    with telling(shown(target.path)):
        os.close(os.open(name, os.O_CREAT | os.O_TRUNC | os.O_RDWR, 0o600, dir_fd=target.folder_fd))
        with closing(sqlite3.connect(os.path.join(folder, name))) as made:
            connection.backup(made)
            made.execute("PRAGMA journal_mode = DELETE")
        os.replace(name, target.name, src_dir_fd=target.folder_fd, dst_dir_fd=target.folder_fd)


SYSCALLS = (query, update, copy)
