"""The hub where whoever watches is told what processes do: tracers, the audit log, metrics, exporters.

What is told are the journal's own events (`journal.events`), in its order, whether a journal is kept or not;
without one only those that tell of syscalls, signals and a process's beginning and end. So what is seen live
is what the journal tells afterwards. Where nobody listens it costs one look at `is_heard`.

A listener runs on the kernel's loop, in the path of the process that it hears of: it must be quick and may
not raise. Who needs time takes a `Subscription`: a bounded queue that never holds up anybody.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final

from llmasos.kernel.abi import Pid
from llmasos.kernel.journal.events import Event, encode_event

Listener = Callable[[Pid, Event, bytes | None], None]
"""Is given a process's event, and the event as JSON where that exists already."""

TRACED: Final = frozenset(
    {"spawn", "begin", "tok", "done", "fail", "cancel", "child", "sig", "exit"}
)
"""Kinds of events that a tracer is interested in."""
MAX_QUEUED: Final = 20_000
MAX_QUEUED_BYTES: Final = 16 << 20
MAX_BATCH_BYTES: Final = 1 << 16


class Trace:
    """Everybody who listens to one kernel's processes."""

    def __init__(self) -> None:
        self.is_heard = False
        """Look here before making anything up to `tell`."""
        self._listeners: tuple[Listener, ...] = ()

    def listen(self, listener: Listener) -> None:
        """Have it told of every event from now on."""
        self._listeners = (*self._listeners, listener)
        self.is_heard = True

    def leave(self, listener: Listener) -> None:
        """The opposite; no error where it did not listen."""
        self._listeners = tuple(known for known in self._listeners if known != listener)
        self.is_heard = bool(self._listeners)

    def tell(self, pid: Pid, event: Event, text: bytes | None = None) -> None:
        """A process did something."""
        for listener in self._listeners:
            listener(pid, event, text)


class Subscription:
    """What some processes do, for a reader that may be slow. Use as a context manager.

    Events that find the queue full are dropped and counted, and the reader is told how many, where they
    are missing. With `follow` children belong to it, and theirs.
    """

    def __init__(
        self,
        trace: Trace,
        pids: Mapping[Pid, bool],
        *,
        follow: bool = False,
        tokens: bool = True,
        max_queued: int = MAX_QUEUED,
        max_bytes: int = MAX_QUEUED_BYTES,
    ) -> None:
        """`pids` says of each process whether it lives."""
        self._trace = trace
        self._known = set(pids)
        self._living = {pid for pid, lives in pids.items() if lives}
        self._follow = follow
        self._kinds = TRACED if tokens else TRACED - {"tok"}
        self._max_queued, self._max_bytes = max_queued, max_bytes
        self._queue: deque[tuple[Pid, bytes] | _Dropped] = deque()
        self._num_bytes = 0
        self._news = asyncio.Event()

    def __enter__(self) -> Subscription:
        self._trace.listen(self._take)
        return self

    def __exit__(self, *failure: object) -> None:
        self._trace.leave(self._take)
        self._news.set()

    async def batches(self) -> AsyncIterator[str]:
        """Lines of JSON, some at a time: `[pid, event]` or `[0, ["dropped", how many]]`. Ends when every
        process of it has ended."""
        while self._queue or self._living:
            if not self._queue:
                self._news.clear()
                await self._news.wait()
            if batch := self._batch():
                yield batch

    # --- within

    def _batch(self) -> str:
        lines: list[str] = []
        size = 0
        while self._queue and size < MAX_BATCH_BYTES:
            item = self._queue.popleft()
            if isinstance(item, _Dropped):
                line = f'[0,["dropped",{item.count}]]\n'
            else:
                pid, text = item
                self._num_bytes -= len(text)
                line = f"[{pid},{text.decode()}]\n"
            lines.append(line)
            size += len(line)
        return "".join(lines)

    def _take(self, pid: Pid, event: Event, text: bytes | None) -> None:
        kind = event[0]
        if kind == "spawn" and self._follow and event[1]["ppid"] in self._known:
            self._known.add(pid)
            self._living.add(pid)
        if pid not in self._known or kind not in self._kinds:
            return
        if kind == "exit":
            self._living.discard(pid)
        self._put(pid, encode_event(event) if text is None else text)
        self._news.set()

    def _put(self, pid: Pid, text: bytes) -> None:
        is_full = len(self._queue) >= self._max_queued or self._num_bytes > self._max_bytes
        if not is_full:
            self._queue.append((pid, text))
            self._num_bytes += len(text)
            return
        if not self._queue or not isinstance(self._queue[-1], _Dropped):
            self._queue.append(_Dropped())
        last = self._queue[-1]
        if isinstance(last, _Dropped):
            last.count += 1


class _Dropped:
    """Stands in a queue for events that did not fit."""

    def __init__(self) -> None:
        self.count = 0


def line_of(pid: Pid, event: Event) -> str:
    """An event as `Subscription.batches` gives it."""
    return f"[{pid},{encode_event(event).decode()}]\n"


def event_of(line: str) -> tuple[Pid, Event]:
    """The opposite. Raises `ValueError` for what is none."""
    value: Any = json.loads(line)
    if not isinstance(value, list) or len(value) != 2 or not isinstance(value[1], list):
        raise ValueError("a traced event is a pid and an array")
    return Pid(int(value[0])), tuple(value[1])
