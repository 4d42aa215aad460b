"""A process's events as a trace of its syscalls, live and afterwards alike: lines, JSON or a summary.

A pure function of the events and of nothing else, so both give the same. A line is written when a call
begins and gone on with when it ends, as Unix strace does it; what comes between two halves says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Final

from llmasos.kernel.abi import Pid, Signal
from llmasos.kernel.errors import LimitExceeded, PermissionDenied
from llmasos.kernel.journal.events import Event
from llmasos.kernel.journal.holdings import GENERATE_CALL
from llmasos.kernel.redact import short_arguments
from llmasos.shell.plain import one_line

DENIED: Final = frozenset({PermissionDenied.code, LimitExceeded.code})
MAX_MESSAGE: Final = 300


@dataclass(slots=True)
class Traced:
    """One call, as far as is known of it."""

    pid: Pid
    call: str
    name: str = ""
    args: Mapping[str, str] = field(default_factory=dict)
    begun_at: float | None = None
    ended_at: float | None = None
    verdict: str = "unfinished"
    """allowed, denied, failed, given up or unfinished."""
    error: str = ""
    message: str = ""
    result_bytes: int = 0
    group: str = ""
    tokens: tuple[int, int, int] | None = None
    """Of a generation: in the prompt, of those cached, drawn."""

    @property
    def seconds(self) -> float | None:
        """How long it took, where both ends were seen."""
        if self.begun_at is None or self.ended_at is None:
            return None
        return max(self.ended_at - self.begun_at, 0.0)

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        tokens = (
            dict(zip(("in", "cached", "out"), self.tokens, strict=True)) if self.tokens else None
        )
        return {
            "pid": self.pid, "call": self.call, "name": self.name, "args": dict(self.args),
            "begun_at": self.begun_at, "seconds": self.seconds, "verdict": self.verdict,
            "error": self.error or None, "message": self.message or None,
            "result_bytes": self.result_bytes,
            "paid_by": {"pid": self.pid, "group": self.group, "tokens": tokens},
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Happening:
    """Something that is to be told: a call's beginning or end, a token, or what else befell a process."""

    kind: str
    """begin, end, token, signal, exit or dropped."""
    pid: Pid
    call: Traced | None = None
    text: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)


class Follower:
    """Makes happenings of events. Remembers the calls that are under way."""

    def __init__(self, patterns: Sequence[str] = (), *, tokens: bool = False) -> None:
        self._patterns = patterns
        self._tokens = tokens
        self._groups: dict[Pid, str] = {}
        self._open: dict[tuple[Pid, str], Traced] = {}
        self.began_at: float | None = None
        """When the first process that it heard of began."""

    def take(self, pid: Pid, event: Event) -> Iterator[Happening]:
        """What an event tells; nothing, most often."""
        told = getattr(self, f"_take_{event[0]}", None)
        if told is not None:
            yield from told(pid, *event[1:])

    def unfinished(self) -> Iterator[Happening]:
        """Calls that have not ended where the trace does."""
        for call in self._open.values():
            if self._wants(call):
                yield Happening("end", call.pid, call)

    def _wants(self, call: Traced) -> bool:
        return is_wanted(call.name, self._patterns)

    def _take_spawn(self, pid: Pid, spawn: Mapping[str, Any]) -> Iterator[Happening]:
        self._groups[pid] = str(spawn.get("group", ""))
        if self.began_at is None:
            self.began_at = float(spawn["started_at"])
        yield from ()

    def _take_begin(
        self, pid: Pid, name: str, syscall: str, args: Mapping[str, Any], _given: int, at: float
    ) -> Iterator[Happening]:
        group = self._groups.get(pid, "")
        call = Traced(pid, name, syscall, short_arguments(args), at, group=group)
        self._open[pid, name] = call
        if self.began_at is None:
            self.began_at = at
        if self._wants(call):
            yield Happening("begin", pid, call)

    def _take_tok(
        self, pid: Pid, name: str, token: int | None, text: str, *_: Any
    ) -> Iterator[Happening]:
        call = self._open.get((pid, name))
        if self._tokens and token is not None and (call is None or self._wants(call)):
            values = {"call": name, "token": token, "text": text}
            yield Happening("token", pid, call, json.dumps(text, ensure_ascii=False), values)

    def _take_done(self, pid: Pid, name: str, result: Any, at: float) -> Iterator[Happening]:
        call = self._ended(pid, name, at)
        call.verdict = "allowed"
        call.result_bytes = _size(result)
        if call.name == GENERATE_CALL and isinstance(result, Mapping):
            drawn = len(result["token_ids"])
            call.tokens = (result["tokens_prompt"], result["tokens_cached"], drawn)
        yield from self._end(call)

    def _take_fail(
        self, pid: Pid, name: str, code: str, message: str, at: float
    ) -> Iterator[Happening]:
        call = self._ended(pid, name, at)
        call.verdict = "denied" if code in DENIED else "failed"
        call.error, call.message = code, one_line(message, max_chars=MAX_MESSAGE)
        yield from self._end(call)

    def _take_cancel(self, pid: Pid, name: str, _given: int) -> Iterator[Happening]:
        call = self._ended(pid, name, None)
        call.verdict = "given up"
        yield from self._end(call)

    def _take_sig(self, pid: Pid, number: int) -> Iterator[Happening]:
        known = number in set(Signal)
        name = f"SIG{Signal(number).name}" if known else f"signal {number}"
        yield Happening("signal", pid, None, name, {"signal": name})

    def _take_exit(
        self, pid: Pid, code: int, message: str, number: int | None
    ) -> Iterator[Happening]:
        how = f"exited with {code}"
        if number is not None and number in set(Signal):
            how = f"killed by SIG{Signal(number).name}"
        why = f": {one_line(message, max_chars=MAX_MESSAGE)}" if message else ""
        yield Happening("exit", pid, None, how + why, {"code": code, "message": message})

    def _take_dropped(self, pid: Pid, num_dropped: int) -> Iterator[Happening]:
        text = f"{num_dropped} events dropped: this reader was too slow for them"
        yield Happening("dropped", pid, None, text, {"dropped": num_dropped})

    def _ended(self, pid: Pid, name: str, at: float | None) -> Traced:
        call = self._open.pop((pid, name), None) or Traced(pid, name)
        call.ended_at = at
        return call

    def _end(self, call: Traced) -> Iterator[Happening]:
        if self._wants(call):
            yield Happening("end", call.pid, call)


def is_wanted(name: str, patterns: Sequence[str]) -> bool:
    """Whether `-e` lets a syscall through: any of the patterns, none of those that begin with `!`."""
    chosen = [pattern for pattern in patterns if not pattern.startswith("!")]
    left_out = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    return (not chosen or any(fnmatchcase(name, each) for each in chosen)) and not any(
        fnmatchcase(name, each) for each in left_out
    )


class Lines:
    """Happenings as text for people."""

    def __init__(self, follower: Follower, *, pids: bool) -> None:
        """With `pids` every line says whose it is."""
        self._follower = follower
        self._pids = pids
        self._unended: tuple[Pid, str] | None = None
        """The call whose line stands there without its end."""

    def text(self, happening: Happening) -> str:
        """What is to be written next."""
        if happening.kind == "begin" and happening.call is not None:
            return self._begun(happening.call)
        if happening.kind == "end" and happening.call is not None:
            return self._ended(happening.call)
        return self._broken_off() + self._other(happening)

    def end(self) -> str:
        """What ends the last line."""
        return self._broken_off()

    def _begun(self, call: Traced) -> str:
        broken, self._unended = self._broken_off(), (call.pid, call.call)
        return f"{broken}{self._head(call.begun_at, call.pid)}{_called(call)}"

    def _ended(self, call: Traced) -> str:
        if self._unended == (call.pid, call.call):
            self._unended = None
            return f" {_outcome(call)}\n"
        if call.verdict == "unfinished":  # that was said when its line was left
            return ""
        name = call.name or f"call {call.call}"
        head = self._head(call.ended_at, call.pid)
        return f"{self._broken_off()}{head}<... {name} resumed> {_outcome(call)}\n"

    def _other(self, happening: Happening) -> str:
        head = self._head(None, happening.pid)
        if happening.kind == "token":
            return f"{head}  token {happening.values['token']} {_visible(happening.text)}\n"
        marks = {"exit": "+++"}.get(happening.kind, "---")
        return f"{head}{marks} {happening.text} {marks}\n"

    def _broken_off(self) -> str:
        is_open, self._unended = self._unended is not None, None
        return " <unfinished ...>\n" if is_open else ""

    def _head(self, at: float | None, pid: Pid) -> str:
        since = "" if at is None else f"{max(at - (self._follower.began_at or at), 0.0):.4f}"
        whose = f"[pid {pid:>3}] " if self._pids and pid else ""
        return f"{since:>10} {whose}"


def _called(call: Traced) -> str:
    return f"{call.name}({', '.join(f'{name}={value}' for name, value in call.args.items())})"


def _outcome(call: Traced) -> str:
    took = "" if call.seconds is None else f" <{call.seconds:.6f}>"
    if call.verdict in ("denied", "failed"):
        return f"= {call.verdict} ({call.error}): {call.message}{took}"
    if call.verdict != "allowed":
        return f"= {call.verdict}{took}"
    return f"= {call.result_bytes} bytes{took} allowed, {_paid(call)}"


def _paid(call: Traced) -> str:
    by = f"paid by {call.pid}{f' in {call.group}' if call.group else ''}"
    if call.tokens is None:
        return by
    prompt, cached, drawn = call.tokens
    return f"{by}: {prompt} tokens in ({cached} cached), {drawn} out"


def _visible(text: str) -> str:
    return one_line(text, max_chars=MAX_MESSAGE)


def json_line(happening: Happening) -> str:
    """A happening for machines, on a line; a beginning is told with its end."""
    if happening.kind == "begin":
        return ""
    if happening.kind == "end" and happening.call is not None:
        return json.dumps(happening.call.as_json(), ensure_ascii=False) + "\n"
    told = {"pid": happening.pid, "kind": happening.kind, **happening.values}
    return json.dumps(told, ensure_ascii=False) + "\n"


class Summary:
    """Calls counted by their names, as `strace -c` does."""

    def __init__(self) -> None:
        self._rows: dict[str, list[float]] = {}

    def take(self, happening: Happening) -> None:
        """Count a call that has ended."""
        call = happening.call
        if happening.kind != "end" or call is None or call.verdict == "unfinished":
            return
        row = self._rows.setdefault(call.name or "?", [0, 0, 0, 0.0])
        row[0] += 1
        row[1] += call.verdict == "failed"
        row[2] += call.verdict == "denied"
        row[3] += call.seconds or 0.0

    def rows(self) -> list[dict[str, Any]]:
        """The one that took the longest first, and the sum last."""
        all_s = sum(row[3] for row in self._rows.values())
        ordered = sorted(self._rows.items(), key=lambda item: (-item[1][3], item[0]))
        total = [sum(column) for column in zip(*self._rows.values(), strict=True)] or [0, 0, 0, 0.0]
        return [_summed(name, row, all_s) for name, row in [*ordered, ("total", total)]]


def _summed(name: str, row: Sequence[float], all_s: float) -> dict[str, Any]:
    num_calls, failed, denied, seconds = row
    return {
        "name": name, "calls": int(num_calls), "errors": int(failed), "denied": int(denied),
        "seconds": seconds, "us_per_call": 1e6 * seconds / num_calls if num_calls else 0.0,
        "share": seconds / all_s if all_s else 0.0,
    }  # fmt: skip


def merged(events: Mapping[Pid, Iterable[Event]]) -> list[tuple[Pid, Event]]:
    """The events of several processes in the order in which they happened, as far as that is recorded: what
    has no time of its own happened with what came before it."""
    timed: list[tuple[float, int, Pid, Event]] = []
    for pid, its in events.items():
        at = 0.0
        for event in its:
            at = max(at, _time_of(event) or at)
            timed.append((at, len(timed), pid, event))
    return [(pid, event) for _, _, pid, event in sorted(timed, key=lambda each: each[:2])]


def _time_of(event: Event) -> float | None:
    if event[0] == "spawn":
        return float(event[1]["started_at"])
    return float(event[-1]) if event[0] in ("begin", "done", "fail", "boot") else None


def _size(result: Any) -> int:
    """Bytes of a result as JSON; of a text, its own."""
    if isinstance(result, str):
        return len(result.encode("utf-8", "surrogatepass"))
    return 0 if result is None else len(json.dumps(result, separators=(",", ":")))
