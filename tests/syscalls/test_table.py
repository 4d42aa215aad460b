"""`table.*`: no text becomes SQL, nothing outside the root is reached, an update is made exactly once."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmasos.kernel.errors import Failed, InvalidArguments, MaybeDone, PermissionDenied
from llmasos.syscalls import table
from tests.syscalls.conftest import Caller


class Crash(BaseException):
    """The kernel ends here."""


@pytest.fixture
def orders(caller: Caller) -> Path:
    file = caller.root / "orders.db"
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("CREATE TABLE orders (id TEXT PRIMARY KEY, customer TEXT, status TEXT)")
        rows = [("A1", "ann", "shipped"), ("A2", "bob", "paid"), ("A3", "ann", None)]
        connection.executemany("INSERT INTO orders VALUES (?, ?, ?)", rows)
        connection.execute("CREATE VIEW spy AS SELECT * FROM orders")
    return file


def status_of(file: Path, order: str) -> Any:
    with closing(sqlite3.connect(file)) as connection:
        return connection.execute("SELECT status FROM orders WHERE id = ?", (order,)).fetchone()[0]


@pytest.mark.usefixtures("orders")
def test_rows_are_found_by_values_and_null_is_a_value(caller: Caller) -> None:
    found = caller(table.query, path="orders.db", table="orders", where={"customer": "ann"})
    assert [row["id"] for row in found["rows"]] == ["A1", "A3"]
    found = caller(table.query, path="orders.db", table="orders", where={"status": None})
    assert [row["id"] for row in found["rows"]] == ["A3"]
    assert found["columns"] == ["id", "customer", "status"]


def test_no_text_becomes_sql(caller: Caller, orders: Path) -> None:
    nasty = "x' OR 1=1; DROP TABLE orders; --"
    for where in ({"id": nasty}, {"customer": nasty}):
        assert not caller(table.query, path="orders.db", table="orders", where=where)["rows"]
    with pytest.raises(InvalidArguments, match="no column"):
        caller(table.query, path="orders.db", table="orders", where={nasty: 1})
    for name in (nasty, "spy", "sqlite_schema"):
        with pytest.raises(InvalidArguments, match="there are: orders"):
            caller(table.query, path="orders.db", table=name)
    changed = caller(
        table.update, path="orders.db", table="orders", where={"id": "A1"}, values={"status": nasty}
    )
    assert (changed["num_rows"], status_of(orders, "A1")) == (1, nasty)


def test_a_file_outside_the_root_or_no_table_file_is_refused(caller: Caller, orders: Path) -> None:
    orders.rename(caller.root.parent / "outside.db")
    (caller.root / "link.db").symlink_to(caller.root.parent / "outside.db")
    for path in ("../outside.db", "link.db"):
        with pytest.raises(PermissionDenied):
            caller(table.query, path=path, table="orders")
    caller.write("text.db", "this is no table file, whatever its name says" * 10)
    with pytest.raises(Failed, match="cannot be used as a table file"):
        caller(table.query, path="text.db", table="orders")
    with pytest.raises(Failed, match="There is no"):
        caller(table.query, path="none.db", table="orders")


def test_an_update_without_a_condition_is_refused(caller: Caller, orders: Path) -> None:
    with pytest.raises(InvalidArguments, match="which rows"):
        caller(table.update, path="orders.db", table="orders", where={}, values={"status": "x"})
    assert status_of(orders, "A2") == "paid"


def made(caller: Caller, receipts: list[Any], *, crash: bool = False) -> Any:
    """One try of an update, the receipts of earlier ones at hand."""

    def planner(receipt: Any) -> None:
        receipts.append(receipt)
        if crash:
            raise Crash

    call = replace(caller.call(), receipt=receipts[-1] if receipts else None, planner=planner)
    args = {"path": "orders.db", "table": "orders"}
    where, values = {"id": "A1", "status": "shipped"}, {"status": "refund requested"}
    checked = table.update.validate({**args, "where": where, "values": values})
    return table.update.function(call, **checked)


def test_an_update_that_a_crash_cut_short_is_made_once(caller: Caller, orders: Path) -> None:
    receipts: list[Any] = []
    with pytest.raises(Crash):
        made(caller, receipts, crash=True)
    assert status_of(orders, "A1") == "shipped"
    assert made(caller, receipts)["num_rows"] == 1
    assert status_of(orders, "A1") == "refund requested"
    for _ in range(2):
        assert made(caller, receipts)["num_rows"] == 1


def test_an_update_does_not_overwrite_what_somebody_else_did_meanwhile(
    caller: Caller, orders: Path
) -> None:
    receipts: list[Any] = []
    with pytest.raises(Crash):
        made(caller, receipts, crash=True)
    with closing(sqlite3.connect(orders)) as connection, connection:
        connection.execute("UPDATE orders SET status = 'cancelled' WHERE id = 'A1'")
    with pytest.raises(MaybeDone):
        made(caller, receipts)
    assert status_of(orders, "A1") == "cancelled"


def test_a_folder_that_may_only_be_read_is_not_changed(caller: Caller, orders: Path) -> None:
    caller.capabilities = replace(caller.capabilities, read_only=True)
    found = caller(table.query, path="orders.db", table="orders", where={"id": "A1"})
    assert found["rows"][0]["status"] == "shipped"
    change = {"table": "orders", "where": {"id": "A1"}, "values": {"status": "x"}}
    with pytest.raises(PermissionDenied, match="read-only"):
        caller(table.update, path="orders.db", **change)
    with pytest.raises(PermissionDenied, match="read-only"):
        caller(table.copy, path="orders.db", to="copy.db")
    assert status_of(orders, "A1") == "shipped"


def test_a_copy_is_whole_and_of_its_own(caller: Caller, orders: Path) -> None:
    caller(table.copy, path="orders.db", to="trial/copy.db")
    caller(
        table.update,
        path="trial/copy.db",
        table="orders",
        where={"id": "A2"},
        values={"status": "gone"},
    )
    assert status_of(orders, "A2") == "paid"
    assert status_of(caller.root / "trial" / "copy.db", "A2") == "gone"
    caller(table.copy, path="orders.db", to="trial/copy.db")
    assert status_of(caller.root / "trial" / "copy.db", "A2") == "paid"
    with pytest.raises(InvalidArguments, match="itself"):
        caller(table.copy, path="orders.db", to="./orders.db")
