"""A generation as it comes: pieces of text in order, and the whole result at the end.

The generation is a task of its own, so that a slow consumer never holds up the kernel. What it has
not yet taken is merged into one piece: the buffer holds at most one generation's text. Leaving the
`async with` early cancels the syscall, and the kernel then ends the generation.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Self

import anyio
import anyio.abc

from llmasos.kernel.abi import Chunk, Generation
from llmasos.kernel.errors import LlmosError

Starter = Callable[[Callable[[Chunk], None]], Awaitable[Generation]]
"""Runs one generation, handing each chunk to its argument."""


class GenerationStream:
    """Use as `async with ... as stream: async for piece in stream: ...`, then `stream.result`."""

    def __init__(self, start: Starter) -> None:
        self._start = start
        self._group: anyio.abc.TaskGroup | None = None
        self._pending: list[str] = []
        self._news = anyio.Event()
        self._result: Generation | None = None
        self._error: LlmosError | None = None

    @property
    def result(self) -> Generation:
        """The whole generation; raises `RuntimeError` before the last piece was taken."""
        if self._result is None:
            raise RuntimeError("A stream has its result once all its pieces were taken.")
        return self._result

    async def __aenter__(self) -> Self:
        if self._group is not None:
            raise RuntimeError("A stream can be entered only once.")
        self._group = await anyio.create_task_group().__aenter__()
        self._group.start_soon(self._run)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._group is None:
            raise RuntimeError("The stream was never entered.")
        self._group.cancel_scope.cancel()
        if isinstance(error, anyio.get_cancelled_exc_class()):
            await self._group.__aexit__(kind, error, trace)
            return
        # The body's own error is kept from the group, which would wrap it in an ExceptionGroup.
        await self._group.__aexit__(None, None, None)

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        if self._group is None:
            raise RuntimeError("Enter the stream with `async with` before reading from it.")
        while not self._pending:
            if self._error is not None:
                raise self._error
            if self._result is not None:
                raise StopAsyncIteration
            self._news = anyio.Event()
            await self._news.wait()
        text = "".join(self._pending)
        self._pending.clear()
        return text

    def _take(self, chunk: Chunk) -> None:
        if chunk.text:
            self._pending.append(chunk.text)
            self._news.set()

    async def _run(self) -> None:
        try:
            self._result = await self._start(self._take)
        except LlmosError as error:
            self._error = error
        finally:
            self._news.set()
