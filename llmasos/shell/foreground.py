"""Attending to a process: its output to ours, our input to it, Ctrl-C to it.

The first Ctrl-C is INT (a generation ends and its text is kept), the second TERM, the third KILL.
TERM and HUP end the command itself, and with its session the process.
"""

from __future__ import annotations

import asyncio
import termios
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, aclosing, contextmanager, suppress

import anyio

from llmasos.kernel.abi import ExitStatus, Pid, Signal
from llmasos.kernel.errors import NoSuchProcess
from llmasos.shell.asking import Asking
from llmasos.shell.environment import Environment
from llmasos.shell.interrupts import Interrupts
from llmasos.shell.session import KernelSession
from llmasos.shell.stdin import lines
from llmasos.shell.tasks import in_background

LINES_AHEAD = 256
"""Input lines sent before the process has asked for more: a flood waits in its own pipe."""
ESCALATION = (Signal.INT, Signal.TERM, Signal.KILL)


class Escalation:
    """While it is entered, Ctrl-C goes to one process instead of ending the command."""

    def __init__(self, interrupts: Interrupts, session: KernelSession, pid: Pid) -> None:
        self._interrupts = interrupts
        self._session = session
        self._pid = pid
        self._num_interrupts = 0
        self._send, self._receive = anyio.create_memory_object_stream[Signal](16)
        self._stack = AsyncExitStack()

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C was pressed meanwhile."""
        return self._num_interrupts > 0

    async def __aenter__(self) -> Escalation:
        self._stack.enter_context(self._send)
        self._stack.enter_context(self._interrupts.taken_by(self._take))
        await self._stack.enter_async_context(in_background(self._deliver))
        return self

    async def __aexit__(self, *failure: object) -> None:
        await self._stack.aclose()

    def _take(self, signum: int) -> None:
        del signum
        step = ESCALATION[min(self._num_interrupts, len(ESCALATION) - 1)]
        self._num_interrupts += 1
        with suppress(anyio.WouldBlock):
            self._send.send_nowait(step)

    async def _deliver(self) -> None:
        with suppress(NoSuchProcess):
            async with self._receive as signals:
                async for number in signals:
                    await self._session.signal(self._pid, number)


@contextmanager
def unechoed(environment: Environment) -> Iterator[None]:
    """In the interactive shell, keep what is typed ahead of the prompt out of a streaming answer."""
    fd = environment.stdin_fd
    if environment.jobs is None or fd is None or not environment.stdin_is_terminal:
        yield
        return
    before = termios.tcgetattr(fd)
    try:
        silent = list(before)
        silent[3] &= ~termios.ECHO
        termios.tcsetattr(fd, termios.TCSANOW, silent)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSANOW, before)


class Attention:
    """One process in the foreground."""

    def __init__(
        self, environment: Environment, session: KernelSession, pid: Pid, approve: str = "ask"
    ) -> None:
        """`approve` says what becomes of its questions: see `asking.Approve`."""
        self._environment = environment
        self._session = session
        self._pid = pid
        self._asking = Asking(environment, session, pid, approve)
        self._keys = Escalation(environment.interrupts, session, pid)

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C was pressed meanwhile."""
        return self._keys.interrupted

    async def until_exit(self, *, stdin: bool = False) -> ExitStatus:
        """Show its output until it exits; with `stdin`, it reads our input meanwhile."""
        self._asking.shares_stdin = stdin and self._environment.stdin_fd is not None
        async with self._keys, in_background(self._asking.run):
            if stdin and self._environment.stdin_fd is not None:
                await self._converse(self._environment.stdin_fd)
            else:
                with unechoed(self._environment):
                    await self._show(self._session.output(self._pid))
            return await self._session.wait(self._pid)

    async def _show(self, output: AsyncGenerator[str] | AsyncGenerator[str | None]) -> None:
        async with aclosing(output) as items:
            async for piece in items:
                if piece:
                    await self._environment.output.stream(piece)

    async def _converse(self, stdin_fd: int) -> None:
        asked = asyncio.Event()

        async def watched() -> AsyncGenerator[str | None]:
            async with aclosing(self._session.dialogue(self._pid)) as items:
                async for item in items:
                    if item is None:
                        asked.set()
                    yield item

        async with in_background(self._feed, stdin_fd, asked):
            await self._show(watched())

    async def _feed(self, stdin_fd: int, asked: asyncio.Event) -> None:
        """Send our input on, waiting now and then for the process to have read what it got."""
        num_ahead = 0
        with suppress(NoSuchProcess):  # it has exited: the rest is for nobody
            async with aclosing(lines(stdin_fd)) as items:
                async for line in items:
                    if self._asking.take(line):
                        continue
                    if num_ahead == LINES_AHEAD:
                        await asked.wait()
                        num_ahead = 0
                    asked.clear()
                    await self._session.send_input(self._pid, line)
                    num_ahead += 1
            self._asking.take(None)
            await self._session.send_input(self._pid, None)


def exit_code(environment: Environment, status: ExitStatus) -> int:
    """What the command exits with for how its process ended; says why where it failed."""
    environment.output.end_line_on_terminal()
    if status.code and status.message and status.signal is None:
        environment.output.note(status.message)
    return status.code
