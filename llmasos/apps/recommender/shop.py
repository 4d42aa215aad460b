"""`Shop`: items, events and fitted strategies of a folder, and what can be done with them while it runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial

import anyio.to_thread

from llmasos.apps.files import read_whole
from llmasos.apps.recommender.data import (
    Data,
    Event,
    Item,
    as_csv,
    parse_events,
    parse_items,
    without_user,
)
from llmasos.apps.recommender.models import STRATEGIES, Array, Strategy, counts_of, fit
from llmasos.apps.recommender.ranking import Pick, Taste, recommend
from llmasos.apps.sdk import Proc
from llmasos.apps.vectors import embed
from llmasos.kernel.errors import AppError, Failed

ITEMS, EVENTS, NEW = "items.csv", "events.csv", "new-events.csv"
HEADER = ("user", "item", "time", "value")


@dataclass(slots=True)
class Shop:
    """See the module. `new-events.csv` beside the events has what came while apps ran."""

    proc: Proc
    folder: str
    data: Data
    vectors: Array | None
    strategies: dict[str, Strategy] = field(default_factory=dict)
    _counts: Array | None = None

    @classmethod
    async def load(cls, proc: Proc, folder: str) -> Shop:
        """Read everything. Raises `AppError`."""
        items = parse_items(f"{folder}/{ITEMS}", await read_whole(proc, f"{folder}/{ITEMS}"))
        events = []
        for name in (EVENTS, NEW):
            if name == EVENTS or await _exists(proc, folder, name):
                path = f"{folder}/{name}"
                events += parse_events(path, await read_whole(proc, path), items)
        if not events:
            raise AppError(f"{folder}/{EVENTS} has no event; nothing can be learnt from nothing.")
        return cls(proc, folder, Data(items, events), await item_vectors(proc, items.values()))

    async def picks(self, user: str, strategy: str, count: int, taste: Taste) -> list[Pick]:
        """Recommendations; whoever is not known gets what is popular."""
        fitted = await self.fitted(strategy)
        work = partial(
            recommend,
            self.data,
            fitted,
            self.data.history(user),
            self.counts,
            count=count,
            taste=taste,
            vectors=self.vectors,
        )
        return await anyio.to_thread.run_sync(work)

    async def fitted(self, name: str) -> Strategy:
        """A strategy, fitted at its first use. Raises `AppError` for one that there is not."""
        if name not in STRATEGIES:
            raise AppError(f"There is no strategy {name!r}; there are {', '.join(STRATEGIES)}.")
        if name not in self.strategies:
            self.strategies[name] = await anyio.to_thread.run_sync(
                fit, name, self.data, self.vectors
            )
        return self.strategies[name]

    @property
    def counts(self) -> Array:
        """Users of each item."""
        if self._counts is None:
            self._counts = counts_of(self.data)
        return self._counts

    async def add(self, user: str, item: str, value: float) -> None:
        """An event, on disk first and then in what is known: the very next list has it in it."""
        if item not in self.data.items:
            raise AppError(f"There is no item {item[:60]!r}.")
        now = float((await self.proc.call("time.now", timezone="UTC"))["unix"])
        path, row = f"{self.folder}/{NEW}", (user, item, f"{now:.0f}", f"{value:g}")
        is_new = not await _exists(self.proc, self.folder, NEW)
        await self.proc.call(
            "fs.append", path=path, text=as_csv([HEADER, row] if is_new else [row])
        )
        self.data.events.append(Event(user, item, now, value))
        self._counts = None

    async def forget(self, user: str) -> int:
        """Remove a user from the files, from their earlier versions and from what was fitted."""
        num_events = 0
        for name in (EVENTS, NEW):
            if not await _exists(self.proc, self.folder, name):
                continue
            path = f"{self.folder}/{name}"
            text, num_gone = without_user(await read_whole(self.proc, path), user)
            if num_gone:
                await self.proc.call("fs.write", path=path, text=text)
            await self.proc.call("fs.purge", path=path)
            num_events += num_gone
        self.data.events = [event for event in self.data.events if event.user != user]
        self.strategies.clear()
        self._counts = None
        return num_events


async def item_vectors(proc: Proc, items: Iterable[Item]) -> Array | None:
    """What items are about, as vectors; None where there is no embedding model."""
    try:
        return (await embed(proc, [item.content for item in items])).astype(float)
    except Failed:
        return None


async def _exists(proc: Proc, folder: str, name: str) -> bool:
    listed = await proc.call("fs.list", path=folder)
    return any(entry["name"] == name for entry in listed["entries"])
