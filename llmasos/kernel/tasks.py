"""A process's live half: what it has only while it runs."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import anyio

from llmasos.kernel.abi import Pid, Signal
from llmasos.kernel.delivery import Deliveries
from llmasos.kernel.jobs import Job
from llmasos.kernel.journal.feed import Feed
from llmasos.kernel.output import MAX_LOG_CHARS, Input, Output
from llmasos.kernel.strands import CallId


@dataclass(slots=True, eq=False)
class Frame:
    """A syscall that a process is in."""

    scope: anyio.CancelScope
    jobs: list[Job]
    is_interrupted: bool = False


@dataclass(slots=True)
class Task:
    """Gone once the process has exited, but for what it printed."""

    output: Output
    input: Input
    deliveries: Deliveries
    log: Output = field(default_factory=lambda: Output(MAX_LOG_CHARS))
    """What it notes for whoever looks after it, its output aside."""
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    limit: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    """Ends it when its time is over."""
    done: asyncio.Event = field(default_factory=asyncio.Event)
    resumed: asyncio.Event = field(default_factory=asyncio.Event)
    frames: list[Frame] = field(default_factory=list)
    has_pending_int: bool = False
    signal: Signal | None = None
    feed: Feed | None = None
    """While it is run again: what it is given from the journal."""
    children: dict[CallId, Pid] = field(default_factory=dict)
    """Children by the calls that started them, so that none is started twice."""
    signals: list[Signal] = field(default_factory=list)
    """Those that its app has not asked for yet."""
    signalled: asyncio.Event = field(default_factory=asyncio.Event)
    began_at: float = 0.0
    """On the event loop's clock."""
    was_short: bool = False
    """Whether XTOK was signalled under an earlier kernel."""
    short_of_time: asyncio.TimerHandle | None = None
    """Signals XTOK when most of its time is over."""
    ran_s: float = 0.0
    """Seconds that it ran for under earlier kernels."""

    @property
    def is_dying(self) -> bool:
        """Whether it is being ended from outside: what it gives up then is not its own doing."""
        return self.scope.cancel_called or self.limit.cancel_called
