"""A process's past rewritten as the beginning of another's: what a branch and a restored process are made of.

Pure data: events in, events out. The branch is given the same past and the same seed, so its app stands
where the original stood, and draws the same numbers where it goes the same way. It differs in this:

- An end is not part of a past: the exit is dropped, and so are the signals that ended or stopped it.
- A call whose work is on record, and its result is not, is never cut in two: the past goes on to the result.
- A child that was started by a call that is over stays the original's child; the branch knows its pid and
  may wait for it, and may not signal it. A call that was starting one is made again and starts the
  branch's own.
- What a person allowed the original is not allowed to the branch: it asks again. Labels of text from outside
  stay.
- What it holds was derived from what the original held, so whoever may revoke that may revoke it too; what
  was revoked since stays so. A process of a foreign home has no line here, and holds what `granted` leaves.
- Its parent is the kernel, whoever the original's was. Lines that were sent to the original later are
  not sent to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmasos.kernel.abi import Pid, Signal
from llmasos.kernel.errors import JournalDamaged, ProcessError
from llmasos.kernel.journal.events import CONTEXTUAL, Event
from llmasos.kernel.journal.holdings import ENDING_SIGNALS
from llmasos.kernel.strands import CallId

_OVER = frozenset({"done", "fail", "cancel"})
_NOT_PAST = frozenset({Signal.STOP, Signal.CONT, *ENDING_SIGNALS})


Granted = Callable[[Mapping[str, Any]], dict[str, Any]]
"""Of what a capability of elsewhere allowed, what it may allow here."""


@dataclass(frozen=True, slots=True)
class Past:
    """The first events of a process, of which another is to be made."""

    pid: Pid
    """The original's, in the home where it ran."""
    num_events: int
    events: tuple[Event, ...]
    revoked: frozenset[str] = frozenset()
    """Capabilities that were revoked at any time, also after these events."""

    @property
    def spawn(self) -> Mapping[str, Any]:
        """What the original was started with."""
        values: Mapping[str, Any] = self.events[0][1]
        return values

    def beginning(
        self,
        spawn: Mapping[str, Any],
        now: float,
        *,
        is_foreign: bool,
        granted: Granted | None = None,
    ) -> list[Event]:
        """The events of the new process, which has these `spawn` values instead of the original's.
        Pids of a foreign home mean other processes here, so its children are not known. What comes from
        elsewhere holds what `granted` makes of what it held."""
        handles = self.spawn.get("handles", [[0, [], self.spawn["capabilities"]]])
        held = [self._held(each, granted) for each in handles]
        past = [self._inherited(event, granted) for event in self.events[1:]]
        if is_foreign:
            past = [_without_call(event) for event in past]
        return [("spawn", {**spawn, "handles": held}), *past, ("boot", now)]

    def _inherited(self, event: Event, granted: Granted | None) -> Event:
        if event[0] != "cap":
            return event
        return ("cap", *self._held(event[1:4], granted), event[4])

    def _held(self, values: Sequence[Any], granted: Granted | None) -> list[Any]:
        """A capability of the original as the new process holds it."""
        handle, line, allows = values
        line = [*line, f"{self.pid}:{handle}"]
        if not self.revoked.isdisjoint(line):
            allows = {**allows, "syscalls": []}
        return [handle, line, allows] if granted is None else [handle, [], granted(allows)]


def _without_call(event: Event) -> Event:
    return ("child", event[1], None, event[3]) if event[0] == "child" else event


def past_of(pid: Pid, events: Sequence[Event], until: int | None = None) -> Past:
    """The past of a process up to an event, or a little further where that would cut a call in two.

    Raises `ProcessError` for a number of events that there is not, `JournalDamaged` for what is no journal.
    """
    if not events or events[0][0] != "spawn" or not isinstance(events[0][1], dict):
        raise JournalDamaged(f"Process {pid}'s journal does not begin as a process does.")
    if until is not None and not 1 <= until <= len(events):
        raise ProcessError(
            f"Process {pid}'s journal has the events 1 to {len(events)}, and no {until}."
        )
    end = _whole(events, len(events) if until is None else until)
    prefix = events[:end]
    over = {event[1] for event in prefix if event[0] in _OVER}
    decided = {event[1] for event in prefix if event[0] == "verdict"}
    revoked = frozenset(each for event in events if event[0] == "revoked" for each in event[1])
    return Past(pid, end, tuple(e for e in prefix if _is_past(e, over, decided)), revoked)


def _is_past(event: Event, over: set[CallId], decided: set[CallId]) -> bool:
    if event[0] == "sig":
        return event[1] not in _NOT_PAST
    if event[0] == "child":
        return event[2] is None or event[2] in over
    if event[0] == "verdict":  # what was allowed to the original is not to the branch
        return event[1] in over
    if (
        event[0] == "ask"
    ):  # a call that was being asked about was not made; one that was allowed perhaps was
        return event[1] in over or event[1] not in decided
    if event[0] == "rule":
        return False
    return event[0] not in ("exit", "revoked")


def _whole(events: Sequence[Event], end: int) -> int:
    """The end of the act that event `end` is in the middle of: what a call did to contexts, then its
    result; or the contexts that a fork begins with."""
    reached = end
    while reached < len(events) and events[reached][0] in CONTEXTUAL:
        reached += 1
    if events[end - 1][0] not in CONTEXTUAL and not (end == 1 and reached > end):
        return end
    if reached < len(events) and events[reached][0] == "done":
        reached += 1
    return reached
