"""What goes into the audit log: calls that change the world as they begin and end, calls that were denied,
signals and processes from outside, and what is granted, revoked or approved.

Listens to the kernel's `Trace`. A call's arguments go in as a hash of all of them and as short text, without
what is secret by its name. Before a `write` or an `external` call is done its entry is on disk (`ticket`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from llmasos.kernel.abi import Effect, Pid, Signal
from llmasos.kernel.audit_log import AuditLog
from llmasos.kernel.delivery import Ticket
from llmasos.kernel.errors import LimitExceeded, PermissionDenied
from llmasos.kernel.journal.events import Event, encode_event
from llmasos.kernel.process import KERNEL_PID
from llmasos.kernel.redact import short, short_arguments
from llmasos.kernel.trace import Trace

if TYPE_CHECKING:
    from llmasos.kernel.gate import Verdict
    from llmasos.kernel.process import Process
    from llmasos.kernel.syscall import Call, Syscall

CHANGING: Final = frozenset({Effect.WRITE, Effect.EXTERNAL})
DENIED: Final = frozenset({PermissionDenied.code, LimitExceeded.code})
OF_AUTHORITY: Final = frozenset({"cap", "revoked", "ask", "verdict", "rule", "taint", "limits"})
"""Kinds of events about what a process may do, whoever records them: audited as they are."""
MAX_MESSAGE: Final = 300


@dataclass(slots=True)
class _Open:
    """A call that has begun and not ended."""

    name: str = ""
    args: Mapping[str, Any] = field(default_factory=dict)
    is_audited: bool = False
    """Whether its beginning is in the log."""
    capability: int | None = None
    """The handle of the one that allowed it, once that is known."""


_NONE: Final = _Open()
"""Stands for a call that began under an earlier kernel."""


class Audit:
    """Puts into a log what one kernel's processes do to the world."""

    def __init__(
        self, log: AuditLog, effect_of: Callable[[str], Effect], *, now: Callable[[], float]
    ) -> None:
        self.log = log
        self._effect_of = effect_of
        self._now = now
        self._open: dict[tuple[Pid, str], _Open] = {}
        self._handlers: dict[str, Callable[[Pid, Event], None]] = {
            "begin": self._begin, "done": self._done, "fail": self._fail, "cancel": self._cancel,
            "spawn": self._spawn, "sig": self._signal, "exit": self._exit,
        }  # fmt: skip

    def attach(self, trace: Trace) -> None:
        """Listen from now on."""
        trace.listen(self._take)

    def verdict(self, process: Process, _entry: Syscall, call: Call, verdict: Verdict) -> None:
        """Hear what the gate said (`Gate.on_verdict`)."""
        if (known := self._open.get((process.pid, call.id))) is not None:
            known.capability = verdict.handle

    def ticket(self) -> Ticket:
        """Done once what happened until now is in the log."""
        return self.log.ticket()

    # --- within

    def _take(self, pid: Pid, event: Event, _text: bytes | None) -> None:
        kind = event[0]
        if (handler := self._handlers.get(kind)) is not None:
            handler(pid, event)
        elif kind in OF_AUTHORITY:
            self._put(kind, pid, what=short(list(event[1:]), max_chars=MAX_MESSAGE))

    def _put(self, kind: str, pid: Pid, **values: Any) -> None:
        self.log.put({"at": self._now(), "kind": kind, "pid": pid, **values})

    def _begin(self, pid: Pid, event: Event) -> None:
        _, call, name, args, _, _ = event
        effect = self._effect_of(name)
        is_audited = effect in CHANGING
        self._open[pid, call] = _Open(name, args, is_audited)
        if is_audited:
            self._put("call", pid, call=call, name=name, effect=effect.value, **_arguments(args))

    def _done(self, pid: Pid, event: Event) -> None:
        known = self._open.pop((pid, event[1]), _NONE)
        if known.is_audited:
            by = {} if known.capability is None else {"capability": known.capability}
            self._put("end", pid, call=event[1], name=known.name, verdict="allowed", **by)

    def _fail(self, pid: Pid, event: Event) -> None:
        _, call, code, message, _ = event
        known = self._open.pop((pid, call), _NONE)
        is_denial = code in DENIED
        if not (known.is_audited or is_denial):
            return
        told = {} if known.is_audited else _arguments(known.args)
        verdict = "denied" if is_denial else "failed"
        text = short(message, max_chars=MAX_MESSAGE)
        self._put(
            "end" if known.is_audited else "denied",
            pid, call=call, name=known.name, verdict=verdict, error=code, message=text, **told,
        )  # fmt: skip

    def _cancel(self, pid: Pid, event: Event) -> None:
        known = self._open.pop((pid, event[1]), _NONE)
        if known.is_audited:
            self._put("end", pid, call=event[1], name=known.name, verdict="given up")

    def _spawn(self, pid: Pid, event: Event) -> None:
        spawn = event[1]
        if spawn["ppid"] != KERNEL_PID:  # its parent's call is there
            return
        past = spawn.get("from")
        self._put(
            "spawn", pid, app=spawn["app"], version=spawn["version"],
            capabilities=short(spawn["capabilities"], max_chars=MAX_MESSAGE),
            **({"branch_of": past["pid"]} if past else {}), **_arguments(spawn["params"]),
        )  # fmt: skip

    def _signal(self, pid: Pid, event: Event) -> None:
        number = event[1]
        name = Signal(number).name if number in set(Signal) else str(number)
        self._put("signal", pid, signal=name)

    def _exit(self, pid: Pid, event: Event) -> None:
        for key in [key for key in self._open if key[0] == pid]:
            known = self._open.pop(key)
            if known.is_audited:
                self._put("end", pid, call=key[1], name=known.name, verdict="unknown")


def _arguments(args: Mapping[str, Any]) -> dict[str, Any]:
    digest = hashlib.sha256(encode_event(("args", args))).hexdigest()
    return {"args": short_arguments(args), "args_sha256": digest}
