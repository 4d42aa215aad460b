"""Passing capabilities on and taking them back; every change is in the journals of all that it touches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmasos.kernel.abi import Narrowing, Pid
from llmasos.kernel.capabilities import Capability, held, values_of
from llmasos.kernel.errors import InvalidArguments, NoSuchProcess, PermissionDenied
from llmasos.kernel.strands import UNNAMED, CallId

if TYPE_CHECKING:
    from llmasos.kernel.kernel import Kernel
    from llmasos.kernel.process import Process


def derive(kernel: Kernel, pid: Pid, handle: int, by: Narrowing, now: float, call: CallId) -> int:
    """Give a process a further capability of its own that allows the same as one it holds, or less; returns
    its handle. A `call` that was made before, under whichever kernel, gets what it got then.

    Raises `PermissionDenied`, `InvalidArguments`, `LimitExceeded`.
    """
    process = kernel.live(pid)
    return _derive(kernel, held(process, handle), process, by, now, call)


def send(
    kernel: Kernel, pid: Pid, handle: int, to: Pid, by: Narrowing, now: float, call: CallId
) -> int:
    """The same for a process that descends from this one; returns the handle there."""
    if not kernel.is_descendant(to, pid):
        raise PermissionDenied(f"Process {to} is not a child of this process.")
    try:
        receiver = kernel.live(to)
    except NoSuchProcess as error:
        raise InvalidArguments(str(error)) from error
    source = held(kernel.live(pid), handle)
    return _derive(kernel, source, receiver, by, now, CallId(call and f"{pid}/{call}"))


def revoke(kernel: Kernel, pid: Pid, handle: int) -> int:
    """Take a capability back from its holder and, with all that was derived from it, from everybody; returns
    how many that were. Raises `PermissionDenied` where the process holds no such one."""
    capability = held(kernel.process(pid), handle)
    changed = kernel.capabilities.revoke(capability)
    touched: dict[Pid, list[str]] = {}
    for each in changed:
        if each.is_held:
            touched.setdefault(each.holder, []).append(each.id)
    for holder, ids in touched.items():
        kernel.record(kernel.process(holder), ("revoked", ids))
    return len(changed)


def _derive(
    kernel: Kernel, source: Capability, to: Process, by: Narrowing, now: float, call: CallId
) -> int:
    if call != UNNAMED and (known := to.handles_by_call.get(call)) is not None:
        return known
    capability = kernel.capabilities.derive(source, to, by, now)
    kernel.record(to, ("cap", *values_of(capability), call))
    if call != UNNAMED:
        to.handles_by_call[call] = capability.handle
    return capability.handle
