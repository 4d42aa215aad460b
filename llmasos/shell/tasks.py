"""A task beside a block of code, whose errors stay as they are.

A task group wraps whatever its body raises in an `ExceptionGroup`, and the shell's errors are caught
by type and told to people; so the few side tasks of the shell run in this instead.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar, TypeVarTuple

import anyio

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


@asynccontextmanager
async def in_background(
    function: Callable[[*Ts], Coroutine[Any, Any, T]], *args: *Ts
) -> AsyncIterator[asyncio.Task[T]]:
    """Run a coroutine function meanwhile; leaving cancels it and waits until it is over.

    An error of its own is raised on leaving, unless the body raises one.
    """
    task = asyncio.create_task(function(*args))
    try:
        yield task
    finally:
        task.cancel()
        with anyio.CancelScope(shield=True):
            await asyncio.wait({task})
    if not task.cancelled():
        task.result()


async def first_of(functions: Sequence[Callable[[], Coroutine[Any, Any, object]]]) -> None:
    """Run coroutine functions at once until the first is done; the others are cancelled."""
    async with AsyncExitStack() as stack:
        tasks = [await stack.enter_async_context(in_background(f)) for f in functions]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
