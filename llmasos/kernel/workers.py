"""Worker threads for what blocks: handed over and back with as few steps as a thread can be.

A call waits for its turn (`num_at_once` run at the same time), never for a thread: one whose caller has gone
(cancelled) goes on alone, its result is dropped, and another takes its place. So a driver that hangs holds up
nobody. The thread that was idle for the shortest time is used first; the others may sleep.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

MAX_IDLE = 8
"""Threads kept for later."""


class Workers:
    """The threads of one event loop. Used on that loop, and closed there."""

    def __init__(self, num_at_once: int, *, name: str) -> None:
        self._num_free = num_at_once
        self._name = name
        self._idle: list[_Worker] = []
        self._all: set[_Worker] = set()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._is_closed = False

    @property
    def num_waiting(self) -> int:
        """Calls that wait for their turn."""
        return len(self._waiting)

    async def run(self, function: Callable[[], Any]) -> Any:
        """Run a function in a thread; its result or error. Where this is cancelled nobody waits for it."""
        if self._num_free == 0:
            await self._turn()
        else:
            self._num_free -= 1
        try:
            return await self._begin(function)
        finally:
            self._pass_on()

    def close(self) -> None:
        """Let idle threads end; those that work end after it. Nothing may be begun any more."""
        self._is_closed = True
        for worker in self._all:  # one that works now finds it afterwards
            worker.jobs.put(None)
        self._all.clear()

    # --- within

    async def _turn(self) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it had just been given: the next one's, then
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._num_free += 1

    def _begin(self, function: Callable[[], Any]) -> asyncio.Future[Any]:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self._is_closed:
            raise RuntimeError("the workers are closed")
        worker = self._idle.pop() if self._idle else self._new()
        worker.jobs.put((answer, contextvars.copy_context(), function))
        return answer

    def _new(self) -> _Worker:
        worker = _Worker(self, self._name)
        self._all.add(worker)
        return worker

    def done(
        self, worker: _Worker, answer: asyncio.Future[Any], result: Any, error: BaseException | None
    ) -> None:
        """A worker has finished; on the loop."""
        if len(self._idle) < MAX_IDLE:
            self._idle.append(worker)
        elif worker in self._all:
            self._all.remove(worker)
            worker.jobs.put(None)
        if answer.done():
            return
        if error is None:
            answer.set_result(result)
        elif isinstance(error, StopIteration):  # no future may hold one
            answer.set_exception(RuntimeError("StopIteration was raised"))
        else:
            answer.set_exception(error)


_Work = tuple["asyncio.Future[Any]", contextvars.Context, Callable[[], Any]]


class _Worker:
    """One thread, and what it is to do."""

    def __init__(self, workers: Workers, name: str) -> None:
        self.jobs: SimpleQueue[_Work | None] = SimpleQueue()
        self._workers = workers
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._run, name=name).start()

    def _run(self) -> None:
        while (work := self.jobs.get()) is not None:
            try:
                self._do(*work)
            except RuntimeError:  # the loop has been closed: nobody is left to tell
                return
            del work

    def _do(
        self,
        answer: asyncio.Future[Any],
        context: contextvars.Context,
        function: Callable[[], Any],
    ) -> None:
        result, error = None, None
        try:
            result = context.run(function)
        except BaseException as raised:  # noqa: BLE001 - it is the caller's, whatever it is
            error = raised
        self._loop.call_soon_threadsafe(self._workers.done, self, answer, result, error)
