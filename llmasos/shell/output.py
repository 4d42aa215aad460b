"""Where the shell's words go: stdout for results, stderr for errors, and what each can show.

One place decides what is a terminal (colours, escape filtering, tables for people), what is kept
for a script's `/expect`, and keeps a slow or stopped reader from stopping the event loop.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

import anyio.to_thread

from llmasos.kernel.errors import ConfigError, LlmosError
from llmasos.shell.plain import TerminalFilter, one_line, plain_text
from llmasos.shell.tables import Table, rich_table
from llmasos.shell.wire import encode

if TYPE_CHECKING:
    from rich.console import Console

MAX_CAPTURED = 1 << 20
"""Characters of a command's output that a script can look at; the latest are kept."""


class Output:
    """Writes for one command line. `captured` holds what stdout got since `capturing` began."""

    def __init__(
        self, stdout: TextIO, stderr: TextIO, *, environ: Mapping[str, str] | None = None
    ) -> None:
        self._environ = os.environ if environ is None else environ
        self._stdout = stdout
        self._stderr = stderr
        self._filter = TerminalFilter()
        self._captured: list[str] | None = None
        self._echo = True
        self._at_line_start = True

    @property
    def terminal(self) -> bool:
        """Whether a person reads stdout."""
        return self._stdout.isatty()

    @property
    def watched(self) -> bool:
        """Whether a person sees notes as they come, and could press Ctrl-C."""
        return self._stderr.isatty() and sys.stdin is not None and sys.stdin.isatty()

    @property
    def is_seen(self) -> bool:
        """Whether a person sees notes as they come, wherever input comes from."""
        return self._stderr.isatty()

    @property
    def color(self) -> bool:
        """Whether stdout may be coloured (no-color.org)."""
        dumb = self._environ.get("TERM") == "dumb"
        return self.terminal and not dumb and not self._environ.get("NO_COLOR")

    @property
    def width(self) -> int:
        """Columns of the terminal, 80 where nobody knows."""
        return max(shutil.get_terminal_size((80, 24)).columns, 20)

    @contextmanager
    def capturing(self, *, echo: bool = True) -> Iterator[list[str]]:
        """Collect what goes to stdout meanwhile; without `echo`, instead of writing it."""
        before = self._captured, self._echo
        self._captured, self._echo = [], echo
        try:
            yield self._captured
        finally:
            self._captured, self._echo = before

    def write(self, text: str) -> None:
        """Untrusted text, as it comes; made safe where a terminal would read it. May block."""
        if self._captured is not None:
            _keep(self._captured, text)
        if not self._echo:
            return
        shown = self._filter.feed(text) if self.terminal else text
        if shown:
            self._at_line_start = shown.endswith("\n")
            self._stdout.write(shown)
            self._stdout.flush()

    async def stream(self, text: str) -> None:
        """`write`, without blocking the event loop when the reader is slow."""
        await anyio.to_thread.run_sync(self.write, text, abandon_on_cancel=True)

    async def aside(self, text: str) -> None:
        """Whole lines of untrusted text to stderr, beside what stdout gets; does not block the loop."""

        def write() -> None:
            self._stderr.write(plain_text(text) if self._stderr.isatty() else text)
            self._stderr.flush()

        await anyio.to_thread.run_sync(write, abandon_on_cancel=True)

    def line(self, text: str) -> None:
        """One line of our own."""
        self.write(text + "\n")

    def end_line_on_terminal(self) -> None:
        """Begin a new line unless one has just begun, where a person reads: else output is exact."""
        if self.terminal and not self._at_line_start:
            self.write("\n")

    def note(self, sentence: str) -> None:
        """A remark for the person that is no part of the result: to stderr."""
        self.end_line_on_terminal()
        self.flush()
        self._stderr.write(f"llmasos: {sentence}\n")
        self._stderr.flush()

    def person(self, text: str, *, end: str = "\n") -> None:
        """Something for the person who attends, that is no part of the result: to stderr. `text` is safe."""
        self.end_line_on_terminal()
        self.flush()
        self._stderr.write(text + end)
        self._stderr.flush()

    @contextmanager
    def passing(self, text: str) -> Iterator[None]:
        """A remark on a terminal that goes when the context ends; none elsewhere."""
        if not self._stderr.isatty() or self._environ.get("TERM") == "dumb":
            yield
            return
        self._stderr.write(one_line(text, max_chars=self.width - 1))
        self._stderr.flush()
        try:
            yield
        finally:
            self._stderr.write("\r\x1b[K")
            self._stderr.flush()

    def error(self, error: LlmosError) -> None:
        """An error, one sentence a line, to stderr."""
        problems = error.problems if isinstance(error, ConfigError) else (str(error),)
        for problem in problems or (type(error).__name__,):
            self.note(one_line(problem, max_chars=2000))

    def table(self, table: Table) -> None:
        """A table for people, or aligned text where no terminal is."""
        if self._captured is not None:
            _keep(self._captured, table.plain())
        if not self._echo:
            return
        if self.terminal:
            self.console().print(rich_table(table.fitted(self.width)))
        else:
            self._stdout.write(table.plain())
        self.flush()

    def console(self) -> Console:
        """A rich console on stdout, for a terminal."""
        return self._console(self._stdout)

    def watched_console(self) -> Console:
        """A rich console on stderr, for a terminal."""
        return self._console(self._stderr)

    def _console(self, file: TextIO) -> Console:
        from rich.console import Console

        return Console(
            file=file,
            force_terminal=True,
            width=self.width,
            no_color=not self.color,
            highlight=False,
        )

    def json(self, value: Any) -> None:
        """A value as one JSON document: indented for people, on one line for programs."""
        indent = 2 if self.terminal else None
        self.line(json.dumps(encode(value), indent=indent, ensure_ascii=self.terminal))

    def flush(self) -> None:
        """Hand everything over. Raises `BrokenPipeError` where the reader has gone."""
        self._stdout.flush()


def _never_fail_to_encode(stream: TextIO) -> None:
    """Without a UTF-8 locale a character that the encoding lacks becomes `?`, not a traceback."""
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")


def _keep(captured: list[str], text: str) -> None:
    captured.append(text)
    if len(captured) > 4096:  # compact now and then, so that a flood costs linear time
        captured[:] = ["".join(captured)[-MAX_CAPTURED:]]


def standard_output() -> Output:
    """An `Output` on this process's own stdout and stderr, for a command: either may be closed, and
    neither fails to encode from now on."""
    streams = [stream or _nowhere() for stream in (sys.stdout, sys.stderr)]
    for stream in streams:
        _never_fail_to_encode(stream)
    return Output(*streams)


def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")
