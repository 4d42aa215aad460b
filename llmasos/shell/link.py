"""The interactive shell's kernel: started in the background, attached to, and replaced if it dies.

It runs in a process of its own, so that typing never waits for a model that loads or computes, and
a crash of the kernel is not one of the shell.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, AsyncExitStack, nullcontext

import anyio

from llmasos.kernel.errors import ConfigError, KernelLost, LlmosError
from llmasos.shell.attach import attached_or_started, check_flags
from llmasos.shell.client import SocketSession
from llmasos.shell.environment import KernelFlags
from llmasos.shell.session import KernelSession

TOO_SOON_S = 10.0
"""A kernel that dies younger than this is not replaced until the person asks for something."""


class KernelLink:
    """Holds one session after another. `run` does the work; it is also the shell's `Sessions`."""

    def __init__(
        self,
        flags: KernelFlags,
        *,
        tell: Callable[[str], None],
        waiting: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """`tell` prints for the person; `waiting` is entered while a line waits for the kernel."""
        self._flags = flags
        self._tell = tell
        self._waiting = waiting
        self._changed = anyio.Event()
        self._wanted = anyio.Event()
        self._wanted.set()
        self.session: SocketSession | None = None
        """The kernel, while it answers."""
        self.problem: LlmosError | None = None
        """Why there is none, once trying was given up until somebody wants one."""

    async def running(self) -> KernelSession:
        """The kernel, waiting while it loads. Raises `ConfigError` where it cannot be had."""
        if self.session is None and self.problem is not None:
            self.problem = None
            self._wanted.set()
        if self.session is None:
            with self._waiting():
                return await self._next()
        return self.session

    async def _next(self) -> KernelSession:
        while self.session is None:
            if self.problem is not None:
                raise self.problem
            await self._changed.wait()
        return self.session

    async def needed(self, flags: KernelFlags) -> KernelSession:
        """The same; the flags of a line in the shell change nothing."""
        del flags
        return await self.running()

    async def run(self) -> None:
        """Keep a kernel at hand until cancelled."""
        while True:
            await self._wanted.wait()
            started = time.monotonic()
            try:
                await self._hold_one()
            except ConfigError as error:
                self._give_up(error)
                continue
            self._set(None)
            if time.monotonic() - started < TOO_SOON_S:
                self._give_up(KernelLost("The kernel ended; the next command starts another."))
                self._tell("The kernel ended; the next command starts another.")
            else:
                self._tell("The kernel went away; another is starting.")

    async def _hold_one(self) -> None:
        """Attach to the running kernel, or to a new one, until it goes."""
        async with AsyncExitStack() as stack:
            session = await attached_or_started(stack, self._flags, _nothing_to_prepare)
            await check_flags(session, self._flags, self._tell)
            self._set(session)
            await session.lost.wait()

    def _set(self, session: SocketSession | None) -> None:
        self.session = session
        self._changed.set()
        self._changed = anyio.Event()

    def _give_up(self, error: LlmosError) -> None:
        self.problem = error
        self._wanted = anyio.Event()
        self._set(None)


async def _nothing_to_prepare() -> AbstractContextManager[None]:
    return nullcontext()  # the shell saw to settings and model before it showed its prompt
