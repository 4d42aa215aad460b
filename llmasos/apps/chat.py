"""The `chat` app: a conversation on standard input and output, one line a turn."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from llmasos.apps.sampling import SYSTEM, SamplingParams
from llmasos.apps.sdk import Message, Proc, Session, app
from llmasos.kernel.abi import FinishReason
from llmasos.kernel.errors import ContextTooLong, Interrupted

KEPT_TURNS = 4
FULL = "[The window is full; the oldest turns are forgotten.]"
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
    """A session that begins anew, with its latest turns, where the model's window is full."""

    def __init__(self, proc: Proc, params: Params) -> None:
        self._proc = proc
        self._params = params
        self._session = proc.session(system=params.system)
        self._turns: list[Message] = []
        """What was said in this process, for when the conversation begins anew."""
        self.is_inherited = False

    async def begin(self) -> None:
        """Take up the inherited conversation, if there is one."""
        if inherited := await self._proc.inherited():
            self._session = Session(inherited[-1])
            self.is_inherited = True

    async def reply(self, text: str) -> None:
        """Answer one turn, on a line of its own."""
        try:
            if await self._say(text):
                self._turns.append(Message("user", text))
                await self._answer()
        except Interrupted:
            await self._proc.print(INTERRUPTED)

    async def _say(self, text: str) -> bool:
        """Append the turn; where it does not fit, forget the oldest turns. False: it never fits."""
        if await self._continue(self._session, text):
            return True
        for kept in (self._turns[-KEPT_TURNS:], []):
            if await self._begin_anew(kept, text):
                await self._proc.print(FULL)
                return True
        await self._proc.print(TOO_LONG)
        return False

    async def _begin_anew(self, kept: list[Message], text: str) -> bool:
        async with self._proc.session(system=self._params.system) as fresh:
            try:
                await fresh.recall(kept)
            except ContextTooLong:
                return False
            if not await self._continue(fresh, text):
                return False
        self._turns = list(kept)
        return True

    async def _continue(self, session: Session, text: str) -> bool:
        """Go on with a copy of a session in which the turn was said and a reply has room."""
        attempt = await session.fork()
        if not await self._fits(attempt, text):
            await attempt.context.close()
            return False
        await self._session.context.close()
        self._session = attempt
        return True

    async def _fits(self, session: Session, text: str) -> bool:
        try:
            await session.say(text)
        except ContextTooLong:
            return False
        info = await session.context.info()
        room = min(self._params.max_tokens, info.context_length // 4)
        return info.num_tokens + room <= info.context_length

    async def _answer(self) -> None:
        """Stream the reply; an interrupted one stays in the conversation as far as it got."""
        said = ""
        async with self._session.context.stream(**self._params.generate_options()) as pieces:
            async for piece in pieces:
                said += piece
                await self._proc.print(piece, end="")
        self._turns.append(Message("assistant", said))
        was_interrupted = pieces.result.finish is FinishReason.INTERRUPTED
        await self._proc.print(f" {INTERRUPTED}" if was_interrupted else "")
