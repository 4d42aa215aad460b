"""Spans sent as they end, through the OpenTelemetry SDK, to an OTLP endpoint: those of `log --otel`.

Covered: each syscall when it ends and each process when it exits. A thread of its own makes them of the
events that the kernel's `Trace` tells; what finds its queue full is dropped and counted, so a slow endpoint
holds up nobody.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from queue import Full, Queue
from typing import TYPE_CHECKING, Any, Final, Protocol

import llmasos
from llmasos.kernel.abi import ExitStatus, Pid, Signal
from llmasos.kernel.errors import ConfigError, JournalDamaged, JournalFailed, NoSuchProcess
from llmasos.kernel.journal.events import Event, encode_event
from llmasos.shell.otel import ProcessSpans, Span

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

    from llmasos.kernel.runtime import Runtime
    from llmasos.shell.settings import Settings

_log = logging.getLogger("llmasos")
MAX_QUEUED: Final = 10_000
CLOSE_S: Final = 5.0
KINDS: Final = frozenset(
    {"spawn", "begin", "done", "fail", "cancel", "fork", "copy", "say", "in", "sig", "note", "exit"}
)
SpawnOf = Callable[[Pid], Mapping[str, Any] | None]


class Processor(Protocol):
    """Where ended spans go: the SDK's `BatchSpanProcessor`, or one that a test has."""

    def on_end(self, span: ReadableSpan) -> None:
        """Take one."""

    def shutdown(self) -> None:
        """Send what is left."""


@contextmanager
def exporting(settings: Settings, runtime: Runtime) -> Iterator[None]:
    """Export while the context lasts, where the settings or OTEL_* variables name an endpoint. Raises
    `ConfigError`."""
    variables = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    is_wanted = bool(settings.otel_endpoint) or any(os.environ.get(name) for name in variables)
    if not is_wanted or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        yield
        return
    export = LiveExport(_processor(settings.otel_endpoint), *_identity(runtime))
    runtime.trace.listen(export.take)
    try:
        yield
    finally:
        runtime.trace.leave(export.take)
        export.close()


def _identity(runtime: Runtime) -> tuple[str, SpawnOf]:
    """The home's id, and how to look up what a process of an earlier kernel was started with."""
    if not runtime.keeps_journal:
        return secrets.token_hex(16), lambda _: None

    def spawn_of(pid: Pid) -> Mapping[str, Any] | None:
        try:
            events = runtime.read_events(pid, 1)
        except (JournalDamaged, JournalFailed, NoSuchProcess):
            return None
        return events[0][1] if events else None

    return runtime.home_id, spawn_of


def _processor(endpoint: str) -> Processor:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigError(
            "Sending spans needs the OpenTelemetry SDK: pip install 'llmasos[otel]', or unset"
            " otel_endpoint and OTEL_EXPORTER_OTLP_ENDPOINT."
        ) from error
    return BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint or None))


class LiveExport:
    """Turns what it hears into spans, in a thread."""

    def __init__(self, processor: Processor, home_id: str, spawn_of: SpawnOf) -> None:
        self.num_dropped = 0
        self._processor = processor
        self._home_id = home_id
        self._spawn_of = spawn_of
        self._processes: dict[Pid, ProcessSpans] = {}
        self._queue: Queue[tuple[Pid, bytes] | None] = Queue(MAX_QUEUED)
        self._thread = threading.Thread(target=self._run, name="llmasos-otel", daemon=True)
        self._thread.start()

    def take(self, pid: Pid, event: Event, text: bytes | None) -> None:
        """Hear an event; on the kernel's loop."""
        if event[0] not in KINDS:
            return
        try:
            self._queue.put_nowait((pid, encode_event(event) if text is None else text))
        except Full:
            if self.num_dropped == 0:
                _log.warning("Spans are lost: they cannot be made as fast as syscalls are.")
            self.num_dropped += 1

    def close(self) -> None:
        """Send what there is, for a few seconds at most."""
        try:
            self._queue.put(None, timeout=CLOSE_S)
        except Full:
            return
        self._thread.join(CLOSE_S)

    # --- within: the thread

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            pid, text = item
            for span in self._ended(pid, tuple(json.loads(text))):
                self._processor.on_end(_readable(span))
        self._processor.shutdown()

    def _ended(self, pid: Pid, event: Event) -> Iterator[Span]:
        kind = event[0]
        if kind == "spawn":
            self._processes[pid] = ProcessSpans(pid, event[1], self._home_id)
        spans = self._processes.get(pid) or self._found(pid)
        if spans is None:
            return
        if kind != "spawn" and kind != "exit":
            spans.take(event)
        if kind in ("done", "fail", "cancel") and (span := spans.ended(event[1])) is not None:
            yield span
        if kind == "exit":
            _, code, message, number = event
            yield from spans.unfinished()
            yield spans.root(ExitStatus(code, message, None if number is None else Signal(number)))
            del self._processes[pid]

    def _found(self, pid: Pid) -> ProcessSpans | None:
        spawn = self._spawn_of(pid)
        if spawn is None:
            return None
        self._processes[pid] = ProcessSpans(pid, spawn, self._home_id)
        return self._processes[pid]


def _readable(span: Span) -> ReadableSpan:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import Event as SpanEvent
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import SpanKind, Status, StatusCode

    status = span.get("status")
    resource = Resource.create({"service.name": "llmasos", "service.version": llmasos.__version__})
    return ReadableSpan(
        name=span["name"],
        context=_context(span, "spanId"),
        parent=_context(span, "parentSpanId") if "parentSpanId" in span else None,
        resource=resource,
        attributes=_plain(span["attributes"]),
        events=[
            SpanEvent(each["name"], _plain(each["attributes"]), int(each["timeUnixNano"]))
            for each in span.get("events", ())
        ],
        kind=SpanKind.INTERNAL,
        status=Status(StatusCode.ERROR, status["message"]) if status else Status(),
        start_time=int(span["startTimeUnixNano"]),
        end_time=int(span["endTimeUnixNano"]),
        instrumentation_scope=InstrumentationScope("llmasos.journal", llmasos.__version__),
    )


def _context(span: Span, which: str) -> Any:
    from opentelemetry.trace import SpanContext, TraceFlags

    flags = TraceFlags(TraceFlags.SAMPLED)
    return SpanContext(
        int(span["traceId"], 16), int(span[which], 16), is_remote=False, trace_flags=flags
    )


def _plain(attributes: list[dict[str, Any]]) -> dict[str, Any]:
    return {each["key"]: _value(each["value"]) for each in attributes}


def _value(value: Mapping[str, Any]) -> Any:
    ((kind, held),) = value.items()
    if kind == "arrayValue":
        return [_value(each) for each in held["values"]]
    return int(held) if kind == "intValue" else held
