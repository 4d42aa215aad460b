"""`cap.*`: what a process may do, as it sees it. Its handles mean nothing anywhere else."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from llmasos.kernel import authority
from llmasos.kernel.abi import CapabilityInfo, Effect, Narrowing, Pid
from llmasos.kernel.capabilities import infos
from llmasos.kernel.syscall import Call, syscall

Handle = Annotated[int, Field(ge=0, description="One of this process's own capabilities")]


@syscall("cap.list", effect=Effect.READ, tool=False)
async def list_(call: Call) -> list[CapabilityInfo]:
    """The capabilities of this process."""
    runtime = call.runtime
    return infos(runtime.kernel.live(call.pid), runtime.now())


@syscall("cap.derive", effect=Effect.WRITE, tool=False, repeatable=True)
async def derive(call: Call, handle: Handle, narrowed: Narrowing | None = None) -> int:
    """Make a capability that allows the same as one of this process's, or less; returns its handle."""
    runtime = call.runtime
    by = narrowed or Narrowing()
    return authority.derive(runtime.kernel, call.pid, handle, by, runtime.now(), call.id)


@syscall("cap.send", effect=Effect.WRITE, tool=False, repeatable=True)
async def send(call: Call, handle: Handle, pid: int, narrowed: Narrowing | None = None) -> None:
    """Give a child what one of this process's capabilities allows, or less."""
    runtime = call.runtime
    by = narrowed or Narrowing()
    authority.send(runtime.kernel, call.pid, handle, Pid(pid), by, runtime.now(), call.id)
    runtime.kernel.taint(runtime.kernel.live(Pid(pid)), call.taint)  # patterns are texts too


@syscall("cap.revoke", effect=Effect.WRITE, tool=False, repeatable=True)
async def revoke(call: Call, handle: Handle) -> int:
    """Give up a capability and take back all that was derived from it; returns how many those were."""
    return authority.revoke(call.runtime.kernel, call.pid, handle)


SYSCALLS = (list_, derive, send, revoke)
