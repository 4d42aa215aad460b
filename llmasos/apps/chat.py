"""The `chat` app: a conversation on standard input and output, one line a turn."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from llmasos.apps.sampling import SYSTEM, SamplingParams
from llmasos.apps.sdk import Proc, Session, app
from llmasos.kernel.abi import FinishReason, WindowPolicy
from llmasos.kernel.errors import ContextTooLong, Interrupted

FULL = {
    WindowPolicy.ERROR: "[The window is full; begin a new conversation.]",
    WindowPolicy.SLIDE: "[The window is full; the oldest turns are forgotten.]",
    WindowPolicy.SHIFT: "[The window is full; the oldest turns are forgotten.]",
    WindowPolicy.ARCHIVE: "[The window is full; the oldest turns are in the archive.]",
    WindowPolicy.SUMMARISE: "[The window is full; the oldest turns are summarised.]",
}
TOO_LONG = "[That is too long for the model's window; say it in fewer words.]"
INTERRUPTED = "[interrupted]"


class Params(SamplingParams):
    """The conversation's setting."""

    system: Annotated[str | None, Field(description="What the model is told before all else")] = (
        SYSTEM
    )
    first: Annotated[str | None, Field(description="The first turn; the rest come from stdin")] = (
        None
    )
    window: Annotated[
        WindowPolicy, Field(description="What happens when the model's window is full")
    ] = WindowPolicy.SLIDE


@app(name="chat", summary="A conversation, one line a turn.")
async def chat(proc: Proc, params: Params) -> None:
    """Answer each line until the end of input; INT ends a reply, not the conversation.

    A forked chat goes on with the conversation it inherited.
    """
    conversation = Conversation(proc, params)
    await conversation.begin()
    if params.first and not conversation.is_inherited:
        await conversation.reply(params.first)
    while (line := await _next_line(proc)) is not None:
        if line.strip():
            await conversation.reply(line)


async def _next_line(proc: Proc) -> str | None:
    while True:
        try:
            return await proc.read_line()
        except Interrupted:
            continue


class Conversation:
    """A session, and one line to its user each time that the window was full."""

    def __init__(self, proc: Proc, params: Params) -> None:
        self._proc = proc
        self._params = params
        self._session = proc.session(system=params.system, window=params.window)
        self._num_forgotten = 0
        self.is_inherited = False

    async def begin(self) -> None:
        """Take up the inherited conversation, if there is one."""
        if inherited := await self._proc.inherited():
            self._session = Session(inherited[-1])
            self._num_forgotten = (await self._session.context.info()).num_forgotten
            self.is_inherited = True

    async def reply(self, text: str) -> None:
        """Answer one turn, on a line of its own."""
        try:
            await self._session.say(text)
            await self._tell_if_forgotten()
            await self._answer()
            await self._tell_if_forgotten()
        except ContextTooLong:
            await self._tell_too_long()
        except Interrupted:
            await self._proc.print(INTERRUPTED)

    async def _answer(self) -> None:
        """Stream the reply; an interrupted one stays in the conversation as far as it got."""
        async with self._session.context.stream(**self._params.generate_options()) as pieces:
            async for piece in pieces:
                await self._proc.print(piece, end="")
        was_interrupted = pieces.result.finish is FinishReason.INTERRUPTED
        await self._proc.print(f" {INTERRUPTED}" if was_interrupted else "")

    async def _tell_if_forgotten(self) -> None:
        info = await self._session.context.info()
        if info.num_forgotten != self._num_forgotten:
            self._num_forgotten = info.num_forgotten
            await self._proc.print(FULL[info.window])

    async def _tell_too_long(self) -> None:
        """Nothing was said: the line is too long for any policy, or the policy is to say so."""
        info = await self._session.context.info()
        is_error = info.window is WindowPolicy.ERROR and info.num_tokens > info.context_length // 2
        await self._proc.print(FULL[WindowPolicy.ERROR] if is_error else TOO_LONG)
