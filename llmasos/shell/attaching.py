"""A tracer's end in the kernel: what a process did so far, and what it does from then on, as JSON."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Final

from llmasos.kernel.abi import Pid, ProcessInfo
from llmasos.kernel.trace import TRACED, Subscription, line_of

if TYPE_CHECKING:
    from llmasos.kernel.runtime import Runtime

LIVE: Final = '[0,["live"]]\n'
"""Between the two."""


async def traced(runtime: Runtime, pid: Pid, *, follow: bool, tokens: bool) -> AsyncGenerator[str]:
    """See `KernelSession.trace`. Raises `NoSuchProcess`."""
    rows = {row.pid: row for row in runtime.ps(all=True)}
    rows[pid] = runtime.info(pid)
    lives = {each: rows[each].exit is None for each in family(pid, rows, follow=follow)}
    with Subscription(runtime.trace, lives, follow=follow, tokens=tokens) as subscription:
        # Which events are the past's is settled before anything is awaited.
        pasts = {each: runtime.num_events(each) if lives[each] else None for each in lives}
        for each, num_events in pasts.items():
            for event in await runtime.past(each, num_events):
                if event[0] in TRACED:
                    yield line_of(each, event)
        yield LIVE
        async for batch in subscription.batches():
            yield batch


def family(pid: Pid, rows: dict[Pid, ProcessInfo], *, follow: bool) -> list[Pid]:
    """A process and, with `follow`, all that descend from it, parents first."""
    found = [pid]
    for each in found if follow else ():
        found += [row.pid for row in rows.values() if row.ppid == each]
    return found
