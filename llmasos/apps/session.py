"""`Session`: a conversation held in one context, turn by turn."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self, Unpack

from llmasos.apps.context import ContextHandle
from llmasos.apps.options import GenerateOptions, to_arguments
from llmasos.apps.stream import GenerationStream
from llmasos.kernel.abi import Generation, Message


class Session:
    """A chat; `async with` closes its context. Only what is new is computed at each turn.

    `system` is said once, before the first turn. A session resumed on an inherited context must
    not be given one: the context has it already.
    """

    def __init__(self, context: ContextHandle, *, system: str | None = None) -> None:
        self.context = context
        self._opening = [Message("system", system)] if system else []

    async def __aenter__(self) -> Self:
        await self.context.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.context.__aexit__(kind, error, trace)

    async def say(self, text: str, *, role: str = "user", reply: bool = True) -> None:
        """Append a turn, and with `reply` open the assistant's. Raises `ContextTooLong`, and then
        the conversation is as it was before."""
        await self.context.chat([*self._opening, Message(role, text)], reply=reply)
        self._opening = []

    async def recall(self, turns: Sequence[Message]) -> None:
        """Append earlier turns, the model's own among them, to a conversation that begins anew."""
        messages = [*self._opening, *turns]
        if messages:
            await self.context.chat(messages, reply=False)
        self._opening = []

    async def ask(
        self, text: str, *, role: str = "user", **options: Unpack[GenerateOptions]
    ) -> Generation:
        """Say something and await the whole reply."""
        await self.say(text, role=role)
        return await self.context.generate(**options)

    def stream(
        self, text: str, *, role: str = "user", **options: Unpack[GenerateOptions]
    ) -> GenerationStream:
        """Say something and get the reply as it comes; see `GenerationStream`.

        Leaving early ends the generation; the unfinished reply stays in the conversation.
        """
        arguments = to_arguments(options)

        async def start(on_chunk: Any) -> Generation:
            await self.say(text, role=role)
            return await self.context.generate_into(on_chunk, arguments)

        return GenerationStream(start)

    async def fork(self) -> Session:
        """A second conversation that begins as this one is now, sharing its pages."""
        copy = Session(await self.context.fork())
        copy._opening = list(self._opening)
        return copy
