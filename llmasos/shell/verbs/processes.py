"""Verbs about processes that run: `ps`, `kill`, `stop`, `cont`, `nice`, `wait`, `fork`, `logs`."""

from __future__ import annotations

from argparse import Namespace
from contextlib import aclosing
from typing import TYPE_CHECKING

import anyio.to_thread

from llmasos.kernel.abi import Answer, ExitStatus, Pid, ProcessInfo, QuestionKind, Signal
from llmasos.kernel.errors import ConfigError, LlmosError, NoKernel, NoSuchProcess, ProcessError
from llmasos.shell.arguments import Parser, moment, niceness, pid, signal, spread_signal
from llmasos.shell.asking import Asking
from llmasos.shell.environment import Environment
from llmasos.shell.foreground import Escalation
from llmasos.shell.plain import one_line
from llmasos.shell.records import records_of
from llmasos.shell.tables import memory_table, process_table
from llmasos.shell.tasks import in_background
from llmasos.shell.verbs.verb import Verb, add_json

if TYPE_CHECKING:
    from llmasos.kernel.journal.history import History


def _configure_ps(parser: Parser) -> None:
    parser.add_argument("-a", "--all", action="store_true", help="finished processes too")
    parser.add_argument(
        "-l", "--long", action="store_true", help="memory: pages, faults, swap, groups"
    )
    add_json(parser)


async def ps(environment: Environment, args: Namespace) -> int:
    """Show the processes. Without a kernel there are none, which is said and is exit code 1."""
    output = environment.output
    problem: NoKernel | None = None
    try:
        processes = await (await environment.sessions.running()).ps(all=args.all)
    except NoKernel as error:
        processes, problem = _remembered(environment) if args.all else [], error
    if args.json:
        output.json(processes)
    else:
        output.table(memory_table(processes) if args.long else process_table(processes))
        for process in processes:
            if args.long and process.taint:
                sources = one_line(", ".join(process.taint), max_chars=1000)
                output.line(f"{process.pid}: has read text from outside: {sources}")
            if process.note:
                output.line(f"{process.pid}: {one_line(process.note, max_chars=1000)}")
    if problem is None:
        return 0
    output.error(problem)
    return 1


def _remembered(environment: Environment) -> list[ProcessInfo]:
    """What the journal knows, where there is one."""
    try:
        with records_of(environment) as records:
            return records.processes()
    except ConfigError:
        return []


def _configure_pids(parser: Parser) -> None:
    parser.add_argument("pid", nargs="+", type=pid, metavar="PID")


def _configure_kill(parser: Parser) -> None:
    parser.add_argument(
        "-s", "--signal", type=signal, default=Signal.TERM, metavar="SIGNAL",
        help="TERM (default), KILL, INT, STOP, CONT, USR1 ...; also -9, -KILL",
    )  # fmt: skip
    parser.add_argument("-l", "--list", action="store_true", help="list the signals")
    parser.add_argument("pid", nargs="*", type=pid, metavar="PID")


async def kill(environment: Environment, args: Namespace) -> int:
    """Send a signal to processes, to each that there is."""
    if args.list:
        for number in Signal:
            environment.output.line(f"{number.value:>2} {number.name}")
        return 0
    if not args.pid:
        raise ProcessError("Say which process: `kill PID`; `ps` lists them.")
    return await _send(environment, args.pid, args.signal)


async def stop(environment: Environment, args: Namespace) -> int:
    """Give processes no more model time until `cont`."""
    return await _send(environment, args.pid, Signal.STOP)


async def cont(environment: Environment, args: Namespace) -> int:
    """Let stopped processes go on."""
    return await _send(environment, args.pid, Signal.CONT)


async def _send(environment: Environment, pids: list[Pid], number: Signal) -> int:
    session = await environment.sessions.running()
    failed = 0
    for target in pids:
        try:
            await session.signal(target, number)
        except ProcessError as error:
            environment.output.error(error)
            failed = 1
    return failed


def _configure_nice(parser: Parser) -> None:
    parser.add_argument("niceness", type=niceness, metavar="N", help="-20 (first) to 19 (last)")
    _configure_pids(parser)


async def nice(environment: Environment, args: Namespace) -> int:
    """Change the priority of processes."""
    session = await environment.sessions.running()
    failed = 0
    for target in args.pid:
        try:
            await session.renice(target, args.niceness)
        except LlmosError as error:
            environment.output.error(error)
            failed = 1
    return failed


def _configure_wait(parser: Parser) -> None:
    parser.add_argument("pid", nargs="+", type=pid, metavar="PID")
    add_json(parser)


async def wait(environment: Environment, args: Namespace) -> int:
    """Wait for processes to end; the exit code is the first that is not 0."""
    session = await environment.sessions.running()
    ended: list[tuple[Pid, ExitStatus]] = [(pid, await session.wait(pid)) for pid in args.pid]
    if args.json:
        environment.output.json(
            [{"pid": pid, "code": status.code, "message": status.message} for pid, status in ended]
        )
    elif any(status.code for _, status in ended):
        for target, status in ended:
            if status.code:
                environment.output.note(_ending(target, status))
    return next((status.code for _, status in ended if status.code), 0)


def _ending(target: Pid, status: ExitStatus) -> str:
    reason = f": {status.message}" if status.message else "."
    return f"Process {target} ended with exit code {status.code}{reason}"


def _configure_fork(parser: Parser) -> None:
    parser.add_argument("--title", default="", help="the child's title")
    parser.add_argument(
        "moment", type=moment, metavar="PID[@N]",
        help="@N: as it was after its first N events; @ alone: as it is now",
    )  # fmt: skip


async def fork(environment: Environment, args: Namespace) -> int:
    """Copy a process, its contexts shared copy-on-write, and print the child's pid; with `@N` branch its
    history instead: the same run up to there, which then goes its own way."""
    session = await environment.sessions.running()
    target, is_branch, until = args.moment
    if is_branch:
        child = await session.branch(target, until, title=args.title)
    else:
        child = await session.fork(target, title=args.title)
    if environment.jobs is not None:
        environment.jobs.add(child, f"fork of {target}", detached=is_branch)
    environment.output.line(str(child))
    return 0


def _configure_logs(parser: Parser) -> None:
    parser.add_argument("-f", "--follow", action="store_true", help="go on until it exits")
    parser.add_argument(
        "--log", action="store_true",
        help="its log instead: what it notes, and what its code writes past the kernel",
    )  # fmt: skip
    parser.add_argument("pid", type=pid, metavar="PID")


async def logs(environment: Environment, args: Namespace) -> int:
    """Show what a process has written."""
    try:
        await _show_output(environment, args)
    except (NoKernel, NoSuchProcess) as error:
        history = await anyio.to_thread.run_sync(_remembered_history, environment, args.pid, error)
        holdings = history.holdings
        await environment.output.stream("".join(holdings.log if args.log else holdings.output))
    environment.output.end_line_on_terminal()
    return 0


def _remembered_history(environment: Environment, target: Pid, error: LlmosError) -> History:
    """A process that only the journal knows; `error` where there is no journal either."""
    try:
        with records_of(environment) as records:
            return records.history(target)
    except ConfigError:
        raise error from None


async def _show_output(environment: Environment, args: Namespace) -> None:
    session = await environment.sessions.running()
    if args.log:
        await environment.output.stream(await session.log_text(args.pid))
        return
    if not args.follow:
        await environment.output.stream(await session.output_text(args.pid))
        return
    await session.info(args.pid)
    async with aclosing(session.output(args.pid)) as pieces:
        async for piece in pieces:
            await environment.output.stream(piece)


def _configure_tell(parser: Parser) -> None:
    parser.add_argument("pid", type=pid, metavar="PID")
    parser.add_argument("text", nargs="+", metavar="TEXT")


async def tell(environment: Environment, args: Namespace) -> int:
    """Give a process the line it waits for, and show what it writes until it wants another."""
    session = await environment.sessions.running()
    if (await session.info(args.pid)).exit is not None:
        raise ProcessError(f"Process {args.pid} has exited.")
    for question in await session.questions():
        if question.pid == args.pid and question.kind is QuestionKind.TEXT:
            await session.answer(question.id, Answer(True, " ".join(args.text)))
            return 0
    async with (
        Escalation(environment.interrupts, session, args.pid) as keys,
        in_background(Asking(environment, session, args.pid).run),
        aclosing(session.dialogue(args.pid)) as items,
    ):
        async for item in items:  # what it wrote before
            if item is None:
                break
        await session.send_input(args.pid, " ".join(args.text))
        async for item in items:
            if item is None:
                break
            await environment.output.stream(item)
    environment.output.end_line_on_terminal()
    return 130 if keys.interrupted else 0


VERBS = (
    Verb("ps", "List the processes.", ps, _configure_ps),
    Verb(
        "kill", "Send processes a signal (TERM unless told).", kill, _configure_kill,
        completes=("pid",), prepare=spread_signal,
    ),
    Verb("stop", "Stop processes until `cont`.", stop, _configure_pids, completes=("pid",)),
    Verb("cont", "Let stopped processes go on.", cont, _configure_pids, completes=("pid",)),
    Verb(
        "nice", "Change the priority of processes.", nice, _configure_nice,
        completes=("", "pid"),
    ),
    Verb("wait", "Wait for processes to end.", wait, _configure_wait, completes=("pid",)),
    Verb(
        "fork", "Copy a process; the copy shares its memory.", fork, _configure_fork,
        completes=("pid",),
    ),
    Verb(
        "tell", "Say a line to a process and show its answer.", tell, _configure_tell,
        completes=("pid", ""),
    ),
    Verb("logs", "Show what a process has written.", logs, _configure_logs, completes=("pid",)),
)  # fmt: skip
