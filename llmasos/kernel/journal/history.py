"""One process's events, read for running it again: what its app asked for and gave up (`actions`), what it
was given (`given`), which calls were under way at the end, and what it then had (`holdings`).

Pure data: no kernel, no event loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmasos.kernel.abi import Chunk, ExitStatus, Pid, Signal, TokenLogprob
from llmasos.kernel.errors import JournalDamaged
from llmasos.kernel.journal.events import GIVEN, SCHEMA, Event
from llmasos.kernel.journal.holdings import Action, Holdings
from llmasos.kernel.strands import CallId


@dataclass(slots=True)
class OpenCall:
    """A call that had begun and was not over where the history ends."""

    action: Action
    chunks: list[Chunk] = field(default_factory=list)
    receipts: list[Any] = field(default_factory=list)
    is_asked_about: bool = False
    """A person was asked whether it may be made, and had not answered: so it was not."""
    is_approved: bool = False


class History:
    """The events of one process, or the first so many of them.

    Raises `JournalDamaged` for events that contradict each other.
    """

    def __init__(self, pid: Pid, events: Sequence[Event]) -> None:
        self.pid = pid
        self.events = events
        self.actions: list[Action] = []
        self.given: list[Event] = []
        self.open_calls: dict[CallId, OpenCall] = {}
        self.holdings = Holdings()
        self.exit: Event | None = None
        self.last_at = 0.0
        self.idle_s = 0.0
        """Seconds that passed while no kernel ran it."""
        for number, event in enumerate(events):
            try:
                self._take(number, event)
            except (KeyError, IndexError, TypeError, ValueError) as error:
                raise JournalDamaged(
                    f"Process {pid}'s journal makes no sense at event {number} ({event[0]})."
                ) from error
        if not events or events[0][0] != "spawn" or self.spawn.get("schema", 0) > SCHEMA:
            raise JournalDamaged(f"Process {pid}'s journal does not begin as this version's do.")

    @property
    def spawn(self) -> Mapping[str, Any]:
        """What it was started with."""
        started: Mapping[str, Any] = self.events[0][1]
        return started

    @property
    def status(self) -> ExitStatus | None:
        """How it ended; None where it had not."""
        if self.exit is None:
            return None
        _, code, message, signal = self.exit
        return ExitStatus(code, message, None if signal is None else Signal(signal))

    @property
    def ran_s(self) -> float:
        """Seconds that it had run for."""
        return max(self.last_at - float(self.spawn["started_at"]) - self.idle_s, 0.0)

    def _take(self, number: int, event: Event) -> None:
        kind, action = event[0], None
        if kind in ("begin", "cancel"):
            action = self._take_action(number, event)
        elif kind in GIVEN:
            self._take_given(event)
        elif kind == "plan":
            self.open_calls[event[1]].receipts.append(event[2])
        elif kind in ("ask", "verdict") and (call := self.open_calls.get(event[1])) is not None:
            call.is_asked_about = kind == "ask"
            call.is_approved = kind == "verdict" and bool(event[2])
        elif kind == "boot":
            self.idle_s += max(event[1] - self.last_at, 0.0)
            self.last_at = event[1]
        elif kind == "spawn":
            self.last_at = event[1]["started_at"]
        elif kind == "exit":
            self.exit = event
        self.holdings.apply(event, action)

    def _take_action(self, number: int, event: Event) -> Action:
        if event[0] == "cancel":
            action = Action(number, event[1], "", {}, event[2])
            self.open_calls.pop(action.call, None)
        else:
            action = Action(number, event[1], event[2], event[3], event[4], event[5])
            self.open_calls[action.call] = OpenCall(action)
            self._see(action.at)
        self.actions.append(action)
        return action

    def _take_given(self, event: Event) -> None:
        self.given.append(event)
        if event[0] == "tok":
            if (call := self.open_calls.get(event[1])) is not None:
                call.chunks.append(chunk_of(event))
            return
        self.open_calls.pop(event[1], None)
        self._see(event[-1])

    def _see(self, at: float) -> None:
        self.last_at = max(self.last_at, at)


def token_event(call: CallId, chunk: Chunk) -> Event:
    """The event of one streamed chunk, which has one token or none."""
    token = chunk.token_ids[0] if chunk.token_ids else None
    if chunk.logprob is None:
        return ("tok", call, token, chunk.text)
    return ("tok", call, token, chunk.text, chunk.logprob.logprob, chunk.logprob.top)


def chunk_of(event: Event) -> Chunk:
    """The chunk that an event is of."""
    token, text = event[2], event[3]
    if token is None:
        return Chunk(text, ())
    if len(event) == 4:
        return Chunk(text, (token,))
    top = tuple((int(token_id), float(value)) for token_id, value in event[5])
    return Chunk(text, (token,), TokenLogprob(token, event[4], top))
