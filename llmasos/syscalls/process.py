"""`proc.*`: processes, as a process sees them. It may act on itself and its descendants only."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field

from llmasos.kernel.abi import Effect, Labels, Pid, ProcessInfo, Signal, SyscallInfo
from llmasos.kernel.errors import InvalidArguments, NoSuchProcess, PermissionDenied, ProcessError
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
) -> int:
    """Start an app as a child process and return its pid."""
    runtime = call.runtime
    mine = runtime.kernel.live(call.pid)
    capabilities = call.capabilities
    if syscalls is not None:
        allowed = [name for name in runtime.syscalls if capabilities.allows(name)]
        wanted = replace(capabilities, syscalls=tuple(syscalls))
        granted = tuple(name for name in allowed if wanted.allows(name))
        capabilities = replace(capabilities, syscalls=granted)
    try:
        return await runtime.spawn(
            app,
            params or {},
            ppid=call.pid,
            title=title,
            capabilities=capabilities,
            limits=mine.limits,
            nice=max(nice, mine.nice),
            call=call.id,
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


@syscall("proc.self", effect=Effect.READ, tool=False)
async def self_(call: Call) -> ProcessInfo:
    """This process's own row of the process table."""
    return call.runtime.info(call.pid)


@syscall("proc.list", effect=Effect.READ, tool=False)
async def list_(call: Call) -> list[ProcessInfo]:
    """The processes that are running. Titles of those that know more from outside are left out."""
    return [_told(row, call.taint) for row in call.runtime.ps()]


@syscall("proc.tools", effect=Effect.READ, tool=False)
async def tools(call: Call) -> list[SyscallInfo]:
    """The syscalls that this process may offer its model as tools."""
    return [
        entry.info
        for name, entry in call.runtime.syscalls.items()
        if entry.info.tool and call.capabilities.allows(name)
    ]


def _told(row: ProcessInfo, taint: Labels) -> ProcessInfo:
    """A title is a text that a process chose."""
    return row if set(row.taint) <= set(taint) else replace(row, title="", note="")


def _own_descendant(call: Call, pid: int) -> Pid:
    if not call.runtime.kernel.is_descendant(Pid(pid), call.pid):
        raise PermissionDenied(f"Process {pid} is not a child of this process.")
    return Pid(pid)


SYSCALLS = (spawn, fork, wait, kill, self_, list_, tools)
