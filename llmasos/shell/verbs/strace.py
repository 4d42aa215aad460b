"""`strace`: the syscalls of a process, as they happen or as the journal has them."""

from __future__ import annotations

import argparse
from argparse import Namespace
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import aclosing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from llmasos.kernel.abi import Pid, ProcessInfo
from llmasos.kernel.errors import ConfigError, NoKernel, NoSuchProcess, UsageError
from llmasos.kernel.journal.events import Event
from llmasos.kernel.trace import event_of
from llmasos.shell.arguments import Parser
from llmasos.shell.attaching import LIVE, family
from llmasos.shell.environment import Environment
from llmasos.shell.foreground import Attention, exit_code
from llmasos.shell.params import parse_params
from llmasos.shell.records import Records, records_of
from llmasos.shell.session import KernelSession
from llmasos.shell.strace import Follower, Lines, Summary, json_line, merged
from llmasos.shell.tables import Column, Table
from llmasos.shell.tasks import in_background
from llmasos.shell.verbs.run import add_process_flags, app_named, request_for
from llmasos.shell.verbs.verb import Verb, kernel_flags

if TYPE_CHECKING:
    from llmasos.kernel.journal.history import History

Write = Callable[[str], Awaitable[None]]

LAST_WORDS_S = 5.0
"""How long the end of a trace is waited for once the process itself has ended."""


def _configure(parser: Parser) -> None:
    parser.usage = f"{parser.prog} [flags] PID | APP [ARGS ...]"
    parser.add_argument("-f", "--follow", action="store_true", help="its children too")
    parser.add_argument("-t", "--tokens", action="store_true", help="tokens as they are sampled")
    parser.add_argument(
        "-e", "--only", action="append", metavar="PATTERN",
        help="these syscalls alone, such as 'fs.*,web.*'; '!io.*' leaves out",
    )  # fmt: skip
    parser.add_argument("-c", "--count", action="store_true", help="a summary table at the end")
    parser.add_argument(
        "-a", "--from-start", action="store_true", help="of a live process also what it did before"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a call and line")
    parser.add_argument("-o", "--output", metavar="FILE", help="write it there")
    add_process_flags(parser)
    parser.add_argument("target", metavar="PID|APP")
    parser.add_argument(
        "args", nargs=argparse.REMAINDER, metavar="ARGS", help="an app's parameters, as for `run`"
    )


class _Sink:
    """Takes events, and writes what the flags ask for."""

    def __init__(self, args: Namespace, write: Write) -> None:
        self._write = write
        self._text: list[str] = []
        self._follower = Follower(patterns_of(args.only), tokens=args.tokens)
        self._lines = Lines(self._follower, pids=args.follow)
        self._is_json = args.json
        self.summary: Summary | None = Summary() if args.count else None

    def take(self, pid: Pid, event: Event, *, silently: bool = False) -> None:
        """Write what an event tells; `silently` only remember what later ones refer to."""
        for happening in self._follower.take(pid, event):
            if silently:
                continue
            if self.summary is not None:
                self.summary.take(happening)
            elif text := json_line(happening) if self._is_json else self._lines.text(happening):
                self._text.append(text)

    async def flush(self) -> None:
        """Write what there is; waits while nobody reads it."""
        if self._text:
            text, self._text = "".join(self._text), []
            await self._write(text)

    def end(self) -> None:
        """What has not ended."""
        for happening in self._follower.unfinished() if self.summary is None else ():
            self._text.append(
                json_line(happening) if self._is_json else self._lines.text(happening)
            )
        if self.summary is None:
            self._text.append(self._lines.end())


def patterns_of(given: Sequence[str] | None) -> list[str]:
    """`-e a,b -e c` as patterns."""
    return [part for each in given or () for part in each.split(",") if part]


async def strace(environment: Environment, args: Namespace) -> int:
    """Trace a process by its pid, live or finished; or start an app and trace it."""
    if not args.target.isdecimal():
        return await _trace_app(environment, args)
    if args.args:
        raise UsageError("strace: a process that runs already takes no arguments.")
    target = Pid(int(args.target))
    with _writing(environment, args) as write:
        sink = _Sink(args, write)
        if (session := await _session_of(environment, target)) is not None:
            await _trace_live(session, target, sink, args)
        else:
            await _trace_record(environment, target, sink, args)
        await _finish(environment, sink, args, write)
    return 0


async def _session_of(environment: Environment, target: Pid) -> KernelSession | None:
    """The kernel in which the process lives, if it does."""
    try:
        session = await environment.sessions.running()
        info = await session.info(target)
    except (NoKernel, NoSuchProcess):
        return None
    return session if info.exit is None else None


async def _trace_live(
    session: KernelSession, target: Pid, sink: _Sink, args: Namespace, *, whole: bool = False
) -> None:
    past: dict[Pid, list[Event]] | None = {}
    stream = session.trace(target, follow=args.follow, tokens=args.tokens)
    async with aclosing(stream) as pieces:
        async for line in _lines_of(pieces):
            if past is None:
                sink.take(*event_of(line))
                await sink.flush()
            elif line == LIVE:
                for pid, event in merged(past):
                    sink.take(pid, event, silently=not (whole or args.from_start))
                past = None
            else:
                pid, event = event_of(line)
                past.setdefault(pid, []).append(event)
    sink.end()
    await sink.flush()


async def _lines_of(pieces: AsyncIterator[str]) -> AsyncIterator[str]:
    rest = ""
    async for piece in pieces:
        *whole, rest = (rest + piece).split("\n")
        for line in whole:
            yield line + "\n"


async def _trace_record(
    environment: Environment, target: Pid, sink: _Sink, args: Namespace
) -> None:
    try:
        with records_of(environment) as records:
            histories = await anyio.to_thread.run_sync(_histories, records, target, args.follow)
    except ConfigError:
        raise NoSuchProcess(
            f"There is no process {target}, and no journal that would remember it."
        ) from None
    for pid, event in merged({history.pid: history.events for history in histories}):
        sink.take(pid, event)
    sink.end()
    await sink.flush()


def _histories(records: Records, target: Pid, follow: bool) -> list[History]:
    rows: dict[Pid, ProcessInfo] = {row.pid: row for row in records.processes()} if follow else {}
    return [records.history(pid) for pid in family(target, rows, follow=follow)]


async def _trace_app(environment: Environment, args: Namespace) -> int:
    """As `run` does; the trace goes to stderr unless `-o` says where."""
    session = await environment.sessions.needed(kernel_flags(args, environment.flags))
    app = await app_named(session, args.target)
    request = request_for(environment, app, args, parse_params(app, args.args))
    has_stdin = environment.stdin_fd is not None
    with _writing(environment, args, is_beside=True) as write:
        sink = _Sink(args, write)
        pid = await session.spawn(replace(request, stdin=has_stdin))
        ended = anyio.Event()

        async def watch() -> None:
            await _trace_live(session, pid, sink, args, whole=True)
            ended.set()

        async with in_background(watch):
            status = await Attention(environment, session, pid).until_exit(stdin=has_stdin)
            with anyio.move_on_after(LAST_WORDS_S):
                await ended.wait()
        await _finish(environment, sink, args, write)
    return exit_code(environment, status)


@contextmanager
def _writing(
    environment: Environment, args: Namespace, *, is_beside: bool = False
) -> Iterator[Write]:
    """Where the trace goes: a file, or stdout; `is_beside` an app's output, stderr."""
    if args.output is None:
        yield environment.output.aside if is_beside else environment.output.stream
        return
    path = Path(environment.root) / Path(args.output).expanduser()
    try:
        file: IO[str] = path.open("w", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise ConfigError(f"{args.output} cannot be written: {error.strerror}.") from error
    with file:

        async def write(text: str) -> None:
            await anyio.to_thread.run_sync(_write_out, file, text)

        yield write


def _write_out(file: IO[str], text: str) -> None:
    file.write(text)
    file.flush()


async def _finish(environment: Environment, sink: _Sink, args: Namespace, write: Write) -> None:
    """The summary, where one was asked for."""
    if sink.summary is None:
        return
    rows = sink.summary.rows()
    if args.json:
        environment.output.json(rows)
    elif args.output is None:
        environment.output.table(_table(rows))
    else:
        await write(_table(rows).plain())


def _table(rows: Iterable[Mapping[str, Any]]) -> Table:
    numbers = ("% TIME", "SECONDS", "US/CALL", "CALLS", "ERRORS", "DENIED")
    columns = (*(Column(heading, right=True) for heading in numbers), Column("SYSCALL"))
    return Table(columns, tuple(_cells(row) for row in rows))


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    counts = (str(row[name]) for name in ("calls", "errors", "denied", "name"))
    times = (f"{100 * row['share']:.2f}", f"{row['seconds']:.6f}", f"{row['us_per_call']:.0f}")
    return (*times, *counts)


VERBS = (
    Verb(
        "strace", "Show the syscalls of a process.", strace, _configure,
        boots=True, completes=("pid", "path"),
    ),
)  # fmt: skip
