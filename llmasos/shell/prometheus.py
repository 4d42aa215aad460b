"""A kernel's figures in Prometheus's text format (version 0.0.4), and the small server that gives them out.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/. Needs no package.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

from llmasos.kernel.abi import KernelStatus, ProcessInfo, ProcessState
from llmasos.kernel.errors import ConfigError, LlmosError
from llmasos.kernel.metrics import Histogram, Metrics

if TYPE_CHECKING:
    from llmasos.kernel.runtime import Runtime

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
MAX_REQUEST_BYTES: Final = 1 << 14
REQUEST_S: Final = 10.0
Labels = Mapping[str, str]


def exposition(runtime: Runtime) -> str:
    """Everything that a kernel counts."""
    text = _Text()
    _machine(text, runtime.status())
    _processes(text, runtime.ps(all=True))
    _calls(text, runtime.metrics)
    text.one(
        "driver_queue",
        "gauge",
        "Blocking calls that wait for a thread.",
        runtime.num_drivers_waiting,
    )
    return text.text()


class _Text:
    """Collects lines, each family's head once."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def head(self, name: str, kind: str, help_text: str) -> None:
        self._lines += [f"# HELP llmasos_{name} {help_text}", f"# TYPE llmasos_{name} {kind}"]

    def sample(self, name: str, value: float, labels: Labels | None = None) -> None:
        inner = ",".join(f'{key}="{_escaped(text)}"' for key, text in (labels or {}).items())
        shown = repr(value) if isinstance(value, float) else str(int(value))
        self._lines.append(
            f"llmasos_{name}{{{inner}}} {shown}" if inner else f"llmasos_{name} {shown}"
        )

    def one(self, name: str, kind: str, help_text: str, value: float) -> None:
        self.head(name, kind, help_text)
        self.sample(name, value)

    def histogram(self, name: str, each: Histogram, labels: Labels | None = None) -> None:
        below = 0
        for bound, count in zip((*map(repr, each.bounds), "+Inf"), each.counts, strict=True):
            below += count
            self.sample(f"{name}_bucket", below, {**(labels or {}), "le": bound})
        self.sample(f"{name}_sum", each.total, labels)
        self.sample(f"{name}_count", below, labels)

    def text(self) -> str:
        return "\n".join(self._lines) + "\n"


def _machine(text: _Text, status: KernelStatus) -> None:
    text.head("info", "gauge", "What runs here.")
    text.sample("info", 1, {"model": status.model, "core": status.core, "journal": status.journal})
    text.one("uptime_seconds", "gauge", "Since the kernel booted.", status.uptime_s)
    text.one("steps_total", "counter", "Steps that the core computed.", status.num_steps)
    root = status.groups[0]
    text.one("tokens_out_total", "counter", "Tokens sampled.", root.tokens_out)
    text.one("tokens_computed_total", "counter", "Positions computed.", root.tokens_computed)
    text.one("model_seconds_total", "counter", "Time the core computed.", root.model_s)
    text.one("tokens_per_second", "gauge", "Sampled lately.", status.tokens_per_s)
    text.head("pages", "gauge", "Pages of context memory by state.")
    for state, count in (
        ("free", status.pages_free), ("cached", status.pages_cached), ("held", status.pages_held),
    ):  # fmt: skip
        text.sample("pages", count, {"state": state})
    text.one("swap_pages", "gauge", "Pages in swap.", status.swap_pages)
    text.one("swap_bytes", "gauge", "Bytes of swap in use.", status.swap_bytes)
    text.one("swap_saved_pages_total", "counter", "Pages written to swap.", status.pages_saved)
    text.one("swap_loaded_pages_total", "counter", "Pages loaded from swap.", status.pages_loaded)
    text.one("journal_bytes", "gauge", "Size of the journal.", status.journal_bytes)
    text.one(
        "journal_lag_seconds", "gauge", "How long the oldest event waits for the disk.",
        status.journal_lag_s,
    )  # fmt: skip
    stuck = int(bool(status.journal_warning))
    text.one("journal_stuck", "gauge", "1 while the journal or the audit log takes nothing.", stuck)


def _processes(text: _Text, rows: Iterable[ProcessInfo]) -> None:
    states = Counter(row.state for row in rows)
    text.head("processes", "gauge", "Processes by state.")
    for state in ProcessState:
        text.sample("processes", states[state], {"state": state.value})


def _calls(text: _Text, metrics: Metrics) -> None:
    counts = metrics.counts
    text.one("processes_started_total", "counter", "Processes begun.", counts.num_processes)
    text.one(
        "prompt_tokens_total",
        "counter",
        "In contexts that were generated from.",
        counts.tokens_prompt,
    )
    text.one(
        "prompt_tokens_cached_total", "counter", "Of those, found and not computed.",
        counts.tokens_cached,
    )  # fmt: skip
    text.one("syscalls_open", "gauge", "Syscalls under way.", metrics.num_open)
    text.head("syscalls_total", "counter", "Syscalls that ended, by name and outcome.")
    for (name, outcome), count in sorted(counts.outcomes.items()):
        text.sample("syscalls_total", count, {"name": name, "outcome": outcome})
    text.head("syscall_seconds", "histogram", "How long syscalls took.")
    for name, durations in sorted(counts.durations.items()):
        text.histogram("syscall_seconds", durations, {"name": name})
    text.head("time_to_first_token_seconds", "histogram", "From a generation's begin on.")
    text.histogram("time_to_first_token_seconds", counts.first_token)
    text.head("inter_token_seconds", "histogram", "From one token of a generation to the next.")
    text.histogram("inter_token_seconds", counts.between_tokens)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


@asynccontextmanager
async def serving(
    read: Callable[[], Awaitable[str]], *, bind: str, port: int
) -> AsyncIterator[int]:
    """Answer `GET /metrics` while the context lasts; yields the port. Raises `ConfigError`."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(
            OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError
        ):
            async with asyncio.timeout(REQUEST_S):
                request = await reader.readuntil(b"\r\n\r\n")
                writer.write(await _answer(request, read))
                await writer.drain()
        writer.close()

    try:
        server = await asyncio.start_server(connected, bind, port, limit=MAX_REQUEST_BYTES)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"Metrics cannot be served on {bind}:{port}: {error}.") from error
    async with server:
        yield int(server.sockets[0].getsockname()[1])


async def _answer(request: bytes, read: Callable[[], Awaitable[str]]) -> bytes:
    method, _, rest = request.partition(b" ")
    path = rest.partition(b" ")[0].partition(b"?")[0]
    if method not in (b"GET", b"HEAD"):
        return _response("405 Method Not Allowed", "Only GET is answered.\n", has_body=True)
    if path not in (b"/metrics", b"/"):
        return _response("404 Not Found", "See /metrics.\n", has_body=True)
    try:
        body = await read()
    except LlmosError as error:
        return _response("503 Service Unavailable", f"{error}\n", has_body=True)
    return _response("200 OK", body, has_body=method == b"GET")


def _response(status: str, body: str, *, has_body: bool) -> bytes:
    data = body.encode("utf-8", "replace")
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {CONTENT_TYPE}\r\nContent-Length: {len(data)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode("ascii") + (data if has_body else b"")
