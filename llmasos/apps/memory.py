"""`Memory`: what an app remembers beyond its contexts, and beyond its own life."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmasos.apps.port import Port


@dataclass(frozen=True, slots=True)
class Memory:
    """Something that was remembered."""

    id: int
    text: str
    scope: str
    source: str
    written_by: str
    written_at: str
    """ISO 8601, UTC."""
    score: float
    """How well it fits the question; 0 where there was none."""


class Memories:
    """The memories that a process may see. Scopes: `process` (this one's), `app` (all runs of its app),
    `user` (everyone's)."""

    def __init__(self, port: Port) -> None:
        self._port = port

    async def remember(self, text: str, *, scope: str = "app", source: str = "") -> int:
        """Remember a text; returns its number. The same text again changes nothing."""
        args = {"text": text, "scope": scope, "source": source}
        return int((await self._port.syscall("memory.remember", args))["id"])

    async def recall(self, query: str, *, scope: str = "all", limit: int = 5) -> list[Memory]:
        """What is remembered about something, best first."""
        args = {"query": query, "scope": scope, "limit": limit}
        return _memories(await self._port.syscall("memory.recall", args))

    async def list(self, *, scope: str = "all", limit: int = 50) -> list[Memory]:
        """What is remembered, newest first."""
        args = {"scope": scope, "limit": limit}
        return _memories(await self._port.syscall("memory.list", args))

    async def forget(self, id: int) -> None:
        """Forget one memory for good. Raises `Failed` where there is none that this process may forget."""
        await self._port.syscall("memory.forget", {"id": id})


def _memories(result: Mapping[str, Any]) -> list[Memory]:
    return [Memory(**each) for each in result["memories"]]
