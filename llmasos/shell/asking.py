"""Putting the questions of a process in the foreground to the person there.

Where there is no terminal nobody can be asked: the answer is no, with what to do about it. A question that is
answered elsewhere meanwhile, or withdrawn by Ctrl-C, is let go of.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from signal import SIGINT
from typing import TYPE_CHECKING, Final, Literal, get_args

from llmasos.kernel.abi import Answer, Pid, Question
from llmasos.kernel.errors import LlmosError, ProcessError
from llmasos.shell.answers import prompt, summary, told, understood
from llmasos.shell.session import KernelSession
from llmasos.shell.stdin import lines
from llmasos.shell.tasks import in_background

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from llmasos.shell.environment import Environment

Approve = Literal["ask", "wait", "deny"]
"""What becomes of a question: put to the person here, left to `approve` elsewhere, or answered with no."""
APPROVES: Final[tuple[str, ...]] = get_args(Approve)
NO_TERMINAL: Final = "there is no terminal to ask on"
WHAT_TO_DO: Final = (
    "run it with --approve wait and answer elsewhere with `llmasos approve`, or with --trust, or allow it"
    " in config.toml"
)
DENIED: Final = "it was started with --approve deny"

ReadLine = Callable[[str], Awaitable[str | None]]
"""Shows a prompt and reads a line; None is the end of the input. Raises `KeyboardInterrupt`."""


class Asking:
    """The questions of one process and its descendants, while `run` runs."""

    def __init__(
        self, environment: Environment, session: KernelSession, pid: Pid, approve: str = "ask"
    ) -> None:
        self._environment = environment
        self._session = session
        self._pid = pid
        self._approve = approve
        self._typed: asyncio.Future[str | None] | None = None
        self.shares_stdin = False
        """Somebody else reads our input and hands lines over with `take`."""

    def take(self, line: str | None) -> bool:
        """Use a line of our input for the question that is open; whether there was one."""
        if self._typed is None or self._typed.done():
            return False
        self._typed.set_result(line)
        return True

    async def run(self) -> None:
        """Put every question to the person until cancelled."""
        after = 0
        with suppress(LlmosError):  # the process or the kernel went, which others tell
            while True:
                question = await self._session.next_question(self._pid, after)
                after = question.id
                self._environment.asked.add(question.id)
                await self._settle(question)

    # --- within

    async def _settle(self, question: Question) -> None:
        output = self._environment.output
        if self._approve == "deny":
            await self._refuse(question, DENIED)
        elif self._approve == "wait":
            output.note(
                f"Process {question.pid} waits for an answer to question {question.id},"
                f" {summary(question)}; give it elsewhere: `llmasos approve {question.id}` or"
                f" `llmasos deny {question.id}`."
            )
            await self._session.until_settled(question.id)
        else:
            async with self._reader() as read:
                if read is None:
                    await self._refuse(question, NO_TERMINAL, WHAT_TO_DO)
                else:
                    await self._ask(question, read)

    async def _refuse(self, question: Question, why: str, what_to_do: str = "") -> None:
        hint = f"; {what_to_do}" if what_to_do else ""
        self._environment.output.note(
            f"Process {question.pid} was refused {summary(question)}: {why}{hint}."
        )
        await self._give(question, Answer(False, why))

    async def _ask(self, question: Question, read: ReadLine) -> None:
        self._environment.output.person(told(question))
        async with (
            in_background(self._session.until_settled, question.id) as settled,
            in_background(self._answered, question, read) as answered,
        ):
            await asyncio.wait({settled, answered}, return_when=asyncio.FIRST_COMPLETED)
            if not answered.done():
                self._environment.output.person("\n(It is not asked any more.)")

    async def _answered(self, question: Question, read: ReadLine) -> None:
        answer: Answer | None = None
        while answer is None:
            try:
                answer = understood(question, await read(prompt(question)))
            except KeyboardInterrupt:
                self._environment.interrupts.fire(SIGINT)
                return
        await self._give(question, answer)

    async def _give(self, question: Question, answer: Answer) -> None:
        with suppress(ProcessError):  # it was answered elsewhere
            await self._session.answer(question.id, answer)

    @asynccontextmanager
    async def _reader(self) -> AsyncIterator[ReadLine | None]:
        """How a line is got from the person; None where nobody is there."""
        environment = self._environment
        if environment.read_line is not None:
            yield environment.read_line
        elif environment.stdin_fd is not None and environment.stdin_is_terminal:
            fd = environment.stdin_fd
            yield self._handed_over if self.shares_stdin else lambda text: self._line(fd, text)
        elif environment.output.is_seen:
            async with _terminal() as terminal:
                yield None if terminal is None else lambda text: self._line(terminal, text)
        else:
            yield None

    async def _handed_over(self, text: str) -> str | None:
        self._environment.output.person(text, end="")
        self._typed = asyncio.get_running_loop().create_future()
        try:
            return await self._typed
        finally:
            self._typed = None

    async def _line(self, fd: int, text: str) -> str | None:
        self._environment.output.person(text, end="")
        async with aclosing(lines(fd)) as typed:
            return await anext(typed, None)


@asynccontextmanager
async def _terminal() -> AsyncIterator[int | None]:
    """The terminal of this command, where its input is something else; None where it has none."""
    try:
        fd = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)
