"""`proc.*`: processes, as a process sees them. It may act on itself and its descendants only."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field
from pydantic.json_schema import SkipJsonSchema

from llmasos.kernel.abi import (
    Effect,
    Grant,
    Labels,
    LimitInfo,
    Limits,
    Pid,
    ProcessInfo,
    Signal,
    SyscallInfo,
)
from llmasos.kernel.capabilities import may_call
from llmasos.kernel.errors import InvalidArguments, NoSuchProcess, PermissionDenied, ProcessError
from llmasos.kernel.process import Process
from llmasos.kernel.syscall import Call, syscall

MAX_OUTPUT_CHARS = 20_000


@syscall("proc.spawn", effect=Effect.WRITE, repeatable=True)
async def spawn(
    call: Call,
    app: Annotated[str, Field(description="Name of the app to run.")],
    params: Annotated[dict[str, Any], Field(description="The app's parameters.")] | None = None,
    title: str = "",
    syscalls: Annotated[
        list[str], Field(description="Patterns of the syscalls it may make; default: the same.")
    ]
    | None = None,
    nice: Annotated[int, Field(ge=-20, le=19)] = 0,
    grant: Annotated[
        list[Grant] | None,
        SkipJsonSchema(),
        Field(description="Capabilities it holds; default: all of this one's."),
    ] = None,
    limits: Annotated[
        Limits | None,
        SkipJsonSchema(),
        Field(description="What it may use; it shares what this process may use."),
    ] = None,
    adapter: Annotated[
        str | None,
        SkipJsonSchema(),
        Field(description="What its contexts are computed with; default: this one's."),
    ] = None,
) -> int:
    """Start an app as a child process and return its pid."""
    runtime = call.runtime
    mine = runtime.kernel.live(call.pid)
    grants = _grants(mine, syscalls, grant, runtime.now())
    try:
        return await runtime.spawn(
            app,
            params or {},
            ppid=call.pid,
            title=title,
            grants=grants,
            limits=limits,
            nice=max(nice, mine.nice),
            call=call.id,
            adapter=adapter,
        )
    except ProcessError as error:
        raise InvalidArguments(str(error)) from error


@syscall("proc.fork", effect=Effect.WRITE, tool=False, repeatable=True)
async def fork(call: Call, params: dict[str, Any] | None = None, title: str = "") -> int:
    """Run this process's app again in a child that shares its contexts; returns the pid."""
    return await call.runtime.fork(call.pid, params, title=title, call=call.id)


@syscall("proc.wait", effect=Effect.READ, deadline_s=None)
async def wait(
    call: Call, pid: Annotated[int, Field(description="The child process to wait for.")]
) -> dict[str, Any]:
    """Wait for a child process to end; returns its exit code, message and output."""
    child = Pid(pid)
    if call.runtime.kernel.is_descendant(child, call.pid):
        status = await call.runtime.wait(child)
        output = call.runtime.output_text(child)
    else:
        status, output = await call.runtime.shared_outcome(call.pid, child)
    call.came_from(await call.runtime.taint_of(child))
    return {
        "code": status.code,
        "message": status.message,
        "output": output[-MAX_OUTPUT_CHARS:],
    }


@syscall("proc.kill", effect=Effect.WRITE, tool=False, repeatable=True)
async def kill(call: Call, pid: int, signal: str = "TERM") -> None:
    """Send a signal to a child process."""
    if signal not in Signal.__members__:
        raise InvalidArguments(f"There is no signal {signal!r}.")
    child = _own_descendant(call, pid)
    try:
        call.runtime.signal(child, Signal[signal])
    except NoSuchProcess as error:
        raise InvalidArguments(str(error)) from error


@syscall("proc.signals", effect=Effect.READ, deadline_s=None, tool=False)
async def signals(call: Call, wait: bool = False) -> list[str]:
    """The signals that came since the last time, oldest first: USR1, ALRM, XTOK (a budget is nearly spent).
    With `wait` it returns when there is one."""
    found = await call.runtime.next_signals(call.pid, wait=wait)
    return [signal.name for signal in found]


@syscall("proc.limits", effect=Effect.READ, tool=False)
async def limits_(call: Call) -> list[LimitInfo]:
    """Every limit that this process is under, and what is used of it."""
    return call.runtime.budgets.rows(call.pid)


@syscall("proc.self", effect=Effect.READ, tool=False)
async def self_(call: Call) -> ProcessInfo:
    """This process's own row of the process table."""
    return call.runtime.info(call.pid)


@syscall("proc.list", effect=Effect.READ, tool=False)
async def list_(call: Call) -> list[ProcessInfo]:
    """The processes that are running."""
    return [_told(row, call.taint) for row in call.runtime.ps()]


@syscall("proc.tools", effect=Effect.READ, tool=False)
async def tools(call: Call) -> list[SyscallInfo]:
    """The syscalls that this process may offer its model as tools."""
    process, now = call.runtime.kernel.live(call.pid), call.runtime.now()
    return [
        entry.info
        for name, entry in call.runtime.syscalls.items()
        if entry.info.tool and may_call(process, name, now)
    ]


def _told(row: ProcessInfo, taint: Labels) -> ProcessInfo:
    """Title, last words and labels are texts that a process, or who wrote to it, chose."""
    if set(row.taint) <= set(taint):
        return row
    status = None if row.exit is None else replace(row.exit, message="")
    return replace(row, title="", note="", taint=(), exit=status)


def _grants(
    parent: Process, syscalls: list[str] | None, grants: list[Grant] | None, now: float
) -> list[Grant] | None:
    """What a child is to hold; `syscalls` are patterns that every capability of it is narrowed to."""
    if syscalls is None:
        return grants
    if grants is None:
        grants = [Grant(each.handle) for each in parent.handles.values() if each.is_live(now)]
    if any(grant.narrowed.syscalls is not None for grant in grants):
        raise InvalidArguments(
            "proc.spawn: give the patterns in syscalls or in grant, not in both."
        )
    patterns = tuple(syscalls)
    return [replace(each, narrowed=replace(each.narrowed, syscalls=patterns)) for each in grants]


def _own_descendant(call: Call, pid: int) -> Pid:
    if not call.runtime.kernel.is_descendant(Pid(pid), call.pid):
        raise PermissionDenied(f"Process {pid} is not a child of this process.")
    return Pid(pid)


SYSCALLS = (spawn, fork, wait, kill, signals, limits_, self_, list_, tools)
