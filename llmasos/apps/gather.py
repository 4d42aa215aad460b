"""Several calls at once, as one: results in order, and the first error as itself, not in a group."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import anyio

T = TypeVar("T")


async def gather(calls: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
    """Await all calls concurrently. If one fails the others are cancelled and its error is raised."""
    results: dict[int, T] = {}

    async def run(index: int, call: Callable[[], Awaitable[T]]) -> None:
        results[index] = await call()

    try:
        async with anyio.create_task_group() as group:
            for index, call in enumerate(calls):
                group.start_soon(run, index, call)
    except BaseExceptionGroup as several:
        raise first_of(several) from several
    return [results[index] for index in range(len(calls))]


def first_of(several: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first single error within a group of groups."""
    error = several.exceptions[0]
    return first_of(error) if isinstance(error, BaseExceptionGroup) else error
