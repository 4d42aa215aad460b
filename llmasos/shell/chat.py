"""Plain text in the shell and in scripts: a conversation with one `chat` process."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

from llmasos.kernel.abi import Capabilities, ExitStatus, Pid
from llmasos.kernel.errors import KernelLost, NoSuchProcess
from llmasos.shell.asking import Asking
from llmasos.shell.environment import Environment, KernelFlags
from llmasos.shell.foreground import Escalation, unechoed
from llmasos.shell.session import KernelSession, SpawnRequest
from llmasos.shell.tasks import in_background

APP = "chat"


class Chat:
    """Talks to a chat process, which is started at the first line and again if it has ended."""

    def __init__(self, environment: Environment, *, tell: Callable[[str], None]) -> None:
        self._environment = environment
        self._tell = tell
        self._partner: _Partner | None = None
        self.params: Mapping[str, Any] = {}
        """Parameters of the chat processes to come."""

    @property
    def pid(self) -> Pid | None:
        """The process talked to, if there is one."""
        return self._partner.pid if self._partner else None

    async def say(self, line: str) -> int:
        """Say a line and show the reply as it comes; 130 where Ctrl-C ended it, 1 where it died."""
        try:
            partner = await self._current()
            with unechoed(self._environment):
                interrupted = await self._exchange(partner, line)
        except KernelLost:
            await self.forget()
            raise
        return 130 if interrupted else 0 if self._partner else 1

    async def forget(self) -> None:
        """Let the next line begin a new conversation; the present one reads end of file."""
        if self._partner is not None:
            partner, self._partner = self._partner, None
            await partner.aclose()

    async def end(self) -> None:
        """End the conversation and its process."""
        if self._partner is not None:
            with suppress(NoSuchProcess, KernelLost):
                await self._partner.session.send_input(self._partner.pid, None)
            await self.forget()

    async def _current(self) -> _Partner:
        session = await self._environment.sessions.needed(KernelFlags())
        if self._partner is not None and self._partner.session is not session:
            await self.forget()
            self._tell("The kernel is a new one, and so is this conversation.")
        if self._partner is not None:
            status = (await session.info(self._partner.pid)).exit
            if status is not None:
                await self.forget()
                self._tell(f"The chat had ended ({_why(status)}); this is a new one.")
        if self._partner is None:
            self._partner = await self._start(session)
        return self._partner

    async def _start(self, session: KernelSession) -> _Partner:
        capabilities = Capabilities(root=self._environment.root)
        request = SpawnRequest(
            APP, self.params, title="chat", capabilities=capabilities, stdin=True
        )
        return _Partner(session, await session.spawn(request))

    async def _exchange(self, partner: _Partner, line: str) -> bool:
        """Send the line and show the reply; whether Ctrl-C ended it."""
        output = self._environment.output
        escalation = Escalation(self._environment.interrupts, partner.session, partner.pid)
        asking = Asking(self._environment, partner.session, partner.pid)
        async with escalation as keys, in_background(asking.run):
            with suppress(
                NoSuchProcess
            ):  # it may end at any time, also just before it gets the line
                if await partner.until_asked(output.stream):
                    await partner.send(line)
                    if await partner.until_asked(output.stream):
                        output.end_line_on_terminal()
                        return keys.interrupted
        status = await partner.session.wait(partner.pid)
        await self.forget()
        output.end_line_on_terminal()
        self._tell(f"The chat ended ({_why(status)}); the next line starts another.")
        return keys.interrupted


def _why(status: ExitStatus) -> str:
    return status.message.rstrip(".") or f"exit code {status.code}"


class _Partner:
    """A chat process and what it says."""

    def __init__(self, session: KernelSession, pid: Pid) -> None:
        self.session = session
        self.pid = pid
        self._items: AsyncGenerator[str | None] = session.dialogue(pid)
        self._is_asking = False

    async def until_asked(self, show: Callable[[str], Awaitable[None]]) -> bool:
        """Show what it writes until it asks for a line: True; False where it exits instead."""
        while not self._is_asking:
            try:
                item = await anext(self._items)
            except StopAsyncIteration:
                return False
            if item is None:
                self._is_asking = True
            else:
                await show(item)
        return True

    async def send(self, line: str) -> None:
        """Give it the line it asks for."""
        self._is_asking = False
        await self.session.send_input(self.pid, line)

    async def aclose(self) -> None:
        """Stop listening."""
        await self._items.aclose()
