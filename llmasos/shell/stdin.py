"""Lines of an input, whatever it is: a terminal, a pipe, a file, /dev/null.

Never reads ahead once it is cancelled, so a terminal's next line is left for whoever asks next.
"""

from __future__ import annotations

import codecs
import os
from collections.abc import AsyncGenerator

import anyio
import anyio.to_thread

CHUNK = 1 << 16


async def chunks(fd: int) -> AsyncGenerator[str]:
    """The input's text as it comes; bytes that are no UTF-8 become U+FFFD."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    while data := await _read(fd):
        yield decoder.decode(data)
    yield decoder.decode(b"", final=True)


async def lines(fd: int) -> AsyncGenerator[str]:
    """The input's lines without their breaks, the last one too if it has none."""
    rest: list[str] = []
    async for chunk in chunks(fd):
        *whole, last = chunk.split("\n")
        for line in whole:
            yield "".join([*rest, line]).removesuffix("\r")
            rest.clear()
        rest.append(last)
    if last_line := "".join(rest):
        yield last_line


async def everything(fd: int, *, max_chars: int) -> str:
    """The whole input, or its first `max_chars` characters and one more."""
    kept: list[str] = []
    num_chars = 0
    async for chunk in chunks(fd):
        kept.append(chunk)
        num_chars += len(chunk)
        if num_chars > max_chars:
            break
    return "".join(kept)[: max_chars + 1]


async def _read(fd: int) -> bytes:
    try:
        await anyio.wait_readable(fd)
    except PermissionError:  # epoll does not take regular files, which never make one wait long
        return await anyio.to_thread.run_sync(os.read, fd, CHUNK)
    return os.read(fd, CHUNK)
