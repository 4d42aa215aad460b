"""Makes orders.db again, the very same rows: `python examples/support/make_orders.py`."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

ROWS = [
    ("FB-1001", "ana", "Heron, size M", "890.00", "shipped", "2026-11-20", None, "3 Quay Road"),
    ("FB-1002", "ana", "Dynamo lamp", "49.90", "delivered", "2026-11-02", "2026-11-06", "3 Quay Road"),
    ("FB-1003", "ben", "Kestrel, size L", "1190.00", "paid", "2026-11-23", None, "17 Orchard Way"),
    ("FB-1004", "ben", "Leather saddle", "79.00", "delivered", "2026-08-11", "2026-08-15", "17 Orchard Way"),
    ("FB-1005", "chen", "Panniers", "64.50", "packed", "2026-11-22", None, "40 Mill Lane"),
    ("FB-1006", "chen", "Wren, size S", "650.00", "delivered", "2026-10-28", "2026-11-01", "40 Mill Lane"),
    ("FB-1007", "dora", "Bell", "12.00", "cancelled", "2026-11-10", None, "5 Chapel Hill"),
    ("FB-1008", "dora", "Tyre 28 inch", "24.00", "delivered", "2026-11-11", "2026-11-14", "5 Chapel Hill"),
    ("FB-1009", "emil", "Pump", "31.00", "refund requested", "2026-11-01", "2026-11-05", "8 North Street"),
    ("FB-1010", "emil", "Mudguards", "38.00", "paid", "2026-11-24", None, "8 North Street"),
]  # fmt: skip


def main() -> None:
    """Write the file anew."""
    file = Path(__file__).parent / "orders.db"
    file.unlink(missing_ok=True)
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute(
            "CREATE TABLE orders (order_id TEXT PRIMARY KEY, customer_id TEXT NOT NULL, item TEXT NOT NULL,"
            " price TEXT NOT NULL, status TEXT NOT NULL, ordered_on TEXT NOT NULL, delivered_on TEXT,"
            " address TEXT NOT NULL, note TEXT)"
        )
        rows = [(*row, None) for row in ROWS]
        connection.executemany("INSERT INTO orders VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)


if __name__ == "__main__":
    main()
