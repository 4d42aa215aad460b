"""The engine: one thread that runs the core, a step at a time, and what waits for its work.

Steps are planned and committed on the event loop; while one is computed, the loop is free. A step, like any
other work in the thread, is awaited shielded: whatever is cancelled, it is committed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, TypeVarTuple, Unpack

import anyio
import anyio.lowlevel

from llmasos.kernel.chat import Turn
from llmasos.kernel.context import Context
from llmasos.kernel.core import Core, Run
from llmasos.kernel.debug import debug
from llmasos.kernel.errors import KernelBug
from llmasos.kernel.jobs import Job
from llmasos.kernel.journal.journal import Journal
from llmasos.kernel.kernel import Kernel
from llmasos.kernel.page_copies import Span, put_pages, read_sources, sources
from llmasos.kernel.process import Process
from llmasos.kernel.scheduler import Plan
from llmasos.kernel.swap import Swap
from llmasos.kernel.syscall import Call

Arguments = TypeVarTuple("Arguments")
Answer = TypeVar("Answer")


class Engine:
    """The core of one kernel, and its swap: closed with it."""

    def __init__(
        self, kernel: Kernel, core: Core, swap: Swap | None, journal: Journal | None
    ) -> None:
        self._kernel = kernel
        self._core = core
        self._swap = swap
        self._journal = journal
        self._work = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="llmasos-engine")

    def wake(self) -> None:
        """There may be work."""
        self._work.set()

    async def run(self) -> None:
        """Plan, execute and commit steps for good; to be cancelled."""
        while True:
            if self._journal is not None and self._journal.is_stuck:
                await self._journal.moving()
            plan = self._kernel.plan()
            if plan is None:
                self._work.clear()
                await self._work.wait()
                continue
            await self._execute(plan)
            await anyio.lowlevel.checkpoint()

    async def run_job(self, call: Call, job: Job) -> Any:
        """Queue model work, wait for it, return its result or raise its error.

        If the waiter is cancelled the job is ended, in the commit of the step in flight at the latest.
        """
        if job.is_done:  # its last token came before a crash, its result did not
            return _result_of(job)
        finished = asyncio.Event()
        job.on_done = lambda _: finished.set()
        self._kernel.submit(job)
        call.jobs.append(job)
        self._work.set()
        try:
            await finished.wait()
        finally:
            call.jobs.remove(job)
            if not job.is_done and job.process.exit is None:
                self._kernel.interrupt(job)
                with anyio.CancelScope(shield=True):
                    await finished.wait()
        return _result_of(job)

    async def shift(
        self, process: Process, context: Context, turn: Turn, runs: Sequence[Run], forgotten: int
    ) -> bool:
        """Make a context shorter as `Kernel.forget` does, but keep the K/V of some runs, shifted to where
        they are then; False, with nothing changed, where that cannot be. Is never left half done.
        """
        tokens = context.tokens[: turn.num_kept] + turn.token_ids
        shift = self._kernel.begin_shift(process, context, tokens, runs)
        if shift is None:
            return False
        with anyio.CancelScope(shield=True):
            try:
                await self._in_thread(self._kernel.execute_shift, self._core, shift)
            except KernelBug:
                raise
            except Exception as error:  # noqa: BLE001 - a driver may raise anything
                debug(error)
                self._kernel.close_context(process, shift.target)
                return False
        return self._kernel.end_shift(process, context, shift, turn, forgotten)

    async def read_pages(self, spans: Sequence[Span]) -> dict[bytes, bytes]:
        """The K/V of these tokens, as far as it is in memory or in swap; by keys without a salt."""
        found = sources(self._kernel.pool, spans)
        return await self._in_thread(read_sources, self._core, self._swap, found)

    async def put_pages(self, spans: Sequence[Span], pages: Mapping[bytes, bytes]) -> int:
        """Put K/V of these tokens into swap, under the spans' salt; returns how many pages that was."""
        if self._swap is None:
            return 0
        return await self._in_thread(put_pages, self._kernel.pool, self._swap, spans, pages)

    def close(self) -> None:
        """End the thread, and free core and swap. Blocks for as long as what is under way."""
        self._thread.shutdown()
        self._core.close()
        if self._swap is not None:
            self._swap.close()

    # --- within

    async def _execute(self, plan: Plan) -> None:
        started = time.perf_counter()
        with anyio.CancelScope(shield=True):
            try:
                result = await self._in_thread(self._kernel.execute, self._core, plan)
            except KernelBug:
                raise
            except Exception as error:  # noqa: BLE001 - a driver may raise anything
                debug(error)
                self._kernel.abandon(plan, str(error).partition("\n")[0] or type(error).__name__)
                return
        self._kernel.commit(plan, result, time.perf_counter() - started)

    async def _in_thread(
        self, work: Callable[[Unpack[Arguments]], Answer], *arguments: *Arguments
    ) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)


def _result_of(job: Job) -> Any:
    if job.error is not None:
        raise job.error
    return job.result
