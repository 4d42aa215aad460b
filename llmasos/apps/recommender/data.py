"""Events and items from CSV, as arrays. What is wrong with a file is one sentence that names its line."""

from __future__ import annotations

import csv
import datetime as dt
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from llmasos.apps.files import csv_rows
from llmasos.kernel.errors import AppError


@dataclass(frozen=True, slots=True)
class Event:
    """A user had to do with an item; `value` is a rating, or how much a click or a purchase counts."""

    user: str
    item: str
    time: float
    """Seconds since 1970."""
    value: float = 1.0


@dataclass(frozen=True, slots=True)
class Item:
    """Something that can be recommended."""

    id: str
    title: str
    tags: tuple[str, ...] = ()
    text: str = ""

    @property
    def content(self) -> str:
        """What its meaning is taken from."""
        return f"{self.title}. {', '.join(self.tags)}. {self.text}".strip()


@dataclass(slots=True)
class Data:
    """Items by id, and events in the order of time."""

    items: dict[str, Item]
    events: list[Event]
    item_ids: list[str] = field(init=False)
    index: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self.item_ids = list(self.items)
        self.index = {item: at for at, item in enumerate(self.item_ids)}
        self.events.sort(key=lambda event: event.time)

    @property
    def users(self) -> list[str]:
        """In the order of their first event."""
        return list(dict.fromkeys(event.user for event in self.events))

    def history(self, user: str) -> list[Event]:
        """One user's events, oldest first."""
        return [event for event in self.events if event.user == user]


def parse_items(path: str, text: str) -> dict[str, Item]:
    """`item,title` and, if wanted, `tags` (divided by `;`) and `text`."""
    items: dict[str, Item] = {}
    for line, row in _rows(path, text, {"item", "title"}):
        if not row["item"] or not row["title"]:
            raise AppError(f"{path}, line {line}: an item needs an id and a title.")
        if row["item"] in items:
            raise AppError(f"{path}, line {line}: item {row['item']!r} is there twice.")
        tags = tuple(tag.strip() for tag in row.get("tags", "").split(";") if tag.strip())
        items[row["item"]] = Item(row["item"], row["title"], tags, row.get("text", ""))
    if not items:
        raise AppError(f"{path} has no item.")
    return items


def parse_events(path: str, text: str, items: dict[str, Item]) -> list[Event]:
    """`user,item,time` and, if wanted, `value`; time is ISO 8601 or seconds since 1970."""
    events = []
    for line, row in _rows(path, text, {"user", "item", "time"}):
        if not row["user"]:
            raise AppError(f"{path}, line {line}: an event needs a user.")
        if row["item"] not in items:
            raise AppError(f"{path}, line {line}: there is no item {row['item'][:60]!r}.")
        where = f"{path}, line {line}"
        value = _number(row.get("value") or "1", where)
        events.append(Event(row["user"], row["item"], _time(row["time"], where), value))
    return events


def _rows(path: str, text: str, wanted: set[str]) -> Iterator[tuple[int, dict[str, str]]]:
    for line, row in csv_rows(path, text, wanted):
        yield line, {name: cell.strip() for name, cell in row.items()}


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise AppError(f"{where}: {text[:40]!r} is not a number.") from None
    if not -1e6 < value < 1e6:
        raise AppError(f"{where}: {text[:40]!r} is out of range.")
    return value


def _time(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError:
        pass
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        raise AppError(f"{where}: {text[:40]!r} is not a time (ISO 8601 or seconds).") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)).timestamp()


def without_user(text: str, user: str) -> tuple[str, int]:
    """A file of events without one user's rows, and how many those were."""
    rows = list(csv.reader(io.StringIO(text), strict=True))
    at = [name.strip().lower() for name in rows[0]].index("user")
    kept = [row for row in rows[1:] if not row or row[at].strip() != user]
    return as_csv([rows[0], *kept]), len(rows) - 1 - len(kept)


def as_csv(rows: Sequence[Sequence[object]]) -> str:
    """Rows as CSV text."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()
