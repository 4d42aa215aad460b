"""The records that go into the journal's store and come out of it.

What an event means is not known here: an entry's body is opaque, one text per event.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from llmasos.kernel.abi import ExitStatus, Pid, Signal


class Level(enum.StrEnum):
    """What has become of a batch when `write` returns."""

    DURABLE = "durable"
    """It is on the disk, and survives a power cut."""
    RELAXED = "relaxed"
    """The operating system has it: it survives a crash of the kernel, not of the machine."""
    OFF = "off"
    """Only its pids are noted, so that none is ever used twice."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Consecutive events of one process. `first` is the number of its first event, from 0 and
    without gaps per process; `body` is one JSON text per event, joined by newlines."""

    pid: Pid
    first: int
    count: int
    body: bytes


@dataclass(frozen=True, slots=True)
class ProcessRow:
    """What can be told of a process without reading its events."""

    pid: Pid
    ppid: Pid
    app: str
    title: str
    started_at: float
    num_events: int
    ended_at: float | None = None
    exit_code: int | None = None
    exit_message: str = ""
    exit_signal: int | None = None
    reaped: bool = False
    is_damaged: bool = False

    @property
    def exit(self) -> ExitStatus | None:
        """How it ended; None while it has not."""
        if self.ended_at is None:
            return None
        signal = None if self.exit_signal is None else Signal(self.exit_signal)
        return ExitStatus(self.exit_code or 0, self.exit_message, signal)


@dataclass(frozen=True, slots=True)
class Ending:
    """How a process ended."""

    pid: Pid
    ended_at: float
    code: int
    message: str
    signal: int | None


@dataclass(frozen=True, slots=True)
class Batch:
    """One transaction, all or nothing, in this order."""

    spawned: tuple[ProcessRow, ...] = ()
    entries: tuple[Entry, ...] = ()
    ended: tuple[Ending, ...] = ()
    reaped: tuple[Pid, ...] = ()
    audit_head: str = ""
    """The audit log's end, where it has moved: so that it is known beside the log itself."""
    accounts: tuple[tuple[str, str | None], ...] = ()
    """By name, what is kept of a budget that is no live process's own; None where it is over."""


@dataclass(frozen=True, slots=True)
class JournalStatus:
    """For `llmasos status`. `num_events` were written by this kernel; `lag_s` is the writer's."""

    level: Level
    num_live: int
    num_finished: int
    size_bytes: int
    num_events: int
    warning: str = ""
    lag_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Retention:
    """What is kept of processes that have ended and were waited for; the oldest go first.
    None is no limit."""

    max_finished: int = 10_000
    max_age_s: float | None = None
    max_bytes: int | None = 1 << 30
