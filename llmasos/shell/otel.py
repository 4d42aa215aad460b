"""A process's journal as an OpenTelemetry trace, in OTLP's JSON encoding.

Names follow the semantic conventions for generative AI (which are in development): the process is an
`invoke_agent` span, its generations are `chat` or `text_completion`, its tools `execute_tool`. Written by
hand, so nothing of OpenTelemetry has to be installed. Ids are hashes of home, pid and call: the same run
gives the same trace whenever it is exported. Texts are included; they are the user's own to send.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

import llmasos
from llmasos.kernel.abi import ExitStatus, Pid, Signal
from llmasos.kernel.journal.events import Event
from llmasos.kernel.journal.history import History
from llmasos.kernel.journal.holdings import GENERATE_CALL

INTERNAL: Final = 1
"""The kind of every span: all of it happens in this process, the model's work too."""
ERROR: Final = 2
PLUMBING: Final = ("ctx.", "io.", "llm.", "proc.", "time.")
"""Syscalls that are not tools, by how their names begin."""

Span = dict[str, Any]


def trace_of(history: History, *, home_id: str) -> dict[str, Any]:
    """The whole run as one `ExportTraceServiceRequest`."""
    resource = {"service.name": "llmasos", "service.version": llmasos.__version__}
    scope = {"name": "llmasos.journal", "version": llmasos.__version__}
    spans = ProcessSpans(history.pid, history.spawn, home_id).all(history)
    return {
        "resourceSpans": [
            {
                "resource": {"attributes": _attributes(resource)},
                "scopeSpans": [{"scope": scope, "spans": spans}],
            }
        ]
    }


class ProcessSpans:
    """Builds the spans of one process, of events as the journal has them."""

    def __init__(self, pid: Pid, spawn: Mapping[str, Any], home_id: str) -> None:
        self._pid = pid
        self._spawn = spawn
        self._name = f"{home_id}/{pid}"
        self._calls: dict[str, Span] = {}
        self._asked: dict[str, tuple[str, Mapping[str, Any]]] = {}
        self._chats: set[int] = set()
        """Contexts that hold a chat."""
        self._root_events: list[dict[str, Any]] = []
        self._now = float(spawn["started_at"])
        self._num_tokens = [0, 0]

    def all(self, history: History) -> list[Span]:
        """The process's span first, then those of its calls by when they began."""
        for event in history.events:
            self.take(event)
        self._leave_unfinished()
        return [self.root(history.status), *self._calls.values()]

    def ended(self, call: str) -> Span | None:
        """The span of a call that has ended; it is forgotten here."""
        self._asked.pop(call, None)
        return self._calls.pop(call, None)

    def unfinished(self) -> list[Span]:
        """The spans of the calls that have not ended, as if they did now."""
        self._leave_unfinished()
        return list(self._calls.values())

    def _leave_unfinished(self) -> None:
        for span in self._calls.values():
            if "endTimeUnixNano" not in span:
                span["endTimeUnixNano"] = _nanos(self._now)
                span["attributes"] += _attributes({"llmasos.unfinished": True})

    def take(self, event: Event) -> None:
        """Take the next event in."""
        kind = event[0]
        if kind == "begin":
            self._begin(*event[1:])
        elif kind in ("done", "fail", "cancel"):
            self._end(event)
        elif kind in ("fork", "copy", "say"):
            self._see_chat(event)
        elif kind in ("in", "sig", "boot", "note"):
            self._root_events.append(self._event(event))

    def _see_chat(self, event: Event) -> None:
        is_fork_of_chat = event[0] == "fork" and event[2] in self._chats
        has_turns = event[0] in ("copy", "say") and event[-1] is not None
        if is_fork_of_chat or has_turns:
            self._chats.add(event[1])

    def _begin(self, call: str, name: str, args: Mapping[str, Any], _given: int, at: float) -> None:
        self._now = max(self._now, at)
        self._asked[call] = name, args
        title, attributes = self._described(call, name, args)
        self._calls[call] = {
            "traceId": _hex(self._name, 32),
            "spanId": _hex(f"{self._name}/{call}", 16),
            "parentSpanId": _hex(f"{self._name}/", 16),
            "name": title,
            "kind": INTERNAL,
            "startTimeUnixNano": _nanos(at),
            "attributes": _attributes({"llmasos.call": call, **attributes}),
        }

    def _described(
        self, call: str, name: str, args: Mapping[str, Any]
    ) -> tuple[str, dict[str, Any]]:
        if name == GENERATE_CALL:
            return self._generation(args)
        if name.startswith(PLUMBING):
            return name, {"llmasos.syscall": name, "llmasos.arguments": _json(args)}
        return f"execute_tool {name}", {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": name,
            "gen_ai.tool.type": "function",
            "gen_ai.tool.call.id": call,
            "gen_ai.tool.call.arguments": _json(args),
        }

    def _generation(self, args: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        model = self._spawn["model"]
        operation = "chat" if args.get("context") in self._chats else "text_completion"
        sampling: Mapping[str, Any] = args.get("sampling") or {}
        return f"{operation} {model}", {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "llmasos",
            "gen_ai.request.model": model,
            "gen_ai.request.max_tokens": args.get("max_tokens"),
            "gen_ai.request.temperature": sampling.get("temperature"),
            "gen_ai.request.top_k": sampling.get("top_k"),
            "gen_ai.request.top_p": sampling.get("top_p"),
            "gen_ai.request.seed": sampling.get("seed"),
            "gen_ai.request.stop_sequences": args.get("stop"),
        }

    def _end(self, event: Event) -> None:
        kind, call = event[0], event[1]
        if (span := self._calls.get(call)) is None:
            return
        if kind != "cancel":
            self._now = max(self._now, event[-1])
        span["endTimeUnixNano"] = _nanos(self._now)
        if kind == "done":
            span["attributes"] += _attributes(self._answered(call, event[2]))
            return
        code, message = event[2:4] if kind == "fail" else ("cancelled", "The app gave it up.")
        span["attributes"] += _attributes({"error.type": code})
        span["status"] = {"code": ERROR, "message": message}

    def _answered(self, call: str, result: Any) -> dict[str, Any]:
        name, _ = self._asked[call]
        if name == GENERATE_CALL:
            return self._generated(result)
        if name.startswith(PLUMBING):
            return {"llmasos.result": _json(result)}
        return {"gen_ai.tool.call.result": _json(result)}

    def _generated(self, result: Mapping[str, Any]) -> dict[str, Any]:
        num_in, num_out = result["tokens_prompt"], len(result["token_ids"])
        self._num_tokens[0] += num_in
        self._num_tokens[1] += num_out
        part = {"type": "text", "content": result["text"]}
        message = {"role": "assistant", "parts": [part], "finish_reason": result["finish"]}
        return {
            "gen_ai.response.model": self._spawn["model"],
            "gen_ai.response.finish_reasons": [result["finish"]],
            "gen_ai.usage.input_tokens": num_in,
            "gen_ai.usage.cache_read.input_tokens": result["tokens_cached"],
            "gen_ai.usage.output_tokens": num_out,
            "gen_ai.output.messages": _json([message]),
        }

    def root(self, status: ExitStatus | None) -> Span:
        """The process's own span, until now."""
        spawn = self._spawn
        attributes = {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.provider.name": "llmasos",
            "gen_ai.agent.name": spawn["app"],
            "gen_ai.agent.id": self._name,
            "gen_ai.agent.version": spawn["version"],
            "gen_ai.request.model": spawn["model"],
            "gen_ai.usage.input_tokens": self._num_tokens[0],
            "gen_ai.usage.output_tokens": self._num_tokens[1],
            "llmasos.pid": self._pid,
            "llmasos.title": spawn["title"],
            "llmasos.exit_code": None if status is None else status.code,
        }
        span: Span = {
            "traceId": _hex(self._name, 32),
            "spanId": _hex(f"{self._name}/", 16),
            "name": f"invoke_agent {spawn['app']}",
            "kind": INTERNAL,
            "startTimeUnixNano": _nanos(spawn["started_at"]),
            "endTimeUnixNano": _nanos(self._now),
            "attributes": _attributes(attributes),
            "events": self._root_events,
        }
        if status is not None and status.code:
            span["status"] = {"code": ERROR, "message": status.message}
        return span

    def _event(self, event: Event) -> dict[str, Any]:
        kind, value = event[0], event[1]
        if kind == "boot":
            self._now = max(self._now, value)
        names = {"in": "input", "sig": "signal", "boot": "kernel.boot", "note": "note"}
        if kind == "sig" and value in set(Signal):
            value = Signal(value).name
        return {
            "timeUnixNano": _nanos(self._now),
            "name": f"llmasos.{names[kind]}",
            "attributes": _attributes({"llmasos.value": "" if value is None else str(value)}),
        }


def _attributes(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"key": key, "value": _value(value)} for key, value in values.items() if value is not None
    ]


def _value(value: Any) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    if isinstance(value, (list, tuple)):
        return {"arrayValue": {"values": [_value(item) for item in value]}}
    return {"stringValue": str(value)}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _hex(name: str, num_digits: int) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:num_digits]


def _nanos(at: float) -> str:
    return str(round(at * 1e9))
