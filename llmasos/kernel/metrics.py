"""What is counted of all processes together: syscalls by name and outcome, how long they and tokens take.

Listens to the kernel's `Trace`, and only counts. Names come from the table of syscalls, so there are never
more series than syscalls, whatever a process asks for.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from typing import Final

from llmasos.kernel.abi import Generation, Pid
from llmasos.kernel.errors import LimitExceeded, PermissionDenied
from llmasos.kernel.journal.events import Event
from llmasos.kernel.trace import Trace

SYSCALL_BOUNDS_S: Final = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
    30.0,
)  # fmt: skip
TOKEN_BOUNDS_S: Final = (0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.13, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)
FIRST_BOUNDS_S: Final = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0)
UNKNOWN: Final = "unknown"
"""Stands for names that no syscall has."""
DENIED: Final = frozenset({PermissionDenied.code, LimitExceeded.code})


class Histogram:
    """Observations by size; the last bucket is for what exceeds every bound."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        """How many there were."""
        return sum(self.counts)


@dataclass(slots=True)
class _OpenCall:
    name: str
    at: float
    last_token_at: float | None = None


@dataclass(slots=True)
class Counts:
    """Everything that is counted."""

    outcomes: dict[tuple[str, str], int] = field(default_factory=dict)
    """Of calls, by name and by ok, denied, failed or given_up."""
    durations: dict[str, Histogram] = field(default_factory=dict)
    first_token: Histogram = field(default_factory=lambda: Histogram(FIRST_BOUNDS_S))
    """From a generation's begin to its first token."""
    between_tokens: Histogram = field(default_factory=lambda: Histogram(TOKEN_BOUNDS_S))
    tokens_prompt: int = 0
    """In the contexts of generations when they began."""
    tokens_cached: int = 0
    """Of those, found and not computed."""
    num_processes: int = 0
    """Begun since this kernel booted."""


class Metrics:
    """Counts what it hears."""

    def __init__(self, names: Container[str], *, now: Callable[[], float]) -> None:
        self.counts = Counts()
        self._names = names
        self._now = now
        self._open: dict[tuple[Pid, str], _OpenCall] = {}

    @property
    def num_open(self) -> int:
        """Calls under way."""
        return len(self._open)

    def attach(self, trace: Trace) -> None:
        """Listen from now on."""
        trace.listen(self._take)

    def _take(self, pid: Pid, event: Event, _text: bytes | None) -> None:
        kind = event[0]
        if kind == "tok":
            self._token(self._open.get((pid, event[1])), event[2])
        elif kind == "begin":
            name = event[2] if event[2] in self._names else UNKNOWN
            self._open[pid, event[1]] = _OpenCall(name, event[5])
        elif kind == "done":
            self._end(pid, event[1], "ok", event[3])
            if isinstance(event[2], Generation):
                self.counts.tokens_prompt += event[2].tokens_prompt
                self.counts.tokens_cached += event[2].tokens_cached
        elif kind == "fail":
            self._end(pid, event[1], "denied" if event[2] in DENIED else "failed", event[4])
        elif kind == "cancel":
            self._end(pid, event[1], "given_up", None)
        elif kind == "spawn":
            self.counts.num_processes += 1
        elif kind == "exit":
            for key in [key for key in self._open if key[0] == pid]:
                del self._open[key]

    def _token(self, call: _OpenCall | None, token: int | None) -> None:
        if call is None or token is None:
            return
        now = self._now()
        if call.last_token_at is None:
            self.counts.first_token.observe(now - call.at)
        else:
            self.counts.between_tokens.observe(now - call.last_token_at)
        call.last_token_at = now

    def _end(self, pid: Pid, call_id: str, outcome: str, at: float | None) -> None:
        call = self._open.pop((pid, call_id), None)
        if call is None:  # it began under an earlier kernel
            return
        key = call.name, outcome
        self.counts.outcomes[key] = self.counts.outcomes.get(key, 0) + 1
        if at is None:
            return
        durations = self.counts.durations.get(call.name)
        if durations is None:
            durations = self.counts.durations[call.name] = Histogram(SYSCALL_BOUNDS_S)
        durations.observe(max(at - call.at, 0.0))
