"""The event loop's half of the journal: collects events and has them written, many at a time.

What is recorded while a batch is being written goes into the next one, so the disk sets the pace and nobody
waits for more than two writes. The store is written to by one thread of its own. A disk that is full or
fails is tried again until it takes the batch; until then nothing that must be on disk is given to any app,
so processes stand still and nothing is lost.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import anyio

from llmasos.kernel.abi import Effect, ExitStatus, Pid
from llmasos.kernel.delivery import Ticket
from llmasos.kernel.errors import JournalFailed, KernelBug
from llmasos.kernel.journal.entries import (
    Batch,
    Ending,
    Entry,
    JournalStatus,
    Level,
    ProcessRow,
)
from llmasos.kernel.journal.events import Event, decode_events, encode_event
from llmasos.kernel.journal.store import JournalStore
from llmasos.kernel.trace import Trace

_log = logging.getLogger(__name__)

LINGER_S = 0.03
"""How long events that nobody waits for at once are collected."""
RETRY_S = 1.0
IDLE_S = 2.0
"""How long nothing was written before the store may keep house."""


@dataclass(slots=True)
class _Collected:
    """What the next batch will hold."""

    ticket: Ticket = field(default_factory=Ticket)
    since: float = 0.0
    spawned: list[ProcessRow] = field(default_factory=list)
    events: dict[Pid, list[bytes]] = field(default_factory=dict)
    ended: list[Ending] = field(default_factory=list)
    reaped: list[Pid] = field(default_factory=list)
    audit_head: str = ""
    accounts: dict[str, str | None] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        return not (self.spawned or self.events or self.ended or self.reaped or self.accounts)


class Journal:
    """One kernel's journal. Made and used on its event loop, but for `read`."""

    def __init__(self, store: JournalStore, *, level: Level, now: Callable[[], float]) -> None:
        self.store = store
        self.level = level
        self.on_bug: Callable[[KernelBug], None] = lambda _: None
        """Told where the journal itself is broken; nothing is written any more."""
        self.trace = Trace()
        """Told of every event as it is recorded."""
        self._now = now
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="llmasos-journal")
        self._numbers: dict[Pid, int] = {}
        self._collected = _Collected()
        self._writing: _Collected | None = None
        self._timer: asyncio.TimerHandle | asyncio.Handle | None = None
        self._is_urgent = False
        self._warning = ""
        self._moving = anyio.Event()
        self._idle: asyncio.TimerHandle | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._is_broken = False
        self._is_closing = False
        self._news = anyio.Event()
        self._moving.set()

    # --- recording

    def record(self, pid: Pid, event: Event) -> None:
        """Add one event of a process. What is mutable in it is read now."""
        self._collect()
        text = encode_event(event)
        self._collected.events.setdefault(pid, []).append(text)
        self._schedule(urgent=False)
        if self.trace.is_heard:
            self.trace.tell(pid, event, text)

    def begin(self, row: ProcessRow, event: Event) -> None:
        """A process begins, with its first event."""
        self._collect()
        self._numbers[row.pid] = 0
        self._collected.spawned.append(row)
        self.record(row.pid, event)

    def go_on(self, pid: Pid, num_events: int) -> None:
        """A process that is in the store goes on after so many events."""
        self._numbers[pid] = num_events

    def end(self, pid: Pid, status: ExitStatus, at: float) -> None:
        """A process has ended."""
        self.record(pid, exit_event(status))
        signal = None if status.signal is None else int(status.signal)
        self._collected.ended.append(Ending(pid, at, status.code, status.message, signal))

    def end_damaged(self, pid: Pid, reason: str, at: float) -> None:
        """A process whose events cannot be believed is ended; they stay as they are."""
        self._collect()
        self._collected.ended.append(Ending(pid, at, 1, reason, None))
        self._schedule(urgent=False)

    def reap(self, pid: Pid) -> None:
        """A process that has ended was waited for."""
        self._collect()
        self._collected.reaped.append(pid)
        self._schedule(urgent=False)

    def note_audit_head(self, head: str) -> None:
        """Have the next batch say how far the audit log has come."""
        self._collected.audit_head = head

    def keep_account(self, name: str, row: Mapping[str, Any] | None) -> None:
        """Keep what a budget that is no live process's own has used; None forgets it."""
        self._collect()
        self._collected.accounts[name] = None if row is None else json.dumps(row)
        self._schedule(urgent=False)

    def accounts(self) -> dict[str, Any]:
        """What is kept of them. Blocks."""
        return {name: json.loads(text) for name, text in self.store.accounts().items()}

    def ticket(self, *, urgent: bool = True) -> Ticket:
        """Done once everything recorded until now is where the level wants it: at once if it is urgent."""
        if self._collected.is_empty:
            if self._writing is not None:
                return self._writing.ticket
            done = Ticket()
            done.finish()
            return done
        self._schedule(urgent=urgent)
        return self._collected.ticket

    def result_ticket(self, effect: Effect) -> Ticket | None:
        """What an app must wait for before it sees a result of this effect."""
        if self.level is not Level.DURABLE or effect is Effect.PURE:
            return None
        return self.ticket()

    def piece_ticket(self, *, urgent: bool) -> Ticket | None:
        """The same for a streamed piece. One that nobody watches may wait for others: the disk costs more
        than all else here."""
        return self.ticket(urgent=urgent) if self.level is Level.DURABLE else None

    @property
    def is_stuck(self) -> bool:
        """Whether the disk takes nothing more."""
        return bool(self._warning)

    async def moving(self) -> None:
        """Wait until the disk takes what is written."""
        while self._warning:
            await self._moving.wait()

    @property
    def status(self) -> JournalStatus:
        """The store's, with what waits to be written."""
        status = self.store.status
        oldest = self._writing or (None if self._collected.is_empty else self._collected)
        lag_s = max(self._now() - oldest.since, 0.0) if oldest else 0.0
        return replace(status, lag_s=lag_s, warning=self._warning or status.warning)

    # --- reading

    def num_events(self, pid: Pid) -> int:
        """How many events of an unfinished process were recorded until now."""
        return self._numbers.get(pid, 0) + len(self._collected.events.get(pid, ()))

    async def events(self, pid: Pid, *, until: int | None = None) -> list[Event]:
        """A process's events, those just recorded included. Raises what `JournalStore.events` does."""
        await self.ticket().wait()
        return await anyio.to_thread.run_sync(lambda: self.read(pid, until=until))

    def read(self, pid: Pid, *, until: int | None = None) -> list[Event]:
        """The events of a process that are in the store. Blocks; any thread's."""
        return decode_events(self.store.events(pid, until=until))

    async def aclose(self) -> None:
        """Write what waits, unless the disk takes nothing, and close the store."""
        self._is_closing = True
        while (
            self._writing is not None or not self._collected.is_empty or self._collected.audit_head
        ):
            if self.is_stuck or self._is_broken:
                break
            self._schedule(urgent=True)
            self._news = anyio.Event()
            await self._news.wait()
        for timer in (self._idle, self._timer, self._retry):
            if timer is not None:
                timer.cancel()
        await anyio.to_thread.run_sync(self._writer.shutdown)
        self.store.close()

    # --- within

    def _collect(self) -> None:
        if self._collected.is_empty:
            self._collected.since = self._now()

    def _schedule(self, *, urgent: bool) -> None:
        if self._writing is not None or (self._timer is not None and self._is_urgent >= urgent):
            self._is_urgent = self._is_urgent or urgent
            return
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._is_urgent = urgent
        self._timer = (
            loop.call_soon(self._write) if urgent else loop.call_later(LINGER_S, self._write)
        )

    def _write(self) -> None:
        self._timer, self._is_urgent = None, False
        has_news = bool(self._collected.audit_head) and self._is_closing
        if self._writing is not None or (self._collected.is_empty and not has_news):
            return
        self._writing, self._collected = self._collected, _Collected()
        self._submit(self._writing, self._batch(self._writing))

    def _batch(self, collected: _Collected) -> Batch:
        entries = []
        for pid, texts in collected.events.items():
            first = self._numbers[pid]
            entries.append(Entry(pid, first, len(texts), b"\n".join(texts)))
            self._numbers[pid] = first + len(texts)
        for ending in collected.ended:
            self._numbers.pop(ending.pid, None)
        return Batch(
            spawned=tuple(collected.spawned),
            entries=tuple(entries),
            ended=tuple(collected.ended),
            reaped=tuple(collected.reaped),
            audit_head=collected.audit_head,
            accounts=tuple(collected.accounts.items()),
        )

    def _submit(self, collected: _Collected, batch: Batch) -> None:
        loop = asyncio.get_running_loop()
        future = self._writer.submit(self.store.write, batch)

        def written(future: Future[None]) -> None:
            loop.call_soon_threadsafe(self._written, collected, batch, future.exception())

        future.add_done_callback(written)

    def _written(self, collected: _Collected, batch: Batch, error: BaseException | None) -> None:
        self._news.set()
        if isinstance(error, JournalFailed):
            self._halt(str(error))
            loop = asyncio.get_running_loop()
            self._retry = loop.call_later(RETRY_S, self._submit, collected, batch)
            return
        if error is not None:
            self._is_broken = True
            self.on_bug(KernelBug(f"the journal's writer has a defect: {error!r}"))
            return
        self._warning = ""
        self._moving.set()
        self._writing = None
        collected.ticket.finish()
        if self._collected.is_empty:
            self._keep_house_later()
        else:
            self._schedule(urgent=self._is_urgent)

    def _halt(self, reason: str) -> None:
        if not self._warning:
            _log.warning("Processes stand still: %s", reason)
            self._moving = anyio.Event()
        self._warning = f"processes stand still: {reason}"

    def _keep_house_later(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        self._idle = asyncio.get_running_loop().call_later(IDLE_S, self._keep_house)

    def _keep_house(self) -> None:
        if self._writing is None and self._collected.is_empty:
            self._writer.submit(_quietly, self.store.maintain)


def exit_event(status: ExitStatus) -> Event:
    """The event that says how a process ended."""
    return ("exit", status.code, status.message, status.signal)


def _quietly(work: Callable[[], None]) -> None:
    try:
        work()
    except JournalFailed as error:
        _log.warning("The journal could not be tidied: %s", error)
