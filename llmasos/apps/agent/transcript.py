"""What has happened so far in one request: plain records, and how results read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any

MAX_SHOWN_CHARS = 300


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A syscall that the model wants made."""

    tool: str
    args: Mapping[str, Any]

    def __str__(self) -> str:
        args = ", ".join(f"{name}={_brief(value)}" for name, value in self.args.items())
        return f"{self.tool}({args})"


@dataclass(frozen=True, slots=True)
class Step:
    """A call that was made, and what came of it: a result, or the error's sentence."""

    call: ToolCall
    text: str
    failed: bool = False
    data: Any = None
    """The result itself, where `text` is only how it reads."""


@dataclass(slots=True)
class Transcript:
    """One request and the steps taken for it."""

    task: str
    context: str = ""
    """Text the user gave along with the request."""
    steps: list[Step] = field(default_factory=list)

    @property
    def last(self) -> Step | None:
        """The latest step."""
        return self.steps[-1] if self.steps else None

    @property
    def results(self) -> list[Step]:
        """The steps that worked."""
        return [step for step in self.steps if not step.failed]

    def has_made(self, call: ToolCall) -> bool:
        """Whether this very call was made before."""
        return any(step.call == call for step in self.steps)


def read_result(result: Any) -> str:
    """A syscall's result as text: its own `text` and `note` where it has them, else JSON."""
    if isinstance(result, str):
        return result
    if isinstance(result, dict) and isinstance(result.get("text"), str):
        return "\n".join(part for part in (result["text"].rstrip("\n"), result.get("note")) if part)
    if is_dataclass(result) and not isinstance(result, type):
        result = asdict(result)
    return json.dumps(result, ensure_ascii=False, default=str)


def one_line(text: str) -> str:
    """A text short enough to show in one line, saying how much was left out."""
    flat = " ⏎ ".join(line.strip() for line in text.strip().splitlines() if line.strip())
    if len(flat) <= MAX_SHOWN_CHARS:
        return flat
    return f"{flat[:MAX_SHOWN_CHARS]}… ({len(text):,} characters)"


def _brief(value: Any) -> str:
    return one_line(json.dumps(value, ensure_ascii=False, default=str))
