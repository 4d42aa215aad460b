"""What both sides of `benchmarks.journal_peers` share: the agent's script, and tools that leave traces."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

TOOLS = ("look", "reckon", "send")
"""The first reads, the second reckons, the third changes the world."""
REPLY_TOKENS = 16
REPLY = " word" * REPLY_TOKENS
QUESTION = "Find what is known, work out the sum, and tell the others about it. " * 3
FOUND = "a line of what was found, long enough to be worth reading. " * 7
KILLED = 9
INSIDE, AFTER = "in the tool, at its end", "once the agent has the result"
TOKEN, REPLIED = "token", "reply"


@dataclass(slots=True)
class World:
    """Where tools leave traces, and where this process is to die."""

    folder: Path
    dies_at: str = ""
    """A moment and a tool; empty: nowhere."""
    is_traced: bool = False

    def note(self, what: str) -> None:
        if self.is_traced:
            with open(self.folder / "traces", "a", encoding="ascii") as file:
                file.write(what + "\n")

    def use(self, tool: str) -> str:
        """A tool's work."""
        self.note(tool)
        self.die(INSIDE, tool)
        return FOUND

    def die(self, moment: str, tool: str) -> None:
        if self.dies_at == f"{moment}/{tool}":
            os._exit(KILLED)

    def count(self, what: str) -> int:
        path = self.folder / "traces"
        return path.read_text().split("\n").count(what) if path.exists() else 0
