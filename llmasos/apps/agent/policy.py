"""What the agent's loop asks of a policy: the next call, and the answer. Nothing else decides."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from llmasos.apps.agent.transcript import ToolCall, Transcript

Write = Callable[[str], Awaitable[None]]


class Policy(Protocol):
    """Decides for one request. Implementations: `ScoredPolicy` and `SchemaPolicy`."""

    async def next_call(self, transcript: Transcript) -> ToolCall | None:
        """The call to make now, or None to answer with what is known."""
        ...

    async def answer(self, transcript: Transcript, write: Write) -> None:
        """Write the answer, piece by piece."""
        ...
