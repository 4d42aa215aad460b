"""What a process prints: kept for late readers, streamed to live ones, bounded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

MAX_CHARS = 4_000_000
MAX_LOG_CHARS = 256_000
GAP = "[older output dropped]\n"


def log_line(text: str, level: str = "info") -> str:
    """What a note of a process looks like in its log."""
    return f"[{level}] {text}\n"


def progress_text(done: float, total: float | None = None, text: str = "") -> str:
    """How far a process says that it is, in a few words."""
    number = f"{float(done):g}" + ("" if total is None else f"/{float(total):g}")
    return f"{number} {text}".rstrip()


class Output:
    """A process's stdout. Keeps the newest `max_chars` characters or so; older text is dropped."""

    def __init__(self, max_chars: int = MAX_CHARS) -> None:
        self._pieces: list[str] = []
        self._num_dropped = 0
        self._num_chars = 0
        self._max_chars = max_chars
        self._is_closed = False
        self._changed = asyncio.Event()

    @property
    def text(self) -> str:
        """Everything that is kept."""
        return (GAP if self._num_dropped else "") + "".join(self._pieces)

    def write(self, text: str) -> None:
        """Add text and wake the readers. Never blocks."""
        if not text or self._is_closed:
            return
        self._pieces.append(text)
        self._num_chars += len(text)
        if self._num_chars > self._max_chars:
            self._drop_oldest()
        self._wake()

    def close(self) -> None:
        """No more will come; readers end once they have everything."""
        self._is_closed = True
        self._wake()

    async def read(self) -> AsyncIterator[str]:
        """From the beginning, then live until the end. A reader that lags too far is told so."""
        position = 0
        while True:
            if position < self._num_dropped:
                position = self._num_dropped
                yield GAP
            new = self._pieces[position - self._num_dropped :]
            position += len(new)
            if new:
                yield "".join(new)
            elif self._is_closed:
                return
            else:
                await self._changed.wait()

    def _drop_oldest(self) -> None:
        """Down to three quarters, so that it is done seldom; the newest piece always stays."""
        num_dropped = 0
        while self._num_chars > self._max_chars * 3 // 4 and num_dropped < len(self._pieces) - 1:
            self._num_chars -= len(self._pieces[num_dropped])
            num_dropped += 1
        del self._pieces[:num_dropped]
        self._num_dropped += num_dropped

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class Input:
    """A process's stdin: lines that were sent and not read yet."""

    def __init__(self, *, is_open: bool) -> None:
        self._lines: asyncio.Queue[str | None] = asyncio.Queue()
        self._is_open = is_open

    def send(self, text: str | None) -> None:
        """Add a line without its line break, or the end of file."""
        if text is None:
            self._is_open = False
        self._lines.put_nowait(text)

    async def read_line(self) -> str | None:
        """The next line, or None at the end of file."""
        if not self._is_open and self._lines.empty():
            return None
        return await self._lines.get()
