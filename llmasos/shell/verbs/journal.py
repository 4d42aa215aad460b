"""Verbs about what the journal remembers: `log`, `replay`, `diff`, `resume`.

All but `resume` and `replay --live-from` read the journal's file, so they need no kernel and disturb none.
"""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from llmasos.kernel.abi import Pid, ProcessState
from llmasos.kernel.errors import ConfigError, ProcessError
from llmasos.shell.arguments import Parser, count, pid
from llmasos.shell.environment import Environment
from llmasos.shell.foreground import Attention, exit_code
from llmasos.shell.records import records_of
from llmasos.shell.session import KernelSession
from llmasos.shell.tasks import in_background
from llmasos.shell.verbs.verb import Verb, kernel_flags

if TYPE_CHECKING:
    from llmasos.kernel.journal.history import History

HELD_POLL_S = 0.1


def _configure_log(parser: Parser) -> None:
    formats = parser.add_mutually_exclusive_group()
    formats.add_argument(
        "--json", dest="form", action="store_const", const="json", help="its events, one a line"
    )
    formats.add_argument(
        "--markdown", dest="form", action="store_const", const="markdown", help="as Markdown"
    )
    formats.add_argument(
        "--otel", dest="form", action="store_const", const="otel",
        help="as an OpenTelemetry trace (OTLP JSON)",
    )  # fmt: skip
    parser.add_argument("-o", "--output", metavar="FILE", help="write it there")
    parser.add_argument("pid", type=pid, metavar="PID")


async def log(environment: Environment, args: Namespace) -> int:
    """Tell what a process did, whether it lives or not."""
    with records_of(environment) as records:
        history = await anyio.to_thread.run_sync(records.history, args.pid)
        text = _log_text(history, args.form, records.home_id)
    if args.output is None:
        await environment.output.stream(text)
    else:
        _write(environment, args.output, text)
    return 0


def _log_text(history: History, form: str | None, home_id: str) -> str:
    from llmasos.shell.otel import trace_of
    from llmasos.shell.story import event_lines, story_of

    if form == "json":
        return "".join(f"{line}\n" for line in event_lines(history.events))
    if form == "otel":
        return json.dumps(trace_of(history, home_id=home_id), ensure_ascii=False) + "\n"
    story = story_of(history)
    return story.markdown() if form == "markdown" else story.text()


def _write(environment: Environment, file: str, text: str) -> None:
    path = Path(environment.root) / Path(file).expanduser()
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error.strerror}.") from error


def _configure_replay(parser: Parser) -> None:
    parser.add_argument("--until", type=count, metavar="N", help="the first N events alone")
    parser.add_argument(
        "--step", action="store_true", help="show each event; on a terminal Enter gives the next"
    )
    parser.add_argument(
        "--live-from", type=count, metavar="N",
        help="branch off after N events and go on for real",
    )  # fmt: skip
    parser.add_argument("pid", type=pid, metavar="PID")


async def replay(environment: Environment, args: Namespace) -> int:
    """Run a process again from its journal alone; exit 1 where it comes out differently."""
    from llmasos.shell.replaying import replayed

    if args.live_from is not None:
        return await _live_from(environment, args)
    with records_of(environment) as records:
        history = await anyio.to_thread.run_sync(
            lambda: records.history(args.pid, until=args.until)
        )
    if args.until is not None and args.until > len(history.events):
        raise ProcessError(f"Process {args.pid}'s journal has {len(history.events)} events.")
    outcome = await replayed(environment, history, step=args.step)
    if not args.step:
        await environment.output.stream(outcome.output)
    environment.output.end_line_on_terminal()
    if outcome.problem:
        environment.output.note(f"Process {args.pid} replayed differently: {outcome.problem}")
        return 1
    environment.output.note(f"replayed {outcome.num_events} events, identical")
    return 0


async def _live_from(environment: Environment, args: Namespace) -> int:
    session = await environment.sessions.needed(kernel_flags(args, environment.flags))
    child = await session.branch(args.pid, args.live_from, foreground=True)
    environment.output.note(f"Process {child} goes on from {args.pid}@{args.live_from}.")
    return await attend(environment, session, child)


async def attend(environment: Environment, session: KernelSession, target: Pid) -> int:
    """Follow a process as `run` does; where it is held meanwhile, say why and leave it so."""
    held: list[str] = []
    with anyio.CancelScope() as scope:

        async def watch() -> None:
            while True:
                await anyio.sleep(HELD_POLL_S)
                info = await session.info(target)
                if info.exit is None and info.note and info.state is ProcessState.STOPPED:
                    held.append(info.note)
                    scope.cancel()

        async with in_background(watch):
            attention = Attention(environment, session, target)
            status = await attention.until_exit(stdin=environment.stdin_fd is not None)
            return exit_code(environment, status)
    environment.output.end_line_on_terminal()
    raise ProcessError(f"Process {target} is held: {held[0]}")


def _configure_diff(parser: Parser) -> None:
    parser.add_argument("pid", type=pid, metavar="PID")
    parser.add_argument("other", type=pid, metavar="PID")


async def diff(environment: Environment, args: Namespace) -> int:
    """Show where two runs part; exit 1 if they do."""
    from llmasos.shell.diffing import differences

    with records_of(environment) as records:
        left = await anyio.to_thread.run_sync(records.history, args.pid)
        right = await anyio.to_thread.run_sync(records.history, args.other)
    text = differences(left, right)
    await environment.output.stream(text)
    if not text:
        environment.output.note(f"Processes {args.pid} and {args.other} did the same.")
    return 1 if text else 0


def _configure_resume(parser: Parser) -> None:
    parser.add_argument("pid", type=pid, metavar="PID")


async def resume(environment: Environment, args: Namespace) -> int:
    """Go on with a process that was held or stopped, in the foreground; exit with its code."""
    session = await environment.sessions.needed(kernel_flags(args, environment.flags))
    info = await session.info(args.pid)
    if info.exit is not None:
        raise ProcessError(
            f"Process {args.pid} has exited; `fork {args.pid}@N` branches off from it."
        )
    await session.resume(args.pid)
    return await attend(environment, session, args.pid)


VERBS = (
    Verb("log", "Tell what a process did.", log, _configure_log, completes=("pid",)),
    Verb(
        "replay", "Run a process again from its journal.", replay, _configure_replay,
        boots=True, completes=("pid",),
    ),
    Verb("diff", "Show where two runs part.", diff, _configure_diff, completes=("pid",)),
    Verb(
        "resume", "Go on with a process that was held.", resume, _configure_resume,
        boots=True, completes=("pid",),
    ),
)  # fmt: skip
