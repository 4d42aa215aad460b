"""Scripts of shell lines: `llmasos script FILE [ARGS]`. docs/script.md is for who writes one.

A line is what one would type in the shell: `/verb ...`, or plain text, which is said to a chat
process. Besides there are comments (`#`), `$variables`, `$name = /verb ...` (the verb's output),
`&` for background processes, a `\\` at the end that joins the next line, and the verbs of
`script_verbs`. A line that fails ends the script with its exit code, unless `/set errexit off`.
Quotes and verbs' names are checked in the whole file before anything runs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from llmasos.kernel.abi import Pid
from llmasos.kernel.errors import UsageError
from llmasos.shell.words import split

_ASSIGNMENT = re.compile(r"\$([A-Za-z_]\w*)\s*=\s*(.*)", re.A | re.S)


@dataclass(frozen=True, slots=True)
class Line:
    """One logical line of a script."""

    number: int
    """Of its first physical line, from 1."""
    text: str
    """Without the assignment."""
    variable: str | None = None
    """What it assigns to."""
    source: str = ""
    """As it stands in the script."""

    @property
    def is_verb(self) -> bool:
        """A verb, and not text for the chat."""
        return self.text.startswith("/") and not self.text.startswith("//")

    @property
    def is_work(self) -> bool:
        """It does something whose time is worth knowing."""
        verb = self.text.removeprefix("/").partition(" ")[0]
        return not (self.is_verb and verb in ("echo", "set", "expect", "times", "cd"))

    @property
    def said(self) -> str:
        """What it says to the chat: `//` stands for a text that begins with a slash."""
        return self.text.removeprefix("/") if self.text.startswith("//") else self.text


@dataclass(slots=True)
class Step:
    """What a line did, for `/times`."""

    line: Line
    seconds: float
    code: int


@dataclass(slots=True)
class ScriptState:
    """What the script's verbs see and change."""

    variables: dict[str, str] = field(default_factory=dict)
    options: dict[str, bool] = field(
        default_factory=lambda: {"errexit": True, "echo": False, "times": False}
    )
    background: list[Pid] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    exit_code: int | None = None
    """Set by `/exit`: the script ends with it."""
    output: str = ""
    """Of the latest line that wrote anything."""


def parse(text: str, *, name: str, check_verb: Callable[[Sequence[str]], object]) -> list[Line]:
    """The lines of a script. Raises `UsageError` with every problem, each with its line."""
    lines: list[Line] = []
    problems: list[str] = []
    for number, joined in _joined(text):
        try:
            lines.append(_line(number, joined, check_verb))
        except UsageError as error:
            problems += [f"{name}:{number}: {problem}" for problem in error.problems]
    if problems:
        raise UsageError(*problems)
    return lines


def _joined(text: str) -> list[tuple[int, str]]:
    """Numbered lines that say something, continued ones put together."""
    found: list[tuple[int, str]] = []
    parts: list[str] = []
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), start=1):
        line = line.removesuffix("\r")
        if not parts and (not line.strip() or line.lstrip().startswith("#")):
            continue
        if line.endswith("\\"):
            parts.append(line[:-1])
            continue
        found.append((number - len(parts), "".join([*parts, line]).strip()))
        parts = []
    if parts:
        found.append((len(text.split("\n")) - len(parts) + 1, "".join(parts).strip()))
    return found


def _line(number: int, text: str, check_verb: Callable[[Sequence[str]], object]) -> Line:
    match = _ASSIGNMENT.fullmatch(text)
    line = Line(number, match[2], match[1], text) if match else Line(number, text, source=text)
    if line.is_verb:
        words = split(uncommented(line.text[1:]))
        if not words:
            raise UsageError("A / needs a verb after it.")
        check_verb(words)
    elif line.variable is not None:
        split(uncommented(line.text))
    return line


def uncommented(text: str) -> str:
    """A verb's line without the comment at its end: a `#` after a space, outside quotes."""
    quote = ""
    for position, char in enumerate(text):
        if quote:
            quote = "" if char == quote and text[position - 1] != "\\" else quote
        elif char in "'\"" and text[position - 1 : position] != "\\":
            quote = char
        elif char == "#" and (position == 0 or text[position - 1].isspace()):
            return text[:position].rstrip()
    return text
